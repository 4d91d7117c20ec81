"""Callbacks of both kinds in one Trainer."""

from __future__ import annotations

import copy
import os
from typing import TYPE_CHECKING, Any

import lightning
from lightning.pytorch.callbacks import BaseFinetuning, Callback, ProgressBar, WeightAveraging
from lightning.pytorch.trainer import call
from lightning.pytorch.utilities.model_helpers import is_overridden
from transformers.trainer import DEFAULT_PROGRESS_CALLBACK
from transformers.utils import logging

from compat.callbacks.misplaced import check_place, is_lightning_callback
from compat.checkpoint.io import load_plain, save_plain, unloadable
from compat.checkpoint.layout import CALLBACKS
from compat.engine.evaluation import is_fitting
from compat.engine.optimizer import take_in_new_groups
from compat.errors import ArgumentError
from compat.upstream.distributions import check_distribution
from compat.upstream.trainer import TrainerSeams

if TYPE_CHECKING:
    from compat.trainer.given import Given

logger = logging.get_logger("transformers.trainer")


def set_apart(given: Given) -> list[Any]:
    """Take Lightning's callbacks out of what HF's constructor is given.

    Args:
        given: its arguments; changed.

    Returns:
        Lightning's callbacks, in their order.

    Raises:
        ArgumentError: something is no callback, or works with another distribution's Trainer alone.
    """
    callbacks = [part for one in given["callbacks"] or () for part in getattr(one, "unwrapped", (one,))]
    for one in callbacks:
        check_place(one, "callbacks")
    if callbacks:
        given["callbacks"] = [one for one in callbacks if not is_lightning_callback(one)]
    return [_made(one) for one in callbacks if is_lightning_callback(one)]


def _made(callback: Any) -> Any:
    check_distribution(callback, "callbacks")
    return callback() if isinstance(callback, type) else callback


