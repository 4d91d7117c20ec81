"""Checkpoints of DeepSpeed's, resumed with another number of processes."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from torch.optim import Optimizer

LATEST = "latest"
"""The file in which DeepSpeed writes the name of a checkpoint's folder."""

UNIVERSAL = "latest_universal"
"""The file in which it writes the name of that folder's universal form."""

_SHARD = re.compile(r"(?:bf16_)?zero_pp_rank_(\d+)_mp_rank_\d+_optim_states\.pt")


def processes_of(checkpoint: str | Path) -> int | None:
    """How many processes have written a `checkpoint-N` folder; None where DeepSpeed has not sharded it."""
    folder = _folder(Path(checkpoint))
    if folder is None:
        return None
    ranks = {int(found[1]) for file in folder.iterdir() if (found := _SHARD.fullmatch(file.name))}
    return len(ranks) or None


def make_universal(checkpoint: str | Path) -> None:
    """Put the parts of a checkpoint together, so that any number of processes can load it.

    Writes `global_stepN_universal` beside `global_stepN`, by DeepSpeed's own `ds_to_universal`; once.

    Args:
        checkpoint: a `checkpoint-N` folder.
    """
    from deepspeed.checkpoint import ds_to_universal

    root = Path(checkpoint)
    folder = _folder(root)
    if folder is None or (root / UNIVERSAL).is_file():
        return
    output = folder.with_name(f"{folder.name}_universal")
    ds_to_universal.main(
        argparse.Namespace(
            input_folder=str(folder),
            output_folder=str(output),
            num_extract_workers=1,
            num_merge_workers=1,
            keep_temp_folder=False,
            strict=True,
            # What Megatron would have written beside the weights.
            inject_missing_state=True,
        )
    )
    (root / UNIVERSAL).write_text(output.name, encoding="utf-8")


def mend_universal(optimizer: Optimizer, options: list[dict[str, Any]], rates: list[Any]) -> None:
    """Undo what DeepSpeed's stage 3 does to an optimizer when it loads a universal checkpoint.

    It gives all groups the options of the first one, and all parameters one and the same counter of steps,
    which each of them then counts up.

    Args:
        optimizer: the optimizer that DeepSpeed steps.
        options: those of each group as they were before.
        rates: the learning rate of each group now.
    """
    for group, before, rate in zip(optimizer.param_groups, options, rates, strict=True):
        group.update({**before, "lr": rate})
    for state in optimizer.state.values():
        if isinstance(state.get("step"), torch.Tensor):
            state["step"] = state["step"].clone()


def _folder(checkpoint: Path) -> Path | None:
    latest = checkpoint / LATEST
    if not latest.is_file():
        return None
    folder = checkpoint / latest.read_text("utf-8", "replace").strip()
    return folder if folder.is_dir() else None
