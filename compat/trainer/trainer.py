"""`compat.Trainer`: HF's Trainer on Lightning's engine."""

from __future__ import annotations

import contextlib
import os
import time
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from transformers import Trainer as HFTrainer  # HF's own, also after `compat.install()`

from compat.arguments.machine import XLA
from compat.arguments.training import fit_to_save
from compat.callbacks.loggers import reporting
from compat.callbacks.misplaced import check_place, is_lightning_callback
from compat.checkpoint.adapters import is_whole
from compat.checkpoint.io import numpys_older_names
from compat.checkpoint.jsonable import metrics_as_json, save_state
from compat.checkpoint.layout import STATE
from compat.checkpoint.selection import AUTO
from compat.engine.user_module import is_user_module
from compat.errors import ArgumentError
from compat.trainer.accelerator import accelerator_of_trainer
from compat.trainer.component import Slot, restore
from compat.trainer.components.callbacks import Callbacks
from compat.trainer.components.checkpoint_reader import CheckpointReader
from compat.trainer.components.checkpoint_writer import CheckpointWriter
from compat.trainer.components.distribution import Distribution
from compat.trainer.components.evaluation import NO_MODEL, EvaluationRuns
from compat.trainer.components.finders import find
from compat.trainer.components.fit import Fit
from compat.trainer.components.hub_uploads import HubUploads
from compat.trainer.components.shutdown import Shutdown
from compat.trainer.components.user_module import UserModule
from compat.trainer.constructor import BoundArguments, adapt_inputs
from compat.trainer.legacy.backports import Backports
from compat.trainer.legacy.methods import LegacyMethods, values_of_4, values_of_5
from compat.trainer.legacy.overrides import adapt_overrides, is_adapted
from compat.trainer.legacy.renamed import accept_renamed, takes_tokenizer
from compat.trainer.rows import check_rows
from compat.trainer.surprises import Surprises
from compat.upstream.columns import copying_whole_rows
from compat.upstream.features import (
    LENGTH_TAKES_BATCH_SIZE,
    METRICS_FORMAT_IS_A_METHOD,
    OPTIMIZER_TAKES_MODEL,
    REPO_CAN_BE_PRIVATE,
)
from compat.upstream.models import uncompiled
from compat.upstream.patched import is_patched, own_signature, show_source
from compat.upstream.seams import TrainerSeams
from compat.upstream.seams.common import determine_best_metric
from compat.upstream.sharding import loading_optimizers_without_unused

if TYPE_CHECKING:
    import lightning.pytorch as pl
    from lightning.pytorch import Callback
    from torch import nn
    from torch.nn.modules.module import _IncompatibleKeys
    from torch.optim import Optimizer
    from torch.utils.data import DataLoader, Dataset, Sampler
    from transformers import PreTrainedModel, TrainerCallback, TrainingArguments
    from transformers.data.data_collator import DataCollator
    from transformers.trainer_utils import BestRun, EvalLoopOutput, PredictionOutput, TrainOutput

    from compat.engine.module import TrainerModule
    from compat.translate import LightningPlan
    from compat.upstream.values import Batch, Loader, NumItems, Output, Rows, Trial


