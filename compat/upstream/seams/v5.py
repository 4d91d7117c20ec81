"""transformers 5.3 and later: the steps of training are methods of HF's Trainer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from compat.upstream.features import SEEDS_SHARDED_SAMPLERS
from compat.upstream.schedule import Schedule
from compat.upstream.seams.common import CommonSeams, Prepared

if TYPE_CHECKING:
    import torch
    from torch import nn

    from compat.upstream.values import Batch, Loader, Trial


class V5Seams(CommonSeams):
    """transformers 5.3 and later: the seams are there; what remains is their names."""

    seeds_epoch_before_callbacks: ClassVar[bool] = False
    counts_skipped_batches: ClassVar[bool] = True
    restores_after_empty_window: ClassVar[bool] = True
    adds_losses_in_place: ClassVar[bool] = True
    begins_epochs_afresh: ClassVar[bool] = True

    def _adopt_batch_size(self, batch_size: int) -> None:
        if self.args.auto_find_batch_size:
            self._update_auto_batch_size(batch_size)

    def _measure_training(self, dataloader: Loader) -> Schedule:
        values = self.set_initial_training_values(self.args, dataloader)
        epochs, updates, examples, samples, batch_size, micro_steps, max_steps = values
        return Schedule(
            num_train_epochs=epochs,
            num_update_steps_per_epoch=updates,
            num_examples=examples,
            num_train_samples=samples,
            total_train_batch_size=batch_size,
            steps_in_epoch=micro_steps,
            max_steps=max_steps,
        )

    def _set_up_training(
        self, schedule: Schedule, dataloader: Loader, resume_from_checkpoint: str | None, trial: Trial
    ) -> Prepared:
        trained = self._restore_progress(schedule, resume_from_checkpoint, trial)
        model, dataloader = self._prepare_for_training(schedule.max_steps, dataloader, resume_from_checkpoint)
        return Prepared(model, dataloader, *trained)

    def _clip_and_measure_gradients(self, model: nn.Module) -> torch.Tensor | float | None:
        norm = self._clip_grad_norm(model) if (self.args.max_grad_norm or 0) > 0 else None
        grad_norm: torch.Tensor | float | None = self._get_grad_norm(model, grad_norm=norm)
        return grad_norm

    def _count_tokens_before_step(self, inputs: Batch) -> None:
        """This release counts after the micro-step."""

    def _count_tokens_after_step(self, inputs: Batch) -> None:
        self._track_num_input_tokens(inputs)

    def _seed_epoch(self, dataloader: Loader, epoch: int) -> None:
        if hasattr(dataloader, "set_epoch"):
            dataloader.set_epoch(epoch)
        if not SEEDS_SHARDED_SAMPLERS:
            return
        # A loader that shards a batch sampler hides the sampler's own `set_epoch`.
        shard = getattr(dataloader, "batch_sampler", None)
        sampler: Any = getattr(shard, "batch_sampler", None)
        if hasattr(sampler, "set_epoch"):
            sampler.set_epoch(epoch)

    def _forget_past(self) -> None:
        """This release has no `past_index`."""
