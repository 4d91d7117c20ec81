"""The members of a trainer that the engine and the components use, each with a line of documentation.

`compat.Trainer` provides all of them: HF's own under HF's names, the seams of `compat.upstream`, and its
components.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    import lightning.pytorch as pl
    import torch
    from accelerate import Accelerator
    from lightning.pytorch.utilities.types import LRSchedulerConfig
    from torch import nn
    from torch.nn.modules.module import _IncompatibleKeys
    from torch.optim import Optimizer
    from torch.utils.data import DataLoader
    from transformers import (
        PreTrainedModel,
        TrainerControl,
        TrainerState,
        TrainingArguments,
    )
    from transformers.trainer_callback import CallbackHandler
    from transformers.trainer_utils import HPSearchBackend, TrainOutput
    from transformers.utils import PushInProgress

    from compat.checkpoint.hosts import Disks
    from compat.engine.position import Position
    from compat.translate import LightningPlan
    from compat.upstream.environment import Facts
    from compat.upstream.schedule import Schedule
    from compat.upstream.seams.common import Prepared
    from compat.upstream.values import Batch, Loader, NumItems, Output, ProcessingClass, Rows, Trial


class RunState(Protocol):
    """The run of `fit` in progress, as the components see it: a `Session`."""

    has_ended: bool
    """Whether the resumed run had ended before its last update step."""

    losses_since_log: int
    """Losses that a module that optimizes manually has returned since HF's last log."""
    has_losses: bool
    """Whether such a module has returned any loss."""

    @property
    def schedule(self) -> Schedule:
        """How long it is."""

    @property
    def dataloader(self) -> Loader:
        """HF's train dataloader."""

    @property
    def resume_from_checkpoint(self) -> str | None:
        """The checkpoint that it goes on from."""

    @property
    def epochs_trained(self) -> int:
        """Epochs before a resumed run."""

    @property
    def steps_trained(self) -> int:
        """Micro-steps before a resumed run in its current epoch."""

    @property
    def behind(self) -> int:
        """Micro-steps of the current epoch that belong to update steps made."""

    @property
    def epoch_is_over(self) -> bool:
        """Whether the end of the current epoch has come."""

    @property
    def rows(self) -> int | None:
        """How many rows the dataset has, where it has a length."""

    def where(self) -> Position:
        """The position in the data."""

    def depends_on(self) -> dict[str, int | None]:
        """What the count of batches within an epoch depends on."""


class UserModuleHost(Protocol):
    """The component for a user's LightningModule."""

    config: LRSchedulerConfig | None
    """The scheduler that Lightning steps for the module; None if HF or the module itself does."""
    configured: Any
    """What `configure_optimizers` of a module that optimizes manually returned."""

    @property
    def is_own(self) -> bool:
        """Whether the optimizers are those that the module configures."""

    def check_manual(self) -> None:
        """Refuses arguments under which the model cannot optimize manually."""


class FitHost(Protocol):
    """The component that builds Lightning's objects and runs `fit`."""

    built: pl.Trainer | None
    """The Lightning Trainer of this run or of the last one."""

    @property
    def session(self) -> RunState | None:
        """The run in progress."""

    @property
    def flags(self) -> dict[str, Any]:
        """`args.lightning`."""

    @property
    def callbacks(self) -> list[Any]:
        """Lightning's callbacks."""

    @property
    def facts(self) -> Facts:
        """What the plan knows of the machine and of the process."""

    @property
    def plan(self) -> LightningPlan:
        """What becomes of the arguments."""

    @property
    def strategy(self) -> str:
        """The plan's strategy, by its name."""

    def check_arguments(self) -> None:
        """Reads the facts and checks the current arguments."""

    def build(self) -> pl.Trainer:
        """Builds a Lightning Trainer from the plan."""

    def make_module(self) -> pl.LightningModule:
        """Builds the LightningModule around the model."""

    def limited(self, dataloader: Loader, name: str) -> Loader:
        """A dataloader, limited by a Lightning flag."""

    def announce(self, session: RunState) -> None:
        """Logs how long the run is."""

    def holds_back(self, model: nn.Module) -> bool:
        """Whether gradients are synchronized at the end of a window only."""

    def sync_context(self, session: RunState) -> AbstractContextManager[None]:
        """A context in which gradients are not synchronized until the end of their window."""

    def scheduler_waits_for_metrics(self) -> bool:
        """Whether HF steps the scheduler with the metrics of an evaluation."""

    def warn_of_empty_epoch(self, session: RunState) -> None:
        """Stops a run whose epoch has no batch."""