class Trainer(TrainerSeams, LegacyMethods):  # type: ignore[misc]
    """Train, evaluate and predict with HF's interface, on PyTorch Lightning.

    Mirrors `transformers.Trainer`: same constructor, methods, events and checkpoints, and
    `isinstance(trainer, transformers.Trainer)` holds. What can be overridden there can be overridden here,
    with the signatures of 4.37 and later; methods and parameters of all these releases exist.
    `trainer.lightning` and `trainer.lightning_module` are the live Lightning objects, `trainer.plan` shows
    how each argument is handled.

    Every method of HF's that is overridden is in this class, in HF's order. Each override delegates to one of
    the components in `compat.trainer.components`.

    Args:
        model: the model to train, or a LightningModule. All arguments not listed here are as in
            `transformers.Trainer`.
        train_dataset: a dataset, or a LightningDataModule.
        callbacks: HF's and Lightning's callbacks, in one list.
        tokenizer: the older name of `processing_class`.

    Raises:
        ArgumentError: arguments that are not supported, all of them at once, before anything is built.
        ValueError: HF's own errors; `tokenizer` and `processing_class` are both given.
    """

    announces_plan: ClassVar[bool] = False
    """Whether `train` first prints the plan to stderr; `compat run` sets it."""

    stops_before_training: ClassVar[bool] = False
    """Whether `train` ends the process where training would begin; `compat run --dry-run` sets it."""

    carries_windows: ClassVar[bool] = False
    """Whether an incomplete accumulation window continues in the next epoch, as in 4.37."""

    model: PreTrainedModel
    optimizer: Any
    lr_scheduler: Any
    accelerator: Any = accelerator_of_trainer
    _backports = Slot(Backports)
    _callbacks = Slot(Callbacks)
    _checkpoint_reader = Slot(CheckpointReader)
    _checkpoint_writer = Slot(CheckpointWriter)
    _distribution = Slot(Distribution)
    _evaluation = Slot(EvaluationRuns)
    _fit = Slot(Fit)
    _hub_uploads = Slot(HubUploads)
    _shutdown = Slot(Shutdown)
    _surprises = Slot(Surprises)
    _user_module = Slot(UserModule)

    @takes_tokenizer(own_signature())
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        accept_renamed(kwargs, "tokenizer", "processing_class", f"{type(self).__name__}.__init__")
        adapt_overrides(self, Trainer)
        bound = BoundArguments(args, kwargs)
        callbacks = adapt_inputs(bound)
        with reporting(bound["args"]) as own:
            super().__init__(*bound.args, **bound.kwargs)
            self._shutdown.set_time_limit()
            self._backports.set_up()
        # At the position of HF's own: after the flow callback, before the script's callbacks.
        self.callback_handler.callbacks[1:1] = own
        for callback in callbacks:
            self.add_callback(callback)
        if is_user_module(self.model) or is_adapted(self, "compute_loss"):
            # A loss with an older signature is the mean of its micro-batch: HF must divide it by the window.
            self.model_accepts_loss_kwargs = False

    def __setstate__(self, state: dict[str, Any]) -> None:
        restore(self, state)

    @property
    def lightning(self) -> pl.Trainer:
        """The Lightning Trainer of this run or of the last one; before any run, one that can evaluate."""
        return self._fit.lightning

    @property
    def lightning_module(self) -> TrainerModule:
        """The LightningModule around the model."""
        return self._fit.lightning_module

    @property
    def plan(self) -> LightningPlan:
        """How each argument is handled."""
        return self._fit.plan

    # The accelerator.

    def _build_accelerator_args(self, **parts: object) -> dict[str, Any]:
        return self._distribution.without_mesh(super()._build_accelerator_args(**parts))

    def create_accelerator_and_postprocess(self) -> None:
        """Have HF build its accelerator from the arguments only, unaffected by an earlier run."""
        # Conflicts are reported here, before the model and everything else is built.
        self._distribution.check()
        with self._distribution.environment():
            super().create_accelerator_and_postprocess()
        self._distribution.complete()

    # Data.

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Return the train dataloader. Mirrors `transformers.Trainer.get_train_dataloader`."""
        own = self._user_module.train_dataloader()
        if own is None:
            check_rows(self.train_dataset, "train_dataset", "get_train_dataloader")
        return self._complete(super().get_train_dataloader() if own is None else own)

    def get_eval_dataloader(self, eval_dataset: str | Dataset[Any] | None = None) -> DataLoader[Any]:
        """Return the evaluation dataloader. Mirrors `transformers.Trainer.get_eval_dataloader`."""
        own = self._user_module.eval_dataloader(eval_dataset)
        if own is None:
            check_rows(self._user_module.eval_data(eval_dataset), "eval_dataset", "get_eval_dataloader")
        return self._complete(super().get_eval_dataloader(eval_dataset) if own is None else own)

    def get_test_dataloader(self, test_dataset: Dataset[Any]) -> DataLoader[Any]:
        """Return the test dataloader. Mirrors `transformers.Trainer.get_test_dataloader`."""
        own = self._user_module.test_dataloader(test_dataset)
        if own is None:
            check_rows(test_dataset, "test_dataset", "get_test_dataloader")
        loader = super().get_test_dataloader(test_dataset) if own is None else own
        return self._backports.set_loader_options(loader)

    def _complete(self, loader: Loader) -> DataLoader[Any]:
        return self._backports.set_loader_options(self._shutdown.protect_workers(loader))

    def _get_train_sampler(self, *args: object, **kwargs: object) -> Sampler[Any] | None:
        sampler: Sampler[Any] | None = super()._get_train_sampler(*args, **kwargs)
        dataset = args[0] if args else kwargs.get("train_dataset") or self.train_dataset
        return self._backports.train_sampler(sampler, dataset)

    def _remove_unused_columns(self, dataset: Rows, description: str | None = None) -> Rows:
        # The `forward` of a LightningModule does not show which columns its steps use.
        return dataset if is_user_module(self.model) else super()._remove_unused_columns(dataset, description)

    def _get_collator_with_removed_columns(
        self, data_collator: DataCollator, description: str | None = None
    ) -> DataCollator:
        if is_user_module(self.model):
            return data_collator
        return copying_whole_rows(super()._get_collator_with_removed_columns(data_collator, description))

    # Optimizer and scheduler.

    def create_optimizer(self, model: nn.Module | None = None) -> Optimizer:
        """Create the optimizer, unless there is one; a LightningModule may have its own.

        Mirrors `transformers.Trainer.create_optimizer` of 5.23.

        Args:
            model: the model whose parameters to optimize; the trainer's own model if None.

        Returns:
            The optimizer.
        """
        optimizer: Optimizer
        if (own := self._user_module.create_optimizer()) is not None:
            optimizer = own
        elif model is None:
            optimizer = super().create_optimizer()
        elif OPTIMIZER_TAKES_MODEL:
            optimizer = super().create_optimizer(model)
        else:
            current, self.model = self.model, model
            try:
                optimizer = super().create_optimizer()
            finally:
                self.model = current
        return optimizer

    def create_scheduler(self, *args: Any, **kwargs: Any) -> Any:
        """Create HF's scheduler, or a LightningModule's. Mirrors `transformers.Trainer.create_scheduler`."""
        own = self._user_module.create_scheduler()
        return self._create_hf_scheduler(*args, **kwargs) if own is None else own

    # Training.

    def train(
        self,
        resume_from_checkpoint: str | bool | None = None,
        trial: Trial = None,
        ignore_keys_for_eval: list[str] | None = None,
        **kwargs: Any,
    ) -> TrainOutput:
        """Train the model.

        Mirrors `transformers.Trainer.train`.

        Args:
            resume_from_checkpoint: a `checkpoint-N` folder, or a file of `trainer.lightning.save_checkpoint`;
                True for the newest intact folder in `args.output_dir`; "auto" for the same, or a fresh start
                if there is none. If this is not passed, "auto" in the arguments applies.
            trial: the trial of a hyperparameter search.
            ignore_keys_for_eval: keys of the model's output to leave out when evaluating during training.
            kwargs: `model_path`, the former name of `resume_from_checkpoint`.

        Returns:
            Update steps, mean training loss, and metrics of the run (seconds, samples and steps per second,
            flos).

        Raises:
            ArgumentError: the checkpoint is broken; the error names the file and the problem.
        """
        self._shutdown.train_began = time.monotonic()
        kwargs["resume_from_checkpoint"] = resume_from_checkpoint
        accept_renamed(kwargs, "model_path", "resume_from_checkpoint", f"{type(self).__name__}.train")
        asked = kwargs["resume_from_checkpoint"]
        if asked is None and trial is None and self.args.resume_from_checkpoint == AUTO:
            asked = AUTO
        kwargs["resume_from_checkpoint"] = self._checkpoint_reader.choose(asked)
        if trial is not None:
            self._callbacks.begin_trial()
        try:
            find(self, self._fit.finders, kwargs["resume_from_checkpoint"])
            output: TrainOutput = super().train(
                trial=trial, ignore_keys_for_eval=ignore_keys_for_eval, **kwargs
            )
        except BaseException:
            self._checkpoint_writer.give_up()
            self._fit.give_up()
            raise
        finally:
            self._checkpoint_reader.remove_unpacked()
        return output

    def _inner_training_loop(
        self,
        batch_size: int | None = None,
        args: TrainingArguments | None = None,
        resume_from_checkpoint: str | None = None,
        trial: Trial = None,
        ignore_keys_for_eval: list[str] | None = None,
    ) -> TrainOutput:
        """Train in `lightning.pytorch.Trainer.fit`, in place of HF's loop."""
        with self._user_module.stepping_by_batch():
            session = self._fit.prepare(batch_size, resume_from_checkpoint, trial, ignore_keys_for_eval)
            with self._shutdown.handling_signals():
                return self._fit.run(session)

    def _init_training_state(
        self,
        max_steps: int,
        num_update_steps_per_epoch: int,
        num_train_epochs: int,
        resume_from_checkpoint: str | None,
        trial: Trial,
    ) -> tuple[int, int]:
        length = (max_steps, num_update_steps_per_epoch, num_train_epochs)
        trained: tuple[int, int] = super()._init_training_state(*length, resume_from_checkpoint, trial)
        self._checkpoint_reader.report(max_steps, resume_from_checkpoint, trial)
        return trained

    def _start_bookkeeping(self, loss: torch.Tensor) -> None:
        super()._start_bookkeeping(loss)
        self._shutdown.listen()

    def _finalize_training(self, *args: object, **kwargs: object) -> TrainOutput:
        self._hub_uploads.finish_before_deletion()
        with self._shutdown.ending_run():
            output: TrainOutput = super()._finalize_training(*args, **kwargs)
            self._checkpoint_writer.keep_only_best()
        return output

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Batch,
        return_outputs: bool = False,
        num_items_in_batch: NumItems = None,
    ) -> Output:
        """Compute HF's loss, or a LightningModule's. Mirrors `transformers.Trainer.compute_loss`.

        Args:
            model: the model as a training step calls it.
            inputs: a batch.
            return_outputs: whether to return the model's outputs as well.
            num_items_in_batch: the number of items of the whole window.

        Returns:
            A scalar, or the scalar and the outputs.
        """
        if is_user_module(self.model):
            return self._user_module.compute_loss(model, inputs, return_outputs=return_outputs)
        keeps_past = self._backports.keeps_past
        computed = super().compute_loss(
            model, inputs, return_outputs or keeps_past, num_items_in_batch=num_items_in_batch
        )
        if not keeps_past:
            return computed
        self._backports.remember_past(computed[1])
        return computed if return_outputs else computed[0]

    def _maybe_log_save_evaluate(self, *args: object, **kwargs: object) -> None:
        act = partial(super()._maybe_log_save_evaluate, *args, **kwargs)
        self._shutdown.end_step(partial(self._checkpoint_writer.hand_over_while, act))

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> tuple[list[Any], Any]:
        """Fetch a window's batches and item count. Mirrors `transformers.Trainer.get_batch_samples`."""
        if is_user_module(self.model):
            return self._user_module.batch_samples(*args, **kwargs)
        self._fit.require_lightning()
        read: tuple[list[Any], Any] = super().get_batch_samples(*args, **kwargs)
        return read

    def _prepare_inputs(self, inputs: Batch) -> Batch:
        if is_user_module(self.model):
            return self._user_module.prepare_inputs(inputs)
        return self._backports.with_past(super()._prepare_inputs(inputs))

    def _forget_past(self) -> None:
        super()._forget_past()
        self._backports.forget_past()

    def set_initial_training_values(
        self, args: TrainingArguments, dataloader: Loader, total_train_batch_size: int | None = None
    ) -> tuple[Any, ...]:
        """Compute the length of a training run.

        Mirrors `transformers.Trainer.set_initial_training_values`: of 4.53 if the batch size is passed, of
        5.23 if it is not.

        Args:
            args: the arguments.
            dataloader: the train dataloader.
            total_train_batch_size: samples in an update step.

        Returns:
            Epochs, update steps in an epoch, samples in the dataset and samples in the run; then whether
            epochs set the length and the batches in an epoch (None if unknown), or, if no batch size is
            passed, the samples in an update step and the micro-steps in an epoch; last the update steps in
            the run.
        """
        values: tuple[Any, ...]
        total = total_train_batch_size
        if not LENGTH_TAKES_BATCH_SIZE:
            values = super().set_initial_training_values(args, dataloader)
            return values if total is None else values_of_4(values, args, dataloader, total)
        batch_size = self.get_total_train_batch_size(args) if total is None else total
        values = super().set_initial_training_values(args, dataloader, batch_size)
        return values if total is not None else values_of_5(values, args, batch_size)

    def _wrap_model(self, *args: Any, **kwargs: Any) -> Any:
        model = super()._wrap_model(*args, **kwargs)
        if model is not self.model:
            self._distribution.complete_sharding_by_xla(model)
        self._backports.set_static_graph()
        return model

    # Evaluation and prediction.

    def evaluate(
        self,
        eval_dataset: Rows = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
        **gen_kwargs: object,
    ) -> dict[str, float]:
        """Evaluate. Mirrors `transformers.Trainer.evaluate`.

        Args:
            eval_dataset: the data, or a dict of datasets by name; `self.eval_dataset` if None.
            ignore_keys: keys of the model's output to leave out.
            metric_key_prefix: prefix of every metric.
            gen_kwargs: of a `Seq2SeqTrainer`, how to generate.

        Returns:
            Metrics, including seconds, samples and steps per second.
        """
        with self._backports.legacy_loop(), self._evaluation.as_one_validation():
            metrics: dict[str, float] = super().evaluate(
                eval_dataset, ignore_keys, metric_key_prefix, **gen_kwargs
            )
        return metrics

    def predict(
        self,
        test_dataset: Rows,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "test",
        **gen_kwargs: object,
    ) -> PredictionOutput:
        """Predict. Mirrors `transformers.Trainer.predict`.

        Args:
            test_dataset: the data.
            ignore_keys: keys of the model's output to leave out.
            metric_key_prefix: prefix of every metric.
            gen_kwargs: of a `Seq2SeqTrainer`, how to generate.

        Returns:
            Predictions of shape (samples, …), labels of shape (samples, …), and metrics.
        """
        with self._backports.legacy_loop():
            return super().predict(test_dataset, ignore_keys, metric_key_prefix, **gen_kwargs)

    def evaluation_loop(
        self,
        dataloader: Loader,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Evaluate or predict over a dataloader.

        Mirrors `transformers.Trainer.evaluation_loop`. Lightning's validation loop (its prediction loop for
        the description "Prediction") calls `prediction_step` with each batch.

        Args:
            dataloader: batches as HF's loaders make them.
            description: the name of the pass in the log.
            prediction_loss_only: whether only losses are kept; `args.prediction_loss_only` if None.
            ignore_keys: keys of the model's output to leave out.
            metric_key_prefix: prefix of every metric.

        Returns:
            Predictions of shape (samples, …), labels of shape (samples, …), metrics, and the number of
            samples.
        """
        return self._evaluation.run(
            dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix
        )

    def prediction_loop(
        self,
        dataloader: Loader,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """`evaluation_loop`, under the name that `use_legacy_prediction_loop` calls."""
        # Not `self.evaluation_loop`: a subclass may override one without the other.
        return self._evaluation.run(
            dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix
        )

    def prediction_step(
        self,
        model: nn.Module,
        inputs: Batch,
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
        **gen_kwargs: object,
    ) -> tuple[Any, Any, Any]:
        """Run HF's step, or a LightningModule's. Mirrors `transformers.Trainer.prediction_step`.

        Args:
            model: the model, in eval mode.
            inputs: a batch.
            prediction_loss_only: whether only the loss is returned.
            ignore_keys: keys of the model's output to leave out.
            gen_kwargs: of a `Seq2SeqTrainer`, how to generate.

        Returns:
            Loss, logits and labels; each may be None.
        """
        if is_user_module(self.model):
            with torch.no_grad():
                return self._user_module.prediction_step(model, inputs, prediction_loss_only)
        step: tuple[Any, Any, Any] = super().prediction_step(
            model, inputs, prediction_loss_only, ignore_keys, **gen_kwargs
        )
        return step

    def _evaluate(
        self, trial: Trial, ignore_keys_for_eval: list[str] | None, skip_scheduler: bool = False
    ) -> dict[str, float]:
        # Lightning steps the scheduler of a LightningModule, also one that waits for a metric.
        skips = skip_scheduler or self._user_module.config is not None
        with self._shutdown.timing("evaluation"), self._evaluation.as_one_validation():
            metrics: dict[str, float] = super()._evaluate(trial, ignore_keys_for_eval, skip_scheduler=skips)
        self._backports.remember_metrics(metrics)
        return metrics

    # Checkpoints.

    def _save_checkpoint(
        self, model: nn.Module, trial: Trial, metrics: dict[str, float] | None = None
    ) -> None:
        # 4.37 also passes `metrics`; later releases find the best model before this call.
        with self._shutdown.timing("save"):
            checkpoint = self._checkpoint_writer.save(trial)
        self._shutdown.note_saved(checkpoint)

    def _determine_best_metric(self, metrics: dict[str, float], trial: Trial) -> bool:
        self._checkpoint_writer.check_metric(metrics)
        return determine_best_metric(self, metrics, trial)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if self._checkpoint_writer.is_sharded:
            super()._save_optimizer_and_scheduler(output_dir)
        else:
            self._checkpoint_writer.save_optimizer_and_scheduler(output_dir)

    def _save_scaler(self, output_dir: str) -> None:
        self._checkpoint_writer.save_scaler(output_dir)

    def _rotate_checkpoints(self, use_mtime: bool = False, output_dir: str | None = None) -> None:
        self._checkpoint_writer.rotate(use_mtime, output_dir)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        if not self._checkpoint_reader.load_adapters(resume_from_checkpoint, is_trained_on=True):
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    @property
    def _loads_own_weights(self) -> bool:
        """Whether a subclass loads the weights of a checkpoint by itself."""
        return type(self)._load_from_checkpoint is not Trainer._load_from_checkpoint

    @property
    def _saves_own_weights(self) -> bool:
        """Whether code other than ours and HF's takes part in saving the weights."""
        return self._backports.saves_pickles or any(
            getattr(getattr(self, name), "__func__", None) is not getattr(Trainer, name)
            or is_patched(HFTrainer, name)
            for name in ("save_model", "_save")
        )

    def _load_best_model(self) -> None:
        if self._shutdown.is_left_early:
            # Training of this model will resume.
            return
        best = self._checkpoint_reader.check_best()
        if self._checkpoint_reader.load_adapters(best, is_trained_on=False):
            self._checkpoint_reader.report_nothing_missing()
        elif is_whole(self.model, best):
            super()._load_from_checkpoint(best)
        else:
            super()._load_best_model()
        self._callbacks.forget_averages()

    def _load_rng_state(self, checkpoint: str | None) -> None:
        with numpys_older_names():
            super()._load_rng_state(checkpoint)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        # A callback may have added groups to the optimizer that these states belong to.
        self._callbacks.load(checkpoint)
        if checkpoint is None:
            return
        if self._checkpoint_writer.is_sharded:
            with loading_optimizers_without_unused():
                super()._load_optimizer_and_scheduler(checkpoint)
            self._checkpoint_reader.mend_universal_state()
        else:
            self._checkpoint_reader.load_optimizer_and_scheduler(checkpoint)

    def _load_scaler(self, checkpoint: str | None) -> None:
        self._checkpoint_reader.load_scaler(checkpoint)

    def _load_callback_state(self) -> None:
        with self._checkpoint_reader.restoring_callbacks():
            super()._load_callback_state()

    def _issue_warnings_after_load(self, load_result: _IncompatibleKeys) -> None:
        load_result = self._checkpoint_reader.translate_keys(load_result)
        if hasattr(self.model, "_keys_to_ignore_on_save"):
            super()._issue_warnings_after_load(load_result)
        else:
            # HF assumes that every model is from transformers.
            self._checkpoint_reader.warn_of_keys(load_result)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the model, its configuration and its processing class for `from_pretrained`.

        Mirrors `transformers.Trainer.save_model`, which writes nothing if FSDP checkpoints are sharded.

        Args:
            output_dir: where; `args.output_dir` if None.
        """
        if self.model is None:
            raise ArgumentError(NO_MODEL)
        weights = self._checkpoint_writer.gather_weights(is_internal=_internal_call)
        if weights is None:
            # On XLA, HF pickles the arguments without calling `_save`.
            on_xla = self.args.device.type == XLA
            with fit_to_save(self.args) if on_xla else contextlib.nullcontext():
                super().save_model(output_dir, _internal_call)
            return
        if self._checkpoint_writer.model_saves_itself:
            self._checkpoint_writer.save_itself(output_dir or self.args.output_dir, weights)
        else:
            self._save(output_dir or self.args.output_dir, state_dict=weights)
        if self.args.push_to_hub and not _internal_call:
            self.push_to_hub(commit_message="Model save", revision=self.args.hub_revision)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        state_dict = self._callbacks.weights_to_save(self._backports.weights_to_save(state_dict))
        with self._backports.saving(output_dir), fit_to_save(self.args), self._fit.accumulation_as_given():
            super()._save(output_dir, state_dict)

    # Logs and metrics.

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log, also to the loggers of `lightning={"logger": …}`. Mirrors `transformers.Trainer.log`.

        Args:
            logs: name → value.
            args: the start time of training, in seconds since the epoch, if this release computes speed from
                it.
            kwargs: the same by its name, `start_time`.
        """
        self._user_module.omit_losses(logs)
        super().log(logs, *args, **kwargs)
        self._fit.show_logs(logs)

    def floating_point_ops(self, inputs: Batch) -> int:
        """Estimate the operations of a batch. Mirrors `transformers.Trainer.floating_point_ops`."""
        if is_user_module(self.model) and self._user_module.is_without_flops(inputs):
            return 0
        flops: int = super().floating_point_ops(inputs)
        return flops

    def metrics_format(self, metrics: dict[str, float]) -> dict[str, float]:
        """Make metrics readable: hours for seconds, GF for flos, four digits for the rest.

        Mirrors `transformers.Trainer.metrics_format` of 4.53. In 5.23 the method lacks `self`, and cannot be
        called.

        Args:
            metrics: the metrics; seconds end in `_runtime`.

        Returns:
            The same keys, readable.
        """
        formatted: dict[str, float]
        if METRICS_FORMAT_IS_A_METHOD:
            formatted = super().metrics_format(metrics)
        else:
            formatted = HFTrainer.metrics_format(metrics)
        return formatted

    def save_metrics(self, split: str, metrics: dict[str, Any], combined: bool = True) -> None:
        """Write metrics to `SPLIT_results.json`. Mirrors `transformers.Trainer.save_metrics`.

        Args:
            split: the data split: `train`, `eval`, `test`.
            metrics: name → value; arrays and tensors become lists.
            combined: whether `all_results.json` is updated as well.

        Raises:
            ArgumentError: a metric cannot be written as JSON.
        """
        super().save_metrics(split, metrics_as_json(metrics), combined)

    def save_state(self) -> None:
        """Write the state into `args.output_dir`. Mirrors `transformers.Trainer.save_state`."""
        if self.is_world_process_zero():
            save_state(self.state, os.path.join(self.args.output_dir, STATE))

    # The Hub.

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """Create the repository that `args.hub_model_id` names, unless it exists.

        Mirrors `transformers.Trainer.init_hf_repo` of 5.23.

        Args:
            token: may write; `args.hub_token` where None.
            private: whether a new repository is private; `args.hub_private_repo` where None.
        """
        if REPO_CAN_BE_PRIVATE:
            super().init_hf_repo(token=token, private=private)
            return
        by_argument = self.args.hub_private_repo
        if private is not None:
            self.args.hub_private_repo = private
        try:
            super().init_hf_repo(token=token)
        finally:
            self.args.hub_private_repo = by_argument

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **kwargs: object,
    ) -> Any:
        """Save the model, write its card and upload both.

        Mirrors `transformers.Trainer.push_to_hub` of 5.23.

        Args:
            commit_message: the message of the commit.
            blocking: whether to wait for the upload.
            token: may write; `args.hub_token` where None.
            revision: the branch; `args.hub_revision` where None.
            private: whether a new repository is private; `args.hub_private_repo` where None.
            kwargs: options of `create_model_card`.

        Returns:
            The commit, or its future if not `blocking`.
        """
        self._hub_uploads.announce()
        # The push writes into the folder that is being uploaded.
        self._finish_current_push()
        if self.hub_model_id is None and private is not None:
            self.init_hf_repo(token=token, private=private)
        return super().push_to_hub(commit_message, blocking, token, revision, **kwargs)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        self._hub_uploads.push(checkpoint_folder, super()._push_from_checkpoint)

    def _finish_current_push(self) -> None:
        super()._finish_current_push()
        self._hub_uploads.report_last()

    # Hyperparameter search and callbacks.

    def hyperparameter_search(self, *args: object, **kwargs: object) -> BestRun | list[BestRun]:
        """Search for the best arguments. Mirrors `transformers.Trainer.hyperparameter_search`."""
        with self._backports.search_scope():
            return super().hyperparameter_search(*args, **kwargs)

    def call_model_init(self, trial: Trial = None) -> Any:
        """Call `model_init`. Mirrors `transformers.Trainer.call_model_init`.

        Args:
            trial: the trial of a hyperparameter search.
        """
        return uncompiled(super().call_model_init(trial))

    def add_callback(self, callback: TrainerCallback | Callback | type[Any]) -> None:
        """Add an HF or Lightning callback. Mirrors `transformers.Trainer.add_callback`.

        Args:
            callback: a callback, or its class.

        Raises:
            ArgumentError: it is no callback, or works only with another distribution's Trainer.
        """
        for part in getattr(callback, "unwrapped", (callback,)):
            check_place(part, "callbacks")
            if is_lightning_callback(part):
                self._callbacks.add(part)
            else:
                super().add_callback(part)

    def pop_callback(
        self, callback: TrainerCallback | Callback | type[Any]
    ) -> TrainerCallback | Callback | None:
        """Remove a callback of either kind. Mirrors `transformers.Trainer.pop_callback`.

        Args:
            callback: a callback, or a class whose first instance is removed.

        Returns:
            The callback, or None if it is not found.
        """
        if is_lightning_callback(callback):
            return self._callbacks.pop(callback)
        return super().pop_callback(callback)

    def remove_callback(self, callback: TrainerCallback | Callback | type[Any]) -> None:
        """As `pop_callback`, without returning it. Mirrors `transformers.Trainer.remove_callback`."""
        if is_lightning_callback(callback):
            self._callbacks.pop(callback)
        else:
            super().remove_callback(callback)


show_source(Trainer, HFTrainer)
