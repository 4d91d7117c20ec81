"""Arguments that the installed transformers has no code for, being too new or too old: honoured here."""

from __future__ import annotations

import contextlib
import os
import re
from typing import TYPE_CHECKING, Any

from torch.utils.data import RandomSampler, SequentialSampler
from transformers.integrations import TensorBoardCallback
from transformers.integrations.integration_utils import rewrite_logs
from transformers.trainer_utils import has_length

from compat.arguments.training import fit_to_save
from compat.checkpoint.jsonable import metrics_as_json, save_state
from compat.checkpoint.layout import STATE
from compat.checkpoint.pickled import as_pickles, without_shared_memory
from compat.errors import ArgumentError
from compat.trainer.preemption import PreemptionMixin
from compat.upstream.environment import overlaid

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch.utils.data import DataLoader, Dataset, Sampler


SHARED = (
    "`save_safetensors=True`: parameters of the {} share memory{}, which safetensors does not write. "
    "Give `save_safetensors=False`, which `compat` honours under every release, or have the script clone one "
    "of them in `state_dict()`."
)
"""For a plain module; a model of transformers says itself what it ties."""


class HonouringMixin(PreemptionMixin):
    """HF's methods, doing also what arguments of other generations and Lightning's flags ask for."""

    _past_index: int = -1
    _past: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # Asked at each micro-step.
        given = self._lacked("past_index")
        self._past_index = -1 if given is None else given
        if self._past_index >= 0:
            self._past = None
        config = getattr(self.model, "config", None)
        if (use_cache := self._lacked("use_cache")) is not None and config is not None:
            config.use_cache = use_cache
        # Up to 5.14 transformers 5 has the argument, and does not read it; under 4 the callback reads it.
        if (folder := vars(self.args).get("logging_dir")) is not None:
            for callback in self.callback_handler.callbacks:
                if isinstance(callback, TensorBoardCallback) and hasattr(callback, "logging_dir"):
                    callback.logging_dir = folder

    def _lacked(self, name: str) -> Any:
        """The value of an argument that was given, and that the installed release lacks; None otherwise."""
        lacks = name in getattr(type(self.args), "other_names", ())
        return vars(self.args).get(name) if lacks else None

    # Data.

    def _get_train_sampler(self, *args: Any, **kwargs: Any) -> Sampler[Any] | None:
        sampler: Sampler[Any] | None = super()._get_train_sampler(*args, **kwargs)
        dataset = args[0] if args else kwargs.get("train_dataset") or self.train_dataset
        is_shuffled = isinstance(sampler, RandomSampler) and has_length(dataset)
        if is_shuffled and self._lacked("train_sampling_strategy") == "sequential":
            return SequentialSampler(dataset)
        return sampler

    def get_train_dataloader(self) -> DataLoader[Any]:
        """HF's loader over the training data. Mirrors `transformers.Trainer.get_train_dataloader`."""
        return self._with_lacked_options(super().get_train_dataloader())

    def get_eval_dataloader(self, eval_dataset: str | Dataset[Any] | None = None) -> DataLoader[Any]:
        """HF's loader over evaluation data. Mirrors `transformers.Trainer.get_eval_dataloader`."""
        return self._with_lacked_options(super().get_eval_dataloader(eval_dataset))

    def get_test_dataloader(self, test_dataset: Dataset[Any]) -> DataLoader[Any]:
        """HF's loader over data to predict. Mirrors `transformers.Trainer.get_test_dataloader`."""
        return self._with_lacked_options(super().get_test_dataloader(test_dataset))

    def _with_lacked_options(self, loader: DataLoader[Any]) -> DataLoader[Any]:
        for name, attribute in (
            ("dataloader_in_order", "in_order"),
            ("dataloader_multiprocessing_context", "multiprocessing_context"),
        ):
            if (value := self._lacked(name)) is not None:
                # accelerate's loaders draw from one that they wrap.
                setattr(getattr(loader, "base_dataloader", loader), attribute, value)
        return loader

    # The past that some models hand from batch to batch.

    def _prepare_inputs(self, inputs: Any) -> Any:
        prepared = super()._prepare_inputs(inputs)
        if self._past_index >= 0 and self._past is not None:
            prepared["mems"] = self._past
        return prepared

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **kwargs: Any) -> Any:
        """HF's loss. Mirrors `transformers.Trainer.compute_loss`.

        Args:
            model: the model as a training step calls it.
            inputs: a batch.
            return_outputs: whether the model's outputs are returned beside the loss.
            kwargs: `num_items_in_batch`, what the whole window counts.

        Returns:
            A scalar, or the scalar and the outputs.
        """
        if self._past_index < 0:
            return super().compute_loss(model, inputs, return_outputs, **kwargs)
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True, **kwargs)
        self._past = outputs[self._past_index]
        return (loss, outputs) if return_outputs else loss

    def _forget_past(self) -> None:
        super()._forget_past()
        if self._past_index >= 0:
            self._past = None

    # Evaluation.

    def evaluate(
        self,
        eval_dataset: Any = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
        **gen_kwargs: Any,
    ) -> dict[str, float]:
        """Evaluate. Mirrors `transformers.Trainer.evaluate`.

        Args:
            eval_dataset: the data, or several by name; `self.eval_dataset` where None.
            ignore_keys: keys of the model's output to leave out.
            metric_key_prefix: prefix of every metric.
            gen_kwargs: of a `Seq2SeqTrainer`, how to generate.

        Returns:
            Metrics, among them seconds, samples and steps per second.
        """
        with self._legacy_loop():
            metrics: dict[str, float] = super().evaluate(
                eval_dataset, ignore_keys, metric_key_prefix, **gen_kwargs
            )
        return metrics

    def predict(
        self,
        test_dataset: Any,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "test",
        **gen_kwargs: Any,
    ) -> Any:
        """Predict. Mirrors `transformers.Trainer.predict`.

        Args:
            test_dataset: the data.
            ignore_keys: keys of the model's output to leave out.
            metric_key_prefix: prefix of every metric.
            gen_kwargs: of a `Seq2SeqTrainer`, how to generate.

        Returns:
            Predictions of shape (samples, …), labels of shape (samples, …), and metrics.
        """
        with self._legacy_loop():
            return super().predict(test_dataset, ignore_keys, metric_key_prefix, **gen_kwargs)

    @contextlib.contextmanager
    def _legacy_loop(self) -> Iterator[None]:
        """Have HF's code call `prediction_loop` where it means `evaluation_loop`, if the arguments say so."""
        if not self._lacked("use_legacy_prediction_loop"):
            yield
            return
        own: dict[str, Any] = self.__dict__
        own["evaluation_loop"] = self.prediction_loop
        try:
            yield
        finally:
            own.pop("evaluation_loop", None)

    def _wrap_model(self, *args: Any, **kwargs: Any) -> Any:
        model = super()._wrap_model(*args, **kwargs)
        is_static = self._lacked("ddp_static_graph")
        if is_static is not None and self.accelerator.ddp_handler is not None:
            self.accelerator.ddp_handler.static_graph = is_static
        return model

    # What is written.

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log, also to the loggers of `lightning={"logger": …}`. Mirrors `transformers.Trainer.log`.

        Args:
            logs: name → value.
            args: when training began, in seconds since the epoch, where this release counts speed by it.
            kwargs: the same by its name, `start_time`.
        """
        super().log(logs, *args, **kwargs)
        if self._lightning is not None:
            self._lightning._logger_connector.show(logs)
        if self._lightning_flags.get("logger") and self.is_world_process_zero():
            numbers = {name: value for name, value in logs.items() if isinstance(value, (int, float))}
            for logger in self.lightning.loggers:
                # HF's own integration has written to it already.
                if getattr(logger, "belongs_to_hf", False):
                    continue
                logger.log_metrics(rewrite_logs(numbers), step=self.state.global_step)

    def save_metrics(self, split: str, metrics: dict[str, Any], combined: bool = True) -> None:
        """Write metrics to `SPLIT_results.json`. Mirrors `transformers.Trainer.save_metrics`.

        Args:
            split: what they are of: `train`, `eval`, `test`.
            metrics: name → value; arrays and tensors become lists.
            combined: whether `all_results.json` is brought up to date as well.

        Raises:
            ArgumentError: one of them cannot be written.
        """
        super().save_metrics(split, metrics_as_json(metrics), combined)

    def save_state(self) -> None:
        """Write the state into `args.output_dir`. Mirrors `transformers.Trainer.save_state`."""
        if self.is_world_process_zero():
            save_state(self.state, os.path.join(self.args.output_dir, STATE))

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        as_pickle = self._lacked("save_safetensors") is False
        if as_pickle and self.args.should_save:
            # What HF writes first must not share memory, which safetensors refuses and pickles do not mind.
            state_dict = without_shared_memory(self.model.state_dict() if state_dict is None else state_dict)
        try:
            with fit_to_save(self.args):
                super()._save(output_dir, state_dict)
        except RuntimeError as error:
            if "share memory" not in str(error):
                raise
            names = re.search(r"\{'.*'\}", str(error))
            tied = f" ({names[0]})" if names else ""
            raise ArgumentError(SHARED.format(type(self.model).__name__, tied)) from error
        if as_pickle and self.args.should_save:
            as_pickles(self.args.output_dir if output_dir is None else output_dir)

    def hyperparameter_search(self, *args: Any, **kwargs: Any) -> Any:
        """Search for the best arguments. Mirrors `transformers.Trainer.hyperparameter_search`."""
        scope = self._lacked("ray_scope")
        with overlaid({"RAY_SCOPE": scope}) if scope else contextlib.nullcontext():
            return super().hyperparameter_search(*args, **kwargs)
