"""Writing checkpoints: HF's policy and layout; the engine's parts go through Lightning's CheckpointIO."""

from __future__ import annotations

import contextlib
import copy
import os
import tempfile
import threading
import uuid
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils._pytree import tree_map
from transformers.trainer_callback import ExportableState
from transformers.utils import logging

from compat.arguments.training import fit_to_save
from compat.checkpoint.adapters import save_unsaved
from compat.checkpoint.handover import forget, hand_over, take_back
from compat.checkpoint.hosts import Disks, find_disks, gathered
from compat.checkpoint.io import save_plain, unloadable
from compat.checkpoint.jsonable import save_state
from compat.checkpoint.layout import OPTIMIZER_EXTRA, STATE, WEIGHTS, is_one_of
from compat.checkpoint.manifest import Save, files_of, reseal
from compat.checkpoint.partial import begin, close, commit, partial_of, place, writing
from compat.checkpoint.rotation import rotate
from compat.checkpoint.writer import Writer
from compat.engine.optimizer_state import held_state
from compat.errors import ArgumentError, CheckpointError
from compat.trainer.evaluation import NO_MODEL, EvaluationMixin
from compat.upstream.environment import told_local_size
from compat.upstream.sharding import full_state_dict
from compat.upstream.trainer import determine_best_metric

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from compat.checkpoint.manifest import Traits
    from compat.engine.session import Session

logger = logging.get_logger("transformers.trainer")

SECONDS_TO_BE_TOLD = 60.0
"""How long a checkpoint that is written meanwhile waits for callbacks of `on_save`: one may wait for it."""


