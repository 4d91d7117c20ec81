"""The Hugging Face Trainer API on PyTorch Lightning.

Importing this package changes nothing and does not load torch: every name is imported on first use. All other
names are those of transformers, so that a script changes only one import line.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from compat.arguments import Seq2SeqTrainingArguments, TrainingArguments
    from compat.arguments.parser import HfArgumentParser
    from compat.cli.lightning import HFLightningCLI
    from compat.install import install, installed, uninstall
    from compat.modules.hf_datamodule import HFDataModule
    from compat.modules.hf_module import HFModule
    from compat.planning import plan
    from compat.rebasing import on_lightning
    from compat.trainer import Seq2SeqTrainer, Trainer
    from compat.upstream.notebook import notebook_launcher
    from compat.verification.verifying import verify

__version__ = "0.2.0"

_OURS = {
    "HFDataModule": "compat.modules.hf_datamodule",
    "HFLightningCLI": "compat.cli.lightning",
    "HFModule": "compat.modules.hf_module",
    "HfArgumentParser": "compat.arguments.parser",
    "Seq2SeqTrainer": "compat.trainer",
    "Seq2SeqTrainingArguments": "compat.arguments",
    "Trainer": "compat.trainer",
    "TrainingArguments": "compat.arguments",
    "install": "compat.install",
    "installed": "compat.install",
    "notebook_launcher": "compat.upstream.notebook",
    "on_lightning": "compat.rebasing",
    "plan": "compat.planning",
    "uninstall": "compat.install",
    "verify": "compat.verification.verifying",
}

# Names that HF scripts import besides the Trainer; any other public name of transformers also works.
_TRANSFORMERS = (
    "DataCollator",
    "DataCollatorForLanguageModeling",
    "DataCollatorForSeq2Seq",
    "DataCollatorForTokenClassification",
    "DataCollatorWithPadding",
    "DefaultDataCollator",
    "DefaultFlowCallback",
    "EarlyStoppingCallback",
    "EvalPrediction",
    "IntervalStrategy",
    "PrinterCallback",
    "ProgressCallback",
    "SchedulerType",
    "TrainerCallback",
    "TrainerControl",
    "TrainerState",
    "default_data_collator",
    "enable_full_determinism",
    "set_seed",
)

__all__ = [  # noqa: PLE0604 (every entry is a string)
    "HFDataModule",
    "HFLightningCLI",
    "HFModule",
    "HfArgumentParser",
    "Seq2SeqTrainer",
    "Seq2SeqTrainingArguments",
    "Trainer",
    "TrainingArguments",
    "install",
    "installed",
    "notebook_launcher",
    "on_lightning",
    "plan",
    "uninstall",
    "verify",
    *_TRANSFORMERS,
]


def __getattr__(name: str) -> Any:
    if name.startswith("_"):
        msg = f"module 'compat' has no attribute {name!r}"
        raise AttributeError(msg)
    if name in _OURS:
        importlib.import_module("compat.upstream.required").require()
        with importlib.import_module("compat.upstream.collector").paused():
            # `compat.install` is a function that shares its name with the module it comes from.
            value = getattr(importlib.import_module(_OURS[name]), name)
        globals()[name] = value
        return value
    try:
        return getattr(importlib.import_module("transformers"), name)
    except AttributeError:
        msg = (
            f"neither compat nor transformers has the name {name!r}. "
            "Check the spelling, or import it from where it lives."
        )
        raise AttributeError(msg) from None


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
