"""HF's arguments as plain data, for callbacks without arguments."""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
import transformers
from accelerate import DistributedType
from transformers.trainer_utils import IntervalStrategy, SaveStrategy
from typing_extensions import override

from compat.errors import ArgumentError

if TYPE_CHECKING:
    from collections.abc import Mapping

    import lightning.pytorch as pl


_OfHF: Any = transformers.TrainingArguments


class LightArguments(_OfHF):  # type: ignore[misc]
    """`transformers.TrainingArguments` without side effects: no device, no process group, no environment.

    Each field has HF's default; derived values are computed when callbacks read them. Devices and processes
    are those of the Lightning Trainer passed to `follow`.
    """

    eval_strategy: IntervalStrategy | str
    logging_strategy: IntervalStrategy | str
    save_strategy: SaveStrategy | str
    disable_tqdm: bool | None
    eval_steps: float | None
    metric_for_best_model: str | None
    greater_is_better: bool | None
    output_dir: str
    _n_gpu = 0
    distributed_state: object = None
    deepspeed_plugin: object = None

    def __post_init__(self) -> None:
        self.eval_strategy = IntervalStrategy(self.eval_strategy)
        self.logging_strategy = IntervalStrategy(self.logging_strategy)
        self.save_strategy = SaveStrategy(self.save_strategy)
        self.report_to: list[str] = []
        self.disable_tqdm = bool(self.disable_tqdm)
        if self.eval_strategy == IntervalStrategy.STEPS and not self.eval_steps:
            self.eval_steps = self.logging_steps
        if self.load_best_model_at_end and self.metric_for_best_model is None:
            self.metric_for_best_model = "loss"
        if self.greater_is_better is None and self.metric_for_best_model is not None:
            self.greater_is_better = not self.metric_for_best_model.endswith("loss")
        self._device = torch.device("cpu")

    @property
    @override
    def _setup_devices(self) -> torch.device:
        return self._device

    def follow(self, trainer: pl.Trainer) -> None:
        """Take devices and processes from `trainer`, and its folder if none was given."""
        self._device = trainer.strategy.root_device
        self.distributed_state = SimpleNamespace(
            num_processes=trainer.world_size,
            process_index=trainer.global_rank,
            local_process_index=trainer.local_rank,
            is_main_process=trainer.is_global_zero,
            is_local_main_process=trainer.local_rank == 0,
            distributed_type=DistributedType.NO,
        )
        self.output_dir = self.output_dir or os.fspath(trainer.default_root_dir)


def light_arguments(given: Mapping[str, Any] | None, *, has_flow: bool) -> LightArguments:
    """Create arguments from a subset of the fields.

    Args:
        given: HF's names and values.
        has_flow: whether HF's flow decides when to evaluate; if Lightning does, the default is the end of an
            epoch.

    Raises:
        ArgumentError: an unknown name, or an invalid value.
    """
    try:
        values = {"output_dir": "", **({} if has_flow else {"eval_strategy": "epoch"}), **(given or {})}
        return LightArguments(**values)
    except (TypeError, ValueError) as error:
        msg = f"`args={given!r}`: {error}. Give TrainingArguments, or their names and values."
        raise ArgumentError(msg) from error
