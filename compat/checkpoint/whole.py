"""Which checkpoints were written to their end."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

from compat.errors import ArgumentError

STATE = "trainer_state.json"
"""What HF writes last into a checkpoint."""

_NAME = re.compile(r"checkpoint-(\d+)")


def is_whole(checkpoint: str | Path) -> bool:
    """Whether a `checkpoint-N` folder was written to its end."""
    try:
        json.loads(Path(checkpoint, STATE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return True


def begin(checkpoint: str | Path) -> None:
    """Mark a checkpoint that is about to be written, maybe over an older one, as not whole."""
    Path(checkpoint, STATE).unlink(missing_ok=True)


def last_whole(folder: str | Path) -> str | None:
    """The last checkpoint in `folder` that was written to its end.

    Mirrors `transformers.trainer_utils.get_last_checkpoint`, which takes the last one as it is.
    """
    names = os.listdir(folder) if os.path.isdir(folder) else []
    steps = sorted((int(found[1]) for name in names if (found := _NAME.fullmatch(name))), reverse=True)
    paths = (os.path.join(folder, f"checkpoint-{step}") for step in steps)
    return next((path for path in paths if is_whole(path)), None)


def resolve_checkpoint(asked: Any, folder: str | Path) -> Any:
    """The checkpoint that a run resumes from.

    Args:
        asked: `resume_from_checkpoint` as given.
        folder: where True looks for one.

    Returns:
        The last whole one for True; all else, and True where there is none, as it is: HF has words for it.

    Raises:
        ArgumentError: the checkpoint that was given is not whole.
    """
    if asked is True:
        return last_whole(folder) or asked
    if isinstance(asked, (str, Path)) and os.path.isdir(asked) and not is_whole(asked):
        msg = (
            f"`resume_from_checkpoint={str(asked)!r}`: `{STATE}` is missing or cut short, which is what HF "
            "writes last: the checkpoint was not written to its end. Give an earlier one, or True for the "
            "last whole one."
        )
        raise ArgumentError(msg)
    return asked
