"""Names that scripts of 2024 import beside the Trainer, and that transformers has dropped since.

`compat.install()` supplies them where the installed release lacks them.
"""

from __future__ import annotations

from typing import Any

from transformers.trainer_utils import IntervalStrategy
from transformers.utils import is_torch_xla_available

EvaluationStrategy = IntervalStrategy


def is_torch_tpu_available(check_device: bool = True) -> bool:
    """Whether there is a TPU; the older name of `is_torch_xla_available`.

    Args:
        check_device: whether a device must be there, beside the package.
    """
    return bool(is_torch_xla_available(check_is_tpu=check_device))


def send_example_telemetry(*args: Any, **kwargs: Any) -> None:
    """Nothing: it told the Hub that an example was run.

    Args:
        args: the example and its arguments.
        kwargs: the framework.
    """
