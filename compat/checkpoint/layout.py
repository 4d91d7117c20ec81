"""The layout of a `checkpoint-N` folder, as data."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Part:
    """One file of a checkpoint.

    Attributes:
        key: name of the part in the dict that a CheckpointIO takes and gives.
        file: name of the file in the folder.
        older: names that earlier releases gave the file, read but not written.
    """

    key: str
    file: str
    older: tuple[str, ...] = ()


LAYOUT = (
    Part("optimizer", "optimizer.pt", older=("optimizer.bin",)),
    Part("lr_scheduler", "scheduler.pt"),
    Part("scaler", "scaler.pt"),
)
"""The parts that belong to the engine. Weights, random states, `trainer_state.json` and
`training_args.bin` belong to the model and to HF's own code, which writes them beside these."""
