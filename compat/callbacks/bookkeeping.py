"""HF's state, control and events for a run of any Lightning Trainer."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import warnings
import weakref
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
import torch
import transformers
from lightning.pytorch.trainer.states import TrainerFn
from transformers.trainer_callback import CallbackHandler, ExportableState
from typing_extensions import override

from compat.callbacks.hooks import EVENTS
from compat.callbacks.light_arguments import LightArguments, light_arguments
from compat.callbacks.trainer_state import logged, model_of, planned_epochs, planned_steps, single
from compat.errors import ArgumentError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch.optim import Optimizer
    from torch.optim.lr_scheduler import LRScheduler
    from transformers import PreTrainedModel, TrainingArguments

    from compat.upstream.values import Loader, ProcessingClass

FLAGS = tuple(field.name for field in dataclasses.fields(transformers.TrainerControl))
FIELDS = {field.name for field in dataclasses.fields(transformers.TrainerState)}


class Handler(CallbackHandler):  # type: ignore[misc]
    """HF's handler, which skips events that no callback implements."""

    def __init__(
        self,
        callbacks: list[transformers.TrainerCallback],
        processing_class: ProcessingClass,
    ) -> None:
        # HF's constructor advises to add the DefaultFlowCallback.
        self.callbacks = callbacks
        self.processing_class = processing_class
        self.heard: frozenset[str] = frozenset()
        self.forget()

    def forget(self) -> None:
        """Drop the references to the objects of a run."""
        self.model: PreTrainedModel | None = None
        self.optimizer: Optimizer | None = None
        self.lr_scheduler: LRScheduler | None = None
        self.train_dataloader: Loader = None
        self.eval_dataloader: Loader = None

    def listen(self) -> None:
        """Determine which events have listeners."""
        base = transformers.TrainerCallback
        self.heard = frozenset(
            event.name
            for event in EVENTS
            for callback in self.callbacks
            if event.name in vars(callback)
            or getattr(type(callback), event.name, None) is not getattr(base, event.name, None)
        )

    @override
    def call_event(
        self,
        event: str,
        args: transformers.TrainingArguments,
        state: transformers.TrainerState,
        control: transformers.TrainerControl,
        **kwargs: object,
    ) -> transformers.TrainerControl:
        if event not in self.heard:
            return control
        return super().call_event(event, args, state, control, tokenizer=self.processing_class, **kwargs)


