"""A model in HF's style as a LightningModule for a user's Lightning Trainer."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any, ClassVar

import lightning.pytorch as pl
import torch
import transformers
from lightning.pytorch.plugins import MixedPrecision
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from lightning.pytorch.trainer.states import TrainerFn
from transformers.trainer_pt_utils import find_batch_size
from transformers.utils import logging
from typing_extensions import override

from compat.callbacks.misplaced import refusing_callbacks_of_hf
from compat.checkpoint.convert.lightning import EXTRA, FILES
from compat.checkpoint.hosts import gathered
from compat.checkpoint.io import keep_files_whole, load_plain
from compat.checkpoint.layout import OPTIMIZER_EXTRA
from compat.engine.evaluation import Evaluation
from compat.engine.optimizer import has_modes
from compat.engine.optimizer_state import held_state, load_held_state
from compat.engine.precision import set_autocast
from compat.errors import ArgumentError
from compat.modules.headless import Losses, build_parts, check
from compat.modules.hf_datamodule import HFLoader
from compat.modules.strategies import check_strategy, share_job
from compat.modules.window_reader import Place, WindowReader, WindowSource, total_steps
from compat.translate import plan
from compat.upstream.environment import Facts
from compat.upstream.features import SCHEDULERS_THAT_WAIT
from compat.upstream.models import activated_neftune, checkpoint_activations

if TYPE_CHECKING:
    from collections.abc import Mapping
    from contextlib import AbstractContextManager

    from torch import nn
    from torch.optim import Optimizer
    from torch.utils.hooks import RemovableHandle

    from compat.engine.host import SurprisesHost, TrainerHost
    from compat.engine.optimizer_state import Held
    from compat.trainer.trainer import Trainer
    from compat.upstream.values import Batch, Loader, Output

NEVER = 2**53
"""A frequency that no run reaches: the module itself steps such a scheduler."""

MIXED = {"bf16-mixed": "bf16", "16-mixed": "fp16"}
"""Lightning's name of a mixed precision → HF's."""

POSITIONS = "hf_positions"
"""The key of the positions of all processes in their data, with their random states, in order of rank."""

TRANSIENT = ("_hf", "reader", "_passes", "_neftune", "_surprises")
"""Attributes of a run, which are omitted from copies and pickles of the module."""

FLAGS = ("accumulate_grad_batches", "gradient_clip_val", "max_epochs", "max_steps", "precision")
"""Flags of the Lightning Trainer that correspond to HF's arguments."""