class CallbacksHost(Protocol):
    """The component for Lightning's callbacks."""

    lightning: tuple[Any, ...]
    """The callbacks of the trainer, without those of `lightning={"callbacks": …}`."""

    def save(self, folder: str) -> None:
        """Writes their states into a checkpoint."""


class ShutdownHost(Protocol):
    """The component for signals and the time limit."""

    @property
    def ends_itself(self) -> bool:
        """Whether the run has decided to end before its last update step."""


class CheckpointWriterHost(Protocol):
    """The component that writes checkpoints."""

    @property
    def is_sharded(self) -> bool:
        """Whether model and optimizer are sharded among processes."""

    @property
    def disks(self) -> Disks:
        """The disks of the job."""

    @property
    def leads_disk(self) -> bool:
        """Whether this process does the work that is done once per disk."""

    @property
    def leads_known_disk(self) -> bool:
        """The same, without detecting the disks."""

    @property
    def position_file(self) -> str:
        """The name of the file with this process's position in the data."""

    def look_for_disks(self) -> None:
        """Detects again which processes share a disk."""

    def require_place_to_save(self) -> None:
        """Refuses an output folder that cannot be written to."""

    def check_writing(self) -> None:
        """Raises the writer's error, if there is one."""

    def finish_writing(self) -> None:
        """Waits for the writer in this process."""

    def finish_saving(self) -> None:
        """Waits for the writers of all processes."""

    def files_of_run(self) -> dict[str, torch.Tensor]:
        """The files of a checkpoint except weights, optimizer and scheduler."""

    def meet(self) -> None:
        """Waits for all processes."""


class CheckpointReaderHost(Protocol):
    """The component that reads checkpoints."""

    def load_position(self, checkpoint: str | None, session: RunState) -> Position | None:
        """The position of the resumed run in its data."""


class DistributionHost(Protocol):
    """The component that sets up a distributed job."""

    def check_loss(self) -> None:
        """Refuses a loss that HF would not compute where processes share sequences."""

    def shard_batches(self, dataloader: Loader) -> Loader:
        """Has torch_xla split batches over its devices, if it shards the model."""


class HubUploadsHost(Protocol):
    """The component that follows pushes to the Hub."""

    def uploading(self) -> set[str]:
        """Folders that are being uploaded to the Hub."""

    def when_pushed(self, do: Callable[[], None]) -> None:
        """Calls a function once no upload is in progress."""


class SurprisesHost(Protocol):
    """The component that checks the first step of a run for unexpected behavior."""

    def watch(self, num_items: NumItems) -> NumItems:
        """Wraps the number of items of the first window, to record whether it is used."""

    def tell(self, inputs: Batch, num_items: NumItems, count: int) -> None:
        """Checks the first step of a run."""

    def tell_of_evaluation(self, inputs: Batch) -> None:
        """Checks the first step of an evaluation."""


