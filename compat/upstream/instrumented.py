"""Lightning's `fit` without the wrappers with which tools observe a user's runs."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import lightning.pytorch as pl


def unheard_fit(trainer: pl.Trainer, *args: Any, **kwargs: Any) -> None:
    """Call Lightning's original `fit`.

    HF's users have not called it, and HF's callbacks report their runs. mlflow's autologging, and its like of
    other tools, would begin a second run, draw from Python's random numbers for its name, and add callbacks.
    All of them set `__wrapped__` to the wrapped function.

    Args:
        trainer: Lightning's.
        args: of `fit`.
        kwargs: of `fit`.
    """
    inspect.unwrap(type(trainer).fit)(trainer, *args, **kwargs)
