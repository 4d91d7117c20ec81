"""Starts the runs of a comparison, each in processes of its own, one after the other."""

from __future__ import annotations

import errno
import os
import shutil
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from compat.errors import VerificationError
from compat.upstream import children
from compat.verification.isolation import SERVICES
from compat.verification.job import Job, root_of
from compat.verification.mirror import Mirror
from compat.verification.records import Run, read

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

TAIL = 15
"""Lines of a failed run's output that are shown."""

POLL = 0.1
"""Seconds between two looks at the processes of a run."""

FULL = tuple(
    os.strerror(getattr(errno, name)) for name in ("ENOSPC", "EDQUOT", "EFBIG") if hasattr(errno, name)
)
"""What the system says when a file cannot grow."""


@dataclass(frozen=True)
class Script:
    """A script, started by Python.

    Attributes:
        command: what starts a run: all words ahead of the job.
        words: the script and its arguments, after `-m` if it is a module.
    """

    command: Sequence[str]
    words: Sequence[str]

    def start(self, job: Job, rank: int, variables: dict[str, str]) -> children.Child:
        """Start one process of a run."""
        return children.start_command([*self.command, job.to_json(), *self.words], variables, job.log(rank))


@dataclass(frozen=True)
class Function:
    """A function, forked.

    Attributes:
        call: the function.
    """

    call: Callable[[], Any]

    def start(self, job: Job, rank: int, variables: dict[str, str]) -> children.Child:
        """Start one process of a run."""
        return children.start_function(lambda: self._run(job, rank), variables, job.log(rank))

    def _run(self, job: Job, rank: int) -> None:
        import torch

        # The threads of a parent that has computed are not in a fork, which would wait for them forever.
        torch.set_num_threads(1)
        from compat.install import install, uninstall
        from compat.verification.observation import observed

        (install if job.engine == "compat" else uninstall)()
        observed(job, rank, self.call)


@dataclass
class Runs:
    """The runs of a comparison.

    Attributes:
        target: what is run.
        folder: where; each run has a folder in it, which is removed after the run.
        steps: update steps of each call of `train`; 0 for all.
        seed: of the generators.
        devices: processes of a run.
        progress: called with the engine of the run and the steps it has made.
        variables: of the environment of each run.
    """

    target: Script | Function
    folder: str
    steps: int
    seed: int
    devices: int
    progress: Callable[[str, int], None] | None
    variables: Mapping[str, str]
    count: int = 0

    def run(self, engine: str) -> Run:
        """Run once, and wait for the end.

        Args:
            engine: a key of `ENGINES`.

        Returns:
            What was recorded, whether or not the run has failed.

        Raises:
            VerificationError: the folder cannot be written to, as on a full disk.
        """
        self.count += 1
        folder = os.path.join(self.folder, f"{self.count}-{engine}")
        try:
            os.makedirs(folder)
            place = Mirror(root_of(folder)).make(os.getcwd())
            job = Job(engine, folder, place, self.steps, self.seed)
            os.makedirs(job.temporary)
            status = self._wait(job, self._start(job))
            tail = "" if not status else _tail(job, self.devices)
            if status and any(text in tail for text in FULL):
                raise VerificationError(_full(self.folder, tail))
            return read(job, self.devices, status, tail)
        except OSError as error:
            raise VerificationError(_full(self.folder, str(error))) from error
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _start(self, job: Job) -> list[children.Child]:
        of_runs = {"TMPDIR": job.temporary, "PYTHONHASHSEED": "0", "PYTHONUNBUFFERED": "1"}
        more = {**SERVICES, **of_runs, **self.variables}
        started: list[children.Child] = []
        try:
            for rank, variables in enumerate(children.variables_of(self.devices, more)):
                started.append(self.target.start(job, rank, variables))
        except BaseException:
            children.end(started)
            raise
        return started

    def _wait(self, job: Job, started: list[children.Child]) -> int:
        """Wait until all have ended, or one has failed; return the status of the run."""
        lines = _Lines(job.records(0))
        try:
            while True:
                statuses = [child.poll() for child in started]
                if self.progress is not None:
                    self.progress(job.engine, lines.steps())
                failed = next((status for status in statuses if status), 0)
                if failed or all(status is not None for status in statuses):
                    return failed
                time.sleep(POLL)
        finally:
            children.end(started)


class _Lines:
    """Counts the steps in a file that grows."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.place = 0
        self.count = 0

    def steps(self) -> int:
        try:
            with open(self.path, "rb") as file:
                file.seek(self.place)
                new = file.read()
        except FileNotFoundError:
            return 0
        self.place += len(new)
        self.count += new.count(b'{"kind": "step"')
        return self.count


def _tail(job: Job, devices: int) -> str:
    """Return the last lines that the processes of a run have printed, of the one that says most."""
    texts = []
    for rank in range(devices):
        try:
            with open(job.log(rank), encoding="utf-8", errors="replace") as file:
                # Paths in the tree of the run are shown as the script's own.
                text = file.read().replace("\r", "\n").replace(job.home, "")
                texts.append("\n".join(text.rstrip().splitlines()[-TAIL:]))
        except FileNotFoundError:
            continue
    # The others only say that one of them has gone.
    return next((text for text in texts if "Error" in text), texts[0] if texts else "")


def _full(folder: str, tail: str) -> str:
    free = shutil.disk_usage(folder).free / 2**30
    last = tail.splitlines()[-1] if tail else ""
    return (
        f"`folder={folder!r}`: a run could not write its output there ({last}); {free:.1f} GiB are free. "
        "Give a folder on a disk that has room for the checkpoints of one run: `--folder`, or TMPDIR."
    )
