"""Ending a run that is told to end: at the end of an update step, with a checkpoint to go on from."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from typing import TYPE_CHECKING, Any, NoReturn

from transformers.utils import logging

from compat.callbacks.limits import TimeLimit
from compat.callbacks.preemption import SIGNALS, TIME, Ending, leave
from compat.engine.signals import Listener, Survivor
from compat.trainer.checkpointing import CheckpointingMixin
from compat.upstream.agreement import agreement
from compat.upstream.slurm import job_name, requeue, requeue_signal

if TYPE_CHECKING:
    from torch.utils.data import DataLoader, Dataset
    from transformers.trainer_utils import TrainOutput

    from compat.engine.session import Session

logger = logging.get_logger("transformers.trainer")


class PreemptionMixin(CheckpointingMixin):
    """Signals and the limit of time, between the update steps of HF's training."""

    _ending: Ending | None = None
    _limit: TimeLimit | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._listener = Listener()
        super().__init__(*args, **kwargs)
        if (limit := self._lightning_flags.get("max_time")) is not None:
            self._limit = TimeLimit(limit)

    # What a run listens to.

    @property
    def _is_preemptible(self) -> bool:
        """Whether signals are heard, which takes a checkpoint to end with."""
        saves = self.args.save_strategy != "no" or getattr(self.args, "enable_jit_checkpoint", False)
        return bool(saves) and self._lightning_flags.get("preemption") is not False

    @property
    def _requeue_signal(self) -> int | None:
        plugins = self._lightning_flags.get("plugins") or ()
        return requeue_signal(plugins if isinstance(plugins, (list, tuple)) else (plugins,))

    def _run_session(self, session: Session) -> TrainOutput:
        if not self._is_preemptible and self._limit is None:
            return super()._run_session(session)
        agreed = agreement(self.args.device, self.args.world_size)
        self._ending = ending = Ending(agreed, self._reason_to_stop)
        try:
            output = super()._run_session(session)
        finally:
            self._ending = None
            self._listener.give_back()
        ending.conclude()
        if ending.cause:
            self._leave(ending, signal.Signals(ending.cause))
        return output

    def _start_bookkeeping(self, loss: Any) -> None:
        """Listen from here on: before training begins there is nothing to save."""
        super()._start_bookkeeping(loss)
        if self._is_preemptible and self._ending is not None:
            numbers = {*SIGNALS, *filter(None, (self._requeue_signal,))}
            # HF's handler of it, where there is one, leaves no other in place.
            whatever = (signal.SIGTERM,) if getattr(self.args, "enable_jit_checkpoint", False) else ()
            self._listener.listen(numbers, whatever=whatever, announce=self._announcement)
        if self._limit is not None:
            self._limit.begin(self._train_began)

    def _reason_to_stop(self) -> int | None:
        """What this process knows to end the run: a signal's number, `TIME`, or None."""
        if self._listener.heard is not None:
            return int(self._listener.heard)
        limit = self._limit
        # One clock for all.
        if limit is None or not self.is_world_process_zero():
            return None
        ahead = 0 if self._ending is None else self._ending.ahead
        return TIME if limit.is_up(1 + ahead, evaluates=self._evaluates_within(ahead)) else None

    def _evaluates_within(self, ahead: int) -> bool:
        """Whether HF's strategy evaluates before the run could stop, were it not to stop now."""
        args, state, session = self.args, self.state, self._session_in_progress
        if args.eval_strategy == "steps":
            steps = range(state.global_step + 1, state.global_step + 2 + ahead)
            return any(step % state.eval_steps == 0 for step in steps)
        if args.eval_strategy != "epoch" or session is None or session.epoch_is_over:
            return False
        behind: int = session.behind + ahead * args.gradient_accumulation_steps
        return behind >= session.schedule.steps_in_epoch

    @property
    def _ends_itself(self) -> bool:
        is_made_to = self._ending is not None and self._ending.is_early
        return super()._ends_itself and not is_made_to

    # What becomes of it in HF's flow.

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        ending = self._ending
        if ending is None:
            super()._maybe_log_save_evaluate(*args, **kwargs)
            return
        if ending.is_early:
            # The end of an epoch that was left, or that the resumed run will come to.
            return
        super()._maybe_log_save_evaluate(*args, **kwargs)
        if self._limit is not None:
            self._limit.end_step()
        if not ending.is_due(self.state.global_step, is_last=self.control.should_training_stop):
            return
        saves = self.args.save_strategy != "no" or ending.cause != TIME
        if saves and ending.saved != self.state.global_step:
            self.control.should_log = self.control.should_evaluate = False
            self.control.should_save = True
            super()._maybe_log_save_evaluate(*args, **kwargs)
        # A run that is at its own end anyway comes to it.
        ending.is_early = not self.control.should_training_stop
        self.control.should_training_stop = True

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        with self._timing("save"):
            super()._save_checkpoint(model, trial)
        if self._ending is not None:
            self._ending.saved = self.state.global_step
            folder = self._get_output_dir(trial=trial)
            self._ending.checkpoint = os.path.join(folder, f"checkpoint-{self.state.global_step}")

    def _evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        with self._timing("evaluation"):
            metrics: dict[str, float] = super()._evaluate(*args, **kwargs)
        return metrics

    def _timing(self, what: str) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext() if self._limit is None else self._limit.timing(what)

    def _load_best_model(self) -> None:
        """Not over a model that is to be trained on; a run whose time is up ends with the best, as ever."""
        ending = self._ending
        if ending is None or not ending.is_early or ending.cause == TIME:
            super()._load_best_model()

    def _finalize_training(self, *args: Any, **kwargs: Any) -> TrainOutput:
        ending, limit = self._ending, self.args.save_total_limit
        if ending is not None:
            ending.conclude()
            # Ahead of all that takes time: the checkpoint is there.
            self._requeue(ending)
            if ending.is_early:
                # With a limit of one HF keeps the best checkpoint alone in the end, and this run is to go on.
                self.args.save_total_limit = None
        try:
            output: TrainOutput = super()._finalize_training(*args, **kwargs)
        finally:
            self.args.save_total_limit = limit
        return output

    # What a dataloader's workers do with a signal.

    def get_train_dataloader(self) -> DataLoader[Any]:
        """HF's loader over the training data. Mirrors `transformers.Trainer.get_train_dataloader`."""
        return self._with_survivors(super().get_train_dataloader())

    def get_eval_dataloader(self, eval_dataset: str | Dataset[Any] | None = None) -> DataLoader[Any]:
        """HF's loader over evaluation data. Mirrors `transformers.Trainer.get_eval_dataloader`."""
        return self._with_survivors(super().get_eval_dataloader(eval_dataset))

    def _with_survivors(self, loader: DataLoader[Any]) -> DataLoader[Any]:
        # accelerate's loaders draw from one that they wrap.
        inner: Any = getattr(loader, "base_dataloader", loader)
        initialize = getattr(inner, "worker_init_fn", None)
        has_workers = getattr(inner, "num_workers", 0) > 0 and not isinstance(initialize, Survivor)
        if has_workers and self._is_preemptible:
            inner.worker_init_fn = Survivor(initialize, self._listener)
        return loader

    # How the process ends.

    def _announcement(self, number: signal.Signals) -> str:
        if not self.is_local_process_zero():
            return ""
        return (
            f"{number.name} after update step {self.state.global_step}: the one in progress is finished, a "
            f"checkpoint is saved, and the process ends. A second {number.name} ends it at once."
        )

    def _requeue(self, ending: Ending) -> None:
        """Have SLURM queue the job again, where the signal asks for it."""
        if not ending.cause or ending.cause != self._requeue_signal or ending.is_requeued:
            return
        ending.is_requeued = True
        if self.is_world_process_zero():
            job, reason = job_name(), requeue()
            said = f"could not be queued again ({reason}). Submit it again" if reason else "is queued again"
            logger.warning(f"SLURM's job {job} {said}.")

    def _leave(self, ending: Ending, number: signal.Signals) -> NoReturn:
        self._requeue(ending)
        if self.is_world_process_zero() or not ending.is_agreed:
            what = f"{number.name}: training ends after update step {self.state.global_step}"
            if not ending.is_early:
                what = f"{number.name}: training has come to its end; what follows `train()` is left out"
            lies = f", saved in `{ending.checkpoint}`" if ending.checkpoint else ""
            how = 'To go on from there, start again with `resume_from_checkpoint="auto"`'
            logger.warning(f"{what}{lies}. {how}.")
        if self.args.world_size > 1 and not ending.is_agreed:
            # The others may go on, and wait for this process: it dies as it would have without us.
            signal.raise_signal(number)
        if self.args.world_size > 1:
            # A launcher stops the others when the first one leaves.
            self._meet()
            # gloo's threads let go of the last tensors only while Python runs: an interpreter that ends at
            # once may wait for them, and they for it.
            time.sleep(0.5)
        leave(number)
