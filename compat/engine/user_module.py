"""A user's LightningModule, trained by an HF Trainer."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
import torch
from accelerate.utils import AutocastKwargs
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.core.optimizer import (
    _configure_optimizers,
    _configure_schedulers_automatic_opt,
)
from lightning.pytorch.strategies.strategy import _ForwardRedirection
from lightning.pytorch.utilities.data import extract_batch_size
from lightning.pytorch.utilities.model_helpers import is_overridden
from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature
from torch.optim.lr_scheduler import LambdaLR
from typing_extensions import override

from compat.engine.evaluation import Evaluation
from compat.engine.module import TrainerModule
from compat.errors import ArgumentError
from compat.translate.metric_names import bare

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from lightning.pytorch.utilities.types import LRSchedulerConfig
    from torch import nn

    from compat.upstream.values import Batch, Output

OPENING = (
    "on_fit_start",
    "on_train_start",
    "on_train_epoch_start",
    "on_validation_start",
    "on_validation_epoch_start",
    "on_validation_batch_start",
    "on_predict_start",
    "on_predict_epoch_start",
    "on_predict_batch_start",
    "on_before_backward",
    "on_after_backward",
    "on_before_optimizer_step",
    "on_before_zero_grad",
)
"""Hooks of the user's module that are called after HF's corresponding events."""

CLOSING = (
    "on_train_batch_end",
    "on_train_epoch_end",
    "on_validation_batch_end",
    "on_validation_end",
    "on_predict_batch_end",
    "on_predict_epoch_end",
    "on_predict_end",
    "on_train_end",
    "on_fit_end",
)
"""Hooks that are called before HF's events: HF's evaluation and control can see what they log."""

TRANSFERS = ("transfer_batch_to_device", "on_before_batch_transfer", "on_after_batch_transfer")
"""Hooks around batch transfer."""

UNSERVED_BY_ANY = dict.fromkeys(TRANSFERS, "batches are moved by HF's dataloaders")
"""Methods that no HF Trainer calls → what happens instead."""

UNSERVED = {
    "configure_gradient_clipping": "gradients are clipped as `max_grad_norm` says",
    "optimizer_step": "the optimizer steps where HF's window ends",
    "optimizer_zero_grad": "gradients are zeroed after each optimizer step",
    "lr_scheduler_step": "schedulers are stepped by Lightning's own rule",
    "backward": "the backward is run by the strategy",
    "on_validation_model_zero_grad": "gradients are zeroed after each optimizer step",
    **UNSERVED_BY_ANY,
}
"""Methods that are not called in automatic optimization → what happens instead."""


def check_user_module(module: pl.LightningModule) -> None:
    """Refuse a LightningModule that an HF Trainer cannot train as intended.

    Raises:
        ArgumentError: states the obstacle and the solution.
    """
    name = type(module).__name__
    way_out = "Train it with `lightning.Trainer` itself."
    if not is_overridden("training_step", module):
        msg = f"`model={name}`: it has no `training_step`. Add one that returns the loss."
        raise ArgumentError(msg)
    if is_param_in_hook_signature(module.training_step, "dataloader_iter", explicit=True):
        msg = f"`model={name}`: its `training_step` draws batches by itself, and HF's loop does. {way_out}"
        raise ArgumentError(msg)
    unserved = UNSERVED if module.automatic_optimization else UNSERVED_BY_ANY
    reasons = [f"`{hook}` ({why})" for hook, why in unserved.items() if is_overridden(hook, module)]
    if reasons:
        msg = f"`model={name}`: it overrides {', '.join(reasons)}. Remove that, or: {way_out}"
        raise ArgumentError(msg)
    if not (module.automatic_optimization or is_overridden("configure_optimizers", module)):
        msg = (
            f"`model={name}`: it optimizes manually and has no `configure_optimizers`. Add one that returns "
            "the optimizers that `training_step` steps."
        )
        raise ArgumentError(msg)


class UserModuleAdapter(TrainerModule):
    """Calls the hooks and steps of the user's module in place of those of HF's Trainer.

    The module is the `model` of the Trainer; its `self.trainer`, `self.log` and `self.global_step` are
    Lightning's.
    """

    _redirect = _ForwardRedirection()
    has_user_module = True

    @property
    @override
    def flops_per_batch(self) -> Any:
        """The value of the user's module; Lightning checks whether it has one."""
        user_module: Any = self.model
        return user_module.flops_per_batch

    def call(self, hook: str, *args: object, **kwargs: Any) -> Any:
        """Call a method of the user's module as Lightning would, so that it can log."""
        with self._calling(hook) as user_module:
            return getattr(user_module, hook)(*args, **kwargs)

    @contextlib.contextmanager
    def _calling(self, hook: str) -> Iterator[Any]:
        user_module: Any = self.model
        outer, user_module._current_fx_name = user_module._current_fx_name, hook
        try:
            yield user_module
        finally:
            user_module._current_fx_name = outer

    def step(self, name: str, model: nn.Module, batch: Batch) -> Output:
        """Run `training_step`, `validation_step` or `predict_step`, through a wrapper where there is one.

        Args:
            name: the step.
            model: the model as HF calls it.
            batch: on its device.
        """
        # As Lightning does: the step computes its loss, so autocast covers all of it. Weights that were cast
        # are not kept, because the step may change them.
        autocast = self.hf.accelerator.autocast(AutocastKwargs(cache_enabled=False))
        with self._calling(name) as user_module, _train_of(user_module, None), autocast:
            takes_index = is_param_in_hook_signature(getattr(user_module, name), "batch_idx", min_args=2)
            args = (batch, self.batch_idx) if takes_index else (batch,)
            return self._redirect(model, user_module, name, *args)

    @property
    def batch_idx(self) -> int:
        """The index of the batch in progress, in its pass over the data."""
        loop: Any = self.trainer._active_loop
        return int(getattr(loop, "epoch_loop", loop).batch_progress.current.ready) - 1

    @override
    def named(self, batch: Batch) -> Batch:
        # A batch that is not a mapping has none of the keys that HF looks up.
        return batch if isinstance(batch, Mapping) else {}

    # The user sets train and eval modes: HF's `model.train()` before each step must have no effect.

    @override
    def configure_optimizers(self) -> Any:
        with _train_of(self.hf.model, _keep_modes):
            return super().configure_optimizers()

    @override
    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        with _train_of(self.run.model, _keep_modes):
            return super().training_step(batch, batch_idx)

    @override
    def look_at(self, batch: Batch) -> None:
        with _train_of(self.run.model, _keep_modes):
            super().look_at(batch)

    @override
    def on_validation_model_eval(self) -> None:
        self._set_eval_mode_by("on_validation_model_eval")

    @override
    def on_predict_model_eval(self) -> None:
        self._set_eval_mode_by("on_predict_model_eval")

    def _set_eval_mode_by(self, hook: str) -> None:
        if is_overridden(hook, self.model):
            self.call(hook)
        else:
            self._set_eval_mode()

    @override
    def setup(self, stage: str) -> None:
        data = self.hf.train_dataset
        if getattr(data, "source", None) is self.model and data.is_set_up(stage):
            return  # for its dataloaders
        self.call("setup", stage)

    @override
    def teardown(self, stage: str) -> None:
        self.call("teardown", stage)

    @override
    def configure_callbacks(self) -> Any:
        return self.call("configure_callbacks")

    @override
    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> Any:
        super().on_train_batch_start(batch, batch_idx)
        return self.call("on_train_batch_start", batch, batch_idx)

    @override
    def on_validation_epoch_end(self) -> None:
        self.call("on_validation_epoch_end")
        if self.evaluation is not None:
            self.evaluation.logged = self.logged()
            # HF logs these values, as `eval_*`.
            self.trainer._logger_connector.leave_to_hf()  # type: ignore[attr-defined]

    @override
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Write the file as the user's module would, so that its `load_from_checkpoint` can read it."""
        super().on_save_checkpoint(checkpoint)
        user_module: Any = self.model
        for name in {"state_dict", "current_model_state"} & checkpoint.keys():
            weights = checkpoint[name]
            checkpoint[name] = {key.removeprefix("model."): value for key, value in weights.items()}
        if user_module.hparams:
            checkpoint[user_module.CHECKPOINT_HYPER_PARAMS_KEY] = dict(user_module.hparams)
            if user_module._hparams_name is not None:
                checkpoint[user_module.CHECKPOINT_HYPER_PARAMS_NAME] = user_module._hparams_name
        self.call("on_save_checkpoint", checkpoint)

    @override
    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.call("on_load_checkpoint", checkpoint)

    def logged(self) -> dict[str, float]:
        """The values that the user's module has logged in a validation, with `val_loss` as `loss`."""
        results: Any = self.trainer._results
        found = {} if results is None else results.metrics(on_step=False)["callback"]
        reduce = self.trainer.strategy.reduce
        # HF's metrics cover all processes, and HF's control depends on them.
        return {bare("eval", name): float(reduce(value, reduce_op="mean")) for name, value in found.items()}

    def optimizer_and_scheduler(self) -> tuple[Any, Any, LRSchedulerConfig | None]:
        """Return the user module's optimizer and scheduler.

        Returns:
            The optimizer, the scheduler and Lightning's LRSchedulerConfig, by which Lightning steps it; a
            constant schedule where it has none.

        Raises:
            ArgumentError: it has several optimizers or schedulers, or no optimizer.
        """
        configured = self.call("configure_optimizers")
        optimizers, configs, monitor = (
            ([], [], None) if configured is None else _configure_optimizers(configured)
        )
        if len(optimizers) != 1 or len(configs) > 1:
            msg = (
                f"`model={type(self.model).__name__}`: `configure_optimizers` returns {len(optimizers)} "
                f"optimizers and {len(configs)} schedulers; automatic optimization has one of each. Return "
                "one, or set `automatic_optimization = False` and step them in `training_step`."
            )
            raise ArgumentError(msg)
        optimizer = optimizers[0]
        shown = configs or [LambdaLR(optimizer, lambda _: 1.0)]
        config: LRSchedulerConfig = _configure_schedulers_automatic_opt(shown, monitor)[0]
        return optimizer, config.scheduler, config


