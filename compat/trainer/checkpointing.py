"""Reading checkpoints: which one a run resumes from, and what it takes from there."""

from __future__ import annotations

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

from compat.checkpoint.adapters import is_whole, load_adapters
from compat.checkpoint.changed import changes, other_length
from compat.checkpoint.convert import convert
from compat.checkpoint.deepspeed import mend_universal
from compat.checkpoint.handover import settle
from compat.checkpoint.held import what_holds
from compat.checkpoint.hosts import gathered
from compat.checkpoint.inert import read_arguments
from compat.checkpoint.io import load_plain, numpys_older_names
from compat.checkpoint.layout import ARGUMENTS, OPTIMIZER_EXTRA, STATE
from compat.checkpoint.partial import remove, sweep
from compat.checkpoint.renamed import load_renamed
from compat.checkpoint.verify import problems
from compat.checkpoint.whole import AUTO, choose, numbered
from compat.checkpoint.writer import wait_for_writers
from compat.engine.guest import is_guest
from compat.engine.optimizer_state import lacking, load_held_state
from compat.engine.position import Position
from compat.errors import ArgumentError, CheckpointError, CompatError
from compat.trainer.saving import SavingMixin

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from transformers.trainer_utils import TrainOutput

    from compat.checkpoint.hosts import Disks
    from compat.engine.session import Session

UNPACKED = "_unpacked-"
"""Begins the name of the folder that holds a Lightning checkpoint while a run resumes from it."""

NOT_OF_WEIGHTS = ("optimizer.pt", OPTIMIZER_EXTRA, "rng_state*.pth", "data_state*.pth")
"""What no host fetches to load weights alone."""

_FEW = 3
"""Names that an error gives as examples."""

logger = logging.get_logger("transformers.trainer")


