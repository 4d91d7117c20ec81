"""Checkpoints: HF's policy and layout; the engine's parts go through Lightning's CheckpointIO."""

from __future__ import annotations

import os
from typing import Any

from compat.checkpoint import whole
from compat.checkpoint.deepspeed import mend_universal
from compat.trainer.evaluation import EvaluationMixin
from compat.upstream.features import BEST_IS_WAITED_FOR
from compat.upstream.sharding import full_state_dict


class CheckpointingMixin(EvaluationMixin):
    """When to save, what to keep and where is inherited; these are the leaves that touch the engine."""

    @property
    def _is_sharded(self) -> bool:
        return bool(self.is_fsdp_enabled or self.is_deepspeed_enabled)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        folder = self._get_output_dir(trial=trial)
        if self.args.should_save:
            whole.begin(os.path.join(folder, f"checkpoint-{self.state.global_step}"))
        super()._save_checkpoint(model, trial)
        if (
            not BEST_IS_WAITED_FOR
            and self.state.best_global_step
            and self.args.save_strategy in ("steps", "epoch")
        ):
            self.accelerator.wait_for_everyone()
            best = os.path.join(folder, f"checkpoint-{self.state.best_global_step}")
            if os.path.exists(best):
                self.state.best_model_checkpoint = best

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the model, its configuration and its processing class for `from_pretrained`.

        Mirrors `transformers.Trainer.save_model`, which writes nothing at all where FSDP keeps its
        checkpoints in shards.

        Args:
            output_dir: where; `args.output_dir` if None.
        """
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

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if self._is_sharded:
            super()._save_optimizer_and_scheduler(output_dir)
            return
        self._save_parts({"optimizer": self.optimizer, "lr_scheduler": self.lr_scheduler}, output_dir)

    def _save_scaler(self, output_dir: str) -> None:
        if self.accelerator.scaler is not None:
            self._save_parts({"scaler": self.accelerator.scaler}, output_dir)

    def _save_parts(self, parts: dict[str, Any], output_dir: str) -> None:
        if self.args.should_save:
            states = {name: part.state_dict() for name, part in parts.items()}
            self.lightning.strategy.checkpoint_io.save_checkpoint(states, output_dir)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Load both states where both are there; a checkpoint saved with `save_only_model` has neither."""
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
            self.optimizer.load_state_dict(parts["optimizer"])
            self.lr_scheduler.load_state_dict(parts["lr_scheduler"])

    def _load_scaler(self, checkpoint: str | None) -> None:
        if checkpoint is None or self.accelerator.scaler is None:
            return
        parts = self.lightning.strategy.checkpoint_io.load_checkpoint(checkpoint)
        if "scaler" in parts:
            self.accelerator.scaler.load_state_dict(parts["scaler"])
