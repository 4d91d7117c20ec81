"""Arguments that the installed transformers does not implement, because it is too new or too old."""

from __future__ import annotations

import contextlib
import re
from typing import TYPE_CHECKING, Any

from torch.utils.data import RandomSampler, SequentialSampler
from transformers.integrations import TensorBoardCallback
from transformers.trainer_utils import has_length

from compat.checkpoint.pickled import as_pickles, without_shared_memory
from compat.errors import ArgumentError
from compat.trainer.component import Component
from compat.upstream.environment import overlaid

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch.utils.data import DataLoader, Sampler

    from compat.engine.host import TrainerHost
    from compat.upstream.values import Batch, Output, Rows


SHARED = (
    "`save_safetensors=True`: parameters of the {} share memory{}, which safetensors does not write. "
    "Give `save_safetensors=False`, which `compat` honours under every release, or have the script clone one "
    "of them in `state_dict()`."
)
"""Message for a plain module; a model of transformers lists its tied weights itself."""

LOADER_OPTIONS = {
    "dataloader_in_order": "in_order",
    "dataloader_multiprocessing_context": "multiprocessing_context",
}
"""Argument → attribute of torch's DataLoader."""


class Backports(Component):
    """Implements arguments of other releases that the installed one does not implement.

    Attributes:
        keeps_past: whether the past in a model's outputs is passed to the next batch (`past_index`).
    """

    def __init__(self, trainer: TrainerHost) -> None:
        super().__init__(trainer)
        self.keeps_past = False
        self._past_index = -1
        self._past: Output = None
        self._evaluated: tuple[int, dict[str, float] | None] = (-1, None)

    def set_up(self) -> None:
        """Apply the arguments that change objects created by HF's constructor."""
        hf = self.hf
        if (past_index := self._value("past_index")) is not None and past_index >= 0:
            self._past_index, self.keeps_past = past_index, True
        config = getattr(hf.model, "config", None)
        if (use_cache := self._value("use_cache")) is not None and config is not None:
            config.use_cache = use_cache
        # Up to 5.14, transformers 5 has the argument but does not read it; under 4 the callback reads it.
        if (folder := vars(hf.args).get("logging_dir")) is not None:
            for callback in hf.callback_handler.callbacks:
                if isinstance(callback, TensorBoardCallback) and hasattr(callback, "logging_dir"):
                    callback.logging_dir = folder

    def _value(self, name: str) -> Any:
        """Return the value of an argument that was passed and the installed release lacks; else None."""
        args = self.hf.args
        lacks = name in getattr(type(args), "other_names", ())
        return vars(args).get(name) if lacks else None

    # Data.

    def train_sampler(self, sampler: Sampler[Any] | None, dataset: Rows) -> Sampler[Any] | None:
        """Return the sampler of the train data.

        Args:
            sampler: HF's.
            dataset: the dataset that it draws from.
        """
        is_shuffled = isinstance(sampler, RandomSampler) and has_length(dataset)
        if is_shuffled and self._value("train_sampling_strategy") == "sequential":
            return SequentialSampler(dataset)
        return sampler

    def set_loader_options(self, loader: DataLoader[Any]) -> DataLoader[Any]:
        """Set the options that HF's code does not set on a dataloader.

        Args:
            loader: the loader; changed.
        """
        for name, attribute in LOADER_OPTIONS.items():
            if (value := self._value(name)) is not None:
                # accelerate's loaders wrap the loader that they draw from.
                setattr(getattr(loader, "base_dataloader", loader), attribute, value)
        return loader

    # The past that some models pass from batch to batch.

    def with_past(self, inputs: Batch) -> Batch:
        """Add the past of the previous batch to a batch.

        Args:
            inputs: the batch; changed.
        """
        if self._past is not None:
            inputs["mems"] = self._past
        return inputs

    def remember_past(self, outputs: Output) -> None:
        """Keep the past for the next batch.

        Args:
            outputs: the outputs of the model.
        """
        self._past = outputs[self._past_index]

    def forget_past(self) -> None:
        """Discard the stored past."""
        self._past = None

    # Evaluation.

    @contextlib.contextmanager
    def legacy_loop(self) -> Iterator[None]:
        """Have HF's code call `prediction_loop` instead of `evaluation_loop`, if the arguments request it."""
        if not self._value("use_legacy_prediction_loop"):
            yield
            return
        own: dict[str, Any] = vars(self.hf)
        own["evaluation_loop"] = self.hf.prediction_loop
        try:
            yield
        finally:
            own.pop("evaluation_loop", None)

    def remember_metrics(self, metrics: dict[str, float]) -> None:
        """Keep the metrics of an evaluation for a `_save_checkpoint` of 4.37.

        Args:
            metrics: name → value.
        """
        self._evaluated = (self.hf.state.global_step, metrics)

    def metrics_of_step(self) -> dict[str, float] | None:
        """Return the metrics of the evaluation at this update step; None if there was none."""
        step, metrics = self._evaluated
        return metrics if step == self.hf.state.global_step else None

    def set_static_graph(self) -> None:
        """Mark the graph as static for DDP, if the arguments request it."""
        is_static, handler = self._value("ddp_static_graph"), self.hf.accelerator.ddp_handler
        if is_static is not None and handler is not None:
            handler.static_graph = is_static

    # Saving.

    @property
    def saves_pickles(self) -> bool:
        """Whether this process saves weights as pickles, for `save_safetensors=False`."""
        return self._value("save_safetensors") is False and bool(self.hf.args.should_save)

    def weights_to_save(self, state_dict: dict[str, Any] | None) -> dict[str, Any] | None:
        """Return the weights that `_save` writes: pickled weights may share memory.

        Args:
            state_dict: its argument; the model's own weights if None.
        """
        if not self.saves_pickles:
            return state_dict
        # HF first writes safetensors, in which tensors must not share memory.
        return without_shared_memory(self.hf.model.state_dict() if state_dict is None else state_dict)

    @contextlib.contextmanager
    def saving(self, output_dir: str | None) -> Iterator[None]:
        """Convert the files that HF writes in this context to pickles, for `save_safetensors=False`.

        Args:
            output_dir: the folder; `args.output_dir` if None.

        Raises:
            ArgumentError: parameters share memory, and safetensors cannot hold them.
        """
        hf = self.hf
        try:
            yield
        except RuntimeError as error:
            if "share memory" not in str(error):
                raise
            names = re.search(r"\{'.*'\}", str(error))
            tied = f" ({names[0]})" if names else ""
            raise ArgumentError(SHARED.format(type(hf.model).__name__, tied)) from error
        if self.saves_pickles:
            as_pickles(hf.args.output_dir if output_dir is None else output_dir)

    def search_scope(self) -> contextlib.AbstractContextManager[None]:
        """Return a context in which Ray selects the best result of a trial according to `ray_scope`."""
        scope = self._value("ray_scope")
        return overlaid({"RAY_SCOPE": scope}) if scope else contextlib.nullcontext()
