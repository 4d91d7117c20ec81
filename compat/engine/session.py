"""The state of one run of `fit`, shared by the module, the loops, the data and the accelerator."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch.utils.data import IterableDataset
from transformers.trainer_utils import has_length

from compat.engine.loader_state import Generators
from compat.engine.position import (
    Batches,
    Position,
    draws,
    draws_here,
    is_stateful,
    looks_ahead,
    redraw,
    wake,
)
from compat.engine.sequences import SharedSequences
from compat.engine.windows import count_windows
from compat.upstream.devices import random_states, restore_random_states

if TYPE_CHECKING:
    import torch
    from torch import nn

    from compat.engine.host import TrainerHost
    from compat.engine.micro_batch import MicroBatch
    from compat.engine.position import Draws
    from compat.upstream.schedule import Schedule
    from compat.upstream.seams.common import Prepared
    from compat.upstream.values import Loader, Output, Rows, Trial


@dataclass(slots=True)
class Session:
    """One run of `fit`.

    Attributes:
        hf: the HF Trainer that is running.
        schedule: how long the run is.
        dataloader: HF's train dataloader.
        sequences: the micro-batches, where processes share sequences; None elsewhere.
        resume_from_checkpoint: the checkpoint that the run resumes from.
        trial: the trial of a hyperparameter search.
        ignore_keys: output keys to leave out when evaluating during training.
        replays_data: whether a resumed epoch draws the seen batches again.
        accumulation: micro-steps of a window, from the arguments; a callback may change it for each epoch.
        defers_backward: whether Lightning's closure runs the backward (`training_step` is HF's own), or the
            accelerator runs it at once (a subclass may want to see gradients).
        is_observed: whether a Lightning callback, a user module or a profiler observes the run.
        hears_all: whether a user module or a profiler takes part in every hook.
        needs_closures: whether a micro-step runs in Lightning's closure.
        epochs_trained: completed epochs of a resumed run.
        steps_trained: completed micro-steps of its current epoch.
        position: where the resumed run stood in its data; None if its checkpoint does not record it.
        surprises: looks at the first step of the run; None once it has.
        has_ended: whether the resumed run had ended itself, so that only the work after training remains.
        batches: the batches of the current epoch.
        order: random states when the order of the current epoch was drawn.
        generators: the loader's own random number generators.
        behind: micro-steps of the current epoch that belong to update steps made.
        epoch_is_over: whether the current epoch has ended.
        model: the model that a training step calls, including its wrapper.
        holds_back: whether gradients are synchronized at the end of a window only.
        epoch: index of the current epoch.
        coming: the micro-batch that Lightning has received and not yet started.
        micro: the micro-batch in progress, with its place in its window; None outside of a step.
        is_counted: whether the update step in progress has been counted.
        is_over: whether HF's run has ended, and a callback of Lightning's adds an epoch to look at the data.
        pending_loss: a loss whose backward Lightning's closure has yet to run.
        grad_norm: the gradient norm of the last update step, before clipping.
        learning_rate: the learning rate of the last update step.
        step_output: what the `training_step` of a module that optimizes manually returned.
        losses_since_log: losses that such a module has returned since HF's last log.
        has_losses: whether such a module has returned any loss.
        seen_batch: whether this epoch has had a batch.
        start_time: when training began, in seconds since the epoch.
        output: what `train()` returns.
    """

    hf: TrainerHost
    schedule: Schedule
    dataloader: Loader
    resume_from_checkpoint: str | None
    trial: Trial
    ignore_keys: list[str] | None
    defers_backward: bool
    accumulation: int
    sequences: SharedSequences | None = None
    replays_data: bool = False
    is_observed: bool = True
    hears_all: bool = True
    needs_closures: bool = True
    epochs_trained: int = 0
    steps_trained: int = 0
    position: Position | None = None
    surprises: Any = None
    has_ended: bool = False
    batches: Batches | None = None
    order: Draws | None = None
    generators: Generators | None = None
    behind: int = 0
    epoch_is_over: bool = False
    model: nn.Module | None = None
    holds_back: bool = True
    epoch: int = 0
    coming: MicroBatch = None  # type: ignore[assignment]
    micro: MicroBatch = None  # type: ignore[assignment]
    is_counted: bool = True
    is_over: bool = False
    pending_loss: torch.Tensor | None = None
    backward_options: dict[str, Any] = field(default_factory=dict)
    grad_norm: torch.Tensor | float | None = None
    learning_rate: float | None = None
    step_output: Output = None
    losses_since_log: int = 0
    has_losses: bool = False
    seen_batch: bool = False
    start_time: float = 0.0
    output: Output = None

    def take_pending_loss(self) -> tuple[torch.Tensor, dict[str, Any]]:
        """Take the loss whose backward is to run now, and the options of that backward."""
        assert self.pending_loss is not None, "its backward has run"
        loss, self.pending_loss = self.pending_loss, None
        options, self.backward_options = self.backward_options, {}
        return loss, options

    @property
    def windows_in_epoch(self) -> int:
        """The number of accumulation windows, and so of update steps, in the current epoch."""
        size: int = self.hf.args.gradient_accumulation_steps
        if size == self.accumulation:
            return self.schedule.num_update_steps_per_epoch
        return count_windows(self.schedule.steps_in_epoch, size=size)

    @property
    def resumes_epoch(self) -> bool:
        """Whether the current epoch is the one that the run resumes in."""
        return self.resume_from_checkpoint is not None and self.epoch == self.epochs_trained

    @property
    def counts_skipped(self) -> bool:
        """Whether batches that a resumed run skips count as seen; up to transformers 4.56 HF forgets them."""
        return self.position is not None or bool(self.hf.counts_skipped_batches)

    @property
    def restores_after_empty_window(self) -> bool:
        """Whether random states are restored even if a resumed epoch has no batch left."""
        return self.position is not None or bool(self.hf.restores_after_empty_window)

    @property
    def nothing_left(self) -> bool:
        """Whether only the end of the current epoch remains."""
        if self.has_ended or (self.position is not None and self.position.leaves_epoch):
            return self.resumes_epoch and self.steps_trained > 0
        return (
            self.resumes_epoch and 0 < self.schedule.steps_in_epoch <= self.steps_trained and not self.is_open
        )

    @property
    def goes_on_between_epochs(self) -> bool:
        """Whether the run resumes from a checkpoint that was written at the very end of an epoch."""
        return self.position is not None and self.position.is_over

    @property
    def is_open(self) -> bool:
        """Whether only the data ends an epoch, whatever length a stream reports, as in 4.37."""
        return self.hf.carries_windows and isinstance(
            getattr(self.dataloader, "dataset", None), IterableDataset
        )

    def begin(self, prepared: Prepared, position: Position | None) -> None:
        """Store what HF has prepared, and where the run stands in its data.

        HF computes the position from the number of update steps. That misses data that restarted early, and
        skips the end of an epoch if the checkpoint was written just before it.
        """
        self.model, self.dataloader = prepared.model, prepared.dataloader
        self.holds_back = self.hf._fit.holds_back(prepared.model)
        if hasattr(self.dataloader, "sp_world_size"):
            self.sequences = SharedSequences(self.dataloader, self.hf._seed_epoch)
            self.dataloader = self.sequences.loader
        self.epochs_trained, self.steps_trained = prepared.epochs_trained, prepared.steps_trained
        if position is not None:
            self.position = position
            self.epochs_trained = position.epoch + position.is_over
            self.steps_trained = 0 if position.is_over else position.batches
        self.epoch = self.epochs_trained

    def begin_epoch(self, loader: Loader, order: Draws | None) -> Batches:
        """Begin to draw the batches of an epoch.

        Args:
            loader: yields the batches.
            order: random states in which a resumed epoch's order was drawn.
        """
        self.generators = Generators(self.dataloader)
        if self.epoch > 0:
            wake(loader, self.generators)
        if self.sequences is not None:
            self._begin_epoch_of_sequences(self.sequences, self.generators)
            self.batches = Batches(self.sequences, notes=False, generators=self.generators)
            return self.batches
        if order is not None:
            redraw(order, self.generators)
        self.order = draws(self.generators)
        notes = looks_ahead(loader) and draws_here(loader)
        self.batches = Batches(iter(loader), notes=notes, generators=self.generators)
        return self.batches

    def _begin_epoch_of_sequences(self, sequences: SharedSequences, generators: Generators) -> None:
        is_within = self.resumes_epoch and self.steps_trained > 0
        if self.resume_from_checkpoint is not None and not sequences.is_resumed:
            # A checkpoint of HF's own does not tell.
            counted = {"passes": self.epochs_trained, "drawn": self.steps_trained, "missed": 0, "order": None}
            place = None if self.position is None else self.position.sequences
            now = draws(generators)
            sequences.go_to(place or counted)
            redraw(now, generators)
            if is_within:
                self.load_random_states()
        if not is_within:
            sequences.missed = 0

    def restore_random_states(self) -> None:
        """Restore the random states of the process at the save."""
        self.hf._load_rng_state(self.resume_from_checkpoint)
        if self.position is not None:
            restore_random_states(self.position.devices)

    def load_random_states(self) -> None:
        """Restore the random states at the save, those of the process and those of the loader."""
        if self.position is not None:
            Generators(self.dataloader).put_back(self.position.own or {})
        self.restore_random_states()

    def where(self) -> Position:
        """Where the run stands in its data."""
        loader = self.dataloader
        generators = Generators(loader) if self.generators is None else self.generators
        return Position(
            epoch=self.epoch,
            batches=self.behind,
            is_over=self.epoch_is_over,
            depends_on=self.depends_on(),
            order=self.order,
            ahead=None if self.batches is None else self.batches.ahead,
            loader=loader.state_dict() if is_stateful(loader) and self.sequences is None else None,
            sequences=None if self.sequences is None else self.sequences.place(),
            own=generators.states(),
            leaves_epoch=bool(self.hf.control.should_epoch_stop),
            has_ended=self.hf._shutdown.ends_itself,
            rows=self.rows,
            devices=random_states(),
        )

    @property
    def rows(self) -> int | None:
        """The number of rows of the dataset, if it has a length."""
        dataset: Rows = getattr(self.dataloader, "dataset", None)
        return len(dataset) if has_length(dataset) else None

    def depends_on(self) -> dict[str, int | None]:
        """What the count of batches within an epoch depends on."""
        return {
            # Without a length, HF's count follows that of the run.
            "steps_in_epoch": self.schedule.steps_in_epoch if has_length(self.dataloader) else None,
            "total_train_batch_size": self.schedule.total_train_batch_size,
            "gradient_accumulation_steps": self.accumulation,
            "world_size": self.hf.args.world_size,
        }

    def end(self) -> None:
        """Drop the references to trainer, model and data, which Lightning's loops would otherwise keep."""
        self.hf = None  # type: ignore[assignment]
        self.dataloader = self.model = self.pending_loss = self.batches = self.generators = None
        self.sequences = None
        self.coming = self.micro = self.step_output = None  # type: ignore[assignment]

    def __deepcopy__(self, memo: dict[int, Any]) -> Session:
        """Return this session: a callback may copy the module, but there is only one run."""
        return self

    def fire(self, event: str) -> None:
        """Call an event of HF's callbacks, and store the control that they return."""
        hf = self.hf
        hf.control = getattr(hf.callback_handler, event)(hf.args, hf.state, hf.control)
