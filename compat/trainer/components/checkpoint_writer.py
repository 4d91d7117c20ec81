"""Writing checkpoints: HF's policy and layout; Lightning's CheckpointIO writes the engine's parts."""

from __future__ import annotations

import contextlib
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
from safetensors.torch import save_file
from torch.distributed.fsdp import FSDPModule
from transformers import PreTrainedModel
from transformers import trainer as hf_trainer
from transformers.trainer_callback import ExportableState
from transformers.utils import logging

from compat.arguments.machine import XLA
from compat.arguments.training import fit_to_save
from compat.checkpoint.adapters import save_unsaved
from compat.checkpoint.atomic import begin, close, commit, partial_of, place, remove, writing
from compat.checkpoint.flushing import flush_written, flushing
from compat.checkpoint.handover import forget, hand_over, take_back
from compat.checkpoint.hosts import Disks, find_disks, gathered
from compat.checkpoint.io import save_plain, unloadable
from compat.checkpoint.jsonable import save_state
from compat.checkpoint.layout import OPTIMIZER_EXTRA, STATE, WEIGHTS, is_one_of
from compat.checkpoint.manifest import Save, files_of, reseal
from compat.checkpoint.rotation import rotate
from compat.checkpoint.selection import numbered
from compat.checkpoint.staging import Staging, are_plain
from compat.checkpoint.writer import Writer
from compat.engine.optimizer_state import held_state
from compat.errors import ArgumentError, CheckpointError
from compat.trainer.component import Component
from compat.upstream.environment import told_local_size
from compat.upstream.patched import is_patched
from compat.upstream.sharding import full_state_dict, unsharded
from compat.upstream.weight_files import weight_files_taken_by

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from compat.checkpoint.flushing import Traits
    from compat.engine.host import TrainerHost
    from compat.upstream.values import Trial

logger = logging.get_logger("transformers.trainer")

OF_SPMD_WRAPPER = "_orig_module."
"""What the wrapper of torch_xla's SPMD puts before the names of the parameters in it."""

SECONDS_TO_BE_TOLD = 60.0
"""Seconds that an asynchronously written checkpoint waits for `on_save` callbacks, which may wait for it."""


