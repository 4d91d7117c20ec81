"""Which file of Lightning's a command goes on from."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from transformers.utils import logging

from compat.checkpoint.convert.checking import refuse_damage
from compat.errors import ArgumentError, CheckpointError

FILE = re.compile(r"checkpoint-(\d+)\.ckpt")

logger = logging.get_logger("transformers.trainer")


def chosen(asked: Any, folder: str) -> str | None:
    """The file that `resume_from_checkpoint` means.

    Args:
        asked: a file; True or "auto" for the newest whole one of a folder.
        folder: where `checkpoint-STEP.ckpt` lie.

    Returns:
        The file; None where there is none at all, and "auto" begins afresh.

    Raises:
        ArgumentError: there is no such file.
        CheckpointError: the file that was given is damaged, or all are.
    """
    word = str(asked).lower()
    if word not in {"true", "auto"}:
        if not os.path.exists(asked):
            msg = f"`resume_from_checkpoint={asked!r}`: no such file. Give a .ckpt, True or 'auto'."
            raise ArgumentError(msg)
        refuse_damage(Path(asked))
        return str(asked)
    files = _by_age(folder)
    if not files and word == "true":
        msg = (
            f"`resume_from_checkpoint=True`: there is no checkpoint-N.ckpt in {folder}. "
            "Give 'auto' to begin afresh then."
        )
        raise ArgumentError(msg)
    wrong = []
    for file in files:
        try:
            refuse_damage(file)
        except CheckpointError as error:
            wrong.append(str(error))
        else:
            for reason in wrong:
                logger.warning(f"{reason} It is passed over, going on from `{file}`.")
            return str(file)
    if wrong:
        # Beginning afresh would write over what may still be saved.
        msg = (
            f"`resume_from_checkpoint={asked!r}`: no checkpoint-N.ckpt in {folder} is whole: "
            f"{' '.join(wrong)} Give another file, or move these away to begin afresh."
        )
        raise CheckpointError(msg)
    return None


def _by_age(folder: str) -> list[Path]:
    """Files of a folder, the newest step first."""
    names = os.listdir(folder) if os.path.isdir(folder) else []
    steps = {name: int(found[1]) for name in names if (found := FILE.fullmatch(name))}
    return [Path(folder, name) for name in sorted(steps, key=steps.__getitem__, reverse=True)]
