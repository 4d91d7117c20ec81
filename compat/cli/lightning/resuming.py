"""Chooses the Lightning file that a command resumes from."""

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
    """Return the file that `resume_from_checkpoint` refers to.

    Args:
        asked: a file; True or "auto" for the newest intact one of a folder.
        folder: the folder of the `checkpoint-STEP.ckpt` files.

    Returns:
        The file; None if there is none, so that "auto" starts afresh.

    Raises:
        ArgumentError: the file does not exist.
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
        # A fresh start would overwrite files that may still be recovered.
        msg = (
            f"`resume_from_checkpoint={asked!r}`: no checkpoint-N.ckpt in {folder} is whole: "
            f"{' '.join(wrong)} Give another file, or move these away to begin afresh."
        )
        raise CheckpointError(msg)
    return None


def _by_age(folder: str) -> list[Path]:
    """Return the files of a folder, newest step first."""
    names = os.listdir(folder) if os.path.isdir(folder) else []
    steps = {name: int(found[1]) for name in names if (found := FILE.fullmatch(name))}
    return [Path(folder, name) for name in sorted(steps, key=steps.__getitem__, reverse=True)]
