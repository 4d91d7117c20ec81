"""The disks of a job over several hosts: which there are, what lies on them, and how files get to the others.

Every function here that has to do with more than one process has to be called by all of them.
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
from transformers.utils import logging
from typing_extensions import override

from compat.checkpoint.atomic import begin, close, delete, partial_of, place, sealed_partials, sweep
from compat.checkpoint.layout import is_one_of
from compat.checkpoint.manifest import MANIFEST, files_of, flush, reseal, saved_as
from compat.checkpoint.selection import Disk, is_plain, numbered
from compat.checkpoint.verify import Report, judged, looked_at, problems
from compat.errors import BrokenCheckpointError, CheckpointError, CompatError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from compat.checkpoint.manifest import Save

T = TypeVar("T")

logger = logging.get_logger("transformers.trainer")

MARKER = "_disk-"
"""Begins the name of the file by which processes find out that they see the same folder."""

CHUNK = 64 << 20
"""Bytes that are sent at once."""

_DRAFT = ".fetched"


@dataclass(frozen=True)
class Contents:
    """A folder as one disk has it.

    Attributes:
        sizes: each of its files → bytes.
        save: the save to several disks that it is a part of.
        changed: when it was last changed, in ns; rotation goes by that.
    """

    sizes: Mapping[str, int]
    save: Save | None
    changed: int

    @classmethod
    def of(cls, folder: Path, skip: tuple[str, ...] = ()) -> Contents | None:
        """Those of a folder; None where there is none."""
        if not folder.is_dir():
            return None
        for stale in folder.rglob(f"*{_DRAFT}"):
            delete(stale)
        names = [name for name in files_of(folder) if not is_one_of(name, skip)]
        sizes = {name: (folder / name).stat().st_size for name in names}
        return cls(sizes, saved_as(folder), folder.stat().st_mtime_ns)


@dataclass(frozen=True)
class Transfer:
    """A file that some disks lack.

    Attributes:
        name: its path within the folder.
        size: in bytes.
        source: the disk that it is read from.
        targets: those that it is written to.
    """

    name: str
    size: int
    source: int
    targets: frozenset[int]


def transfers(contents: Sequence[Contents | None]) -> list[Transfer]:
    """What has to be sent so that every disk has every file of a folder.

    Args:
        contents: the folder on each disk.
    """
    sizes = [{} if one is None else one.sizes for one in contents]
    found = []
    for name in sorted({name for one in sizes for name in one}):
        source = next(disk for disk, one in enumerate(sizes) if name in one)
        if targets := frozenset(disk for disk, one in enumerate(sizes) if name not in one):
            found.append(Transfer(name, sizes[source][name], source, targets))
    return found


def agreed(parts: Sequence[tuple[Mapping[str, Save], Mapping[str, Save | None]]]) -> set[str]:
    """The checkpoints of which every disk has its part of one and the same save.

    Args:
        parts: for each disk, those that lack only their names, and those in their places.
    """
    names = {name: save for partial, _ in parts for name, save in partial.items()}
    return {
        name
        for name, save in names.items()
        if all(save in (partial.get(name), placed.get(name)) for partial, placed in parts)
    }


def grouped(markers: Mapping[int, str], seen: Sequence[frozenset[str]]) -> list[list[int]]:
    """The processes of each disk, the first process's disk first.

    Args:
        markers: process → the file that it has left, for the first process of each host.
        seen: the files that each process sees.
    """
    disks: list[list[int]] = []
    for rank in range(len(seen)):
        # A folder on the network may show a file late to one side, and to the other at once.
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
    """The disks on which a job has the folder of its run.

    Attributes:
        rank: this process.
        leads: the first process of each disk, which does what is done there once.
        own: the disk of this process.
        hosts: the name of each disk's host.
        mates: the processes that share the disk of this one.
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
        """Whether hosts have disks of their own."""
        return len(self.leads) > 1

    @property
    def leads_own(self) -> bool:
        """Whether this process does what is done once on its disk."""
        return self.rank == self.leads[self.own]

    # One job, several disks.

    def each(self, work: Callable[[], T]) -> list[T]:
        """Do something once on each disk.

        Returns:
            What came of it on each.

        Raises:
            CompatError: on all processes, where it has failed on one disk.
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
        """How a disk is called in words."""
        return f"the host of process {self.leads[disk]} ({self.hosts[disk]})"

    # Which checkpoint a run resumes from.

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
        """What keeps a checkpoint from being loaded, in words that name the host.

        Args:
            reports: one of each disk, None where it has nothing.
            needs_weights: whether the weights must lie where HF's own Trainer has them.
            processes: how many will load it.
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
        """The newest checkpoint that a run can resume from, as `rotate` takes it.

        Args:
            folder: the one that holds the checkpoints.
            saved: the one just saved.
        """
        if self.is_loadable(saved, is_fresh=True):
            return saved
        others = (path for path in self.numbered(folder) if os.path.basename(path) != os.path.basename(saved))
        return next((path for path in others if self.is_loadable(path)), None)

    def is_loadable(self, checkpoint: str | Path, *, is_fresh: bool = False) -> bool:
        """Whether a run can resume from a checkpoint, as `whole.is_loadable` tells for one disk."""
        root = Path(checkpoint)
        found = self.each(
            lambda: (is_plain(root), looked_at(root, is_fresh=is_fresh)) if root.is_dir() else None
        )
        parts = [part for part in found if part is not None]
        wrong = judged([report for _, report in parts], needs_weights=False)
        return all(plain for plain, _ in parts) and next(wrong, None) is None

    def sweep(self, folder: str | Path) -> list[str]:
        """Clear away what a job that was killed has left on its disks, and bring to its end what can be.

        Returns:
            What was done on the disk that this process leads, in sentences.
        """
        parts = self.each(
            lambda: (
                sealed_partials(folder),
                {os.path.basename(path): saved_as(path) for path in numbered(folder)},
            )
        )
        done = self.each(lambda: sweep(folder, agreed(parts)))
        return done[self.own] if self.leads_own else []

    # How files get to the other disks.

    def share(self, folder: str | Path, *, skip: tuple[str, ...] = ()) -> frozenset[int]:
        """Give every disk the files of a folder that only others have.

        A manifest is brought up to date; a folder that a disk lacks appears whole or not at all.

        Args:
            folder: a `checkpoint-N` folder, or one that is being written.
            skip: files that stay where they are.

        Returns:
            The disks that have been given something.

        Raises:
            CheckpointError: on all processes, where something cannot be read or written on one.
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
                # The others wait for what this process sends, whatever its disk does.
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
        """Have each disk's copies of what a process has written anew be as that process has it.

        Args:
            folder: a `checkpoint-N` folder.
            name: of the file, with {} where it has the number of its process.
        """

        def forget() -> None:
            for rank in set(range(dist.get_world_size())) - self.mates:
                delete(Path(folder, name.format(rank)))

        self.each(forget)
        self.share(folder)

    def fetch(self, checkpoint: str | Path, *, needs_weights: bool = True) -> None:
        """Give every disk the whole of a checkpoint, and hold what came together against what it says.

        Raises:
            BrokenCheckpointError: on all processes, where parts do not fit.
        """
        given = self.share(checkpoint)

        def look() -> list[str]:
            # Others were looked at as they are.
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
    """Find out which processes of a job see the same folder; all of them have to ask.

    The first process of each host leaves a file there, and each process looks which of them it sees.

    Args:
        folder: that of the run; made where it is not there.
        rank: this process.
        is_first_of_host: whether it is the first one of its host.
        is_needed: whether the run saves anything. Where it does not, a folder that takes no files counts as
            one that all share.
        device: where tensors must be to be sent.

    Raises:
        CheckpointError: on all processes, where the folder of one takes no files.
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
    """What each process of a job gives, by its number; all of them have to give something."""
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values