class Bookkeeping(pl.Callback):
    """Keeps HF's state of a run and fires HF's events.

    Attributes:
        callbacks: HF's callbacks.
        args: HF's arguments.
        state: HF's TrainerState, in sync with the Lightning run.
        control: HF's TrainerControl; its flags are handled and reset as in HF's Trainer.
    """

    def __init__(
        self,
        callbacks: list[transformers.TrainerCallback],
        args: transformers.TrainingArguments | Mapping[str, Any] | None,
        processing_class: ProcessingClass,
    ) -> None:
        self.callbacks = callbacks
        self.has_flow = any(isinstance(each, transformers.DefaultFlowCallback) for each in callbacks)
        self._takes_module_args = args is None
        is_complete = isinstance(args, transformers.TrainingArguments)
        self.args: TrainingArguments = args if is_complete else light_arguments(args, has_flow=self.has_flow)
        self._light_args = self.args
        self.handler = Handler(callbacks, processing_class)
        self._trainer: weakref.ref[pl.Trainer] | None = None
        self._undo = contextlib.ExitStack()
        self._begin()

    @property
    def unwrapped(self) -> tuple[Any, ...]:
        """The callbacks that a Trainer which accepts both kinds uses instead."""
        return tuple(self.callbacks)

    @property
    def model(self) -> PreTrainedModel | None:
        """The model of the run; None outside of one."""
        return self.handler.model

    def _begin(self) -> None:
        """Begin with a new state, as HF does for each run."""
        self.control = transformers.TrainerControl()
        self.state = transformers.TrainerState(stateful_callbacks=self._exportable())
        self._is_resumed = False
        self._has_trained = False  # a batch has begun in this run
        self._is_open = False  # a window of micro-steps has begun
        self._is_after_batch = False  # the last batch has ended, and the next one has not begun
        self._was_after_batch = False  # the same, when the checkpoint of a resumed run was saved
        self._is_nested = False  # a validation runs that Lightning has not started itself
        self._evaluated_at: int | None = None
        self._seen = self._logged_at = self._first = 0
        self._loss: torch.Tensor | float | None = None
        self._total_loss = 0.0
        self._learning_rate: float | None = None

    def __getstate__(self) -> dict[str, Any]:
        # Pickled when a Lightning launcher sends it to other processes.
        return {**self.__dict__, "_trainer": None, "_undo": contextlib.ExitStack()}

    def _exportable(self) -> list[Any]:
        return [each for each in [*self.callbacks, self.control] if isinstance(each, ExportableState)]

    @property
    @override
    def state_key(self) -> str:
        return self._generate_state_key(callbacks=[type(each).__name__ for each in self.callbacks])

    def _fire(self, event: str, **kwargs: object) -> None:
        self.control = getattr(self.handler, event)(self.args, self.state, self.control, **kwargs)

    def _agree(self, trainer: pl.Trainer) -> None:
        """Share control flags among processes: evaluating, saving and stopping are collective."""
        if trainer.world_size == 1:
            return
        asked = [float(getattr(self.control, flag)) for flag in FLAGS]
        summed = trainer.strategy.reduce(
            torch.tensor(asked, device=trainer.strategy.root_device), reduce_op="sum"
        )
        for flag, votes in zip(FLAGS, summed.tolist(), strict=True):
            setattr(self.control, flag, votes > 0)

    @override
    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if not isinstance(trainer, pl.Trainer):
            msg = (
                f"`callbacks=[to_lightning(…)]` in a `{type(trainer).__module__.partition('.')[0]}` Trainer: "
                "it is a callback of `lightning.pytorch`. Write `import lightning.pytorch as pl`."
            )
            raise ArgumentError(msg)
        self._undo.close()
        is_new = self._trainer is None or self._trainer() is not trainer
        self._trainer = weakref.ref(trainer)
        if is_new or stage == TrainerFn.FITTING:
            self._begin()
        module_args = getattr(pl_module, "args", None) if self._takes_module_args else None
        is_complete = isinstance(module_args, transformers.TrainingArguments)
        self.args = module_args if is_complete else self._light_args
        if isinstance(self.args, LightArguments):
            self.args.follow(trainer)
        self.state.is_world_process_zero = trainer.is_global_zero
        self.state.is_local_process_zero = trainer.local_rank == 0
        self.handler.model = model_of(pl_module)
        self.handler.listen()
        if is_new:
            self._fire("on_init_end")

    @override
    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self._undo.close()
        self.handler.forget()

    @override
    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        self._undo.close()

    def _know_run(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        state, handler = self.state, self.handler
        steps = planned_steps(trainer)
        state.compute_steps(self.args, steps)
        state.max_steps = steps
        state.num_train_epochs = planned_epochs(trainer, steps)
        state.epoch = state.epoch or 0
        self._seen = trainer.global_step
        if not self._is_resumed:
            # If several optimizers step together, Lightning counts each; its loggers and HF count once.
            counted = trainer.fit_loop.epoch_loop._batches_that_stepped
            state.global_step = self._seen if module.automatic_optimization else counted
        self._logged_at = self._first = state.global_step
        best = state.best_model_checkpoint
        if best is not None and not os.path.exists(best):
            warnings.warn(f"`best_model_checkpoint={best}`: it does not exist any more.", stacklevel=2)
            state.best_model_checkpoint = None
        handler.optimizer = next(iter(trainer.optimizers), None)
        handler.lr_scheduler = next((each.scheduler for each in trainer.lr_scheduler_configs), None)
        handler.train_dataloader = trainer.train_dataloader
        handler.eval_dataloader = single(trainer.val_dataloaders)
        state.train_batch_size = getattr(handler.train_dataloader, "batch_size", None)

    def _take_loss(self, trainer: pl.Trainer) -> float | None:
        """Return the loss since the last log, summed over update steps and averaged over processes."""
        if self._loss is None:
            return None
        loss = float(trainer.strategy.reduce(self._loss, reduce_op="mean"))
        self._loss = None
        self._total_loss += loss
        return loss

    def _log_training(self, trainer: pl.Trainer) -> None:
        steps = self.state.global_step - self._logged_at
        if not (self.control.should_log and steps):
            return
        loss = self._take_loss(trainer)
        logs = {} if loss is None else {"loss": loss / steps}
        found = logged(trainer)
        if hasattr(trainer.lightning_module, "micro_loss"):
            # The key of an HFModule for the loss of each update step; `loss` is their mean.
            found.pop("train_loss", None)
        logs.update(found)
        if self._learning_rate is not None:
            logs["learning_rate"] = self._learning_rate
        self._logged_at = self.state.global_step
        self._log(logs)

    def _log(self, logs: dict[str, float]) -> None:
        """Mirrors `transformers.Trainer.log`."""
        if self.state.epoch is not None:
            logs["epoch"] = self.state.epoch
        self.state.log_history.append({**logs, "step": self.state.global_step})
        self._fire("on_log", logs=logs)

    @override
    def state_dict(self) -> dict[str, Any]:
        exported = transformers.TrainerState(stateful_callbacks=self._exportable())
        self.state.stateful_callbacks = exported.stateful_callbacks
        return {"state": dataclasses.asdict(self.state), "is_after_batch": self._is_after_batch}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the counters, flags and patience of the saved run."""
        values = state_dict["state"]
        now = self.state
        self.state = transformers.TrainerState(**{name: values[name] for name in FIELDS & set(values)})
        self.state.is_world_process_zero = now.is_world_process_zero
        self.state.is_local_process_zero = now.is_local_process_zero
        self._is_resumed, self._was_after_batch = True, state_dict["is_after_batch"]
        saved = {
            name: list(states) if isinstance(states, list) else [states]
            for name, states in self.state.stateful_callbacks.items()
        }
        for each in self._exportable():
            states = saved.get(type(each).__name__)
            if states:
                found = states.pop(0)
                # Control flags are stored as its arguments; arguments of other callbacks come from the
                # script.
                restored = found["args"] if each is self.control else found["attributes"]
                vars(each).update(restored)
