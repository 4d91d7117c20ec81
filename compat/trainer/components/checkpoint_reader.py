"""Reading checkpoints: choosing the one that a run resumes from, and loading its parts."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch.callbacks import OnExceptionCheckpoint
from torch import nn
from torch.nn.modules.module import _IncompatibleKeys
from transformers import PreTrainedModel, TrainerState
from transformers.utils import logging

from compat.arguments.machine import XLA
from compat.checkpoint.adapters import load_adapters
from compat.checkpoint.atomic import sweep
from compat.checkpoint.changed import changes, other_length
from compat.checkpoint.convert import convert
from compat.checkpoint.deepspeed_files import mend_universal
from compat.checkpoint.handover import reconcile
from compat.checkpoint.held import what_holds
from compat.checkpoint.hosts import gathered
from compat.checkpoint.io import load_plain
from compat.checkpoint.layout import ARGUMENTS, OPTIMIZER_EXTRA, STATE
from compat.checkpoint.renamed import load_renamed
from compat.checkpoint.safe_unpickler import read_arguments
from compat.checkpoint.selection import AUTO, choose
from compat.checkpoint.verify import problems
from compat.checkpoint.writer import wait_for_writers
from compat.engine.optimizer_state import lacking, load_held_state
from compat.engine.position import Position
from compat.engine.user_module import is_user_module
from compat.errors import ArgumentError, CheckpointError, CompatError
from compat.trainer.component import Component

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from compat.checkpoint.hosts import Disks
    from compat.engine.host import RunState, TrainerHost
    from compat.upstream.values import Trial

UNPACKED = "_unpacked-"
"""Prefix of the folder that holds a Lightning checkpoint while a run resumes from it."""

NOT_OF_WEIGHTS = ("optimizer.pt", OPTIMIZER_EXTRA, "rng_state*.pth", "data_state*.pth")
"""Files that are not fetched from other hosts to load only weights."""

_FEW = 3
"""The number of names that an error shows as examples."""

logger = logging.get_logger("transformers.trainer")


class CheckpointReader(Component):
    """Chooses, verifies and loads the checkpoint that a run resumes from, and the best one at its end."""

    def __init__(self, trainer: TrainerHost) -> None:
        super().__init__(trainer)
        self._restores_callbacks = False
        self._loads_from: str | None = None
        self._asked_file: str | None = None

    # Which checkpoint a run resumes from.

    def choose(self, asked: str | Path | bool | None) -> str | Path | bool | None:
        """Resolve `resume_from_checkpoint`, the same for all processes, after removing left-over files.

        Args:
            asked: the argument.

        Returns:
            The folder of a checkpoint, or a value that HF's own code handles.

        Raises:
            ArgumentError: the checkpoint is broken: the file, and what is wrong with it.
        """
        hf = self.hf
        self._restores_callbacks = asked == AUTO
        self._asked_file = str(asked) if isinstance(asked, (str, Path)) and os.path.isfile(asked) else None
        self._end_earlier_writing()
        hf._checkpoint_writer.look_for_disks()
        checkpoint: str | Path | bool | None = self._choose_for_all(asked)
        if asked == AUTO and checkpoint is None:
            self._tell([f"{AUTO!r} finds no checkpoint in {hf.args.output_dir}; the run begins anew"])
        return checkpoint

    def _choose_for_all(self, asked: str | Path | bool | None) -> Any:
        hf = self.hf
        if hf.args.world_size == 1:
            return self._choose_alone(asked)
        if hf._checkpoint_writer.disks.are_several:
            return self._choose_together(asked, hf._checkpoint_writer.disks)
        outcome: list[Any] = [None, None]
        if hf.is_world_process_zero():
            try:
                outcome[0] = self._choose_alone(asked)
            except Exception as error:  # noqa: BLE001 (raised on all)
                outcome[1] = error if isinstance(error, CompatError) else CheckpointError(repr(error))
        if hf.args.device.type == XLA:
            # Plain data alone is gathered there.
            told = [str(part) if isinstance(part, (Path, Exception)) else part for part in outcome]
            chosen, failure = gathered(told)[0]
            outcome = [chosen, failure and CheckpointError(failure)]
        else:
            torch.distributed.broadcast_object_list(outcome, src=0)
        if outcome[1] is not None:
            raise outcome[1]
        return outcome[0]

    def _end_earlier_writing(self) -> None:
        """Let an interrupted run of this process finish writing its last checkpoint."""
        hf = self.hf
        try:
            hf._checkpoint_writer.finish_writing()
        except Exception as error:  # noqa: BLE001 (it is no failure of the run that begins)
            logger.warning(f"{type(error).__name__} of an earlier run: {error}")
        # Other trainers may have used this folder.
        wait_for_writers(hf.args.output_dir)

    def _choose_alone(self, asked: str | Path | bool | None) -> str | Path | bool | None:
        hf = self.hf
        folder = hf.args.output_dir
        hf._checkpoint_writer.require_place_to_save()
        if isinstance(asked, (str, Path)) and os.path.isfile(asked):
            return self._unpacked(asked)
        for sentence in (*sweep(folder), *reconcile(folder)) if hf._checkpoint_writer.leads_disk else ():
            logger.warning(sentence)
        choice = choose(asked, folder, needs_weights=not hf._loads_own_weights, processes=hf.args.world_size)
        for sentence in choice.notes():
            logger.warning(sentence)
        return choice.checkpoint or self._left_by_exception()

    def _choose_together(self, asked: str | Path | bool | None, disks: Disks) -> str | Path | bool | None:
        """Do the same if hosts have separate disks: each disk receives the parts that it lacks."""
        hf = self.hf
        folder = hf.args.output_dir
        disks.each(hf._checkpoint_writer.require_place_to_save)
        if isinstance(asked, (str, Path)) and any(disks.each(lambda: os.path.isfile(asked))):
            return self._unpacked_together(lambda: self._unpacked(asked) if os.path.isfile(asked) else None)
        reconciled = disks.each(lambda: reconcile(folder))
        for sentence in (*disks.sweep(folder), *(reconciled[disks.own] if disks.leads_own else ())):
            logger.warning(sentence)
        choice = choose(
            asked, folder, needs_weights=not hf._loads_own_weights, processes=hf.args.world_size, disk=disks
        )
        for sentence in choice.notes() if hf.is_world_process_zero() else ():
            logger.warning(sentence)
        if choice.checkpoint is None:
            return self._unpacked_together(self._left_by_exception)
        if isinstance(choice.checkpoint, str):
            disks.fetch(choice.checkpoint, needs_weights=not hf._loads_own_weights)
        return choice.checkpoint

    def _unpacked_together(self, unpack: Callable[[], str | None]) -> str | None:
        """Unpack a Lightning checkpoint on one disk, and copy the result to all disks."""
        hf = self.hf
        folder = hf.args.output_dir

        def unpack_once() -> str | None:
            checkpoint = unpack()
            return None if checkpoint is None else os.path.relpath(checkpoint, folder)

        found = next((one for one in hf._checkpoint_writer.disks.each(unpack_once) if one is not None), None)
        if found is None:
            return None
        checkpoint = os.path.join(folder, found)
        hf._checkpoint_writer.disks.fetch(checkpoint)
        return checkpoint

    def _left_by_exception(self) -> str | None:
        """Return the file that Lightning's OnExceptionCheckpoint saved when the run failed."""
        for callback in self.hf._fit.callbacks:
            if not isinstance(callback, OnExceptionCheckpoint) or not os.path.isfile(callback.ckpt_path):
                continue
            checkpoint = self._unpacked(callback.ckpt_path)
            # The callback also saves a run that failed before training.
            if TrainerState.load_from_json(os.path.join(checkpoint, STATE)).global_step > 0:
                logger.warning(
                    f"`callbacks=OnExceptionCheckpoint({callback.dirpath!r})`: going on from what a failed "
                    f"run has left there. Remove {callback.ckpt_path} to begin afresh."
                )
                return checkpoint
        return None

    def _unpacked(self, file: str | Path) -> str:
        """Convert a Lightning checkpoint to a folder in HF's layout; `train` removes it at its end."""
        hf = self.hf
        folder = tempfile.mkdtemp(prefix=UNPACKED, dir=hf.args.output_dir)
        checkpoint = os.path.join(folder, "checkpoint")
        try:
            # A user module's own file has the weight names of that module.
            convert(file, checkpoint, to="hf", prefix="" if is_user_module(hf.model) else None)
        except BaseException:
            shutil.rmtree(folder)
            raise
        if wrong := problems(checkpoint):
            shutil.rmtree(folder)
            msg = f"`resume_from_checkpoint={str(file)!r}`: {'; '.join(wrong)}. Give another file."
            raise ArgumentError(msg)
        return checkpoint

    def remove_unpacked(self) -> None:
        """Remove the folder that a Lightning checkpoint was converted to for this run."""
        hf = self.hf
        if hf._checkpoint_writer.leads_known_disk:
            for folder in Path(hf.args.output_dir).glob(f"{UNPACKED}*"):
                shutil.rmtree(folder, ignore_errors=True)

    # Loading.

    def report(self, max_steps: int, resume_from_checkpoint: str | None, trial: Trial) -> None:
        """Log where the run resumes, and which value applies if checkpoint and arguments differ.

        Args:
            max_steps: update steps of the run.
            resume_from_checkpoint: the checkpoint.
            trial: the trial of a hyperparameter search.
        """
        hf = self.hf
        if resume_from_checkpoint is not None and hf._checkpoint_writer.disks.are_several:
            self._agree_on_best(hf._get_output_dir(trial))
        if resume_from_checkpoint is not None:
            self._tell_of_resuming(self._asked_file or resume_from_checkpoint, max_steps)
            config = getattr(hf.accelerator.unwrap_model(hf.model), "config", None)
            self._tell(changes(resume_from_checkpoint, processing_class=hf.processing_class, config=config))
            self._tell(what_holds(hf.args, hf.state, hf._train_batch_size, max_steps))

    def _tell_of_resuming(self, checkpoint: str, max_steps: int) -> None:
        state = self.hf.state
        done = f"update step {state.global_step} of {max_steps}"
        epoch = f"epoch {state.epoch or 0:.2f} of {state.num_train_epochs}"
        self._tell([f"going on from {checkpoint}, {done}, {epoch}"])

    def _tell(self, sentences: Iterable[str]) -> None:
        """Log sentences about the resumed run, once in a job."""
        for sentence in sentences if self.hf.is_world_process_zero() else ():
            logger.warning(f"`resume_from_checkpoint`: {sentence}.")

    def _agree_on_best(self, folder: str) -> None:
        """Set the best checkpoint on all processes, even if only other disks have it."""
        hf = self.hf
        best = hf.state.best_model_checkpoint
        found = gathered(None if best is None else os.path.basename(best))
        name = next((name for name in found if name is not None), None)
        if best is None and name is not None:
            hf.state.best_model_checkpoint = os.path.join(folder, name)

    def load_position(self, checkpoint: str | None, session: RunState) -> Position | None:
        """Load the position of the resumed run in its data, if this run can continue from it.

        Args:
            checkpoint: its folder.
            session: the session of this run.
        """
        hf = self.hf
        if checkpoint is None:
            return None
        step, last = hf.state.global_step, hf.state.max_steps
        session.has_ended = self._restores_callbacks and step >= last
        file = os.path.join(checkpoint, hf._checkpoint_writer.position_file)
        if not os.path.isfile(file):
            return None
        position = Position.of(load_plain(file))
        self._tell(other_length(position.rows, session.rows))
        if position.has_ended and self._restores_callbacks and not session.has_ended:
            session.has_ended = True
            self._tell_of_end(step, last)
        is_exact = position.depends_on == session.depends_on() and not hf.args.ignore_data_skip
        return position if is_exact else None

    def _tell_of_end(self, step: int, last: int) -> None:
        hf = self.hf
        if hf.is_world_process_zero():
            logger.warning(
                f"`resume_from_checkpoint={AUTO!r}`: the run in `{hf.args.output_dir}` has ended itself "
                f"after update step {step} of {last}, and is over. To train on from there, give "
                "`resume_from_checkpoint=True`."
            )

    def check_best(self) -> str:
        """Verify the best checkpoint before it is loaded.

        Returns:
            Its folder.

        Raises:
            CheckpointError: the checkpoint is broken.
        """
        hf = self.hf
        writer = hf._checkpoint_writer
        best: str = hf.state.best_model_checkpoint
        if writer.disks.are_several:
            writer.disks.share(best, skip=() if writer.is_sharded else NOT_OF_WEIGHTS)
        if wrong := problems(best, weights_only=True) if os.path.isdir(best) else []:
            msg = (
                f"`load_best_model_at_end=True`: the best checkpoint is broken: {best}: {'; '.join(wrong)}. "
                "The model is as the last step left it; load an earlier checkpoint by hand."
            )
            raise CheckpointError(msg)
        self._loads_from = best
        return best

    def report_nothing_missing(self) -> None:
        """Report to HF's code that no key is missing."""
        self.hf._issue_warnings_after_load(_IncompatibleKeys([], []))

    def load_adapters(self, checkpoint: str, *, is_trained_on: bool) -> bool:
        """Load the adapters of a checkpoint, if it has any; HF loads sharded ones.

        Args:
            checkpoint: its folder.
            is_trained_on: whether the run resumes from it.

        Returns:
            Whether there were any.

        Raises:
            CheckpointError: they do not fit the model.
        """
        hf = self.hf
        self._loads_from = checkpoint
        if hf._checkpoint_writer.is_sharded:
            return False
        model = hf.accelerator.unwrap_model(hf.model, keep_torch_compile=False)
        try:
            is_loaded = load_adapters(model, checkpoint, is_trained_on=is_trained_on)
        except CheckpointError as error:
            asked = "resume_from_checkpoint" if is_trained_on else "load_best_model_at_end"
            msg = f"`{asked}={checkpoint if is_trained_on else True}`: {checkpoint}: {error}"
            raise CheckpointError(msg) from error
        if is_loaded:
            logger.info(f"Loading adapters from {checkpoint}.")
        return is_loaded

    def mend_universal_state(self) -> None:
        """Restore what DeepSpeed omits when it loads a checkpoint of another number of processes."""
        hf = self.hf
        engine: Any = hf.deepspeed
        if engine is not None and engine.load_universal_checkpoint() and hf.accelerator.group_options:
            rates = hf.lr_scheduler.get_last_lr()
            mend_universal(engine.optimizer.optimizer, hf.accelerator.group_options, rates)

    def load_optimizer_and_scheduler(self, checkpoint: str) -> None:
        """Load both states if both exist; a checkpoint saved with `save_only_model` has neither.

        Args:
            checkpoint: its folder.

        Raises:
            ArgumentError: the state is that of another `optim`.
        """
        hf = self.hf
        parts = hf.lightning.strategy.checkpoint_io.load_checkpoint(checkpoint)
        if "optimizer" in parts and "lr_scheduler" in parts:
            self._load_optimizer(parts["optimizer"], checkpoint)
            self._load_scheduler(parts["lr_scheduler"], checkpoint)
        file = os.path.join(checkpoint, OPTIMIZER_EXTRA)
        if os.path.isfile(file):
            load_held_state(hf.optimizer, hf.model, load_plain(file))

    def _load_optimizer(self, state: dict[str, Any], checkpoint: str) -> None:
        """Load the state, unless it is that of another `optim`, with which the first step would fail."""
        hf = self.hf
        failure: Exception | None = None
        try:
            hf.optimizer.load_state_dict(state)
            missing = sorted(lacking(hf.optimizer))
            reason = f"it has no {', '.join(missing)}" if missing else ""
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            failure, reason = error, f"{type(error).__name__}: {error}"
        if not reason:
            return
        if hf._user_module.is_own:
            raise self._of_others(checkpoint, reason) from failure
        saved, asked = _saved_optim(checkpoint), getattr(hf.args.optim, "value", hf.args.optim)
        if saved not in (None, asked):
            msg = (
                f"`optim={asked!r}`: {checkpoint} holds the state of {saved!r}, which does not fit "
                f"({reason}). Give `optim={saved!r}`; or, to go on from its weights with a fresh optimizer, "
                "load the model from there and train without `resume_from_checkpoint`."
            )
            raise ArgumentError(msg) from failure
        if failure is not None:
            raise failure

    def _load_scheduler(self, state: dict[str, Any], checkpoint: str) -> None:
        hf = self.hf
        try:
            hf.lr_scheduler.load_state_dict(state)
        except (KeyError, ValueError) as error:
            if not hf._user_module.is_own:
                raise
            raise self._of_others(checkpoint, f"{type(error).__name__}: {error}") from error

    def _of_others(self, checkpoint: str, reason: str) -> ArgumentError:
        """Return the error for a LightningModule that configures other optimizers than were saved."""
        return ArgumentError(
            f"`model={type(self.hf.model).__name__}`: {checkpoint} holds the states of other optimizers or "
            f"schedulers ({reason}). Configure those; or, to go on from its weights with fresh ones, load "
            "the model from there and train without `resume_from_checkpoint`."
        )

    def load_scaler(self, checkpoint: str | None) -> None:
        """Load the state of the gradient scaler, if there is a scaler and the checkpoint has a state.

        Args:
            checkpoint: its folder.
        """
        hf = self.hf
        if checkpoint is None or hf.accelerator.scaler is None:
            return
        parts = hf.lightning.strategy.checkpoint_io.load_checkpoint(checkpoint)
        if "scaler" in parts:
            hf.accelerator.scaler.load_state_dict(parts["scaler"])

    def translate_keys(self, load_result: _IncompatibleKeys) -> _IncompatibleKeys:
        """Load weights that `save_pretrained` wrote under older names, which HF does not do.

        Weights that the checkpoint lacks remain unchanged in the model.

        Args:
            load_result: missing and unexpected keys.

        Returns:
            The keys that remain missing or unexpected.

        Raises:
            CheckpointError: none of the model's weights is in the checkpoint.
        """
        model, checkpoint = self.hf.model, self._loads_from
        is_renamed = load_result.missing_keys and load_result.unexpected_keys
        if is_renamed and checkpoint is not None and isinstance(model, PreTrainedModel):
            load_result = load_renamed(model, checkpoint)
        missing, unexpected = load_result.missing_keys, load_result.unexpected_keys
        own = {name for name, _ in model.named_parameters()} if isinstance(model, nn.Module) else set()
        if checkpoint is not None and own and own <= set(missing):
            there = ", ".join(sorted(unexpected)[:_FEW]) or "none"
            wanted = ", ".join(sorted(own)[:_FEW])
            msg = (
                f"`{checkpoint}`: none of the model's weights is in it. Those that are there: {there}; those "
                f"of the model: {wanted}. Give the checkpoint of such a model, or make "
                "the model as it was saved."
            )
            raise CheckpointError(msg)
        return load_result

    def warn_of_keys(self, load_result: _IncompatibleKeys) -> None:
        """Log missing and unexpected keys of a model that is not from transformers.

        Args:
            load_result: the keys.
        """
        for kind in ("missing", "unexpected"):
            if names := getattr(load_result, f"{kind}_keys"):
                logger.warning(f"There were {kind} keys in the checkpoint model loaded: {names}.")

    @contextlib.contextmanager
    def restoring_callbacks(self) -> Iterator[None]:
        """Have HF restore callbacks if the arguments request it, and always with "auto"."""
        hf = self.hf
        args = hf.args
        if not self._restores_callbacks:
            yield
            return
        asked = args.restore_callback_states_from_checkpoint
        args.restore_callback_states_from_checkpoint = True
        try:
            yield
        finally:
            args.restore_callback_states_from_checkpoint = asked
        # The state was saved during a save, which is over.
        control = hf.control
        control.should_save = control.should_evaluate = control.should_log = False


def _saved_optim(checkpoint: str) -> str | None:
    """Return the `optim` of the run that wrote a checkpoint; None if its arguments cannot be read."""
    try:
        return read_arguments(os.path.join(checkpoint, ARGUMENTS)).get("optim")
    except CompatError:
        return None
