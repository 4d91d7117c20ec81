"""DeepSpeed checkpoints that are resumed with another number of processes."""

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
    """Return how many processes wrote a `checkpoint-N` folder; None if DeepSpeed has not sharded it."""
    folder = _folder(Path(checkpoint))
    if folder is None:
        return None
    ranks = {int(found[1]) for file in folder.iterdir() if (found := _SHARD.fullmatch(file.name))}
    return len(ranks) or None


def make_universal(checkpoint: str | Path) -> None:
    """Convert a checkpoint to its universal form, which any number of processes can load.

    Writes `global_stepN_universal` next to `global_stepN` with DeepSpeed's `ds_to_universal`, if it does not
    exist.

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
            # Entries that Megatron would have written in addition to the weights.
            inject_missing_state=True,
        )
    )
    (root / UNIVERSAL).write_text(output.name, encoding="utf-8")


def mend_universal(optimizer: Optimizer, options: list[dict[str, Any]], rates: list[Any]) -> None:
    """Undo the changes that DeepSpeed's stage 3 makes to an optimizer when it loads a universal checkpoint.

    DeepSpeed gives all groups the options of the first one, and all parameters the same step counter object,
    which each parameter then increments.

    Args:
        optimizer: the optimizer that DeepSpeed steps.
        options: the options of each group before loading.
        rates: the current learning rate of each group.
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
