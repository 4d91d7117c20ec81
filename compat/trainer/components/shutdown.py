"""Ending a run on a signal or a time limit: after an update step, with a checkpoint to resume from."""

from __future__ import annotations

import contextlib
import signal
import time
from typing import TYPE_CHECKING, Any, NoReturn

from transformers.utils import logging

from compat.callbacks.limits import TimeLimit
from compat.callbacks.preemption import SIGNALS, TIME, Ending, leave
from compat.engine.signals import Listener, Survivor
from compat.trainer.component import Component
from compat.upstream.slurm import job_name, requeue, requeue_signal
from compat.upstream.stop_consensus import stop_consensus

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch.utils.data import DataLoader

    from compat.engine.host import TrainerHost

logger = logging.get_logger("transformers.trainer")


class Shutdown(Component):
    """Handles signals and the time limit, between the update steps of HF's training.

    Attributes:
        train_began: when `train` was called, as `time.monotonic`.
    """

    def __init__(self, trainer: TrainerHost) -> None:
        super().__init__(trainer)
        self._listener = Listener()
        self._ending: Ending | None = None
        self._limit: TimeLimit | None = None
        self.train_began = 0.0

    def set_time_limit(self) -> None:
        """Read the limit from `lightning={"max_time": …}`."""
        if (limit := self.hf._fit.flags.get("max_time")) is not None:
            self._limit = TimeLimit(limit)

    # Signal handling.

    @property
    def _is_preemptible(self) -> bool:
        """Whether signals are handled, which requires that a final checkpoint can be saved."""
        hf = self.hf
        saves = hf.args.save_strategy != "no" or getattr(hf.args, "enable_jit_checkpoint", False)
        return bool(saves) and hf._fit.flags.get("preemption") is not False

    @property
    def _requeue_signal(self) -> int | None:
        plugins = self.hf._fit.flags.get("plugins") or ()
        return requeue_signal(plugins if isinstance(plugins, (list, tuple)) else (plugins,))

    @contextlib.contextmanager
    def handling_signals(self) -> Iterator[None]:
        """End the run, and then the process, on a signal or at the time limit."""
        if not self._is_preemptible and self._limit is None:
            yield
            return
        args = self.hf.args
        agreed = stop_consensus(args.device, args.world_size)
        self._ending = ending = Ending(agreed, self._reason_to_stop)
        try:
            yield
        finally:
            self._ending = None
            self._listener.give_back()
        ending.conclude()
        if ending.cause:
            self._leave(ending, signal.Signals(ending.cause))

    def listen(self) -> None:
        """Start handling signals: before training begins there is nothing to save."""
        if self._is_preemptible and self._ending is not None:
            numbers = {*SIGNALS, *filter(None, (self._requeue_signal,))}
            # HF's handler, if there is one, replaces any other.
            whatever = (signal.SIGTERM,) if getattr(self.hf.args, "enable_jit_checkpoint", False) else ()
            self._listener.listen(numbers, whatever=whatever, announce=self._announcement)
        if self._limit is not None:
            self._limit.begin(self.train_began)

    def _reason_to_stop(self) -> int | None:
        """Return this process's reason to end the run: a signal's number, `TIME`, or None."""
        if self._listener.heard is not None:
            return int(self._listener.heard)
        limit = self._limit
        # The clock of the first process decides for all.
        if limit is None or not self.hf.is_world_process_zero():
            return None
        ahead = 0 if self._ending is None else self._ending.ahead
        return TIME if limit.is_up(1 + ahead, evaluates=self._evaluates_within(ahead)) else None

    def _evaluates_within(self, ahead: int) -> bool:
        """Whether HF's strategy evaluates before the next step at which the run could stop."""
        hf = self.hf
        args, state, session = hf.args, hf.state, hf._fit.session
        if args.eval_strategy == "steps":
            steps = range(state.global_step + 1, state.global_step + 2 + ahead)
            return any(step % state.eval_steps == 0 for step in steps)
        if args.eval_strategy != "epoch" or session is None or session.epoch_is_over:
            return False
        behind: int = session.behind + ahead * args.gradient_accumulation_steps
        return behind >= session.schedule.steps_in_epoch

    @property
    def ends_itself(self) -> bool:
        """Whether the run has decided to end before its last update step."""
        hf = self.hf
        built = hf._fit.built
        is_made_to = self._ending is not None and self._ending.is_early
        stops = hf.control.should_training_stop or (built is not None and built.should_stop)
        return bool(stops) and hf.state.global_step < hf.state.max_steps and not is_made_to

    # The end of the run in HF's flow.

    def end_step(self, log_save_evaluate: Callable[[], None]) -> None:
        """Decide at the end of an update step or an epoch whether the run stops now; if so, save it.

        Args:
            log_save_evaluate: logs, evaluates and saves as HF's control requests.
        """
        ending, hf = self._ending, self.hf
        if ending is None:
            log_save_evaluate()
            return
        if ending.is_early:
            # The end of an epoch that was cut short, or that the resumed run will reach.
            return
        log_save_evaluate()
        if self._limit is not None:
            self._limit.end_step()
        if not ending.is_due(hf.state.global_step, is_last=hf.control.should_training_stop):
            return
        saves = hf.args.save_strategy != "no" or ending.cause != TIME
        if saves and ending.saved != hf.state.global_step:
            hf.control.should_log = hf.control.should_evaluate = False
            hf.control.should_save = True
            log_save_evaluate()
        # A run at its last step ends normally.
        ending.is_early = not hf.control.should_training_stop
        hf.control.should_training_stop = True

    def note_saved(self, checkpoint: str) -> None:
        """Record that the run could end now.

        Args:
            checkpoint: the checkpoint saved after this update step.
        """
        if self._ending is not None:
            self._ending.saved, self._ending.checkpoint = self.hf.state.global_step, checkpoint

    def timing(self, what: str) -> contextlib.AbstractContextManager[None]:
        """Measure the durations that the time limit must allow for.

        Args:
            what: "evaluation" or "save".
        """
        return contextlib.nullcontext() if self._limit is None else self._limit.timing(what)

    @property
    def is_left_early(self) -> bool:
        """Whether the run was cut short, to be resumed; a run at its time limit ends with the best model."""
        ending = self._ending
        return ending is not None and ending.is_early and ending.cause != TIME

    @contextlib.contextmanager
    def ending_run(self) -> Iterator[None]:
        """Wrap HF's end of a run: with a limit of one, HF then keeps only the best checkpoint."""
        ending, args = self._ending, self.hf.args
        limit = args.save_total_limit
        if ending is not None:
            ending.conclude()
            # Before everything that takes time: the checkpoint exists.
            self._requeue(ending)
            if ending.is_early:
                # This run is to be resumed from the last checkpoint.
                args.save_total_limit = None
        try:
            yield
        finally:
            args.save_total_limit = limit

    # Signals in dataloader workers.

    def protect_workers(self, loader: DataLoader[Any]) -> DataLoader[Any]:
        """Keep the workers of a dataloader alive on a signal that is sent to the whole job.

        Args:
            loader: the loader; changed.
        """
        # accelerate's loaders draw from one that they wrap.
        inner: Any = getattr(loader, "base_dataloader", loader)
        initialize = getattr(inner, "worker_init_fn", None)
        has_workers = getattr(inner, "num_workers", 0) > 0 and not isinstance(initialize, Survivor)
        if has_workers and self._is_preemptible:
            inner.worker_init_fn = Survivor(initialize, self._listener)
        return loader

    # The end of the process.

    def _announcement(self, number: signal.Signals) -> str:
        hf = self.hf
        if not hf.is_local_process_zero():
            return ""
        return (
            f"{number.name} after update step {hf.state.global_step}: the one in progress is finished, a "
            f"checkpoint is saved, and the process ends. A second {number.name} ends it at once."
        )

    def _requeue(self, ending: Ending) -> None:
        """Requeue the job in SLURM, if the signal requests it."""
        if not ending.cause or ending.cause != self._requeue_signal or ending.is_requeued:
            return
        ending.is_requeued = True
        if self.hf.is_world_process_zero():
            job, reason = job_name(), requeue()
            said = f"could not be queued again ({reason}). Submit it again" if reason else "is queued again"
            logger.warning(f"SLURM's job {job} {said}.")

    def _leave(self, ending: Ending, number: signal.Signals) -> NoReturn:
        hf = self.hf
        self._requeue(ending)
        if hf.is_world_process_zero() or not ending.is_agreed:
            what = f"{number.name}: training ends after update step {hf.state.global_step}"
            if not ending.is_early:
                what = f"{number.name}: training has come to its end; what follows `train()` is left out"
            lies = f", saved in `{ending.checkpoint}`" if ending.checkpoint else ""
            how = 'To go on from there, start again with `resume_from_checkpoint="auto"`'
            logger.warning(f"{what}{lies}. {how}.")
        if hf.args.world_size > 1 and not ending.is_agreed:
            # The other processes may continue, and wait for this one: it dies as it would without `compat`.
            signal.raise_signal(number)
        if hf.args.world_size > 1:
            # A launcher stops the others when the first one leaves.
            hf._checkpoint_writer.meet()
            # gloo's threads release the last tensors only while Python runs: an interpreter that exits at
            # once may deadlock with them.
            time.sleep(0.5)
        leave(number)
