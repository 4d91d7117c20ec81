"""A pretrained model and its data, built from their command-line options."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import transformers
from transformers import AutoConfig, AutoTokenizer

from compat.arguments.checks import nearest
from compat.cli.lightning.data_options import TASKS, Labels, Source, classified, collator_of, column, task_of
from compat.errors import ArgumentError
from compat.modules.hf_datamodule import HFDataModule
from compat.modules.hf_module import HFModule
from compat.trainer import Seq2SeqTrainer

if TYPE_CHECKING:
    from transformers import (
        EvalPrediction,
        PretrainedConfig,
        PreTrainedModel,
        PreTrainedTokenizerBase,
        TrainingArguments,
    )

OF_LOADING = (
    "attn_implementation",
    "cache_dir",
    "device_map",
    "dtype",
    "ignore_mismatched_sizes",
    "local_files_only",
    "quantization_config",
    "revision",
    "subfolder",
    "token",
    "torch_dtype",
    "trust_remote_code",
    "use_safetensors",
    "variant",
)
"""Arguments of `from_pretrained` that do not belong to a model's configuration."""


class PretrainedModule(HFModule):
    """A model of transformers, by its auto class and its name or folder.

    Args:
        name: the model, on the Hub or in a folder.
        auto: its class, AutoModelForSequenceClassification for instance; the one it was saved with where it
            is not given.
        kwargs: of `from_pretrained`; `--model.num_labels 3` is one of them.
    """

    def __init__(
        self, name: str | None = None, auto: str | None = None, kwargs: dict[str, Any] | None = None
    ) -> None:
        """Made by `Pretrained.build`, which knows the data."""
        raise NotImplementedError


