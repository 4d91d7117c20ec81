"""Lightning's callbacks in HF's own Trainer."""

from __future__ import annotations

import warnings
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NoReturn

import lightning.pytorch as pl
import torch
import transformers
from lightning.pytorch import callbacks as of_lightning
from lightning.pytorch.trainer.states import RunningStage, TrainerFn, TrainerStatus

from compat.callbacks.hooks import EVENTS, Event
from compat.errors import ArgumentError

if TYPE_CHECKING:
    from collections.abc import Callable

    from compat.upstream.values import Loader

SERVED = {hook for event in EVENTS for hook in event.hooks}
"""Hooks that HF's events call."""

NEVER = {
    "on_sanity_check_end",
    "on_sanity_check_start",
    "on_test_batch_end",
    "on_test_batch_start",
    "on_test_end",
    "on_test_epoch_end",
    "on_test_epoch_start",
    "on_test_start",
}
"""Hooks of actions that HF's Trainer never performs, so that no call is missed."""

STATE = {"load_state_dict", "state_dict", "state_key"}

TRIED = (of_lightning.Callback, of_lightning.EarlyStopping, of_lightning.LambdaCallback, of_lightning.Timer)
"""Lightning's own callbacks that work with the available members of a Trainer; the others drive Lightning's
loops, strategies and loggers."""

WAY_OUT = "Use `compat.Trainer(callbacks=[…])`, which runs it for real."


def to_hf(callback: pl.Callback) -> transformers.TrainerCallback:
    """Convert a Lightning callback to an HF callback, for `transformers.Trainer` itself.

    HF's events call its hooks, as listed in `compat.callbacks.EVENTS`. Its `trainer` and `pl_module` are
    stand-ins with the attributes that HF provides; batches and outputs are not available.
    `trainer.should_stop = True` stops HF's training after the step. `on_validation_start` is called with the
    first batch of an evaluation, and only during training. HF's checkpoints do not contain its `state_dict`.

    Args:
        callback: a `lightning.pytorch.Callback`, or its class.

    Returns:
        A callback for `transformers.Trainer(callbacks=[…])`.

    Raises:
        ArgumentError: it is not a callback of `lightning.pytorch`, has a hook without a corresponding HF
            event, or is one of Lightning's own that needs Lightning's loops.
    """
    callback = callback() if isinstance(callback, type) else callback
    name = type(callback).__name__
    if not isinstance(callback, pl.Callback):
        is_other = any(base.__module__.startswith("pytorch_lightning.") for base in type(callback).__mro__)
        way_out = "Import it from `lightning.pytorch`." if is_other else "Give one of `lightning.pytorch`'s."
        msg = f"`to_hf({name})`: no `lightning.pytorch.Callback`. {way_out}"
        raise ArgumentError(msg)
    hooks = overridden(callback)
    if missed := sorted(hooks - SERVED - NEVER - STATE):
        msg = f"`to_hf({name})`: HF's Trainer has no event for {', '.join(missed)}. {WAY_OUT}"
        raise ArgumentError(msg)
    needy = [base for base in type(callback).__mro__ if of_lightning.__name__ in base.__module__]
    if untried := [base.__name__ for base in needy if base not in TRIED]:
        msg = f"`to_hf({name})`: {untried[0]} needs Lightning's own loops. {WAY_OUT}"
        raise ArgumentError(msg)
    # A new class: HF warns about two callbacks of the same class.
    kind = type(f"{name}InHF", (LightningCallback,), {})
    made: transformers.TrainerCallback = kind(callback, hooks)
    return made


def overridden(callback: pl.Callback) -> set[str]:
    """Return the Lightning hooks that `callback` overrides."""
    base = pl.Callback
    names = {name for name in vars(base) if not name.startswith("_")}
    return {
        name
        for name in names
        if name in vars(callback) or getattr(type(callback), name) is not getattr(base, name)
    }


def _miss(what: str) -> NoReturn:
    msg = f"{what} does not exist in HF's Trainer. {WAY_OUT}"
    raise AttributeError(msg)


class Absent:
    """A value that HF's events do not provide: any use of it raises an error."""

    def __init__(self, name: str) -> None:
        object.__setattr__(self, "_name", name)

    def _used(self, *_: object) -> Any:
        _miss(f"`{object.__getattribute__(self, '_name')}`")

    __getattr__ = __getitem__ = __iter__ = __len__ = __bool__ = _used