class CallbacksMixin(TrainerSeams):  # type: ignore[misc]
    """HF's callbacks are called in HF's events and Lightning's in Lightning's hooks, each kind in its order.

    Where both are due at one moment Lightning's come first, as they do with a LightningModule's own hooks;
    those that watch a metric come last. `compat.callbacks.EVENTS` tells the moments.
    """

    lightning_module: Any
    lr_scheduler: Any
    optimizer: Any
    _lightning: Any
    _session_in_progress: Any
    _lightning_callbacks: tuple[Any, ...] = ()

    def _make_room(self, callback: Any) -> None:
        """Two progress bars would draw over each other."""
        if isinstance(callback, ProgressBar):
            super().remove_callback(DEFAULT_PROGRESS_CALLBACK)

    def add_callback(self, callback: Any) -> None:
        """Add a callback of HF's or of Lightning's. Mirrors `transformers.Trainer.add_callback`.

        Args:
            callback: a callback, or its class.

        Raises:
            ArgumentError: it is no callback, or works with another distribution's Trainer alone.
        """
        for part in getattr(callback, "unwrapped", (callback,)):
            check_place(part, "callbacks")
            if not is_lightning_callback(part):
                super().add_callback(part)
                continue
            made = _made(part)
            self._lightning_callbacks = (*self._lightning_callbacks, made)
            self._make_room(made)
            if self._lightning is not None:
                self._lightning.callbacks.append(made)
                made.log, made.log_dict = self.lightning_module.log, self.lightning_module.log_dict

    def pop_callback(self, callback: Any) -> Any:
        """Take a callback of either kind out. Mirrors `transformers.Trainer.pop_callback`.

        Args:
            callback: a callback, or a class whose first instance is taken.

        Returns:
            The callback, or None where there is no such one.
        """
        if not is_lightning_callback(callback):
            return super().pop_callback(callback)
        for held in self._lightning_callbacks:
            if held is callback or type(held) is callback:
                kept = (one for one in self._lightning_callbacks if one is not held)
                self._lightning_callbacks = tuple(kept)
                if self._lightning is not None and held in self._lightning.callbacks:
                    self._lightning.callbacks.remove(held)
                return held
        return None

    def remove_callback(self, callback: Any) -> None:
        """As `pop_callback`, without returning it. Mirrors `transformers.Trainer.remove_callback`."""
        if is_lightning_callback(callback):
            self.pop_callback(callback)
        else:
            super().remove_callback(callback)

    _states_before_search: list[dict[str, Any]] | None = None

    def _begin_trial(self) -> None:
        """Have Lightning's callbacks begin each trial of a search as they began the first."""
        if self._states_before_search is None:
            self._states_before_search = [
                copy.deepcopy(one.state_dict()) for one in self._lightning_callbacks
            ]
            return
        for callback, state in zip(self._lightning_callbacks, self._states_before_search, strict=True):
            if state:
                callback.load_state_dict(copy.deepcopy(state))

    def _load_best_model(self) -> None:
        super()._load_best_model()
        for callback in self._lightning.callbacks:
            if isinstance(callback, WeightAveraging):
                # What is evaluated from here on is the best model, and no average.
                callback._average_model = None

    # What a checkpoint keeps of Lightning's.

    def _with_what_callbacks_make_of_it(self) -> dict[str, Any]:
        """The weights as Lightning's callbacks save them, averages for instance, and what they keep beside.

        Returns:
            `state_dict` and more, as in a checkpoint of Lightning's; empty where no callback has a say.
        """
        if self._lightning is None or not is_fitting(self._lightning):
            return {}
        module = self._lightning.lightning_module
        adding = [
            one for one in self._lightning.callbacks if is_overridden("on_save_checkpoint", one, Callback)
        ]
        kept = {"state_dict": module.state_dict()} if adding else {}
        for callback in adding:
            callback.on_save_checkpoint(self._lightning, module, kept)
        return kept

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        session = self._session_in_progress
        accumulation, args = self.args.gradient_accumulation_steps, self.args
        if state_dict is None:
            made = self._with_what_callbacks_make_of_it().get("state_dict", {})
            state_dict = {name.removeprefix("model."): value for name, value in made.items()} or None
        if session is not None:
            # GradientAccumulationScheduler sets it epoch by epoch; what is saved is what was given.
            args.gradient_accumulation_steps = session.accumulation
        try:
            super()._save(output_dir, state_dict)
        finally:
            args.gradient_accumulation_steps = accumulation

    def _save_lightning_callbacks(self, folder: str) -> None:
        if self._lightning is None:
            return
        kept = {
            "callbacks": call._call_callbacks_state_dict(self._lightning),
            **self._with_what_callbacks_make_of_it(),
        }
        module = self.lightning_module
        if module.has_guest and is_overridden("on_save_checkpoint", self.model):
            kept.setdefault("state_dict", module.state_dict())
            module.call("on_save_checkpoint", kept)
        waits = self._guest_config is not None and self._guest_config.reduce_on_plateau
        if len(kept) == 1 and not kept["callbacks"] and not waits:
            return
        # What watches a metric is to see it again where the run goes on.
        metrics = self._lightning.callback_metrics
        kept["callback_metrics"] = {
            name: value.item() for name, value in metrics.items() if value.numel() == 1
        }
        file = os.path.join(folder, CALLBACKS)
        save_plain(kept, file)
        if reason := unloadable(file):
            os.remove(file)
            logger.warning(
                f"`callbacks`: a state of Lightning's callbacks holds {reason}, which is not loaded again, "
                "since a pickle of classes could run code. A resumed run begins with fresh ones. Have "
                "`state_dict()` return tensors, numbers, strings, lists and dicts."
            )

    def _load_lightning_callbacks(self, checkpoint: str | None) -> None:
        file = os.path.join(checkpoint or "", CALLBACKS)
        if checkpoint is None or self._lightning is None or not os.path.isfile(file):
            return
        kept = {**load_plain(file), "pytorch-lightning_version": lightning.__version__}
        self._lightning._logger_connector.show(kept.pop("callback_metrics", {}))
        module = self._lightning.lightning_module
        call._call_callbacks_on_load_checkpoint(self._lightning, kept)
        for callback in self._lightning.callbacks:
            if state := kept["callbacks"].get(callback.state_key):
                self._load_callback(callback, state, file)
        call._call_lightning_module_hook(self._lightning, "on_load_checkpoint", kept)
        for callback in self._lightning.callbacks:
            if isinstance(callback, BaseFinetuning) and callback._internal_optimizer_metadata:
                self._restore_groups(callback, dict(module.named_parameters()))

    def _load_callback(self, callback: Any, state: dict[str, Any], file: str) -> None:
        try:
            callback.load_state_dict(copy.deepcopy(state))
        except Exception as error:
            name = type(callback).__name__
            msg = (
                f"`callbacks`: {name} does not take back the state that it has written to `{file}` "
                f"({type(error).__name__}: {error}). Resume without {name}, or mend its `load_state_dict`."
            )
            raise ArgumentError(msg) from error

    def _restore_groups(self, callback: BaseFinetuning, named: dict[str, Any]) -> None:
        """Have the optimizer's groups be those that a callback had made of them when the run was saved."""
        known = callback._internal_optimizer_metadata[0]
        groups = callback._apply_mapping_to_param_groups(known, named)
        for parameter in (one for group in groups for one in group["params"]):
            # Nobody thaws again what had been thawed.
            parameter.requires_grad_(requires_grad=True)
        self.optimizer.param_groups = groups
        callback._restarting = False
        take_in_new_groups(self.optimizer, self.lr_scheduler)