class TrainerHost(Protocol):
    """The members of an HF Trainer that the engine and the components use."""

    # HF's state.

    args: TrainingArguments
    """The arguments."""
    state: TrainerState
    """What HF counts and logs; saved with each checkpoint."""
    control: TrainerControl
    """What HF's callbacks have decided."""
    callback_handler: CallbackHandler
    """HF's callbacks."""
    accelerator: Accelerator
    """HF's accelerator, wrapped by `compat.trainer.accelerator`."""
    model: PreTrainedModel
    """The model; None after a hyperparameter search."""
    model_wrapped: PreTrainedModel
    """The model as a training step calls it."""
    optimizer: Any
    """The optimizer; None before training."""
    lr_scheduler: Any
    """The scheduler; None before training."""
    deepspeed: Any
    """DeepSpeed's engine."""
    train_dataset: Rows
    """The train data."""
    eval_dataset: Rows
    """The evaluation data, or several by name."""
    processing_class: ProcessingClass
    """The object that makes inputs from raw data, such as a tokenizer."""
    compute_metrics: Callable[..., Any] | None
    """Computes metrics from predictions: a function of `EvalPrediction`, or torchmetrics metrics."""
    compute_loss_func: Callable[..., Any] | None
    """Computes the loss from a model's output."""
    preprocess_logits_for_metrics: Callable[[Any, Any], Any] | None
    """Reduces a model's outputs before they are gathered."""
    gather_function: Callable[[Any], Any]
    """Gathers the outputs of an evaluation from all processes."""
    label_names: list[str]
    """The keys of a batch that are labels."""
    hp_search_backend: HPSearchBackend | None
    """The library of the hyperparameter search in progress."""
    hub_model_id: str | None
    """The repository on the Hub."""
    push_in_progress: PushInProgress | None
    """The uploads that HF started last."""
    neftune_noise_alpha: float | None
    """The scale of NEFTune's noise."""
    is_in_train: bool
    """Whether `train` is running."""
    is_deepspeed_enabled: bool
    """Whether DeepSpeed trains."""
    is_fsdp_enabled: bool
    """Whether FSDP shards."""
    is_fsdp_xla_enabled: bool
    """Whether torch_xla shards."""
    is_tp_enabled: bool
    """Whether the model is tensor-parallel."""
    model_accepts_loss_kwargs: bool
    """Whether the model divides its loss by `num_items_in_batch` itself."""
    place_model_on_device: bool
    """Whether HF moves the model."""
    model_preparation_time: float
    """Seconds that preparing the model for an evaluation took."""
    current_flos: float
    """Floating-point operations since the last save."""
    current_gradient_accumulation_steps: int
    """Micro-steps in the window in progress."""
    _train_batch_size: int
    """Samples of a micro-batch in this run."""
    _created_lr_scheduler: bool
    """Whether the scheduler was made by the trainer."""
    _tr_loss: torch.Tensor
    """The sum of losses since the last log."""
    _globalstep_last_logged: int
    """The update step of the last log."""

    # HF's methods, which subclasses override.

    def train(self, *args: Any, **kwargs: Any) -> TrainOutput:
        """Trains."""

    def get_train_dataloader(self) -> DataLoader[Any]:
        """The train data."""

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> tuple[list[Batch], Any]:
        """The batches of a window, and their number of items."""

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Forward and backward of a micro-batch."""

    def compute_loss(self, *args: Any, **kwargs: Any) -> Output:
        """The loss of a micro-batch."""

    def compute_loss_context_manager(self) -> AbstractContextManager[Any]:
        """The context in which losses are computed: autocast."""

    def prediction_step(self, *args: Any, **kwargs: Any) -> tuple[Any, Any, Any]:
        """Loss, logits and labels of a batch."""

    def prediction_loop(self, *args: Any, **kwargs: Any) -> Output:
        """`evaluation_loop` under its older name."""

    def create_optimizer(self, model: nn.Module | None = None) -> Optimizer:
        """Builds the optimizer, of the trainer's own model if none is given."""

    def floating_point_ops(self, inputs: Batch) -> int:
        """The floating-point operations of a batch."""

    def num_examples(self, dataloader: Loader) -> int:
        """How many samples a loader has."""

    def store_flos(self) -> None:
        """Adds the floating-point operations to the state."""

    def is_world_process_zero(self) -> bool:
        """Whether this process is the first of the job."""

    def is_local_process_zero(self) -> bool:
        """Whether this process is the first of its host."""

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Saves the model."""

    def _prepare_input(self, data: Output) -> Output:
        """Moves a tensor, or tensors in containers."""

    def _prepare_inputs(self, inputs: Batch) -> Batch:
        """Moves a batch."""

    def _wrap_model(self, *args: Any, **kwargs: Any) -> nn.Module:
        """Wraps the model for training or evaluation."""

    def _evaluate(
        self, trial: Trial, ignore_keys_for_eval: list[str] | None, skip_scheduler: bool = False
    ) -> dict[str, float]:
        """Evaluates within training."""

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        """Logs, evaluates and saves as HF's control requests."""

    def _finalize_training(self, *args: Any, **kwargs: Any) -> TrainOutput:
        """Ends a run."""

    def _get_learning_rate(self) -> float:
        """The learning rate that is logged."""

    def _get_output_dir(self, trial: Trial) -> str:
        """The folder of a run's checkpoints."""

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """Writes the model, its configuration and the arguments."""

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        """Writes both into a checkpoint."""

    def _save_scaler(self, output_dir: str) -> None:
        """Writes the gradient scaler into a checkpoint."""

    def _save_rng_state(self, output_dir: str) -> None:
        """Writes the random states into a checkpoint."""

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """Restores the random states."""

    def _rotate_checkpoints(self, use_mtime: bool = False, output_dir: str | None = None) -> None:
        """Removes checkpoints in excess of `save_total_limit`."""

    def _issue_warnings_after_load(self, load_result: _IncompatibleKeys) -> None:
        """Logs missing and unexpected keys."""

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Pushes a checkpoint."""

    def _finish_current_push(self) -> None:
        """Waits for the uploads."""

    def _defer_fsdp_gradient_reduction(self) -> AbstractContextManager[None]:
        """A context in which FSDP 2 does not reduce gradients."""

    # The seams of `compat.upstream`.

    seeds_epoch_before_callbacks: bool
    """Whether samplers receive the epoch before `on_epoch_begin` fires."""
    counts_skipped_batches: bool
    """Whether a resumed epoch counts from its first batch on."""
    restores_after_empty_window: bool
    """Whether a resumed epoch without a batch left restores the random states."""
    adds_losses_in_place: bool
    """Whether losses are added in place, keeping the type and shape of the sum."""
    begins_epochs_afresh: bool
    """Whether an epoch without a step does not log the previous epoch's gradient norm."""
    _session_schedule: Schedule
    """The length of the run in progress."""

    def _adopt_batch_size(self, batch_size: int | None) -> None:
        """Sets the batch size that `auto_find_batch_size` found."""

    def _measure_training(self, dataloader: Loader) -> Schedule:
        """The length of a run."""

    def _set_up_training(
        self, schedule: Schedule, dataloader: Loader, resume_from_checkpoint: str | None, trial: Trial
    ) -> Prepared:
        """Has HF prepare model, optimizer and scheduler."""

    def _start_bookkeeping(self, loss: torch.Tensor) -> None:
        """Initializes the values that are accumulated between two logs."""

    def _seed_epoch(self, dataloader: Loader, epoch: int) -> None:
        """Sets the epoch of the samplers."""

    def _forget_past(self) -> None:
        """Drops what `past_index` carries from batch to batch."""

    def _clip_and_measure_gradients(self, model: nn.Module | None) -> torch.Tensor | float | None:
        """Clips gradients, and returns their norm before clipping."""

    def _count_tokens_before_step(self, inputs: Batch) -> None:
        """Counts input tokens, where the release does so before the micro-step."""

    def _count_tokens_after_step(self, inputs: Batch) -> None:
        """Counts input tokens, where the release does so after the micro-step."""

    # Ours.

    announces_plan: bool
    """Whether `train` prints the plan first."""
    stops_before_training: bool
    """Whether `train` ends the process where training would begin."""
    carries_windows: bool
    """Whether an accumulation window may span two epochs."""
    _callbacks: CallbacksHost
    _checkpoint_reader: CheckpointReaderHost
    _checkpoint_writer: CheckpointWriterHost
    _distribution: DistributionHost
    _fit: FitHost
    _hub_uploads: HubUploadsHost
    _shutdown: ShutdownHost
    _surprises: SurprisesHost
    _user_module: UserModuleHost

    @property
    def plan(self) -> LightningPlan:
        """What becomes of the arguments."""

    @property
    def lightning(self) -> pl.Trainer:
        """The Lightning Trainer."""

    @property
    def lightning_module(self) -> pl.LightningModule:
        """The LightningModule around the model."""

    @property
    def _loads_own_weights(self) -> bool:
        """Whether a subclass loads the weights of a checkpoint by itself."""

    @property
    def _saves_own_weights(self) -> bool:
        """Whether code other than ours and HF's takes part in saving the weights."""