class CheckpointingMixin(SavingMixin):
    """What is loaded is verified first."""

    _restores_callbacks = False
    _loads_from: str | None = None
    _asked_file: str | None = None

    # Which checkpoint a run resumes from.

    def _choose_checkpoint(self, asked: Any) -> Any:
        """What `resume_from_checkpoint` comes to, for all processes alike; left-overs are swept before."""
        self._restores_callbacks = asked == AUTO
        self._asked_file = str(asked) if isinstance(asked, (str, Path)) and os.path.isfile(asked) else None
        self._end_earlier_writing()
        self._found = self._find_disks()
        checkpoint = self._choose_for_all(asked)
        if asked == AUTO and checkpoint is None:
            self._tell([f"{AUTO!r} finds no checkpoint in {self.args.output_dir}; the run begins anew"])
        return checkpoint

    def _choose_for_all(self, asked: Any) -> Any:
        if self.args.world_size == 1:
            return self._choose_alone(asked)
        if self._disks.are_several:
            return self._choose_together(asked, self._disks)
        outcome: list[Any] = [None, None]
        if self.is_world_process_zero():
            try:
                outcome[0] = self._choose_alone(asked)
            except Exception as error:  # noqa: BLE001 (raised on all)
                outcome[1] = error if isinstance(error, CompatError) else CheckpointError(repr(error))
        torch.distributed.broadcast_object_list(outcome, src=0)
        if outcome[1] is not None:
            raise outcome[1]
        return outcome[0]

    def _end_earlier_writing(self) -> None:
        """Let a run that was interrupted in this process come to the end of its last checkpoint."""
        try:
            self._finish_writing()
        except Exception as error:  # noqa: BLE001 (it is no failure of the run that begins)
            logger.warning(f"{type(error).__name__} of an earlier run: {error}")
        # Other trainers have had this folder, too.
        wait_for_writers(self.args.output_dir)

    def _choose_alone(self, asked: Any) -> Any:
        folder = self.args.output_dir
        self._require_place_to_save()
        if isinstance(asked, (str, Path)) and os.path.isfile(asked):
            return self._unpacked(asked)
        for sentence in (*sweep(folder), *settle(folder)) if self._leads_disk else ():
            logger.warning(sentence)
        choice = choose(asked, folder, needs_weights=self._needs_weights, processes=self.args.world_size)
        for sentence in choice.notes():
            logger.warning(sentence)
        return choice.checkpoint or self._left_by_exception()

    @property
    def _needs_weights(self) -> bool:
        """Whether HF's own code loads the weights, and not that of a subclass."""
        return type(self)._load_from_checkpoint is CheckpointingMixin._load_from_checkpoint

    def _choose_together(self, asked: Any, disks: Disks) -> Any:
        """The same where hosts have disks of their own: each has a part, and is given what it lacks."""
        folder = self.args.output_dir
        disks.each(self._require_place_to_save)
        if isinstance(asked, (str, Path)) and any(disks.each(lambda: os.path.isfile(asked))):
            return self._unpacked_together(lambda: self._unpacked(asked) if os.path.isfile(asked) else None)
        settled = disks.each(lambda: settle(folder))
        for sentence in (*disks.sweep(folder), *(settled[disks.own] if disks.leads_own else ())):
            logger.warning(sentence)
        choice = choose(
            asked, folder, needs_weights=self._needs_weights, processes=self.args.world_size, disk=disks
        )
        for sentence in choice.notes() if self.is_world_process_zero() else ():
            logger.warning(sentence)
        if choice.checkpoint is None:
            return self._unpacked_together(self._left_by_exception)
        if isinstance(choice.checkpoint, str):
            disks.fetch(choice.checkpoint, needs_weights=self._needs_weights)
        return choice.checkpoint

    def _unpacked_together(self, unpack: Callable[[], str | None]) -> str | None:
        """What one disk has unpacked of Lightning's, on all of them."""
        folder = self.args.output_dir

        def unpack_once() -> str | None:
            checkpoint = unpack()
            return None if checkpoint is None else os.path.relpath(checkpoint, folder)

        found = next((one for one in self._disks.each(unpack_once) if one is not None), None)
        if found is None:
            return None
        checkpoint = os.path.join(folder, found)
        self._disks.fetch(checkpoint)
        return checkpoint

    def _left_by_exception(self) -> str | None:
        """What Lightning's OnExceptionCheckpoint has saved of a run that failed."""
        for callback in self._callbacks_of_lightning:
            if not isinstance(callback, OnExceptionCheckpoint) or not os.path.isfile(callback.ckpt_path):
                continue
            checkpoint = self._unpacked(callback.ckpt_path)
            # It also saves what has failed ahead of training.
            if TrainerState.load_from_json(os.path.join(checkpoint, STATE)).global_step > 0:
                logger.warning(
                    f"`callbacks=OnExceptionCheckpoint({callback.dirpath!r})`: going on from what a failed "
                    f"run has left there. Remove {callback.ckpt_path} to begin afresh."
                )
                return checkpoint
        return None

    def _unpacked(self, file: str | Path) -> str:
        """A checkpoint of Lightning's as a folder of HF's; `train` removes it at its end."""
        folder = tempfile.mkdtemp(prefix=UNPACKED, dir=self.args.output_dir)
        checkpoint = os.path.join(folder, "checkpoint")
        try:
            # A LightningModule's own file names its weights as the module does.
            convert(file, checkpoint, to="hf", prefix="" if is_guest(self.model) else None)
        except BaseException:
            shutil.rmtree(folder)
            raise
        if wrong := problems(checkpoint):
            shutil.rmtree(folder)
            msg = f"`resume_from_checkpoint={str(file)!r}`: {'; '.join(wrong)}. Give another file."
            raise ArgumentError(msg)
        return checkpoint

    def _remove_unpacked(self) -> None:
        if self._found is not None and self._found.leads_own:
            for folder in Path(self.args.output_dir).glob(f"{UNPACKED}*"):
                shutil.rmtree(folder, ignore_errors=True)

    # Loading.

    def _init_training_state(
        self,
        max_steps: int,
        num_update_steps_per_epoch: int,
        num_train_epochs: int,
        resume_from_checkpoint: str | None,
        trial: Any,
    ) -> tuple[int, int]:
        """Restore HF's state, and tell what holds where it differs from the arguments."""
        trained: tuple[int, int] = super()._init_training_state(
            max_steps, num_update_steps_per_epoch, num_train_epochs, resume_from_checkpoint, trial
        )
        if resume_from_checkpoint is not None and self._disks.are_several:
            self._agree_on_best(self._get_output_dir(trial))
        if resume_from_checkpoint is not None:
            self._tell_of_resuming(self._asked_file or resume_from_checkpoint, max_steps)
            config = getattr(self.accelerator.unwrap_model(self.model), "config", None)
            self._tell(changes(resume_from_checkpoint, processing_class=self.processing_class, config=config))
            self._tell(what_holds(self.args, self.state, self._train_batch_size, max_steps))
        return trained

    def _tell_of_resuming(self, checkpoint: str, max_steps: int) -> None:
        state = self.state
        done = f"update step {state.global_step} of {max_steps}"
        epoch = f"epoch {state.epoch or 0:.2f} of {state.num_train_epochs}"
        self._tell([f"going on from {checkpoint}, {done}, {epoch}"])

    def _tell(self, sentences: Iterable[str]) -> None:
        """Say once in a job what a user who resumes is to know."""
        for sentence in sentences if self.is_world_process_zero() else ():
            logger.warning(f"`resume_from_checkpoint`: {sentence}.")

    def _agree_on_best(self, folder: str) -> None:
        """Have all processes know the best checkpoint, also where only the disks of others have it."""
        best = self.state.best_model_checkpoint
        found = gathered(None if best is None else os.path.basename(best))
        name = next((name for name in found if name is not None), None)
        if best is None and name is not None:
            self.state.best_model_checkpoint = os.path.join(folder, name)

    def _finalize_training(self, *args: Any, **kwargs: Any) -> TrainOutput:
        """End the run. HF then leaves the best checkpoint alone where only one may stay, on one disk."""
        output: TrainOutput = super()._finalize_training(*args, **kwargs)
        best = self.state.best_model_checkpoint
        is_left = self._disks.are_several and self._disks.leads_own and not self.args.should_save
        if is_left and best is not None and self.args.save_total_limit == 1:
            for checkpoint in numbered(os.path.dirname(best)):
                if os.path.basename(checkpoint) != os.path.basename(best):
                    remove(checkpoint)
        return output

    def _load_position(self, checkpoint: str | None, session: Session) -> Position | None:
        """Where the run that is resumed stood in its data, where this run can go on from there."""
        if checkpoint is None:
            return None
        step, last = self.state.global_step, self.state.max_steps
        session.has_ended = self._restores_callbacks and step >= last
        file = os.path.join(checkpoint, self._position_file)
        if not os.path.isfile(file):
            return None
        position = Position.of(load_plain(file))
        self._tell(other_length(position.rows, session.rows))
        if position.has_ended and self._restores_callbacks and not session.has_ended:
            session.has_ended = True
            self._tell_of_end(step, last)
        is_exact = position.depends_on == session.depends_on() and not self.args.ignore_data_skip
        return position if is_exact else None

    def _tell_of_end(self, step: int, last: int) -> None:
        if self.is_world_process_zero():
            logger.warning(
                f"`resume_from_checkpoint={AUTO!r}`: the run in `{self.args.output_dir}` has ended itself "
                f"after update step {step} of {last}, and is over. To train on from there, give "
                "`resume_from_checkpoint=True`."
            )

    def _load_best_model(self) -> None:
        best = self.state.best_model_checkpoint
        if self._disks.are_several:
            self._disks.share(best, skip=() if self._is_sharded else NOT_OF_WEIGHTS)
        if wrong := problems(best, weights_only=True) if os.path.isdir(best) else []:
            msg = (
                f"`load_best_model_at_end=True`: the best checkpoint is broken: {best}: {'; '.join(wrong)}. "
                "The model is as the last step left it; load an earlier checkpoint by hand."
            )
            raise CheckpointError(msg)
        self._loads_from = best
        if self._load_adapters(best, is_trained_on=False):
            self._issue_warnings_after_load(_IncompatibleKeys([], []))
        elif is_whole(self.model, best):
            super()._load_from_checkpoint(best)
        else:
            super()._load_best_model()

    def _load_adapters(self, checkpoint: str, *, is_trained_on: bool) -> bool:
        """Load the adapters of a model, where a checkpoint has some; what is sharded is HF's to load."""
        if self._is_sharded:
            return False
        model = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        try:
            is_loaded = load_adapters(model, checkpoint, is_trained_on=is_trained_on)
        except CheckpointError as error:
            asked = "resume_from_checkpoint" if is_trained_on else "load_best_model_at_end"
            msg = f"`{asked}={checkpoint if is_trained_on else True}`: {checkpoint}: {error}"
            raise CheckpointError(msg) from error
        if is_loaded:
            logger.info(f"Loading adapters from {checkpoint}.")
        return is_loaded

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Load both states where both are there; a checkpoint saved with `save_only_model` has neither."""
        # A callback may have added groups to the optimizer, whose states these are.
        self._load_lightning_callbacks(checkpoint)
        if checkpoint is None:
            return
        if self._is_sharded:
            super()._load_optimizer_and_scheduler(checkpoint)
            engine: Any = self.deepspeed
            if engine is not None and engine.load_universal_checkpoint() and self.accelerator.group_options:
                rates = self.lr_scheduler.get_last_lr()
                mend_universal(engine.optimizer.optimizer, self.accelerator.group_options, rates)
            return
        parts = self.lightning.strategy.checkpoint_io.load_checkpoint(checkpoint)
        if "optimizer" in parts and "lr_scheduler" in parts:
            self._load_optimizer(parts["optimizer"], checkpoint)
            self.lr_scheduler.load_state_dict(parts["lr_scheduler"])
        file = os.path.join(checkpoint, OPTIMIZER_EXTRA)
        if os.path.isfile(file):
            load_held_state(self.optimizer, self.model, load_plain(file))

    def _load_optimizer(self, state: dict[str, Any], checkpoint: str) -> None:
        """Load its state, unless it is that of another `optim`, with which the first step would fail."""
        failure: Exception | None = None
        try:
            self.optimizer.load_state_dict(state)
            missing = sorted(lacking(self.optimizer))
            reason = f"it has no {', '.join(missing)}" if missing else ""
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            failure, reason = error, f"{type(error).__name__}: {error}"
        if not reason:
            return
        saved, asked = _saved_optim(checkpoint), getattr(self.args.optim, "value", self.args.optim)
        if saved not in (None, asked):
            msg = (
                f"`optim={asked!r}`: {checkpoint} holds the state of {saved!r}, which does not fit "
                f"({reason}). Give `optim={saved!r}`; or, to go on from its weights with a fresh optimizer, "
                "load the model from there and train without `resume_from_checkpoint`."
            )
            raise ArgumentError(msg) from failure
        if failure is not None:
            raise failure

    def _load_rng_state(self, checkpoint: str | None) -> None:
        with numpys_older_names():
            super()._load_rng_state(checkpoint)

    def _load_scaler(self, checkpoint: str | None) -> None:
        if checkpoint is None or self.accelerator.scaler is None:
            return
        parts = self.lightning.strategy.checkpoint_io.load_checkpoint(checkpoint)
        if "scaler" in parts:
            self.accelerator.scaler.load_state_dict(parts["scaler"])

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        self._loads_from = resume_from_checkpoint
        if not self._load_adapters(resume_from_checkpoint, is_trained_on=True):
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """Translate weights that `save_pretrained` has written under older names; HF does not.

        What the checkpoint lacks stays as the model has it.
        """
        model, checkpoint = self.model, self._loads_from
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
        if hasattr(model, "_keys_to_ignore_on_save"):
            super()._issue_warnings_after_load(load_result)
            return
        # HF takes every model for one of transformers'.
        for kind, names in (("missing", missing), ("unexpected", unexpected)):
            if names:
                logger.warning(f"There were {kind} keys in the checkpoint model loaded: {names}.")

    def _load_callback_state(self) -> None:
        """Restore callbacks where the arguments ask for it, and with "auto" in any case."""
        if not self._restores_callbacks:
            super()._load_callback_state()
            return
        asked = self.args.restore_callback_states_from_checkpoint
        self.args.restore_callback_states_from_checkpoint = True
        try:
            super()._load_callback_state()
        finally:
            self.args.restore_callback_states_from_checkpoint = asked
        # It was saved in the middle of a save, which is over.
        self.control.should_save = self.control.should_evaluate = self.control.should_log = False


def _saved_optim(checkpoint: str) -> Any:
    """The `optim` of the run that has written a checkpoint; None where its arguments cannot be read."""
    try:
        return read_arguments(os.path.join(checkpoint, ARGUMENTS)).get("optim")
    except CompatError:
        return None
