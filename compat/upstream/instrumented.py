"""Lightning's `fit` without what tools wrap around it to hear of a user's runs."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import lightning.pytorch as pl


def unheard_fit(trainer: pl.Trainer, *args: Any, **kwargs: Any) -> None:
    """Call `fit` as Lightning has made it.

    HF's users have not called it, and HF's callbacks report their runs. mlflow's autologging, and its like of
    other tools, would begin a second run, draw from Python's random numbers for its name, and add callbacks.
    All name what they wrap by `__wrapped__`.

    Args:
        trainer: Lightning's.
        args: of `fit`.
        kwargs: of `fit`.
    """
    inspect.unwrap(type(trainer).fit)(trainer, *args, **kwargs)
