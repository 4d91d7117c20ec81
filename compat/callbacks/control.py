"""Actions that HF's control requests, in any Lightning Trainer."""

from __future__ import annotations

import os
import warnings
from typing import TYPE_CHECKING, Any

import torch
from transformers.trainer_utils import IntervalStrategy, SaveStrategy

from compat.callbacks.bookkeeping import Bookkeeping
from compat.callbacks.trainer_state import outdated
from compat.errors import ArgumentError

if TYPE_CHECKING:
    from collections.abc import Callable

    import lightning.pytorch as pl


class ControlActions(Bookkeeping):
    """Evaluates, saves and stops when HF's control requests it."""

    def _check_evaluation(self, trainer: pl.Trainer) -> None:
        if not self.has_flow:
            return
        evaluates = self.args.eval_strategy != IntervalStrategy.NO
        if evaluates and not trainer.enable_validation:
            self._refuse_evaluation(f"`eval_strategy={self.args.eval_strategy.value!r}`")
        if trainer.enable_validation and not evaluates:
            msg = (
                "`eval_strategy='no'`: the DefaultFlowCallback decides when to evaluate, so that the "
                "validation of this module never runs. Give 'steps' or 'epoch'."
            )
            warnings.warn(msg, stacklevel=2)

    @staticmethod
    def _refuse_evaluation(asked: str) -> None:
        msg = (
            f"{asked}: there is nothing to evaluate with. Give the Lightning Trainer validation dataloaders, "
            "the module a `validation_step`, and leave `limit_val_batches` above 0."
        )
        raise ArgumentError(msg)

    def _take_part(self, trainer: pl.Trainer) -> None:
        """Until the run ends, replace the Trainer's methods for which Lightning has no hook."""
        loop: Any = trainer.fit_loop.epoch_loop
        decide, finish = loop._should_check_val_fx, loop.on_iteration_done

        def should_check_val(fetcher: object) -> bool:
            return self._should_validate(trainer, lambda: decide(fetcher))

        def on_iteration_done() -> None:
            finish()
            if self.control.should_epoch_stop and not loop._num_ready_batches_reached():
                loop.update_lr_schedulers("epoch", update_plateau_schedulers=False)
                loop.batch_progress.is_last_batch = True

        taken = {"_should_check_val_fx": should_check_val, "on_iteration_done": on_iteration_done}
        loop.__dict__.update(taken)
        for name in taken:
            self._undo.callback(loop.__dict__.pop, name, None)
        for optimizer in trainer.optimizers if "on_optimizer_step" in self.handler.heard else ():
            if isinstance(optimizer, torch.optim.Optimizer):
                hook = optimizer.register_step_post_hook(lambda *_: self._fire("on_optimizer_step"))
                self._undo.callback(hook.remove)

    def _should_validate(self, trainer: pl.Trainer, decide: Callable[[], bool]) -> bool:
        """Whether to validate after this batch; if not, run the actions that follow an update step."""
        if not self._has_trained:
            # When resuming, Lightning asks whether the checkpoint was saved after this batch.
            return self._was_after_batch or (not self.has_flow and decide())
        self._is_after_batch = True
        is_asked = self.control.should_evaluate and not self._is_open
        if is_asked and not trainer.enable_validation:
            self._refuse_evaluation("`control.should_evaluate=True`")
        if is_asked or (not self.has_flow and decide()):
            self._evaluated_at = None if is_asked else self.state.global_step
            return True
        self._conclude(trainer)
        return False

    def _conclude(self, trainer: pl.Trainer) -> None:
        if self.control.should_save and not self._is_open:
            self._save(trainer)
            self._agree(trainer)
        if self.control.should_training_stop:
            trainer.should_stop = True

    def _validate(self, trainer: pl.Trainer) -> None:
        """Run Lightning's validation where Lightning has none, and restore the state afterwards."""
        if not trainer.enable_validation:
            self._refuse_evaluation("`control.should_evaluate=True`")
        connector, loop = trainer._logger_connector, trainer.fit_loop.epoch_loop.val_loop
        stage, first, fx = trainer.state.stage, connector._first_loop_iter, connector._current_fx
        self._is_nested = trainer.validating = True
        loop.restarting = False
        trainer.lightning_module.on_validation_model_zero_grad()
        try:
            loop.run()
        finally:
            self._is_nested = False
            trainer.state.stage = stage
            connector._first_loop_iter, connector._current_fx = first, fx

    def _path(self, trainer: pl.Trainer, step: int) -> str:
        folder = self.args.output_dir or trainer.default_root_dir
        return os.path.join(folder, f"checkpoint-{step}.ckpt")

    def _save(self, trainer: pl.Trainer) -> None:
        """Mirrors `transformers.Trainer._save_checkpoint`, with Lightning's file instead of a folder."""
        state, args = self.state, self.args
        if getattr(trainer, "fast_dev_run", False):
            self.control.should_save = False
            return
        path = self._path(trainer, state.global_step)
        if args.save_strategy != SaveStrategy.NO and state.best_global_step:
            best = self._path(trainer, state.best_global_step)
            if best == path or os.path.exists(best):
                state.best_model_checkpoint = best
        # The file records that this request has been handled.
        self.control.should_save = False
        trainer.save_checkpoint(path, weights_only=args.save_only_model)
        self._remove(
            trainer, outdated(os.path.dirname(path), args.save_total_limit, state.best_model_checkpoint)
        )
        self._fire("on_save")

    def _remove(self, trainer: pl.Trainer, paths: list[str]) -> None:
        if trainer.is_global_zero:
            for path in paths:
                trainer.strategy.remove_checkpoint(path)

    def _load_best(self, trainer: pl.Trainer) -> None:
        best = self.state.best_model_checkpoint
        if not self.args.load_best_model_at_end:
            return
        if best is None:
            msg = (
                "`load_best_model_at_end=True`: no checkpoint of the best step was saved, and the last "
                "weights stay. Put the DefaultFlowCallback first, or set `control.should_save`."
            )
            warnings.warn(msg, stacklevel=2)
            return
        trainer.strategy.barrier("best checkpoint")
        checkpoint = trainer.strategy.load_checkpoint(best, weights_only=False)
        strict = trainer.lightning_module.strict_loading
        trainer.strategy.load_model_state_dict(checkpoint, strict=strict)
        if self.args.save_total_limit == 1:
            last = self._path(trainer, self.state.global_step)
            self._remove(trainer, [last] if last != best and os.path.exists(last) else [])
