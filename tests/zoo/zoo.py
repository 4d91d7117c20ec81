"""Trains with libraries from PyPI on HF's Trainer and on ours, and compares everything (`make zoo`).

Environments and runs lie under build/zoo. Each group of libraries has an environment of its own, which
borrows what it can from those that the tests run in.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.parity.plain import differences
from tests.zoo import table
from tests.zoo.libraries import ABSENT, LENDERS, LIBRARIES, Library, key
from tests.zoo.record import WAYS, with_install

if TYPE_CHECKING:
    from collections.abc import Callable

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
BUILD = ROOT / "build" / "zoo"
PLACE = "import sysconfig; print(sysconfig.get_path('purelib'))"
QUIET = {
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "PYTHONPATH": str(ROOT),
    "PYTHONHASHSEED": "0",
}
LENGTH = 200
"""Characters of a difference that are shown."""
OPERATORS = """import torch
for name in ("nms", "qnms"):
    operator = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
    torch.library.define(f"torchvision::{name}", operator)
"""
EACH = (("hf", ""), ("hf", "hf"), ("run", ""), ("run", "run"), ("before", ""), ("after", ""))
"""The runs of every library: a way, and the way whose checkpoint it goes on from."""
CONTINUES = "as if uninterrupted; under Hugging Face's Trainer it is not"
REPEATS = "as under Hugging Face's Trainer, where it is not as if uninterrupted"
FAILS = "fails, as under Hugging Face's Trainer"
GOOD = ("equal", CONTINUES, REPEATS, FAILS)
OF_A_TRAINER = ("weights", "optimizer", "scheduler")

Record = dict[str, Any]


class Failed(Exception):  # noqa: N818 (a result, as much as a difference)
    """A script ended with an error."""


def environment(group: str) -> Path:
    """Make the environment of a group where it is not there, or of other packages, and return its Python.

    Args:
        group: its name.
    """
    folder, wanted = BUILD / "environments" / group, (HERE / "groups" / f"{group}.txt").read_text()
    python, ready = folder / "bin" / "python", folder / "ready"
    if ready.exists() and ready.read_text() == wanted:
        return python
    lender = ROOT / LENDERS[group] / "bin" / "python"
    run = subprocess.check_output
    run([lender, "-m", "venv", "--clear", folder])
    lent, own = (run([one, "-c", PLACE], text=True).strip() for one in (lender, python))
    Path(own, "borrowed.pth").write_text(lent)
    requirements = HERE / "groups" / f"{group}.txt"
    run([python, "-m", "pip", "install", "-qq", "--no-compile", "--no-deps", "-r", requirements])
    make_fit(Path(own))
    material = BUILD / "material" / group
    shutil.rmtree(material, ignore_errors=True)
    material.mkdir(parents=True)
    run([python, "-m", "tests.zoo.material"], cwd=material, env={**os.environ, **QUIET})
    ready.write_text(wanted)
    return python


def make_fit(packages: Path) -> None:
    """Take away what keeps packages from a CPU, or hides our tests.

    Args:
        packages: a folder of site-packages.
    """
    # Some libraries bring their tests along, under the name of ours.
    shutil.rmtree(packages / "tests", ignore_errors=True)
    # PyPI's torchaudio and torchvision are compiled for CUDA; what remains is Python.
    for compiled in packages.glob("torchaudio/lib/*.so"):
        compiled.unlink()
    for module in packages.glob("torchvision/__init__.py"):
        module.write_text(OPERATORS + module.read_text())


def try_out(library: Library) -> table.Result:
    """Train with a library in all ways, and say how they compare.

    Args:
        library: one of the table.
    """
    python, folder = environment(library.group), BUILD / "runs" / library.key
    shutil.rmtree(folder, ignore_errors=True)
    runs = Runs(library, python, folder)
    folder.mkdir(parents=True)
    runs.start(*EACH)
    theirs = runs.record("hf")
    found = {WAYS[way]: runs.compared(way) for way in ("run", "before", "after")}
    return {
        "library": library.name,
        **runs.releases,
        "ran": library.ran,
        "ways": {**found, "resumed": runs.resumed()},
        "compared": extent(theirs),
        "note": library.note,
    }


class Runs:
    """The runs of one library.

    Args:
        library: which one.
        python: of its environment.
        folder: where they write.
    """

    def __init__(self, library: Library, python: Path, folder: Path) -> None:
        self.library, self.python, self.folder = library, python, folder
        self.releases: dict[str, str] = {}

    def start(self, *pairs: tuple[str, str]) -> None:
        """Run the script several times.

        Args:
            pairs: a way, and the way whose checkpoint it goes on from, or nothing.
        """
        jobs = [self.job(*pair) for pair in pairs]
        with (self.folder / "log.txt").open("w") as log:
            subprocess.run(
                [self.python, "-m", "tests.zoo.record", self.library.name, json.dumps(jobs)],
                cwd=self.folder,
                env={**os.environ, **QUIET, "HF_HOME": str(self.folder / "cache")},
                stdout=log,
                stderr=subprocess.STDOUT,
                check=False,
            )

    def job(self, way: str, onward: str) -> Record:
        """Prepare the folder of a run, and return its job."""
        folder = self.place(way, onward)
        home = folder / "home"
        home.mkdir(parents=True)
        (home / "material").symlink_to(BUILD / "material" / self.library.group)
        source = (HERE / "scripts" / f"{self.library.key}.py").read_text(encoding="utf-8")
        edited = with_install(source, before=way == "before") if way in ("before", "after") else source
        (folder / "script.py").write_text(edited, encoding="utf-8")
        resumes = [self.library.resumes] if onward else []
        checkpoint = str(self.place(onward) / "home" / self.library.resumes) if onward else ""
        return {"way": way, "folder": str(folder), "args": resumes, "checkpoint": checkpoint}

    def place(self, way: str, onward: str = "") -> Path:
        """The folder of a run."""
        return self.folder / (f"{way}-onward-from-{onward}" if onward else way)

    def record(self, way: str, onward: str = "") -> Record:
        """Return the record of a run, which is started if it has not been.

        Args:
            way: one of `WAYS`.
            onward: the way whose checkpoint it goes on from.

        Raises:
            Failed: the script ended with an error.
        """
        folder = self.place(way, onward)
        if not folder.exists():
            self.start((way, onward))
        if not (folder / "record.json").exists():
            log = folder / "log.txt" if (folder / "log.txt").exists() else self.folder / "log.txt"
            raise Failed(log.read_text(errors="replace").strip().rpartition("\n")[2][:LENGTH])
        return self.read(folder / "record.json")

    def read(self, path: Path) -> Record:
        """Read a record, without what is of the moment only."""
        text = path.read_text()
        for way in WAYS:
            # Checkpoints name the folder of the run that wrote them.
            text = text.replace(str(self.place(way) / "home"), "<out>")
        read = json.loads(text)
        self.releases = {name: read[name] for name in ("release", "transformers")}
        record = read["record"]
        record["files"] = {
            name: content
            for name, content in record["files"].items()
            if not any(fnmatch.fnmatch(name, pattern) for pattern in self.library.passing)
        }
        expected = not path.parent.name.startswith("hf")
        if not read["on_ours"] or set(read["on_ours"]) != {expected}:
            msg = f"trainers on Lightning: {read['on_ours']}"
            raise Failed(msg)
        return record

    def compared(self, way: str) -> str:
        """Compare a run of ours with HF's."""
        return self.difference((way,), ("hf",))

    def resumed(self) -> str:
        """Compare a resumed run of ours with HF's, and with ours without interruption."""
        onward, theirs_onward = ("run", "run"), ("hf", "hf")
        if self.fails(*theirs_onward) and self.fails(*onward):
            return FAILS
        continues = self.difference(onward, ("run",), outcome)
        if continues == "equal":
            if self.difference(onward, theirs_onward) == "equal":
                return "equal"
            # From a checkpoint of HF's own, ours has no more to go by than HF's.
            same = self.difference(("run", "hf"), theirs_onward)
            return CONTINUES if same == "equal" else f"from a checkpoint of HF's: {same}"
        if self.difference(theirs_onward, ("hf",), outcome) == "equal":
            return f"resumed unlike uninterrupted: {continues}"
        same = self.difference(onward, theirs_onward)
        return REPEATS if same == "equal" else same

    def fails(self, way: str, onward: str) -> bool:
        """Whether a run ends with an error."""
        try:
            self.record(way, onward)
        except Failed:
            return True
        return False

    def difference(
        self, ours: tuple[str, ...], theirs: tuple[str, ...], part: Callable[[Record], Record] = dict
    ) -> str:
        """Compare two runs: "equal", or the first difference, or how ours failed.

        Args:
            ours: the arguments of `record`.
            theirs: likewise.
            part: what of a record is compared; all of it without.
        """
        try:
            return first_difference(part(self.record(*ours)), part(self.record(*theirs)))
        except Failed as failure:
            return f"failed: {failure}"