@dataclass
class Pretrained:
    """The command-line options of the model.

    Attributes:
        name: the model, on the Hub or in a folder.
        auto: its class.
        kwargs: arguments of `from_pretrained`.
    """

    name: str | None = None
    auto: str | None = None
    kwargs: dict[str, Any] | None = None

    def build(
        self, args: TrainingArguments, source: Source | None, command: str
    ) -> tuple[HFModule, HFDataModule | None]:
        """Build the module, and the data module if there is data from files.

        Args:
            args: HF's arguments.
            source: the command-line options of the data; None if the user gives a data module.
            command: "fit", "validate", "test", "predict", or "run" if nothing is run.

        Raises:
            ArgumentError: the model, a column or a label does not exist.
        """
        if self.name is None:
            msg = (
                "`model.name`: no model is named. Give `--model.name MODEL`, a folder or a name on the Hub, "
                "or `--model.class_path CLASS` for a module of your own. "
                f"`compat {command} --help` has an example."
            )
            raise ArgumentError(msg)
        config = self._config()
        kind = self._class(config)
        given = dict(self.kwargs or {})
        if source is None:
            return HFModule(self._load(kind, given), args), None
        task = task_of(kind.__name__)
        rows = source.read()
        _require_rows(rows, command, source)
        tokenizer = self._tokenizer(source)
        labels = _labels(source, rows, config, given) if TASKS[task] is classified else Labels([])
        if TASKS[task] is classified and command in {"fit", "run"}:
            own = labels.config
            # If the user requests another number of labels than the data has, the user also names them.
            given = (
                {**own, **given} if given.get("num_labels", own["num_labels"]) == own["num_labels"] else given
            )
        # Problems of the data are reported before the model is loaded.
        prepared = {
            role: TASKS[task](source, part, tokenizer, labels=labels, needs_labels=role != "predict")
            for role, part in rows.items()
        }
        model = self._load(kind, given)
        scored = TASKS[task] is classified and not labels.is_regression
        generates = {"trainer_class": Seq2SeqTrainer} if getattr(args, "predict_with_generate", False) else {}
        module = HFModule(
            model,
            args,
            processing_class=tokenizer,
            compute_metrics=accuracy if scored else None,
            **generates,  # type: ignore[arg-type]
        )
        data = HFDataModule(
            args,
            *(prepared.get(role) for role in ("train", "validation", "test", "predict")),
            data_collator=collator_of(task, tokenizer, model),
            processing_class=tokenizer,
            model=model,
        )
        # Predictions are written together with these.
        data.rows, data.task, data.labels = rows, task, labels  # type: ignore[attr-defined]
        return module, data

    def _load(self, kind: type[PreTrainedModel], given: dict[str, Any]) -> PreTrainedModel:
        try:
            return kind.from_pretrained(self.name, **given)
        except (OSError, RuntimeError, TypeError, ValueError) as error:
            way_out = ""
            if "mismatched" in str(error):
                way_out = (
                    " Its head has another size: give `--model.ignore_mismatched_sizes true` for a new one."
                )
            msg = f"`model.name={self.name}`: cannot be loaded.{way_out} In transformers' words: {error}"
            raise ArgumentError(msg) from error

    def _config(self) -> PretrainedConfig:
        own = {name: value for name, value in (self.kwargs or {}).items() if name in OF_LOADING}
        try:
            config = AutoConfig.from_pretrained(self.name, **own)
        except (OSError, ValueError) as error:
            there = "" if os.path.isdir(str(self.name)) else " There is no such folder, either."
            msg = f"`model.name={self.name}`: cannot be loaded.{there} In transformers' words: {error}"
            raise ArgumentError(msg) from error
        unknown = [name for name in self.kwargs or {} if name not in OF_LOADING and not hasattr(config, name)]
        if unknown:
            known = [*OF_LOADING, *config.to_dict(), "auto", "name", "num_labels"]
            msg = "\n".join(
                f"`model.{name}`: neither an option of the model nor one of its configuration. "
                f"{nearest(name, known)}"
                for name in unknown
            )
            raise ArgumentError(msg)
        return config

    def _class(self, config: PretrainedConfig) -> Any:
        name = self.auto or next(iter(config.architectures or ()), None)
        if name is None:
            msg = f"`model.auto`: {self.name} does not tell its class. Give AutoModelFor… by `--model.auto`."
            raise ArgumentError(msg)
        kind = getattr(transformers, name, None)
        if kind is None:
            known = [each for each in dir(transformers) if each.startswith("AutoModelFor")]
            msg = f"`model.auto={name}`: transformers has no such class. {nearest(name, known)}".rstrip()
            raise ArgumentError(msg)
        return kind

    def _tokenizer(self, source: Source) -> PreTrainedTokenizerBase:
        name: str | None = source.tokenizer or self.name
        try:
            return AutoTokenizer.from_pretrained(name)
        except (OSError, ValueError) as error:
            msg = f"`data.tokenizer={name}`: cannot be loaded. In transformers' words: {error}"
            raise ArgumentError(msg) from error


NEEDED = {"fit": "train", "validate": "validation", "test": "test"}
"""Command → the role of the rows that it uses."""


def _require_rows(rows: dict[str, Any], command: str, source: Source) -> None:
    if command == "run":
        return
    role = NEEDED.get(command, "predict" if "predict" in rows else "test")
    if role not in rows:
        role = "predict" if command == "predict" else role
        more = "" if source.dataset is None else f" {source.dataset} has no such split."
        msg = f"`data.{role}`: `compat {command}` needs it.{more} Give `--data.{role} FILE`."
        raise ArgumentError(msg)


def _labels(source: Source, rows: dict[str, Any], config: PretrainedConfig, given: dict[str, Any]) -> Labels:
    """Return the labels of the training data; without such data, those that the model was trained with."""
    if "train" in rows:
        train = rows["train"]
        return Labels.of(train, column(source, train, "label_column", LABEL_COLUMNS))
    if config.problem_type == "regression":
        return Labels([], is_regression=True)
    return Labels(
        [str(config.id2label[index]) for index in range(given.get("num_labels", config.num_labels))]
    )


LABEL_COLUMNS = ("label", "labels", "target", "class")


def accuracy(prediction: EvalPrediction) -> dict[str, float]:
    """Compute the fraction of rows whose most likely label is correct.

    Args:
        prediction: logits of shape (rows, labels) and labels of shape (rows,).
    """
    logits = prediction.predictions
    logits = logits[0] if isinstance(logits, tuple) else logits
    return {"accuracy": float((np.argmax(logits, axis=-1) == prediction.label_ids).mean())}
