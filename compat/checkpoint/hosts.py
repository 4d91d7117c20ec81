"""The disks of a job on several hosts: detecting them, comparing their files, and copying between them.

Every function here that involves more than one process is collective: all processes must call it.
"""

from __future__ import annotations

import contextlib
import os
import socket
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.distributed as dist
from transformers.utils import is_torch_xla_available, logging
from typing_extensions import override

from compat.checkpoint.atomic import begin, close, delete, partial_of, place, sealed_partials, sweep
from compat.checkpoint.flushing import flush
from compat.checkpoint.layout import is_one_of
from compat.checkpoint.manifest import MANIFEST, files_of, reseal, saved_as
from compat.checkpoint.selection import Disk, is_plain, numbered
from compat.checkpoint.verify import Report, judged, looked_at, problems
from compat.errors import BrokenCheckpointError, CheckpointError, CompatError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from compat.checkpoint.manifest import Save

T = TypeVar("T")

logger = logging.get_logger("transformers.trainer")

MARKER = "_disk-"
"""Prefix of the file with which processes detect that they see the same folder."""

CHUNK = 64 << 20
"""The number of bytes sent at once."""

_DRAFT = ".fetched"


@dataclass(frozen=True)
class Contents:
    """The content of a folder on one disk.

    Attributes:
        sizes: file → bytes.
        save: the save to several disks that it belongs to.
        changed: when it was last changed, in ns; rotation goes by that.
    """

    sizes: Mapping[str, int]
    save: Save | None
    changed: int

    @classmethod
    def of(cls, folder: Path, skip: tuple[str, ...] = ()) -> Contents | None:
        """Read the content of a folder; None if it does not exist."""
        if not folder.is_dir():
            return None
        for stale in folder.rglob(f"*{_DRAFT}"):
            delete(stale)
        names = [name for name in files_of(folder) if not is_one_of(name, skip)]
        sizes = {name: (folder / name).stat().st_size for name in names}
        return cls(sizes, saved_as(folder), folder.stat().st_mtime_ns)


@dataclass(frozen=True)
class Transfer:
    """A file to be copied to the disks that lack it.

    Attributes:
        name: its path within the folder.
        size: in bytes.
        source: the disk that it is read from.
        targets: the disks that it is written to.
    """

    name: str
    size: int
    source: int
    targets: frozenset[int]


def transfers(contents: Sequence[Contents | None]) -> list[Transfer]:
    """Determine the transfers after which every disk has every file of a folder.

    Args:
        contents: the content of the folder on each disk.
    """
    sizes = [{} if one is None else one.sizes for one in contents]
    found = []
    for name in sorted({name for one in sizes for name in one}):
        source = next(disk for disk, one in enumerate(sizes) if name in one)
        if targets := frozenset(disk for disk, one in enumerate(sizes) if name not in one):
            found.append(Transfer(name, sizes[source][name], source, targets))
    return found


def agreed(parts: Sequence[tuple[Mapping[str, Save], Mapping[str, Save | None]]]) -> set[str]:
    """Return the checkpoints of which every disk has its part of the same save.

    Args:
        parts: for each disk, the sealed checkpoints before renaming, and those at their final paths.
    """
    names = {name: save for partial, _ in parts for name, save in partial.items()}
    return {
        name
        for name, save in names.items()
        if all(save in (partial.get(name), placed.get(name)) for partial, placed in parts)
    }


def grouped(markers: Mapping[int, str], seen: Sequence[frozenset[str]]) -> list[list[int]]:
    """Group processes by disk, the first process's disk first.

    Args:
        markers: process → the marker file that it wrote, for the first process of each host.
        seen: the files that each process sees.
    """
    disks: list[list[int]] = []
    for rank in range(len(seen)):
        # A network folder may show a file to one side immediately, and to the other later.
        shared = next(
            (
                disk
                for disk in disks
                if any(markers.get(other) in seen[rank] or markers.get(rank) in seen[other] for other in disk)
            ),
            None,
        )
        if shared is None:
            disks.append([rank])
        else:
            shared.append(rank)
    return disks