class CheckpointWriter(Component):
    """Writes checkpoints atomically; HF decides when to save, what to keep, and where.

    Mirrors `transformers.Trainer._save_checkpoint`, which writes into the folder that it is read from.
    """

    def __init__(self, trainer: TrainerHost) -> None:
        super().__init__(trainer)
        self._disks: Disks | None = None
        self._written: str | None = None
        self._has_noted_end = False
        # The last loadable checkpoint, if hosts have separate disks and no single host can find it.
        self._last_loadable: str | None = None
        # The checkpoint that callbacks are notified of, and may change.
        self._hands_over = False
        self._handed_over: dict[str, Traits] | None = None
        # State of asynchronous writing.
        self._writer: Writer | None = None
        self._later: list[Callable[[], object]] | None = None
        self._staging = Staging()
        self._unsent: str | None = None
        self._told: threading.Event | None = None

    @property
    def is_sharded(self) -> bool:
        """Whether model and optimizer are sharded among processes."""
        hf = self.hf
        by_xla = getattr(hf, "is_fsdp_xla_v1_enabled", False)
        return bool(hf.is_fsdp_enabled or hf.is_deepspeed_enabled or by_xla)

    # The disks of a job.

    @property
    def disks(self) -> Disks:
        """The disks that hold the folder of the run; until they are known, a collective call."""
        if self._disks is None:
            self._disks = self._find_disks()
        return self._disks

    def look_for_disks(self) -> None:
        """Detect again which processes share a disk; a collective call."""
        self._disks = self._find_disks()

    @property
    def leads_known_disk(self) -> bool:
        """Whether this process does the work that is done once per disk, if the disks are known."""
        return self._disks is not None and self._disks.leads_own

    @property
    def leads_disk(self) -> bool:
        """Whether this process does the work that is done once per disk."""
        return self.disks.leads_own

    def _find_disks(self) -> Disks:
        hf = self.hf
        args = hf.args
        # All processes must get the same answer.
        if told_local_size(args.world_size) >= args.world_size:
            return Disks(args.process_index)
        disks = find_disks(
            args.output_dir,
            args.process_index,
            is_first_of_host=args.local_process_index == 0,
            is_needed=args.save_strategy != "no",
            device=args.device,
        )
        if disks.are_several and hf._fit.flags.get("save_async") and args.process_index == 0:
            logger.warning(
                "`lightning={'save_async': True}`: the hosts of this job have disks of their own, and "
                "must meet while a checkpoint is written: training waits for it. Give an `output_dir` on a "
                "disk that all of them share to have it go on."
            )
        return disks

    # Saving.

    def require_place_to_save(self) -> None:
        """Check before training that checkpoints can be saved."""
        args = self.hf.args
        if args.save_strategy == "no" or not self.leads_disk:
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

    def save(self, trial: Trial) -> str:
        """Save a checkpoint.

        Args:
            trial: the trial of a hyperparameter search.

        Returns:
            Its folder.

        Raises:
            CheckpointError: a process could not write its part; earlier checkpoints are unchanged.
        """
        hf = self.hf
        if hf.hp_search_backend is None and trial is None:
            hf.store_flos()
        self.finish_writing()
        folder = hf._get_output_dir(trial=trial)
        checkpoint = os.path.join(folder, f"checkpoint-{hf.state.global_step}")
        best = hf.state.best_model_checkpoint
        try:
            with writing(checkpoint):
                self._write(folder, checkpoint)
        except BaseException:
            hf.state.best_model_checkpoint = best
            raise
        finally:
            later, self._later = self._later, None
        self._written = checkpoint
        if later is not None:
            self._unsent = checkpoint if hf.args.push_to_hub else None
            if self.leads_disk:
                self._write_later(folder, checkpoint, later)
            return checkpoint
        if self.leads_disk and self._hands_over:
            self._handed_over = hand_over(checkpoint)
        if hf.args.push_to_hub:
            hf._push_from_checkpoint(checkpoint)
        if self.disks.are_several and hf.args.save_total_limit:
            self._last_loadable = self.disks.last_loadable(folder, checkpoint)
        if self.leads_disk:
            hf._rotate_checkpoints(use_mtime=True, output_dir=folder)
        return checkpoint

    def _write(self, folder: str, checkpoint: str) -> None:
        """Write all files next to the final folder, then rename; with `save_async`, later."""
        disks = self.disks
        self._together(lambda: begin(checkpoint) if disks.leads_own else None)
        with flushing(partial_of(checkpoint)):
            with self._written_once():
                self._together(lambda: self._write_parts(folder, checkpoint))
            if self._later is not None:
                return
            if disks.are_several:
                self._commit_on_all(checkpoint)
            else:
                self._together(lambda: commit(checkpoint) if disks.leads_own else None)

    def _commit_on_all(self, checkpoint: str) -> None:
        """Move the parts of a checkpoint to their final folder on all disks, or on none."""
        hf = self.hf
        disks, save = self.disks, [Save(uuid.uuid4().hex, hf.args.world_size)]
        if hf.args.save_on_each_node:
            disks.share(partial_of(checkpoint))
        torch.distributed.broadcast_object_list(save, src=0)
        disks.each(lambda: close(checkpoint, save[0]))
        disks.each(lambda: place(checkpoint))

    def _write_parts(self, folder: str, checkpoint: str) -> None:
        hf = self.hf
        output_dir = str(partial_of(checkpoint))
        self._later = [] if self._saves_async else None
        self._staging.begin()
        with self._weights_taken():
            hf.save_model(output_dir, _internal_call=True)
        if hf.args.should_save and not self.is_sharded:
            save_unsaved(hf.model, output_dir)
            flush_written()
        self._note_best(folder, checkpoint)
        if not hf.args.save_only_model:
            hf._save_optimizer_and_scheduler(output_dir)
            hf._save_scaler(output_dir)
            hf._save_rng_state(output_dir)
            self._save_position(output_dir)
        if hf.args.should_save:
            hf._callbacks.save(output_dir)
            self._save_state(output_dir)

    @contextlib.contextmanager
    def _written_once(self) -> Iterator[None]:
        """Have the first process write the files that are common to all, also with `save_on_each_node`.

        HF has the first process of each host write them. On a shared disk these overwrite each other, and the
        weights are missing if `save_pretrained`, or the code that gathers shards, writes them only in the
        first process.
        """
        args = self.hf.args
        asked, args.save_on_each_node = (
            args.save_on_each_node,
            args.save_on_each_node and not args.process_index,
        )
        try:
            yield
        finally:
            args.save_on_each_node = asked

    def _together(self, stage: Callable[[], object]) -> None:
        """Run a stage of saving on every process, then synchronize; if one process fails, all fail."""
        hf = self.hf
        error = None
        try:
            stage()
        except Exception as caught:
            # All processes write shards at the same time: synchronizing now would deadlock.
            if hf.args.world_size == 1 or self.is_sharded:
                raise
            error = caught
        if hf.args.world_size == 1:
            return
        found = gathered(None if error is None else str(error))
        if error is not None:
            raise error
        for rank, text in enumerate(found):
            if text is not None:
                msg = f"process {rank} could not save: {text}"
                raise CheckpointError(msg)

    def check_metric(self, metrics: dict[str, float]) -> None:
        """Refuse a `metric_for_best_model` of several values.

        Args:
            metrics: the metrics of an evaluation.

        Raises:
            ArgumentError: the metric has several values, so none of them is the best one.
        """
        name = str(self.hf.args.metric_for_best_model)
        value: Any = metrics.get(name if name.startswith("eval_") else f"eval_{name}")
        count = value.numel() if isinstance(value, torch.Tensor) else np.size(value)
        if count > 1:
            msg = (
                f"`metric_for_best_model={name!r}`: the metric has {count} values, none of which "
                "is the best one. Have `compute_metrics` return a number under this name, a mean for one."
            )
            raise ArgumentError(msg)

    def _note_best(self, folder: str, checkpoint: str) -> None:
        hf = self.hf
        if hf.args.save_strategy == "no" or not hf.state.best_global_step:
            return
        self._meet_on_xla()
        best = os.path.join(folder, f"checkpoint-{hf.state.best_global_step}")
        if best == checkpoint or os.path.exists(best):
            hf.state.best_model_checkpoint = best

    def _save_state(self, output_dir: str) -> None:
        hf = self.hf
        kept = hf.state.stateful_callbacks
        for part in [*hf.callback_handler.callbacks, hf.control]:
            if not isinstance(part, ExportableState):
                continue
            name = type(part).__name__
            # The state of an older release may lack this entry.
            if isinstance(kept.get(name), list):
                kept[name].append(part.state())
            else:
                kept[name] = part.state()
        save_state(hf.state, os.path.join(output_dir, STATE))

    def save_optimizer_and_scheduler(self, output_dir: str) -> None:
        """Write both states, if this process has all of them.

        Args:
            output_dir: the checkpoint's folder.
        """
        hf = self.hf
        self._meet_on_xla()
        self._save_parts({"optimizer": hf.optimizer, "lr_scheduler": hf.lr_scheduler}, output_dir)
        held = held_state(hf.optimizer, hf.model)
        if not held or not hf.args.should_save:
            return
        file = os.path.join(output_dir, OPTIMIZER_EXTRA)
        if self._later is None:
            save_plain(held, file)
        else:
            self._later.append(partial(save_plain, self._staging.copied(held), file))

    def save_scaler(self, output_dir: str) -> None:
        """Write the state of the gradient scaler, if there is one.

        Args:
            output_dir: the checkpoint's folder.
        """
        hf = self.hf
        if hf.accelerator.scaler is not None:
            self._meet_on_xla()
            self._save_parts({"scaler": hf.accelerator.scaler}, output_dir)

    def _save_parts(self, parts: dict[str, Any], output_dir: str) -> None:
        hf = self.hf
        if not hf.args.should_save:
            return
        states = {name: part.state_dict() for name, part in parts.items()}
        if self._is_on_xla or self._later is not None:
            states = self._staging.copied(states)
        save = hf.lightning.strategy.checkpoint_io.save_checkpoint
        if self._later is None:
            save(states, output_dir)
        else:
            self._later.append(partial(save, states, output_dir))

    def _save_position(self, output_dir: str) -> None:
        session = self.hf._fit.session
        if session is None:
            return
        position, file = session.where(), os.path.join(output_dir, self.position_file)
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
    def position_file(self) -> str:
        """The name of the file with this process's position in the data."""
        args = self.hf.args
        return "data_state.pth" if args.world_size <= 1 else f"data_state_{args.process_index}.pth"

    def rotate(self, use_mtime: bool, output_dir: str | None) -> None:
        """Remove checkpoints in excess of `save_total_limit`.

        Args:
            use_mtime: whether to order by time instead of by step.
            output_dir: their folder; `args.output_dir` if None.
        """
        hf = self.hf
        folder, limit = output_dir or hf.args.output_dir, hf.args.save_total_limit
        if hasattr(hf_trainer, "rotate_checkpoints") and is_patched(hf_trainer, "rotate_checkpoints"):
            best = hf.state.best_model_checkpoint
            hf_trainer.rotate_checkpoints(
                output_dir=folder,
                save_total_limit=limit,
                best_model_checkpoint=best,
                use_mtime=use_mtime,
            )
            return
        keep = (hf.state.best_model_checkpoint, self._last_loadable, *hf._hub_uploads.uploading())
        how = {"by_time": use_mtime, "is_alone": not self.disks.are_several}
        for checkpoint in rotate(folder, limit, keep, saved=self._written, **how):
            logger.info(f"Deleting older checkpoint [{checkpoint}] due to args.save_total_limit")

    def keep_only_best(self) -> None:
        """Keep only the best checkpoint on each disk, with a limit of one; HF does so on one disk."""
        hf = self.hf
        best = hf.state.best_model_checkpoint
        is_left = self.disks.are_several and self.disks.leads_own and not hf.args.should_save
        if is_left and best is not None and hf.args.save_total_limit == 1:
            for checkpoint in numbered(os.path.dirname(best)):
                if os.path.basename(checkpoint) != os.path.basename(best):
                    remove(checkpoint)

    def meet(self) -> None:
        """Wait for all processes."""
        hf = self.hf
        if hf.args.world_size > 1:
            hf.accelerator.wait_for_everyone()

    @property
    def _is_on_xla(self) -> bool:
        return bool(self.hf.args.device.type == XLA)

    def _meet_on_xla(self) -> None:
        """Wait for all processes on XLA devices, as HF does even with one: it advances their random state."""
        if self._is_on_xla:
            self.hf.accelerator.wait_for_everyone()

    def files_of_run(self) -> dict[str, torch.Tensor]:
        """Collect the files of a checkpoint except weights, optimizer and scheduler; a collective call.

        Returns:
            Path within a `checkpoint-N` folder → its content, (bytes,) of uint8.
        """
        hf = self.hf
        if hf.hp_search_backend is None:
            hf.store_flos()
        with tempfile.TemporaryDirectory() as folder:
            if hf.args.should_save:
                with fit_to_save(hf.args):
                    hf._save(folder, state_dict={})
                hf._callbacks.save(folder)
                self._save_state(folder)
                if held := held_state(hf.optimizer, hf.model):
                    save_plain(held, os.path.join(folder, OPTIMIZER_EXTRA))
            hf._save_scaler(folder)
            hf._save_rng_state(folder)
            self._save_position(folder)
            files = {
                name: torch.frombuffer(bytearray(Path(folder, name).read_bytes()), dtype=torch.uint8)
                for name in files_of(Path(folder))
                if not is_one_of(name, WEIGHTS) and os.path.getsize(os.path.join(folder, name))
            }
        if hf.args.world_size == 1:
            return files
        parts = reversed(gathered(files))
        return {name: content for part in parts for name, content in part.items()}

    # Saving while training continues.

    @property
    def _saves_async(self) -> bool:
        return bool(self.hf._fit.flags.get("save_async")) and not self.disks.are_several

    def _weights_taken(self) -> contextlib.AbstractContextManager[None]:
        """Return a context in which weights are copied, to be written later, if only HF's code saves them.

        Other code may look for the file that it has just had written.
        """
        hf = self.hf
        save = getattr(hf.model, "save_pretrained", None)
        is_hf = getattr(save, "__func__", None) is PreTrainedModel.save_pretrained
        is_own = save is None or (is_hf and not is_patched(PreTrainedModel, "save_pretrained"))
        if self._later is None or self.is_sharded or hf._saves_own_weights or not is_own:
            return contextlib.nullcontext()
        return weight_files_taken_by(self._take_weights)

    def _take_weights(
        self, tensors: dict[str, torch.Tensor], file: str, metadata: dict[str, str] | None
    ) -> bool:
        if self._later is None or not are_plain(tensors.values()):
            return False
        self._later.append(partial(save_file, self._staging.copied(tensors), file, metadata))
        return True

    def _write_later(self, folder: str, checkpoint: str, work: list[Callable[[], object]]) -> None:
        hf = self.hf
        self._writer = self._writer or Writer()
        told = self._told = threading.Event()
        keep = (hf.state.best_model_checkpoint, *hf._hub_uploads.uploading())
        rotates = partial(rotate, folder, hf.args.save_total_limit, keep, saved=checkpoint)

        def write() -> None:
            with writing(checkpoint), flushing(partial_of(checkpoint)):
                for step in work:
                    step()
                    flush_written()
                # Files that callbacks put into the folder of that name belong to the checkpoint.
                told.wait(SECONDS_TO_BE_TOLD)
                commit(checkpoint)

        self._writer.start(folder, [write, rotates])

    def _end_telling(self) -> None:
        """Let the writer move the checkpoint to its final folder: callbacks have been notified."""
        told, self._told = self._told, None
        if told is not None:
            told.set()

    def check_writing(self) -> None:
        """At each update step: raise the writer's error, and push the checkpoint that it finished."""
        if self._writer is not None and not self._writer.is_busy:
            self.finish_writing()

    def finish_writing(self) -> None:
        """Wait for the writer, raise its error, and push the checkpoint that it has written."""
        if self._writer is None:
            return
        self._end_telling()
        self._writer.finish()
        if self._unsent is not None:
            checkpoint, self._unsent = self._unsent, None
            self.hf._push_from_checkpoint(checkpoint)

    def finish_saving(self) -> None:
        """Wait until the checkpoint in progress is complete for all processes."""
        self.finish_writing()
        self._staging.release()
        if self._saves_async:
            self.meet()

    # Changes that callbacks make to a checkpoint.

    def hand_over_while(self, log_save_evaluate: Callable[[], None]) -> None:
        """Seal the changes that callbacks make to a checkpoint when they are notified of it.

        Args:
            log_save_evaluate: saves, and calls callbacks.
        """
        self._written = None
        self._hands_over = True
        try:
            log_save_evaluate()
            self._note_end()
        finally:
            self._hands_over = False
            self._end_telling()
            self._take_back()

    def give_up(self) -> None:
        """Finish writing after another error has ended the run; that error is the one to report."""
        with contextlib.suppress(Exception):
            self.finish_writing()
        self._staging.release()

    def _note_end(self) -> None:
        """Record that the run has ended itself, if a callback decides so when it is notified of a save."""
        hf = self.hf
        written = self._written
        if written is None or not hf._shutdown.ends_itself:
            return
        self.finish_writing()
        if self._has_noted_end or not os.path.isfile(os.path.join(written, self.position_file)):
            return
        self._save_position(written)
        self.meet()
        if self.disks.are_several and hf.args.save_on_each_node:
            self.disks.renew(written, "data_state_{}.pth")
        if self.leads_disk and self._handed_over is None:
            reseal(written)

    def _take_back(self) -> None:
        """Seal the changed checkpoint, whether the callbacks returned or raised."""
        known, self._handed_over = self._handed_over, None
        written = self._written
        if known is not None and written is not None:
            take_back(written, known)
            self.hf._hub_uploads.when_pushed(lambda: forget(written))

    def gather_weights(self, *, is_internal: bool) -> dict[str, Any] | None:
        """Gather the full weights, where HF would write none or an incomplete set of them.

        Args:
            is_internal: whether a checkpoint is being written.

        Returns:
            Name → tensor; None if HF's own code writes them correctly.
        """
        hf = self.hf
        plugin = getattr(hf.accelerator.state, "fsdp_plugin", None)
        keeps_shards = plugin is not None and "SHARDED" in str(plugin.state_dict_type)
        weights: dict[str, Any]
        if (keeps_shards and not is_internal) or (self.model_saves_itself and not keeps_shards):
            weights = hf.accelerator.get_state_dict(hf.model)
        elif hf.is_tp_enabled and not getattr(hf, "is_distributed_loading_by_transformers", False):
            # transformers 4 gathers tensors only in the first process, which waits for the others.
            weights = full_state_dict(hf.model.state_dict())
        elif getattr(hf, "is_fsdp_xla_v2_enabled", False) and hf.model_wrapped is hf.model:
            # HF would write them under the names of the wrappers.
            found = hf.model.state_dict()
            weights = {name.replace(OF_SPMD_WRAPPER, ""): value.cpu() for name, value in found.items()}
        else:
            return None
        return weights

    @property
    def model_saves_itself(self) -> bool:
        """Whether the model is sharded by version 2 of FSDP and its library saves it module by module.

        Such a model, one of Sentence Transformers for example, does not take the weights that HF gathers.
        """
        model = self.hf.model
        is_hf = isinstance(model, PreTrainedModel) or hf_trainer._is_peft_model(model)
        return isinstance(model, FSDPModule) and not is_hf and hasattr(model, "save_pretrained")

    def save_itself(self, output_dir: str, weights: dict[str, Any]) -> None:
        """Have such a model saved with full parameters, by the process that holds them.

        Args:
            output_dir: where.
            weights: the full parameters; empty in other processes.
        """
        hf = self.hf
        if hf.args.should_save and weights:
            with unsharded(hf.model, weights):
                hf._save(output_dir, state_dict=weights)
