"""Runs a script as its user would and writes down all that has to be equal.

The script itself is not edited, but for the one line that calls `compat.install()`. Each run has a process of
its own, forked from one that has loaded torch and transformers; and for ours, when Hugging Face's are done,
Lightning.
"""

from __future__ import annotations

import ast
import json
import os
import runpy
import shutil
import signal
import sys
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import Trainer, trainer

from tests.parity.events import EventRecorder
from tests.parity.plain import plain_generators

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

SECONDS = 600
INSTALLS = "import compat; compat.install()\n"

WAYS = {
    "hf": "python script.py",
    "run": "compat run script.py",
    "before": "compat.install() before the imports",
    "after": "compat.install() after the imports",
}
"""How a script is run; `hf` is what the others are compared with."""


class Witness(EventRecorder):
    """Writes down the events of each trainer that is made, and keeps it for the end of the script."""

    made: list[Witness] = []  # noqa: RUF012 (of all of them, on purpose)

    def on_init_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Find out whose witness this is: callbacks are not told."""
        self.trainer = next(_trainers(sys._getframe(1)))
        self.made.append(self)
        super().on_init_end(args, state, control, **given)

    def note(self, event: str, state: Any, control: Any, given: dict[str, Any]) -> None:
        """Note the trainer's model, whatever a library hands to callbacks."""
        super().note(event, state, control, given | {"model": self.trainer.model})


def _trainers(frame: FrameType | None) -> Iterator[Trainer]:
    while frame is not None:
        if isinstance(found := frame.f_locals.get("self"), Trainer):
            yield found
        frame = frame.f_back


def attach() -> None:
    """Give each trainer that will be made a witness, the last of its own callbacks."""
    # Libraries replace `DEFAULT_CALLBACKS`.
    reporting = trainer.get_reporting_integration_callbacks
    trainer.get_reporting_integration_callbacks = lambda report_to: [*reporting(report_to), Witness]


def with_install(source: str, *, before: bool) -> str:
    """Return a script that calls `compat.install()`.

    Args:
        source: the script.
        before: its imports; after them otherwise.
    """
    lines = source.splitlines(keepends=True)
    imports = [node for node in ast.parse(source).body if isinstance(node, (ast.Import, ast.ImportFrom))]
    # An import from __future__ is the first of all.
    imports = [node for node in imports if getattr(node, "module", None) != "__future__"]
    place = imports[0].lineno - 1 if before else imports[-1].end_lineno
    return "".join([*lines[:place], INSTALLS, *lines[place:]])


def run(way: str, script: Path) -> None:
    """Run a script in this process, as `__main__`.

    Args:
        way: one of `WAYS`.
        script: with the line that installs already in it.
    """
    if way == "run":
        from compat.cli import main

        main(["run", "--quiet", str(script), *sys.argv[1:]])
    else:
        sys.path.insert(0, str(script.parent))
        sys.argv[0] = str(script)
        runpy.run_path(str(script), run_name="__main__")


def recorded(home: Path) -> dict[str, Any]:
    """Record the trainers and files of the script that has run.

    Args:
        home: the folder it ran in.
    """
    # Taken before anything is imported that may draw.
    generators = plain_generators()

    from tests.parity.record import record_files, record_trainer

    return {
        "trainers": [record_trainer(one.trainer, one.events, home) for one in Witness.made],
        "files": record_files(home),
        "generators": generators,
    }


def releases(library: str) -> dict[str, str]:
    """Name the releases that a record was made with.

    Args:
        library: its name on PyPI.
    """
    from importlib.metadata import version

    return {"release": version(library), "transformers": version("transformers")}


@dataclass(frozen=True)
class Job:
    """A run of a script.

    Attributes:
        way: one of `WAYS`.
        folder: where `script.py` is, and the empty folder `home` to run it in.
        args: the script's arguments.
        checkpoint: the one that its first argument names, to be copied there.
    """

    way: str
    folder: str
    args: list[str]
    checkpoint: str = ""

    def do(self, library: str) -> None:
        """Run the script in this process, and write `record.json`."""
        folder = Path(self.folder)
        os.chdir(folder / "home")
        if self.checkpoint:
            shutil.copytree(self.checkpoint, self.args[0])
        sys.argv[1:] = self.args
        attach()
        run(self.way, folder / "script.py")
        found = recorded(Path.cwd())
        kinds = [type(one.trainer).__mro__ for one in Witness.made]
        on_ours = [any(kind.__module__.startswith("compat.") for kind in mro) for mro in kinds]
        content = {"record": found, "on_ours": on_ours, **releases(library)}
        (folder / "record.json").write_text(json.dumps(content))

    def in_a_process(self, library: str) -> None:
        """Do it in a process of its own, which begins with what this one has loaded."""
        if process := os.fork():
            os.waitpid(process, 0)
            return
        signal.alarm(SECONDS)
        log = os.open(Path(self.folder) / "log.txt", os.O_WRONLY | os.O_CREAT)
        os.dup2(log, 1)
        os.dup2(log, 2)
        try:
            self.do(library)
        except BaseException:  # noqa: BLE001 (the log tells, and the record is missing)
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


def main(library: str, jobs: str) -> None:
    """Run a script in several ways.

    Args:
        library: its name on PyPI.
        jobs: the fields of each `Job`, as JSON.
    """
    for job in sorted((Job(**given) for given in json.loads(jobs)), key=lambda job: job.way != "hf"):
        if job.way != "hf":
            import compat.cli.run
            import compat.trainer  # noqa: F401 (loaded once, for all processes to come)
        job.in_a_process(library)


if __name__ == "__main__":
    main(*sys.argv[1:])