class Strategy:
    """Collective decisions of several processes."""

    def __init__(self, device: torch.device) -> None:
        self.root_device = device

    def reduce_boolean_decision(self, decision: bool, all: bool = True) -> bool:  # noqa: A002
        """Whether all processes, or any of them, decide yes."""
        if not torch.distributed.is_initialized():
            return decision
        operation = torch.distributed.ReduceOp.MIN if all else torch.distributed.ReduceOp.MAX
        said = torch.tensor(int(decision), device=self.root_device)
        torch.distributed.all_reduce(said, operation)
        return bool(said)

    def broadcast(self, obj: object, src: int = 0) -> object:
        """Return the object of process `src`."""
        if not torch.distributed.is_initialized():
            return obj
        said = [obj]
        torch.distributed.broadcast_object_list(said, src)
        return said[0]


class Run:
    """HF's run, with the attribute names of a Lightning Trainer."""

    logger = None
    loggers: tuple[Any, ...] = ()
    min_epochs = min_steps = ckpt_path = None
    val_check_interval = 1.0
    fast_dev_run = sanity_checking = barebones = received_sigterm = False
    num_nodes = 1

    def __init__(self) -> None:
        self._set(callback_metrics={}, current_epoch=0, lightning_module=Module(self))

    def _set(self, **values: object) -> None:
        self.__dict__.update(values)

    def __setattr__(self, name: str, value: object) -> None:
        if name != "should_stop":
            _miss(f"`trainer.{name}` that can be set")
        if value:
            self.__dict__["_control"].should_training_stop = True

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        _miss(f"`trainer.{name}`")

    @property
    def should_stop(self) -> bool:
        """HF's `control.should_training_stop`."""
        return bool(self.__dict__["_control"].should_training_stop)

    @property
    def logged_metrics(self) -> dict[str, torch.Tensor]:
        """The metrics that HF has logged."""
        metrics: dict[str, torch.Tensor] = self.__dict__["callback_metrics"]
        return metrics

    progress_bar_metrics = logged_metrics

    def follow(
        self,
        args: transformers.TrainingArguments,
        state: transformers.TrainerState,
        control: transformers.TrainerControl,
        given: dict[str, Any],
        *,
        is_fitting: bool,
    ) -> None:
        """Store the arguments that HF passes to an event."""
        loader: Loader = given.get("train_dataloader")
        fn = TrainerFn.FITTING if is_fitting else TrainerFn.VALIDATING
        stage = RunningStage.TRAINING if is_fitting else RunningStage.VALIDATING
        optimizer = given.get("optimizer")
        self._set(
            _control=control,
            model=given.get("model"),
            global_step=state.global_step,
            max_steps=state.max_steps,
            estimated_stepping_batches=state.max_steps,
            max_epochs=state.num_train_epochs,
            accumulate_grad_batches=args.gradient_accumulation_steps,
            # If HF evaluates, callbacks that monitor a metric act then; otherwise at the end of an epoch.
            check_val_every_n_epoch=1 if args.eval_strategy == "no" else None,
            default_root_dir=args.output_dir,
            is_global_zero=state.is_world_process_zero,
            global_rank=args.process_index,
            local_rank=args.local_process_index,
            world_size=args.world_size,
            optimizers=[] if optimizer is None else [optimizer],
            train_dataloader=loader,
            num_training_batches=len(loader) if hasattr(loader, "__len__") else float("inf"),
            val_dataloaders=given.get("eval_dataloader"),
            strategy=Strategy(args.device),
            state=SimpleNamespace(fn=fn, stage=stage, status=TrainerStatus.RUNNING),
            training=is_fitting,
            validating=not is_fitting,
            testing=False,
            predicting=False,
        )


class Module:
    """HF's model, with the additional attributes of a LightningModule."""

    def __init__(self, trainer: Run) -> None:
        self.trainer = trainer

    def __getattr__(self, name: str) -> Any:
        if name in ("current_epoch", "global_step", "model"):
            return getattr(self.trainer, name)
        if name == "device":
            return self.trainer.strategy.root_device
        model = self.trainer.__dict__.get("model")
        if name.startswith("__") or not hasattr(model, name):
            _miss(f"`pl_module.{name}`")
        return getattr(model, name)