class SavingMixin(EvaluationMixin):
    """When to save, what to keep and where is HF's; a checkpoint appears whole or not at all.

    Mirrors `transformers.Trainer._save_checkpoint`, which writes into the folder that it is read from.
    """

    _writer: Writer | None = None
    _written: str | None = None
    _has_noted_end: bool = False

    @property
    def _ends_itself(self) -> bool:
        """Whether the run has decided to end ahead of its last update step."""
        lightning = self._lightning
        stops = self.control.should_training_stop or (lightning is not None and lightning.should_stop)
        return bool(stops) and self.state.global_step < self.state.max_steps

    @property
    def _is_sharded(self) -> bool:
        return bool(self.is_fsdp_enabled or self.is_deepspeed_enabled)

    # The disks of a job.

    _found: Disks | None = None

    @property
    def _disks(self) -> Disks:
        """Those that have the folder of the run; where it is not known yet, every process has to ask."""
        if self._found is None:
            self._found = self._find_disks()
        return self._found

    @property
    def _leads_disk(self) -> bool:
        """Whether this process does what is done once on its disk."""
        return self._disks.leads_own

    def _find_disks(self) -> Disks:
        args = self.args
        # All processes have to come to the same answer.
        if told_local_size(args.world_size) >= args.world_size:
            return Disks(args.process_index)
        disks = find_disks(
            args.output_dir,
            args.process_index,
            is_first_of_host=args.local_process_index == 0,
            is_needed=args.save_strategy != "no",
            device=args.device,
        )
        if disks.are_several and self._lightning_flags.get("save_async") and args.process_index == 0:
            logger.warning(
                "`lightning={'save_async': True}`: the hosts of this job have disks of their own, and "
                "must meet while a checkpoint is written: training waits for it. Give an `output_dir` on a "
                "disk that all of them share to have it go on."
            )
        return disks

    # Saving.

    def _require_place_to_save(self) -> None:
        """Find out ahead of training that nothing can be saved."""
        args = self.args
        if args.save_strategy == "no" or not self._leads_disk:
            return
        try:
            os.makedirs(args.output_dir, exist_ok=True)
            with tempfile.TemporaryFile(dir=args.output_dir):
                pass
        except OSError as error:
            msg = (
                f"`output_dir={str(args.output_dir)!r}`: no checkpoint can be saved there ({error}). Give "
                "another folder, or `save_strategy='no'`."
            )
            raise CheckpointError(msg) from error

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        if self.hp_search_backend is None and trial is None:
            self.store_flos()
        self._finish_writing()
        folder = self._get_output_dir(trial=trial)
        checkpoint = os.path.join(folder, f"checkpoint-{self.state.global_step}")
        best = self.state.best_model_checkpoint
        try:
            with writing(checkpoint):
                self._write(folder, checkpoint)
        except BaseException:
            self.state.best_model_checkpoint = best
            raise
        finally:
            later, self._later = self._later, None
        self._written = checkpoint
        if later is not None:
            self._unsent = checkpoint if self.args.push_to_hub else None
            if self._leads_disk:
                self._write_later(folder, checkpoint, later)
            return
        if self._leads_disk and self._hands_over:
            self._handed_over = hand_over(checkpoint)
        if self.args.push_to_hub:
            self._push_from_checkpoint(checkpoint)
        if self._disks.are_several and self.args.save_total_limit:
            self._last_loadable = self._disks.last_loadable(folder, checkpoint)
        if self._leads_disk:
            self._rotate_checkpoints(use_mtime=True, output_dir=folder)

    def _write(self, folder: str, checkpoint: str) -> None:
        """Write all files beside the checkpoint's place, and put them there; with `save_async`, later."""
        disks = self._disks
        self._together(lambda: begin(checkpoint) if disks.leads_own else None)
        with self._written_once():
            self._together(lambda: self._write_parts(folder, checkpoint))
        if self._later is not None:
            return
        if disks.are_several:
            self._commit_on_all(checkpoint)
        else:
            self._together(lambda: commit(checkpoint) if disks.leads_own else None)

    def _commit_on_all(self, checkpoint: str) -> None:
        """Put the parts that all disks have of a checkpoint in their places, or leave all without a name."""
        disks, save = self._disks, [Save(uuid.uuid4().hex, self.args.world_size)]
        if self.args.save_on_each_node:
            disks.share(partial_of(checkpoint))
        torch.distributed.broadcast_object_list(save, src=0)
        disks.each(lambda: close(checkpoint, save[0]))
        disks.each(lambda: place(checkpoint))

    def _write_parts(self, folder: str, checkpoint: str) -> None:
        output_dir = str(partial_of(checkpoint))
        self.save_model(output_dir, _internal_call=True)
        if self.args.should_save and not self._is_sharded:
            save_unsaved(self.model, output_dir)
        self._note_best(folder, checkpoint)
        self._later = [] if self._saves_async else None
        if not self.args.save_only_model:
            self._save_optimizer_and_scheduler(output_dir)
            self._save_scaler(output_dir)
            self._save_rng_state(output_dir)
            self._save_position(output_dir)
        if self.args.should_save:
            self._save_lightning_callbacks(output_dir)
            self._save_state(output_dir)

    @contextlib.contextmanager
    def _written_once(self) -> Iterator[None]:
        """Have the first process write what is the same for all, also with `save_on_each_node`.

        HF has the first of each host write it: on a disk that they share over each other, and without the
        weights wherever `save_pretrained` or what gathers shards leaves these to the first process alone.
        """
        args = self.args
        asked, args.save_on_each_node = (
            args.save_on_each_node,
            args.save_on_each_node and not args.process_index,
        )
        try:
            yield
        finally:
            args.save_on_each_node = asked

    def _together(self, stage: Callable[[], object]) -> None:
        """Take a stage of saving on every process, and meet; where one fails, all do."""
        error = None
        try:
            stage()
        except Exception as caught:
            # Shards are written by all at once: the others can't be met now.
            if self.args.world_size == 1 or self._is_sharded:
                raise
            error = caught
        if self.args.world_size == 1:
            return
        found = gathered(None if error is None else str(error))
        if error is not None:
            raise error
        for rank, text in enumerate(found):
            if text is not None:
                msg = f"process {rank} could not save: {text}"
                raise CheckpointError(msg)

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        name = str(self.args.metric_for_best_model)
        value: Any = metrics.get(name if name.startswith("eval_") else f"eval_{name}")
        count = value.numel() if isinstance(value, torch.Tensor) else np.size(value)
        if count > 1:
            msg = (
                f"`metric_for_best_model={name!r}`: the metric has {count} values, none of which "
                "is the best one. Have `compute_metrics` return a number under this name, a mean for one."
            )
            raise ArgumentError(msg)
        return determine_best_metric(self, metrics, trial)

    def _note_best(self, folder: str, checkpoint: str) -> None:
        if self.args.save_strategy == "no" or not self.state.best_global_step:
            return
        best = os.path.join(folder, f"checkpoint-{self.state.best_global_step}")
        if best == checkpoint or os.path.exists(best):
            self.state.best_model_checkpoint = best

    def _save_state(self, output_dir: str) -> None:
        kept = self.state.stateful_callbacks
        for part in [*self.callback_handler.callbacks, self.control]:
            if not isinstance(part, ExportableState):
                continue
            name = type(part).__name__
            # A run that goes on from an older release knows of none.
            if isinstance(kept.get(name), list):
                kept[name].append(part.state())
            else:
                kept[name] = part.state()
        save_state(self.state, os.path.join(output_dir, STATE))

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if self._is_sharded:
            super()._save_optimizer_and_scheduler(output_dir)
            return
        self._save_parts({"optimizer": self.optimizer, "lr_scheduler": self.lr_scheduler}, output_dir)
        held = held_state(self.optimizer, self.model)
        if not held or not self.args.should_save:
            return
        file = os.path.join(output_dir, OPTIMIZER_EXTRA)
        if self._later is None:
            save_plain(held, file)
        else:
            self._later.append(partial(save_plain, _snapshot(held), file))

    def _save_scaler(self, output_dir: str) -> None:
        if self.accelerator.scaler is not None:
            self._save_parts({"scaler": self.accelerator.scaler}, output_dir)

    def _save_parts(self, parts: dict[str, Any], output_dir: str) -> None:
        if not self.args.should_save:
            return
        states = {name: part.state_dict() for name, part in parts.items()}
        save = self.lightning.strategy.checkpoint_io.save_checkpoint
        if self._later is None:
            save(states, output_dir)
        else:
            self._later.append(partial(save, _snapshot(states), output_dir))

    def _save_position(self, output_dir: str) -> None:
        session = self._session_in_progress
        if session is None:
            return
        position, file = session.where(), os.path.join(output_dir, self._position_file)
        self._has_noted_end = position.has_ended
        save_plain(position.state_dict(), file)
        if (reason := unloadable(file)) and position.loader is not None:
            logger.warning(
                f"`{type(session.dataloader).__name__}.state_dict()`: it holds {reason}, which is not loaded "
                "again, since a pickle of classes could run code. A resumed run draws the batches anew that "
                "lie behind it. Return tensors, arrays, numbers, strings, lists and dicts."
            )
            save_plain(replace(position, loader=None).state_dict(), file)

    @property
    def _position_file(self) -> str:
        args = self.args
        return "data_state.pth" if args.world_size <= 1 else f"data_state_{args.process_index}.pth"

    @property
    def _session_in_progress(self) -> Session | None:
        module = self._lightning_module
        return None if module is None else module.session

    def _rotate_checkpoints(self, use_mtime: bool = False, output_dir: str | None = None) -> None:
        keep = (self.state.best_model_checkpoint, self._last_loadable, *self._uploading())
        folder, limit = output_dir or self.args.output_dir, self.args.save_total_limit
        how = {"by_time": use_mtime, "is_alone": not self._disks.are_several}
        for checkpoint in rotate(folder, limit, keep, saved=self._written, **how):
            logger.info(f"Deleting older checkpoint [{checkpoint}] due to args.save_total_limit")

    _last_loadable: str | None = None
    """Where hosts have disks of their own, and no one of them can tell."""

    def _uploading(self) -> set[str]:
        """Checkpoints that are on their way to the Hub."""
        return set()

    def _meet(self) -> None:
        if self.args.world_size > 1:
            self.accelerator.wait_for_everyone()

    def _files_of_run(self) -> dict[str, torch.Tensor]:
        """All but weights, optimizer and scheduler of a checkpoint; every process has to ask for it.

        Returns:
            Path within a `checkpoint-N` folder → its content, (bytes,) of uint8.
        """
        if self.hp_search_backend is None:
            self.store_flos()
        with tempfile.TemporaryDirectory() as folder:
            if self.args.should_save:
                with fit_to_save(self.args):
                    self._save(folder, state_dict={})
                self._save_lightning_callbacks(folder)
                self._save_state(folder)
                if held := held_state(self.optimizer, self.model):
                    save_plain(held, os.path.join(folder, OPTIMIZER_EXTRA))
            self._save_scaler(folder)
            self._save_rng_state(folder)
            self._save_position(folder)
            files = {
                name: torch.frombuffer(bytearray(Path(folder, name).read_bytes()), dtype=torch.uint8)
                for name in files_of(Path(folder))
                if not is_one_of(name, WEIGHTS) and os.path.getsize(os.path.join(folder, name))
            }
        if self.args.world_size == 1:
            return files
        parts = reversed(gathered(files))
        return {name: content for part in parts for name, content in part.items()}

    # Saving while training goes on.

    _later: list[Callable[[], object]] | None = None

    @property
    def _saves_async(self) -> bool:
        return bool(self._lightning_flags.get("save_async")) and not self._disks.are_several

    def _write_later(self, folder: str, checkpoint: str, work: list[Callable[[], object]]) -> None:
        self._writer = self._writer or Writer()
        told = self._told = threading.Event()
        keep = (self.state.best_model_checkpoint, *self._uploading())
        rotates = partial(rotate, folder, self.args.save_total_limit, keep, saved=checkpoint)

        def write() -> None:
            with writing(checkpoint):
                for step in work:
                    step()
                # What callbacks put into the folder of that name belongs to the checkpoint.
                told.wait(SECONDS_TO_BE_TOLD)
                commit(checkpoint)

        self._writer.start(folder, [write, rotates])

    _unsent: str | None = None
    _told: threading.Event | None = None

    def _end_telling(self) -> None:
        """Have the writer put the checkpoint in its place: callbacks have been told of it by now."""
        told, self._told = self._told, None
        if told is not None:
            told.set()

    def _check_writing(self) -> None:
        """At each update step: raise what the writer has failed with, and push what it has finished."""
        if self._writer is not None and not self._writer.is_busy:
            self._finish_writing()

    def _finish_writing(self) -> None:
        if self._writer is None:
            return
        self._end_telling()
        self._writer.finish()
        if self._unsent is not None:
            checkpoint, self._unsent = self._unsent, None
            self._push_from_checkpoint(checkpoint)

    def _finish_saving(self) -> None:
        """Wait until what is being written lies there for all processes."""
        self._finish_writing()
        if self._saves_async:
            self._meet()

    # What others do to a checkpoint.

    _hands_over: bool = False
    _handed_over: dict[str, Traits] | None = None

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        self._written = None
        self._hands_over = True
        try:
            super()._maybe_log_save_evaluate(*args, **kwargs)
            self._note_end()
        finally:
            self._hands_over = False
            self._end_telling()
            self._take_back()

    def _note_end(self) -> None:
        """Write down that the run has ended itself, where a callback that was told of a save says so."""
        written = self._written
        if written is None or not self._ends_itself:
            return
        self._finish_writing()
        if self._has_noted_end or not os.path.isfile(os.path.join(written, self._position_file)):
            return
        self._save_position(written)
        self._meet()
        if self._disks.are_several and self.args.save_on_each_node:
            self._disks.renew(written, "data_state_{}.pth")
        if self._leads_disk and self._handed_over is None:
            reseal(written)

    def _take_back(self) -> None:
        """Seal what has become of a checkpoint, whatever has ended those who had it in their hands."""
        known, self._handed_over = self._handed_over, None
        written = self._written
        if known is not None and written is not None:
            take_back(written, known)
            self._when_pushed(lambda: forget(written))

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the model, its configuration and its processing class for `from_pretrained`.

        Mirrors `transformers.Trainer.save_model`, which writes nothing at all where FSDP keeps its
        checkpoints in shards.

        Args:
            output_dir: where; `args.output_dir` if None.
        """
        if self.model is None:
            raise ArgumentError(NO_MODEL)
        plugin = getattr(self.accelerator.state, "fsdp_plugin", None)
        keeps_shards = plugin is not None and "SHARDED" in str(plugin.state_dict_type)
        if keeps_shards and not _internal_call:
            weights = self.accelerator.get_state_dict(self.model)
        elif self.is_tp_enabled and not getattr(self, "is_distributed_loading_by_transformers", False):
            # transformers 4 puts tensors together in the first process alone, which waits for the others.
            weights = full_state_dict(self.model.state_dict())
        else:
            super().save_model(output_dir, _internal_call)
            return
        self._save(output_dir or self.args.output_dir, state_dict=weights)
        if self.args.push_to_hub and not _internal_call:
            self.push_to_hub(commit_message="Model save", revision=self.args.hub_revision)


def _snapshot(states: dict[str, Any]) -> dict[str, Any]:
    """States that the next update step does not change."""

    def copied(value: Any) -> Any:
        return (
            value.detach().to("cpu", copy=True) if isinstance(value, torch.Tensor) else copy.deepcopy(value)
        )

    snapshot: dict[str, Any] = tree_map(copied, states)
    return snapshot
