"""Lightning's callbacks in an HF Trainer."""

from __future__ import annotations

import copy
import os
from typing import TYPE_CHECKING, Any, cast

import lightning
from lightning.pytorch.callbacks import BaseFinetuning, Callback, ProgressBar, WeightAveraging
from lightning.pytorch.trainer import call
from lightning.pytorch.utilities.model_helpers import is_overridden
from transformers.trainer import DEFAULT_PROGRESS_CALLBACK
from transformers.utils import logging

from compat.checkpoint.io import load_plain, save_plain, unloadable
from compat.checkpoint.layout import CALLBACKS
from compat.engine.nested import is_fitting
from compat.engine.optimizer import take_in_new_groups
from compat.errors import ArgumentError
from compat.trainer.component import Component
from compat.upstream.distributions import check_distribution

if TYPE_CHECKING:
    import lightning.pytorch as pl

    from compat.engine.host import TrainerHost
    from compat.engine.module import TrainerModule

logger = logging.get_logger("transformers.trainer")


def made(callback: Callback | type[Callback]) -> Any:
    """Return a Lightning callback, creating it if a class is given.

    Args:
        callback: a callback, or its class.

    Raises:
        ArgumentError: it works only with another distribution's Trainer.
    """
    check_distribution(callback, "callbacks")
    return callback() if isinstance(callback, type) else callback


class Callbacks(Component):
    """Calls HF's callbacks in HF's events and Lightning's in Lightning's hooks, each kind in its order.

    If both are due at the same moment, Lightning's come first, as they do with a LightningModule's own hooks;
    callbacks that monitor a metric come last. `compat.callbacks.EVENTS` lists the moments.

    Attributes:
        lightning: Lightning's callbacks, in their order.
    """

    def __init__(self, trainer: TrainerHost) -> None:
        super().__init__(trainer)
        self.lightning: tuple[Any, ...] = ()
        self._states_before_search: list[dict[str, Any]] | None = None

    @property
    def _built(self) -> pl.Trainer | None:
        return self.hf._fit.built

    def add(self, callback: Callback | type[Callback]) -> None:
        """Add a Lightning callback.

        Args:
            callback: the callback, or its class.
        """
        hf = self.hf
        one = made(callback)
        self.lightning = (*self.lightning, one)
        if isinstance(one, ProgressBar):
            # Two progress bars would draw over each other.
            hf.callback_handler.remove_callback(DEFAULT_PROGRESS_CALLBACK)
        if self._built is not None:
            self._built.callbacks.append(one)  # type: ignore[attr-defined]
            module = hf.lightning_module
            one.log, one.log_dict = module.log, module.log_dict

    def pop(self, callback: Callback | type[Callback]) -> Any:
        """Remove a Lightning callback.

        Args:
            callback: the callback, or a class whose first instance is removed.

        Returns:
            The callback; None if it is not found.
        """
        for held in self.lightning:
            if held is callback or type(held) is callback:
                self.lightning = tuple(one for one in self.lightning if one is not held)
                if self._built is not None and held in self._built.callbacks:  # type: ignore[attr-defined]
                    self._built.callbacks.remove(held)  # type: ignore[attr-defined]
                return held
        return None

    def begin_trial(self) -> None:
        """Reset Lightning's callbacks, so that each trial of a search starts from the same state."""
        if self._states_before_search is None:
            self._states_before_search = [copy.deepcopy(one.state_dict()) for one in self.lightning]
            return
        for callback, state in zip(self.lightning, self._states_before_search, strict=True):
            if state:
                callback.load_state_dict(copy.deepcopy(state))

    def forget_averages(self) -> None:
        """Discard averaged weights: from here on the best model is evaluated."""
        for callback in () if self._built is None else self._built.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, WeightAveraging):
                callback._average_model = None

    # The states of Lightning's callbacks in a checkpoint.

    def _kept(self) -> dict[str, Any]:
        """Collect the weights and states that Lightning's callbacks save, such as averaged weights.

        Returns:
            `state_dict` and more, as in a Lightning checkpoint; empty if no callback saves anything.
        """
        built = self._built
        if built is None or not is_fitting(built):
            return {}
        module, callbacks = built.lightning_module, built.callbacks  # type: ignore[attr-defined]
        adding = [one for one in callbacks if is_overridden("on_save_checkpoint", one, Callback)]
        kept = {"state_dict": module.state_dict()} if adding else {}
        for callback in adding:
            callback.on_save_checkpoint(built, module, kept)
        return kept

    def weights_to_save(self, state_dict: dict[str, Any] | None) -> dict[str, Any] | None:
        """Return the weights that `_save` writes.

        Args:
            state_dict: its argument.

        Returns:
            `state_dict` if given, else the weights that Lightning's callbacks save, else None for the model's
            own.
        """
        if state_dict is not None:
            return state_dict
        weights = self._kept().get("state_dict", {})
        return {name.removeprefix("model."): value for name, value in weights.items()} or None

    def save(self, folder: str) -> None:
        """Write the states of Lightning's callbacks into a checkpoint.

        Args:
            folder: the checkpoint's folder.
        """
        hf, built = self.hf, self._built
        if built is None:
            return
        kept = {"callbacks": call._call_callbacks_state_dict(built), **self._kept()}
        module, config = cast("TrainerModule", hf.lightning_module), hf._user_module.config
        if module.has_user_module and is_overridden("on_save_checkpoint", hf.model):
            kept.setdefault("state_dict", module.state_dict())
            module.call("on_save_checkpoint", kept)
        waits = config is not None and config.reduce_on_plateau
        if len(kept) == 1 and not kept["callbacks"] and not waits:
            return
        # Callbacks that monitor a metric need it again when the run resumes.
        kept["callback_metrics"] = {
            name: value.item() for name, value in built.callback_metrics.items() if value.numel() == 1
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

    def load(self, checkpoint: str | None) -> None:
        """Load the states of Lightning's callbacks from a checkpoint.

        Args:
            checkpoint: its folder.

        Raises:
            ArgumentError: a callback cannot load its state.
        """
        file, built = os.path.join(checkpoint or "", CALLBACKS), self._built
        if checkpoint is None or built is None or not os.path.isfile(file):
            return
        kept = {**load_plain(file), "pytorch-lightning_version": lightning.__version__}
        built._logger_connector.show(kept.pop("callback_metrics", {}))  # type: ignore[attr-defined]
        module, callbacks = built.lightning_module, built.callbacks  # type: ignore[attr-defined]
        call._call_callbacks_on_load_checkpoint(built, kept)
        for callback in callbacks:
            if state := kept["callbacks"].get(callback.state_key):
                self._load_one(callback, state, file)
        call._call_lightning_module_hook(built, "on_load_checkpoint", kept)
        for callback in callbacks:
            if isinstance(callback, BaseFinetuning) and callback._internal_optimizer_metadata:
                self._restore_groups(callback, dict(module.named_parameters()))

    def _load_one(self, callback: Callback, state: dict[str, Any], file: str) -> None:
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
        """Recreate the optimizer groups that a callback had made when the run was saved."""
        hf = self.hf
        known = callback._internal_optimizer_metadata[0]
        groups = callback._apply_mapping_to_param_groups(known, named)
        for parameter in (one for group in groups for one in group["params"]):
            # The callback does not unfreeze modules again that were unfrozen before the save.
            parameter.requires_grad_(requires_grad=True)
        hf.optimizer.param_groups = groups
        callback._restarting = False
        take_in_new_groups(hf.optimizer, hf.lr_scheduler)