def _keep_modes(mode: bool = True) -> None:
    """Replace `train` where HF calls it on a user's module, whose modes must not change."""


@contextlib.contextmanager
def _train_of(model: nn.Module | None, method: Callable[..., Any] | None) -> Iterator[None]:
    """Replace a module's `train` by `method`; if it is None, remove an earlier replacement.

    Args:
        model: the module, possibly wrapped.
        method: what is called in place of its `train`.
    """
    own = vars(model)
    outer = own.get("train")
    if method is not None:
        own["train"] = method
    elif outer is _keep_modes:
        del own["train"]
    try:
        yield
    finally:
        if outer is not None:
            own["train"] = outer
        else:
            own.pop("train", None)


class UserModuleEvaluation(Evaluation):
    """Evaluates a user's LightningModule as Lightning does.

    The values that the module logs take precedence. A loss that it returns and does not log is weighted by
    the samples of its batch, not by `per_device_eval_batch_size`, which applies to HF's own loaders.
    """

    @override
    def observe(self, inputs: Batch) -> None:
        try:
            self._batch_size = extract_batch_size(inputs)
        except MisconfigurationException:
            # A batch without a tensor: Lightning counts it as one sample if its size is not given.
            self._batch_size = 1
        self._observed += self._batch_size

    @override
    def gather_losses(self, loss: torch.Tensor) -> torch.Tensor:
        accelerator = self._hf.accelerator
        # Batches of processes may differ in size: each process reports the samples of its loss.
        size = loss.new_tensor([self._batch_size], dtype=torch.long)
        losses: torch.Tensor = accelerator.gather(loss.reshape(1))
        losses = losses.repeat_interleave(accelerator.gather(size))
        state = accelerator.gradient_state
        repeated = state.end_of_dataloader and state.remainder > 0
        return losses[: state.remainder] if repeated else losses


