"""What two jobs of the same script have come to."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from pathlib import Path

IMPORT = "from {} import Trainer, TrainingArguments"


def of_hf(script: Path, folder: Path) -> Path:
    """Write the same script with HF's Trainer; one line differs.

    Args:
        script: one that imports from compat.
        folder: where.
    """
    text = script.read_text()
    assert text.count(IMPORT.format("compat")) == 1
    copy = folder / script.name
    copy.write_text(text.replace(IMPORT.format("compat"), IMPORT.format("transformers")))
    return copy


def assert_same(found: Path, expected: Path) -> None:
    """Compare the losses and weights of both processes, to the bit.

    Args:
        found: the folder of a job.
        expected: that of another one.
    """
    for rank in (0, 1):
        ours, theirs = (torch.load(folder / f"{rank}.pt") for folder in (found, expected))
        assert ours["processes"] == theirs["processes"] == 2
        assert len(ours["losses"]) == 6
        assert ours["losses"] == theirs["losses"]
        assert ours["weights"].keys() == theirs["weights"].keys()
        assert all(torch.equal(value, theirs["weights"][name]) for name, value in ours["weights"].items())
