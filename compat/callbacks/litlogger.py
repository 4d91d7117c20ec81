"""Lightning's LitLogger as a logger of ours; lightning has it since 2.6.1, so that it is imported late."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightning.pytorch.loggers import LitLogger
from typing_extensions import override

from compat.callbacks.logger_runs import OwnRun

if TYPE_CHECKING:
    from transformers import TrainingArguments


class LitLoggerOfOurs(OwnRun, LitLogger):
    """Lightning's LitLogger, under the name of HF's run; the experiment ends with the process."""

    @override
    def construct(self, folder: str, args: TrainingArguments) -> None:
        LitLogger.__init__(self, folder, name=getattr(args, "run_name", None))