def _hook(name: str, *, opens: bool) -> Callable[..., Any]:
    ours = getattr(TrainerModule, name)

    def hook(self: UserModuleAdapter, *args: object, **kwargs: Any) -> Output:
        if not opens:
            self.call(name, *args, *kwargs.values())
        answer = ours(self, *args, **kwargs)
        if opens:
            self.call(name, *args, *kwargs.values())
        return answer

    hook.__name__ = name
    return hook


for _name in (*OPENING, *CLOSING):
    setattr(UserModuleAdapter, _name, _hook(_name, opens=_name in OPENING))


def loss_of(output: Output, module: nn.Module, step: str) -> torch.Tensor | None:
    """Return the loss in the output of a LightningModule's step.

    Args:
        output: a scalar, a dict with `loss`, or something else.
        module: the module, for the message.
        step: the step; only `training_step` has to return a loss.

    Raises:
        ArgumentError: a training step returns none.
    """
    if isinstance(output, torch.Tensor) and output.numel() == 1:
        return output
    if isinstance(output, dict) and isinstance(output.get("loss"), torch.Tensor):
        loss: torch.Tensor = output["loss"]
        return loss
    if step != "training_step":
        return None
    msg = (
        f"`model={type(module).__name__}`: `training_step` returned {type(output).__name__}, and an HF "
        "Trainer steps on every batch. Return the loss, or a dict that has it under `loss`."
    )
    raise ArgumentError(msg)


def is_user_module(model: nn.Module) -> bool:
    """Whether a model is a user's LightningModule."""
    return isinstance(model, pl.LightningModule)