def first_difference(ours: Any, theirs: Any) -> str:
    """Say "equal", or where two records differ first.

    Args:
        ours: what compat did.
        theirs: what transformers did.
    """
    return " ".join(next(differences(ours, theirs), "equal").split())[:LENGTH]


def outcome(record: Record) -> Record:
    """Return what a run that was interrupted has to share with one that was not.

    Args:
        record: of either.
    """
    # What `train` sums up counts the steps of one call.
    return {
        "trainers": [
            {name: trainer[name] for name in OF_A_TRAINER}
            | {"logs": [entry for entry in trainer["log_history"] if "train_loss" not in entry]}
            for trainer in record["trainers"]
        ],
        "generators": record["generators"],
    }


def extent(record: Record) -> dict[str, int]:
    """Count what was compared, so that it can be seen to be more than nothing.

    Args:
        record: of HF's.
    """
    trainers = record["trainers"]
    return {
        "trainers": len(trainers),
        "steps": sum(trainer["state"]["global_step"] for trainer in trainers),
        "logs": sum(len(trainer["log_history"]) for trainer in trainers),
        "arrays": sum(len(trainer["weights"]) for trainer in trainers),
        "files": len(record["files"]),
    }


def write(result: table.Result) -> None:
    """Write the result of a library.

    Args:
        result: of any.
    """
    path = table.RESULTS / f"{key(result['library'])}.json"
    path.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def main() -> int:
    """Try the libraries that are asked for, write their results and the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="libraries; all without")
    parser.add_argument("--groups", nargs="*", default=list(LENDERS), help="groups of libraries")
    asked = parser.parse_args()
    status = 0
    for library in LIBRARIES:
        if library.group not in asked.groups or (asked.names and library.name not in asked.names):
            continue
        try:
            result = try_out(library)
        except Failed as failure:
            print(f"{library.name}: failed under Hugging Face's Trainer: {failure}", flush=True)
            status = 1
            continue
        write(result)
        print(f"{library.name} {result['release']}: {table.verdict(result['ways'])}", flush=True)
        status |= not set(result["ways"].values()) <= set(GOOD)
    for (name, release), reason in ABSENT.items():
        write(
            {"library": name, "release": release, "transformers": "", "ran": "", "ways": {}, "note": reason}
        )
    table.write()
    return status


if __name__ == "__main__":
    sys.exit(main())