@dataclass(frozen=True)
class Disks(Disk):
    """The disks that hold the folder of a job's run.

    Attributes:
        rank: this process.
        leads: the first process of each disk, which does the work that is done once per disk.
        own: the disk of this process.
        hosts: the name of each disk's host.
        mates: the processes that share this process's disk.
        device: where tensors must be to be sent.
    """

    rank: int = 0
    leads: tuple[int, ...] = (0,)
    own: int = 0
    hosts: tuple[str, ...] = ("",)
    mates: frozenset[int] = frozenset()
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def are_several(self) -> bool:
        """Whether hosts have separate disks."""
        return len(self.leads) > 1

    @property
    def leads_own(self) -> bool:
        """Whether this process does the work that is done once per disk."""
        return self.rank == self.leads[self.own]

    # Collective work.

    def each(self, work: Callable[[], T]) -> list[T]:
        """Run a function once on each disk.

        Returns:
            The result of each disk.

        Raises:
            CompatError: on all processes, if the function failed on one disk.
        """
        found, error = None, None
        if self.leads_own:
            try:
                found = work()
            except Exception as caught:  # noqa: BLE001 (raised on all)
                error = caught if isinstance(caught, CompatError) else self._told(caught)
        outcomes = gathered((found, error))
        by_disk = [outcomes[lead] for lead in self.leads]
        for _, failed in by_disk:
            if failed is not None:
                raise failed
        return [outcome for outcome, _ in by_disk]

    def _told(self, error: Exception) -> CheckpointError:
        return CheckpointError(f"on {self.name(self.own)}: {type(error).__name__}: {error}")

    def name(self, disk: int) -> str:
        """Return the name of a disk for messages."""
        return f"the host of process {self.leads[disk]} ({self.hosts[disk]})"

    # Choosing the checkpoint that a run resumes from.

    @override
    def numbered(self, folder: str | Path) -> list[str]:
        found = self.each(lambda: [os.path.basename(path) for path in numbered(folder)])
        names = {name for one in found for name in one}
        newest_first = sorted(names, key=lambda name: -int(name.rpartition("-")[2]))
        return [os.path.join(folder, name) for name in newest_first]

    @override
    def has(self, checkpoint: str | Path) -> bool:
        return any(self.each(lambda: os.path.isdir(checkpoint)))

    @override
    def was_ended(self, checkpoint: str) -> bool:
        return any(self.each(lambda: Disk.was_ended(self, checkpoint)))

    @override
    def problems(
        self, checkpoint: str | Path, *, needs_weights: bool = True, processes: int | None = None
    ) -> list[str]:
        root = Path(checkpoint)
        reports = self.each(lambda: looked_at(root) if root.is_dir() else None)
        return self.told(reports, needs_weights=needs_weights, processes=processes)

    def told(
        self, reports: Sequence[Report | None], *, needs_weights: bool = True, processes: int | None = None
    ) -> list[str]:
        """Describe why a checkpoint cannot be loaded, with the name of the host.

        Args:
            reports: one for each disk; None if the disk has nothing.
            needs_weights: whether the weights must be at the paths of HF's own Trainer.
            processes: the number of processes that will load it.
        """
        there = {disk: report for disk, report in enumerate(reports) if report is not None}
        disks = list(there)
        found = [
            f"`{name}`{'' if index is None else f' on {self.name(disks[index])}'}: {wrong}"
            for index, name, wrong in judged(
                list(there.values()), needs_weights=needs_weights, processes=processes
            )
        ]
        absent = [self.name(disk) for disk in range(len(reports)) if disk not in there]
        return [*found, f"nothing of it is on {', '.join(absent)}"] if found and absent else found

    def last_loadable(self, folder: str | Path, saved: str) -> str | None:
        """Return the newest checkpoint that a run can resume from, for `rotate`.

        Args:
            folder: the one that holds the checkpoints.
            saved: the checkpoint just saved.
        """
        if self.is_loadable(saved, is_fresh=True):
            return saved
        others = (path for path in self.numbered(folder) if os.path.basename(path) != os.path.basename(saved))
        return next((path for path in others if self.is_loadable(path)), None)

    def is_loadable(self, checkpoint: str | Path, *, is_fresh: bool = False) -> bool:
        """Whether a run can resume from a checkpoint; `selection.is_loadable` checks one disk."""
        root = Path(checkpoint)
        found = self.each(
            lambda: (is_plain(root), looked_at(root, is_fresh=is_fresh)) if root.is_dir() else None
        )
        parts = [part for part in found if part is not None]
        wrong = judged([report for _, report in parts], needs_weights=False)
        return all(plain for plain, _ in parts) and next(wrong, None) is None

    def sweep(self, folder: str | Path) -> list[str]:
        """Remove what a killed job has left on its disks, and complete checkpoints where possible.

        Returns:
            Sentences on what was done on the disk that this process leads.
        """
        parts = self.each(
            lambda: (
                sealed_partials(folder),
                {os.path.basename(path): saved_as(path) for path in numbered(folder)},
            )
        )
        done = self.each(lambda: sweep(folder, agreed(parts)))
        return done[self.own] if self.leads_own else []

    # Copying files to the other disks.

    def share(self, folder: str | Path, *, skip: tuple[str, ...] = ()) -> frozenset[int]:
        """Copy files of a folder to every disk that lacks them.

        The manifest is updated; a folder that a disk lacks appears atomically.

        Args:
            folder: a `checkpoint-N` folder, or one that is being written.
            skip: files that are not copied.

        Returns:
            The disks that received files.

        Raises:
            CheckpointError: on all processes, if a file cannot be read or written on one.
        """
        root = Path(folder)
        contents = self.each(lambda: Contents.of(root, skip))
        due = transfers(contents)
        given = frozenset[int]().union(*(one.targets for one in due))
        mine = contents[self.own]
        takes = self.leads_own and self.own in given
        if takes:
            size = sum(one.size for one in due if self.own in one.targets)
            logger.info(f"`{root}`: {size / 1e6:.1f} MB are fetched from the disks of other hosts.")
        drafts: list[Path] = []
        try:
            if given:
                self.each(lambda: begin(root) if mine is None and takes else None)
                target = partial_of(root) if mine is None else root
                for one in due:
                    self._send(one, root, target, drafts)
                self.each(lambda: self._settle(root, contents, drafts) if takes else None)
        finally:
            for draft in drafts:
                delete(draft)
            if mine is None and takes:
                delete(partial_of(root))
        return given

    def _send(self, one: Transfer, root: Path, target: Path, drafts: list[Path]) -> None:
        reads = self.leads_own and self.own == one.source
        writes = self.leads_own and self.own in one.targets
        error: OSError | None = None
        with contextlib.ExitStack() as stack:
            stream: Any = None
            try:
                if reads:
                    stream = stack.enter_context(open(root / one.name, "rb"))
                elif writes:
                    draft = target / f"{one.name}{_DRAFT}"
                    draft.parent.mkdir(parents=True, exist_ok=True)
                    drafts.append(draft)
                    stream = stack.enter_context(open(draft, "wb"))
            except OSError as caught:
                error = caught
            for start in range(0, one.size, CHUNK):
                chunk = torch.zeros(min(CHUNK, one.size - start), dtype=torch.uint8)
                # The others wait for this process to send, even if its disk fails.
                if reads and error is None and (error := _read(stream, chunk)) is not None:
                    chunk.zero_()
                sent = chunk.to(self.device)
                dist.broadcast(sent, src=self.leads[one.source])
                if writes and error is None:
                    error = _write(stream, sent.cpu())
        self.each(lambda: _raise(error))

    def _settle(self, root: Path, contents: Sequence[Contents | None], drafts: Sequence[Path]) -> None:
        mine = contents[self.own]
        theirs = next(one for one in contents if one is not None)
        for draft in drafts:
            flush(draft)
            draft.replace(draft.with_name(draft.name.removesuffix(_DRAFT)))
        if mine is None:
            close(root, theirs.save)
            place(root)
        elif (root / MANIFEST).is_file():
            reseal(root)
        changed = (theirs if mine is None else mine).changed
        os.utime(root, ns=(changed, changed))

    def renew(self, folder: str | Path, name: str) -> None:
        """Update each disk's copies of files that processes have rewritten.

        Args:
            folder: a `checkpoint-N` folder.
            name: the name of the file, with {} for the number of its process.
        """

        def forget() -> None:
            for rank in set(range(dist.get_world_size())) - self.mates:
                delete(Path(folder, name.format(rank)))

        self.each(forget)
        self.share(folder)

    def fetch(self, checkpoint: str | Path, *, needs_weights: bool = True) -> None:
        """Copy a complete checkpoint to every disk, and verify the result.

        Raises:
            BrokenCheckpointError: on all processes, if the parts do not match.
        """
        given = self.share(checkpoint)

        def look() -> list[str]:
            # The other disks were verified before.
            return problems(checkpoint, needs_weights=needs_weights) if self.own in given else []

        for disk, wrong in enumerate(self.each(look) if given else ()):
            if wrong:
                msg = (
                    f"`{checkpoint}`: its parts do not fit together on {self.name(disk)}: "
                    f"{'; '.join(wrong)}. Give another checkpoint."
                )
                raise BrokenCheckpointError(msg)


