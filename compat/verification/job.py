"""One run of a script or function under one Trainer, as data that its process is given."""

from __future__ import annotations

import dataclasses
import json
import os
from dataclasses import dataclass

ENGINES = {"hf": "transformers.trainer", "compat": "compat.trainer"}
"""Name of an engine → the module whose `Trainer` trains."""

TITLES = {"hf": "HF's Trainer", "compat": "compat's Trainer"}
"""Name of an engine → what it is called in reports."""


@dataclass(frozen=True)
class Job:
    """One run.

    Attributes:
        engine: a key of `ENGINES`.
        folder: for the records and the logs; it exists.
        place: the working folder, in the tree of the run.
        steps: the update steps after which a call of `train` is ended; 0 trains to the end.
        seed: of the generators of Python, NumPy and torch, set before the script begins.
    """

    engine: str
    folder: str
    place: str
    steps: int
    seed: int

    @property
    def home(self) -> str:
        """The tree in which the run works."""
        return root_of(self.folder)

    @property
    def temporary(self) -> str:
        """The folder for temporary files of the script."""
        return os.path.join(self.folder, "tmp")

    def records(self, rank: int) -> str:
        """Return the path of the records of a process."""
        return os.path.join(self.folder, f"records-{rank}.jsonl")

    def log(self, rank: int) -> str:
        """Return the path of what a process prints."""
        return os.path.join(self.folder, f"log-{rank}.txt")

    def to_json(self) -> str:
        """Return the job as text."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Job:
        """Return the job of a text."""
        return cls(**json.loads(text))


def root_of(folder: str) -> str:
    """Return the tree in the folder of a run."""
    return os.path.join(folder, "root")
