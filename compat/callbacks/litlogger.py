"""Lightning's LitLogger for `report_to`; imported late, because lightning has it only since 2.6.1."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightning.pytorch.loggers import LitLogger
from typing_extensions import override

from compat.callbacks.logger_runs import OwnRun

if TYPE_CHECKING:
    from transformers import TrainingArguments


class LitLoggerOfOurs(OwnRun, LitLogger):
    """Lightning's LitLogger, with the name of HF's run; the experiment ends with the process."""

    @override
    def construct(self, folder: str, args: TrainingArguments) -> None:
        LitLogger.__init__(self, folder, name=getattr(args, "run_name", None))