def _read(stream: Any, chunk: torch.Tensor) -> OSError | None:
    try:
        count = stream.readinto(chunk.numpy())
    except OSError as error:
        return error
    return None if count == chunk.numel() else OSError(f"{stream.name}: shorter than it was")


def _write(stream: Any, chunk: torch.Tensor) -> OSError | None:
    try:
        stream.write(chunk.numpy())
    except OSError as error:
        return error
    return None


def _raise(error: Exception | None) -> None:
    if error is not None:
        raise error


def find_disks(
    folder: str | Path, rank: int, *, is_first_of_host: bool, is_needed: bool, device: torch.device
) -> Disks:
    """Detect which processes of a job see the same folder; a collective call.

    The first process of each host writes a marker file there, and each process checks which of them it sees.

    Args:
        folder: the folder of the run, which is created if it does not exist.
        rank: this process.
        is_first_of_host: whether it is the first process of its host.
        is_needed: whether the run saves anything. If not, an unwritable folder counts as shared by all.
        device: where tensors must be to be sent.

    Raises:
        CheckpointError: on all processes, if the folder of one is not writable.
    """
    marker, error = Path(folder, f"{MARKER}{uuid.uuid4().hex}"), None
    if is_first_of_host:
        try:
            marker.parent.mkdir(parents=True, exist_ok=True)
            marker.touch()
        except OSError as caught:
            error = f"{socket.gethostname()}: {caught}"
    told = gathered((marker.name if is_first_of_host else None, error))
    try:
        names = frozenset(path.name for path in Path(folder).glob(f"{MARKER}*"))
        seen = gathered((names, socket.gethostname()))
    finally:
        if is_first_of_host:
            delete(marker)
    failed = [error for _, error in told if error is not None]
    if failed and not is_needed:
        return Disks(rank, device=device)
    if failed:
        msg = (
            f"`output_dir={str(folder)!r}`: a job over several hosts needs a folder on each of them, its "
            f"own or a shared one ({'; '.join(failed)}). Give another folder, or `save_strategy='no'`."
        )
        raise CheckpointError(msg)
    markers = {one: name for one, (name, _) in enumerate(told) if name is not None}
    disks = grouped(markers, [names for names, _ in seen])
    own = next(index for index, disk in enumerate(disks) if rank in disk)
    hosts = tuple(seen[disk[0]][1] for disk in disks)
    return Disks(rank, tuple(disk[0] for disk in disks), own, hosts, frozenset(disks[own]), device)


def gathered(value: object) -> list[Any]:
    """Gather a value from each process of a job, by rank; a collective call.

    Processes on XLA devices have no process group; torch_xla gathers what `torch.load` reads as plain data.
    """
    if not dist.is_initialized() and is_torch_xla_available():
        import torch_xla.core.xla_model as xm

        by_rank: list[Any] = xm.mesh_reduce("compat.gathered", value, list)
        return by_rank
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values