class HFModule(pl.LightningModule):
    """Trains a model that returns its own loss as `transformers.Trainer` would, in any Lightning Trainer.

    The Lightning Trainer decides on devices, precision, the length of the run, accumulation and clipping;
    differing `args` are reported in a warning, and `compat.plan(args).flags` are the corresponding flags. The
    rest is HF's own code, called through a `compat.Trainer` that never trains: losses averaged over the
    tokens of a whole accumulation window, label smoothing, train mode at each step, optimizer and schedule,
    metrics. With the same flags and an `HFDataModule`, the weights are bit-identical to those of
    `transformers.Trainer`; a run resumed with `ckpt_path` in the middle of an epoch ends like an
    uninterrupted one.

    The names of its parameters and the order of its optimizer's groups are those of `Trainer`, so that a file
    written by `trainer.lightning.save_checkpoint` can be loaded here with `ckpt_path`.

    Args:
        model: returns a loss, as the `loss` of its output or as the first item, when called with labels.
        args: HF's arguments, transformers' or ours. `compat.callbacks.to_lightning` implements logging,
            evaluation and saving.
        processing_class: saved by `save_pretrained` together with the model; for example a tokenizer.
        compute_loss_func: as in `transformers.Trainer`: (outputs, labels, num_items_in_batch) → loss.
        compute_metrics: as in `transformers.Trainer`, or a metric or collection of torchmetrics.
        preprocess_logits_for_metrics: as in `transformers.Trainer`.
        optimizers: an optimizer and a scheduler to use in place of those that `args` describe.
        trainer_class: a subclass of `compat.Trainer` whose `compute_loss`, `create_optimizer`,
            `prediction_step` and similar methods are used.

    Raises:
        ArgumentError: arguments that are not supported with a user's Lightning Trainer, all of them at once.

    Attributes:
        micro_loss: the loss of the last micro-batch, divided by its window as HF divides it.
    """

    reads_windows = True
    _hf: Any = None
    reader: WindowReader | None = None
    _neftune: RemovableHandle | None = None
    is_hf_module: ClassVar[bool] = True
    """Marks an HFModule for `compat.Trainer`: it wraps the model to train."""

    _surprises: SurprisesHost | None = None
    _precision: str = "no"
    _held: Held | None = None
    _steps: list[bool] | None = None

    def __init__(
        self,
        model: nn.Module,
        args: Any,
        *,
        processing_class: Any = None,
        compute_loss_func: Any = None,
        compute_metrics: Any = None,
        preprocess_logits_for_metrics: Any = None,
        optimizers: tuple[Any, Any] = (None, None),
        trainer_class: type[Trainer] | None = None,
    ) -> None:
        super().__init__()
        check(args)
        self.model = model
        self.args = args
        # In a dict: a torchmetrics metric is a module, and must not become a submodule of this one.
        self._parts = {
            "processing_class": processing_class,
            "compute_loss_func": compute_loss_func,
            "compute_metrics": compute_metrics,
            "preprocess_logits_for_metrics": preprocess_logits_for_metrics,
            "optimizers": optimizers,
            "kind": trainer_class,
        }
        self._passes: dict[int, _Pass] = {}
        self._window_loss: torch.Tensor | float = 0.0

    @classmethod
    def from_pretrained(
        cls,
        auto: str,
        name_or_path: str,
        args: Any,
        *,
        parts: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> HFModule:
        """Create a module around a pretrained model.

        Args:
            auto: the name of a transformers class, for example "AutoModelForSequenceClassification".
            name_or_path: the model, on the Hub or in a folder.
            args: HF's arguments.
            parts: further arguments of the constructor.
            kwargs: arguments of the class's `from_pretrained`, for example `num_labels`.
        """
        model = getattr(transformers, auto).from_pretrained(name_or_path, **kwargs)
        return cls(model, args, **(parts or {}))

    def __getstate__(self) -> dict[str, Any]:
        state: dict[str, Any] = super().__getstate__()
        return {name: value for name, value in state.items() if name not in TRANSIENT} | {"_passes": {}}

    @property
    def hf(self) -> Any:
        """The HF Trainer whose parts are used; it never trains."""
        if self._hf is None:
            self._hf = build_parts(self.model, self.args, precision=self._precision, **self._parts)
            self._losses = Losses()
            self._hf.accelerator.backward = self._losses
        return self._hf

    @property
    def learning_rate(self) -> float:
        """`args.learning_rate`, for Lightning's `LearningRateFinder`."""
        rate: float = self.args.learning_rate
        return rate

    @learning_rate.setter
    def learning_rate(self, rate: float) -> None:
        self.args.learning_rate = rate

    @property
    def backbone(self) -> nn.Module:
        """The model without its head, for Lightning's `BackboneFinetuning`."""
        backbone: nn.Module = getattr(self.model, "base_model", self.model)
        return backbone

    @override
    def forward(self, *args: Any, **kwargs: Any) -> Output:
        return self.model(*args, **kwargs)

    # Set-up.

    @refusing_callbacks_of_hf
    @override
    def configure_callbacks(self) -> list[Any]:
        return []

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        # An override in a subclass need not call this class's method.
        cls.configure_callbacks = refusing_callbacks_of_hf(cls.configure_callbacks)  # type: ignore[method-assign]

    @override
    def setup(self, stage: str) -> None:
        self._show_evaluated_weights()
        self._hf = self.reader = None
        share_job(self.args, self.trainer)
        check_strategy(self.trainer, is_training=stage == TrainerFn.FITTING)
        keep_files_whole(self.trainer.strategy)
        plugin = self.trainer.precision_plugin
        self._precision = MIXED.get(plugin.precision, "no") if isinstance(plugin, MixedPrecision) else "no"
        self._require_scaler()
        set_autocast(self.model, self.trainer.strategy.root_device.type, self._precision)
        if stage != TrainerFn.FITTING:
            return
        self._tell_differences()
        WindowSource.put_into(self.trainer)
        seed = transformers.enable_full_determinism if self.args.full_determinism else transformers.set_seed
        # As in the constructor of HF's Trainer.
        seed(self.args.seed)
        if getattr(self.args, "torch_compile", False):
            self.model.compile(backend=self.args.torch_compile_backend, mode=self.args.torch_compile_mode)
        checkpoint_activations(self.model, self.args)
        self.model.train()

    @override
    def teardown(self, stage: str) -> None:
        # This also ends the workers of its loader.
        self.reader = None

    def _show_evaluated_weights(self) -> None:
        """Put a schedule-free optimizer into eval mode after training."""
        optimizer: Any = None if self._hf is None else self._hf.optimizer
        if has_modes(optimizer):
            optimizer.eval()

    def _require_scaler(self) -> None:
        """Refuse a gradient scaler of another device, which would leave gradients as they are."""
        plugin, kind = self.trainer.precision_plugin, self.trainer.strategy.root_device.type
        if isinstance(plugin, MixedPrecision) and plugin.scaler is not None and plugin.device != kind:
            msg = (
                f"`precision={plugin.precision!r}`: Lightning scales gradients on {plugin.device!r}, and "
                f"the device of this run is {kind!r}. Give the Lightning Trainer the flags of "
                "`compat.engine.any_device.trainer_flags(args.device, compat.plan(args).flags)`."
            )
            raise ArgumentError(msg)

    def _tell_differences(self) -> None:
        """Warn about arguments that differ from the Lightning Trainer's flags."""
        trainer = self.trainer
        has = {name: getattr(trainer, name, None) for name in FLAGS}
        for setting in plan(self.args, Facts.of(self.args)).changed():
            name = setting.target
            if name in has and (has[name] or 0) != setting.becomes:
                logging.get_logger("transformers.trainer").warning(
                    f"`{setting.field}={setting.value!r}`: the Lightning Trainer has {name}={has[name]!r}, "
                    f"which holds. Give it {name}={setting.becomes!r}, or all of `compat.plan(args).flags`."
                )

    @override
    def configure_optimizers(self) -> Any:
        """Create HF's optimizer and scheduler for the number of steps of the Lightning Trainer."""
        self._hf = None
        hf, steps = self.hf, total_steps(self.trainer)
        # A layerwise optimizer refuses accumulation.
        hf.args.gradient_accumulation_steps = self.trainer.accumulate_grad_batches
        hf.create_optimizer_and_scheduler(steps)
        optimizer, scheduler = hf.optimizer, hf.lr_scheduler
        self._note_steps(getattr(optimizer, "optimizer", optimizer))
        if self._waits(scheduler):
            # HF steps it with the metrics of each evaluation, at any point in an epoch.
            config = {"scheduler": scheduler, "interval": "epoch", "frequency": NEVER, "monitor": "eval_loss"}
        else:
            name = f"lr-{type(getattr(optimizer, 'optimizer', optimizer)).__name__}"
            config = {"scheduler": scheduler, "interval": "step", "name": name}
        return {"optimizer": optimizer, "lr_scheduler": config}

    def _note_steps(self, optimizer: Any) -> None:
        """Note each step of an optimizer, if a gradient scaler skips some."""
        self._steps = None
        if getattr(self.trainer.precision_plugin, "scaler", None) is not None:
            self._steps = steps = []
            optimizer.register_step_post_hook(lambda *_: steps.append(True))

    @staticmethod
    def _waits(scheduler: object) -> bool:
        return isinstance(scheduler, SCHEDULERS_THAT_WAIT)

    @override
    def lr_scheduler_step(self, scheduler: Any, metric: torch.Tensor | float | None) -> None:
        if self._steps is not None:
            has_stepped = bool(self._steps)
            self._steps.clear()
            if not has_stepped:
                # Gradients have overflowed: HF's schedule waits for the next step.
                return
        # The callback that has added groups sets their learning rates.
        optimizer = scheduler.optimizer
        groups = optimizer.param_groups
        optimizer.param_groups = groups[: len(getattr(scheduler, "base_lrs", groups))]
        try:
            super().lr_scheduler_step(scheduler, metric)
        finally:
            optimizer.param_groups = groups

    @override
    def on_train_start(self) -> None:
        if self._waits(self.hf.lr_scheduler) and not self.trainer.enable_validation:
            msg = (
                f"`lr_scheduler_type={self.args.lr_scheduler_type.value!r}`: it waits for the metrics of an "
                "evaluation, and there is none. Give `fit` data to validate on."
            )
            raise ArgumentError(msg)
        WindowSource.go_on(self.trainer)
        load_held_state(self.hf.optimizer, self.model, self._held or {})
        self._held = None
        self._surprises = self.hf._surprises
        self._end_neftune()
        self._neftune = activated_neftune(self.hf)

    @override
    def on_train_end(self) -> None:
        self._end_neftune()

    def _end_neftune(self) -> None:
        handle, self._neftune = self._neftune, None
        if handle is not None:
            handle.remove()

    # Training.

    @override
    def on_train_epoch_start(self) -> None:
        self.hf._forget_past()

    @override
    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        """HF's training step, up to its backward.

        Returns:
            The loss of the micro-batch, divided by its window as HF divides it, with its graph.
        """
        hf, place = self.hf, self._place_of(batch)
        hf.args.gradient_accumulation_steps = place.size
        hf.current_gradient_accumulation_steps = place.count
        surprises, self._surprises = self._surprises, None
        num_items = place.num_items if surprises is None else surprises.watch(place.num_items)
        with self._without_autocast():
            hf.training_step(self.model, batch, num_items)
        if surprises is not None:
            surprises.tell(batch, num_items, place.count)
        loss: torch.Tensor = self._losses.take()
        self.micro_loss = loss.detach()
        self._window_loss = self._window_loss + self.micro_loss
        if place.closes:
            self.log("train_loss", self._window_loss, prog_bar=True)
            self._window_loss = 0.0
        return loss

    def _without_autocast(self) -> AbstractContextManager[Any]:
        """Restrict autocast to the model's forward, as HF does: Lightning's covers the whole step."""
        return torch.autocast(self.device.type, enabled=False)

    def _place_of(self, batch: Batch) -> Place:
        if self.reader is not None:
            return self.reader.take()
        # Called directly: the batch is a window of its own.
        _, num_items = self.hf.get_batch_samples(iter([batch]), 1, self.device)
        return Place(num_items, 1, 1, closes=False)

    @override
    def backward(self, loss: torch.Tensor, *args: object, **kwargs: object) -> None:
        """Run the backward pass of a loss that Lightning has divided by N after HF already divided it.

        N times (1 / N) is exactly 1, so that nothing is rounded.
        """
        loss.backward(  # type: ignore[no-untyped-call]
            torch.full_like(loss, self.trainer.accumulate_grad_batches), *args, **kwargs
        )

    @override
    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip by norm as HF does: over the parameters in the model's order."""
        is_whole = isinstance(self.trainer.strategy, (SingleDeviceStrategy, DDPStrategy))
        if not gradient_clip_val or gradient_clip_algorithm == "value" or not is_whole:
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
            return
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), gradient_clip_val)
        self.log("grad_norm", norm)

    @override
    def log(self, *args: Any, **kwargs: Any) -> None:
        # A Trainer without a logger warns for each value.
        if not self.trainer.barebones:
            super().log(*args, **kwargs)

    # Evaluation.

    @override
    def on_validation_epoch_start(self) -> None:
        self._passes = {}

    @override
    def on_test_epoch_start(self) -> None:
        self._passes = {}

    @override
    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        with self._without_autocast():
            self._pass("eval", self.trainer.val_dataloaders, dataloader_idx).step(batch)

    @override
    def test_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        with self._without_autocast():
            self._pass("test", self.trainer.test_dataloaders, dataloader_idx).step(batch)

    @override
    def predict_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> tuple[Any, Any, Any]:
        """HF's prediction step.

        Returns:
            Loss, logits of shape (batch, …) and labels of shape (batch, …); each may be None.
        """
        with self._without_autocast():
            step: tuple[Any, Any, Any] = self.hf.prediction_step(
                self.model, batch, prediction_loss_only=False
            )
        return step

    @override
    def on_validation_epoch_end(self) -> None:
        metrics = self._log_passes()
        is_in_training = self.trainer.state.fn == TrainerFn.FITTING and not self.trainer.sanity_checking
        if is_in_training and self._waits(self.hf.lr_scheduler):
            self._step_scheduler(metrics)

    @override
    def on_test_epoch_end(self) -> None:
        self._log_passes()

    def _pass(self, prefix: str, loaders: Loader, index: int) -> _Pass:
        if index not in self._passes:
            loader = loaders[index] if isinstance(loaders, (list, tuple)) else loaders
            name = getattr(loader, "name", None)
            is_one = not isinstance(loaders, (list, tuple)) or len(loaders) == 1
            several = "" if is_one and name is None else f"_{index if name is None else name}"
            self._passes[index] = _Pass(self.hf, self.model, loader, prefix + several)
        return self._passes[index]

    def _log_passes(self) -> dict[str, Any]:
        """Compute the metrics of the passes, log the numbers among them, and return all of them."""
        metrics: dict[str, Any] = {}
        for each in self._passes.values():
            metrics |= each.result(None).metrics or {}
        self._passes = {}
        numbers = {name: value for name, value in metrics.items() if isinstance(value, (int, float))}
        self.log_dict(numbers, prog_bar=True, sync_dist=True)
        return metrics

    def _step_scheduler(self, metrics: dict[str, Any]) -> None:
        name = self.args.metric_for_best_model or "loss"
        name = name if name.startswith("eval_") else f"eval_{name}"
        if name not in metrics:
            msg = (
                f"`metric_for_best_model={self.args.metric_for_best_model!r}`: the evaluation has given no "
                f"{name!r}, for which the schedule waits. There is {', '.join(metrics) or 'nothing'}."
            )
            raise ArgumentError(msg)
        self.hf.lr_scheduler.step(metrics[name])

    # Files.

    @override
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the state that the optimizer keeps outside of its `state_dict`.

        Args:
            checkpoint: receives `optimizer_extra`, if there is any, and the position of each process.
        """
        if self.reader is not None and self.trainer.world_size > 1 and "loops" in checkpoint:
            checkpoint[POSITIONS] = gathered(self.reader.state_dict())
        optimizer = None if self._hf is None else self._hf.optimizer
        if optimizer is not None and (held := held_state(optimizer, self.model)):
            checkpoint[EXTRA] = held

    @override
    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        positions, trainer = checkpoint.get(POSITIONS, ()), self._trainer
        if trainer is not None and len(positions) == trainer.world_size:
            # Lightning has saved those of the first process only, and restores its loops after this.
            state = checkpoint["loops"]["fit_loop"]["state_dict"]
            state["combined_loader"] = [positions[trainer.global_rank]]
        # Lightning loads the optimizer's own state after this. A file from `compat convert` or `Trainer` has
        # it in their format.
        file = checkpoint.get(FILES, {}).get(OPTIMIZER_EXTRA)
        self._held = checkpoint.get(EXTRA) if file is None else load_plain(io.BytesIO(file.numpy().tobytes()))

    def save_pretrained(self, folder: str) -> None:
        """Write a folder that `from_pretrained` reads: the model, and the processing class if there is one.

        Args:
            folder: the folder. With several processes, all must call this; the first writes.
        """
        trainer, state = self._trainer, None
        if trainer is not None and not isinstance(trainer.strategy, (SingleDeviceStrategy, DDPStrategy)):
            whole = trainer.strategy.lightning_module_state_dict()
            state = {name.removeprefix("model."): value for name, value in whole.items()}
        if trainer is None or trainer.is_global_zero:
            own, self.hf.args = self.hf.args, self.args
            try:
                self.hf._save(folder, state)
            finally:
                self.hf.args = own


class _Pass(Evaluation):
    """One evaluation pass, over HF's or any other loader."""

    def __init__(self, hf: TrainerHost, model: nn.Module, loader: Loader, prefix: str) -> None:
        super().__init__(
            hf,
            model,
            description="Evaluation",
            prediction_loss_only=hf.args.prediction_loss_only or hf.compute_metrics is None,
            ignore_keys=None,
            metric_key_prefix=prefix,
        )
        # Only accelerate's loaders report the samples that they repeat to fill the last batch.
        knows_end = isinstance(loader, HFLoader)
        hf.gather_function = hf.accelerator.gather_for_metrics if knows_end else hf.accelerator.gather
        self.set_eval_mode()

    @override
    def step(self, inputs: Batch) -> tuple[Any, Any, Any]:
        # A short last batch is weighted by its size.
        self._batch_size = find_batch_size(inputs) or self._batch_size
        return super().step(inputs)