class LightningCallback(transformers.TrainerCallback):  # type: ignore[misc]
    """A Lightning callback as an HF callback; created by `to_hf`.

    Attributes:
        callback: the Lightning callback.
    """

    def __init__(self, callback: pl.Callback, hooks: set[str]) -> None:
        self.callback = callback
        self._hooks = hooks
        self._trainer = Run()
        self._is_fitting = False
        self._batch = self._evaluated = 0
        self._next_epoch = 0

    @property
    def unwrapped(self) -> tuple[Any, ...]:
        """The callbacks that a Trainer which accepts both kinds uses instead."""
        return (self.callback,)

    def _handle(
        self,
        event: Event,
        args: transformers.TrainingArguments,
        state: transformers.TrainerState,
        control: transformers.TrainerControl,
        given: dict[str, Any],
    ) -> transformers.TrainerControl:
        if event.name == "on_train_begin":
            self._begin(state)
        run = self._trainer
        run.follow(args, state, control, given, is_fitting=self._is_fitting)
        if event.name == "on_epoch_begin":
            run._set(current_epoch=self._next_epoch)
            self._next_epoch += 1
            self._batch = self._batches_behind(state)
        told = given.get("metrics") or given.get("logs") or {}
        numbers = {name: value for name, value in told.items() if isinstance(value, (int, float))}
        run.callback_metrics.update({name: torch.tensor(value) for name, value in numbers.items()})
        for hook in self._due(event.name, event.hooks, control):
            if hook in self._hooks:
                getattr(self.callback, hook)(run, run.lightning_module, *self._arguments(hook, given))
            if hook == "on_train_batch_end":
                self._batch += 1
        if event.name == "on_prediction_step":
            self._evaluated += 1
        if event.name in ("on_evaluate", "on_predict"):
            self._evaluated = 0
        if event.name == "on_train_end":
            self._is_fitting = False
        return control

    def _begin(self, state: transformers.TrainerState) -> None:
        self._is_fitting, self._evaluated = True, 0
        self._next_epoch = int(state.epoch or 0)
        self._trainer._set(callback_metrics={})
        if state.global_step and "load_state_dict" in self._hooks:
            msg = (
                f"`to_hf({type(self.callback).__name__})`: its state is not kept in HF's checkpoints, and it "
                f"begins afresh. {WAY_OUT}"
            )
            warnings.warn(msg, stacklevel=2)

    def _batches_behind(self, state: transformers.TrainerState) -> int:
        """Return the completed batches of a resumed run in its epoch."""
        batches = self._trainer.num_training_batches
        return round((state.epoch or 0) % 1 * batches) if batches != float("inf") else 0

    def _due(
        self, event: str, hooks: tuple[str, ...], control: transformers.TrainerControl
    ) -> tuple[str, ...]:
        if event == "on_prediction_step":
            if not self._is_fitting:
                # HF does not show whether it evaluates or predicts.
                return ()
            return hooks[-1:] if self._evaluated else hooks
        if event == "on_substep_end" and (control.should_epoch_stop or control.should_training_stop):
            return hooks[:1]
        return hooks

    def _arguments(self, hook: str, given: dict[str, Any]) -> tuple[Any, ...]:
        if hook in ("setup", "teardown"):
            return ("fit",)
        if hook == "on_before_optimizer_step":
            return (given["optimizer"],)
        if hook == "on_train_batch_start":
            return Absent("batch"), self._batch
        if hook == "on_train_batch_end":
            return Absent("outputs"), Absent("batch"), self._batch
        if hook == "on_validation_batch_end":
            return Absent("outputs"), Absent("batch"), self._evaluated
        return ()


def _handler(event: Event) -> Callable[..., Any]:
    def handle(
        self: LightningCallback,
        args: transformers.TrainingArguments,
        state: transformers.TrainerState,
        control: transformers.TrainerControl,
        **given: Any,
    ) -> transformers.TrainerControl:
        return self._handle(event, args, state, control, given)

    handle.__name__ = event.name
    return handle


for _event in EVENTS:
    if _event.hooks or _event.name == "on_log":
        setattr(LightningCallback, _event.name, _handler(_event))
