"""The state of one run of `fit`, shared by the module, the loops, the data and the accelerator face."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import nn

    from compat.upstream.schedule import Schedule
    from compat.upstream.trainer import Prepared


@dataclass(slots=True)
class MicroBatch:
    """A batch and its place in its accumulation window and epoch.

    Attributes:
        inputs: the batch as HF's collator made it.
        num_items: what the whole window counts, `num_items_in_batch` in HF's words.
        step: its index in the epoch, in micro-steps.
        opens: whether it is the first of its window.
        closes: whether it is the last one fetched for its window.
        syncs: whether the optimizer steps after it.
    """

    inputs: Any
    num_items: Any
    step: int
    opens: bool
    closes: bool
    syncs: bool


@dataclass(slots=True)
class Session:
    """One run of `fit`.

    Attributes:
        hf: the HF Trainer that is running.
        schedule: how long the run is.
        dataloader: HF's train dataloader.
        resume_from_checkpoint: the checkpoint the run goes on from.
        trial: the trial of a hyperparameter search.
        ignore_keys: output keys to leave out when evaluating during training.
        defers_backward: whether Lightning's closure runs the backward (`training_step` is HF's own), or the
            accelerator runs it at once (a subclass may want to see gradients).
        is_observed: whether a Lightning callback, logger or profiler listens to the run.
        needs_closures: whether a micro-step in the middle of a window runs in Lightning's closure, too.
        epochs_trained: epochs that lie behind a resumed run.
        steps_trained: micro-steps that lie behind it in its current epoch.
        model: the model as it is called in a training step, wrapped where it is wrapped.
        epoch: index of the current epoch.
        micro: the micro-batch in progress.
        pending_loss: a loss whose backward Lightning's closure has yet to run.
        grad_norm: the gradient norm of the last update step, before clipping.
        learning_rate: the learning rate of the last update step.
        seen_batch: whether this epoch has had a batch.
        start_time: when training began, in seconds since the epoch.
        output: what `train()` returns.
    """

    hf: Any
    schedule: Schedule
    dataloader: Any
    resume_from_checkpoint: str | None
    trial: Any
    ignore_keys: list[str] | None
    defers_backward: bool
    is_observed: bool = True
    needs_closures: bool = True
    epochs_trained: int = 0
    steps_trained: int = 0
    model: nn.Module | None = None
    epoch: int = 0
    micro: MicroBatch | None = None
    pending_loss: torch.Tensor | None = None
    backward_options: dict[str, Any] = field(default_factory=dict)
    grad_norm: Any = None
    learning_rate: float | None = None
    seen_batch: bool = False
    start_time: float = 0.0
    output: Any = None

    @property
    def resumes_epoch(self) -> bool:
        """Whether the current epoch is the one that the run goes on from."""
        return self.resume_from_checkpoint is not None and self.epoch == self.epochs_trained

    def begin(self, prepared: Prepared) -> None:
        """Take over what HF has prepared."""
        self.model, self.dataloader = prepared.model, prepared.dataloader
        self.epochs_trained, self.steps_trained = prepared.epochs_trained, prepared.steps_trained
        self.epoch = prepared.epochs_trained

    def end(self) -> None:
        """Let go of trainer, model and data, which Lightning's loops would otherwise keep."""
        self.hf = self.dataloader = self.model = self.micro = self.pending_loss = None

    def fire(self, event: str) -> None:
        """Call an event of HF's callbacks, and keep the control that they answer with."""
        hf = self.hf
        hf.control = getattr(hf.callback_handler, event)(hf.args, hf.state, hf.control)
