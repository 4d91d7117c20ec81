"""What the seams of all releases share: HF's own class, and attributes that the engine keeps on a trainer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from transformers import Trainer as HFTrainer  # HF's own, also after `compat.install()`
from transformers.trainer_utils import SaveStrategy

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch
    from accelerate import Accelerator
    from torch import nn
    from transformers import PreTrainedModel, TrainerControl, TrainerState

    from compat.upstream.schedule import Schedule
    from compat.upstream.values import Loader, Trial


def determine_best_metric(hf: HFTrainer, metrics: dict[str, float], trial: Trial = None) -> bool:
    """Whether the metrics are the best so far; the state is told of the step, too.

    Mirrors `transformers.Trainer._determine_best_metric` of 5: with `save_strategy="best"` 4.53 does not note
    the step, and does not find the best checkpoint at the end.

    Args:
        hf: what has HF's arguments and state.
        metrics: of an evaluation.
        trial: the trial of a hyperparameter search.
    """
    is_best: bool = HFTrainer._determine_best_metric(hf, metrics=metrics, trial=trial)
    if is_best and hf.args.save_strategy == SaveStrategy.BEST:
        hf.state.best_global_step = hf.state.global_step
    return is_best


@dataclass(frozen=True)
class Prepared:
    """What HF has ready when training begins.

    Attributes:
        model: the model as a training step calls it.
        dataloader: the train dataloader.
        epochs_trained: epochs that lie behind a resumed run.
        steps_trained: micro-steps that lie behind it in its current epoch.
    """

    model: nn.Module
    dataloader: Loader
    epochs_trained: int
    steps_trained: int


class CommonSeams(HFTrainer):  # type: ignore[misc]
    """Attributes that the engine keeps on the trainer, under the names of the newest release.

    Attributes:
        seeds_epoch_before_callbacks: whether samplers learn of an epoch before its callbacks do.
        counts_skipped_batches: whether a resumed epoch counts from its first batch on; otherwise it counts
            from the first batch it fetches, so that a last window cut short is not stepped there. It is so
            with checkpoints of HF's own alone.
        restores_after_empty_window: whether a resumed epoch that has no batch left puts random numbers back
            all the same. It is so with checkpoints of HF's own alone.
        adds_losses_in_place: whether losses add up in the type and shape of the sum; otherwise the sum takes
            those of the losses.
        begins_epochs_afresh: whether an epoch that makes no step logs neither the gradient norm nor the
            learning rate of the one before.
    """

    seeds_epoch_before_callbacks: ClassVar[bool]
    counts_skipped_batches: ClassVar[bool]
    restores_after_empty_window: ClassVar[bool]
    adds_losses_in_place: ClassVar[bool]
    begins_epochs_afresh: ClassVar[bool]
    model: PreTrainedModel
    state: TrainerState
    control: TrainerControl
    optimizer: Any
    lr_scheduler: Any
    accelerator: Accelerator
    gather_function: Callable[[Any], Any]
    _created_lr_scheduler: bool
    _tr_loss: torch.Tensor
    _initial_global_step: int
    _session_schedule: Schedule

    def _start_bookkeeping(self, loss: torch.Tensor) -> None:
        """Set up what is counted between two logs.

        Args:
            loss: zero on the training device; accumulates the loss of the micro-steps since the last log.
        """
        self._tr_loss = loss
        self._total_loss_scalar = 0.0
        self._globalstep_last_logged = self.state.global_step
        self._initial_global_step = self.state.global_step
        self._initial_num_input_tokens_seen = self.state.num_input_tokens_seen

    def _create_hf_scheduler(self, *args: Any, **kwargs: Any) -> Any:
        """HF's own `create_scheduler`."""
        return super().create_scheduler(*args, **kwargs)

    def _restore_progress(
        self, schedule: Schedule, resume_from_checkpoint: str | None, trial: Trial
    ) -> tuple[int, int]:
        trained: tuple[int, int] = self._init_training_state(
            schedule.max_steps,
            schedule.num_update_steps_per_epoch,
            schedule.num_train_epochs,
            resume_from_checkpoint,
            trial,
        )
        return trained
