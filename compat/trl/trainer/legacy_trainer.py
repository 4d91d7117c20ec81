"""The Trainer of transformers 4.37, the base class of TRL 0.7's trainers, on `compat.Trainer`."""

from __future__ import annotations

import dataclasses
import inspect
import math
import random
import warnings
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch.utils.data import RandomSampler
from transformers import DefaultFlowCallback
from transformers import TrainingArguments as HFTrainingArguments
from transformers.trainer_pt_utils import AcceleratorConfig
from transformers.trainer_utils import IntervalStrategy, has_length

from compat.arguments import TrainingArguments
from compat.fabric.accelerator import AgreedSampler
from compat.trainer import Trainer
from compat.trl.import_utils import is_peft_available
from compat.trl.trainer.utils import trl_sanitze_kwargs_for_tagging

if TYPE_CHECKING:
    from datasets import Dataset
    from peft import PeftConfig
    from torch import Tensor, nn
    from torch.utils.data import DataLoader, Sampler
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerControl, TrainerState

    from compat.upstream.schedule import Schedule

PLAIN_ARGUMENTS = (HFTrainingArguments, TrainingArguments)
"""The classes of arguments without the fields of a specific trainer."""


class Transformers437Flow(DefaultFlowCallback):  # type: ignore[misc]
    """Logs, evaluates and saves at the same steps as 4.37, without an exception for the last step.

    Newer releases also evaluate and save at the last step, regardless of `eval_steps` and `save_steps`.
    """

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> TrainerControl:
        """Set the flags of the control after a step."""
        before = dict(vars(control))
        super().on_step_end(args, state, control, **kwargs)
        for what, steps in (("should_evaluate", state.eval_steps), ("should_save", state.save_steps)):
            if steps <= 0 or state.global_step % steps:
                setattr(control, what, before[what])
        return control


class Transformers437Trainer(Trainer):
    """A Trainer with the arithmetic and the names of transformers 4.37.

    The loss of a micro-batch is its mean divided by `gradient_accumulation_steps`; models do not see the
    number of tokens in the window. A window continues across epochs; if it is longer than an epoch, each
    epoch ends with a step. The sampler draws with torch's global generator, unless `accelerator_config` or
    `data_seed` request another one. The last step evaluates or saves only if its number requires it.

    Args:
        tokenizer: the `processing_class` of newer releases.
        eval_dataset: as in `compat.Trainer`. Without one, `eval_strategy` fails at the first evaluation.
        kwargs: as in `compat.Trainer`.
    """

    _tag_names: ClassVar[list[str]] = ["trl"]
    carries_windows: ClassVar[bool] = True

    def __init__(
        self,
        *,
        tokenizer: PreTrainedTokenizerBase | None = None,
        eval_dataset: Dataset | dict[str, Dataset] | None = None,
        **kwargs: object,
    ) -> None:
        lacks_data = eval_dataset is None
        # Newer Trainers refuse an `eval_strategy` without a dataset.
        super().__init__(
            processing_class=tokenizer, eval_dataset={} if lacks_data else eval_dataset, **kwargs
        )
        if lacks_data:
            self.eval_dataset = None
            _warn_of_missing_data(self.args)
        callbacks = self.callback_handler.callbacks
        callbacks[:] = [
            Transformers437Flow() if type(one) is DefaultFlowCallback else one for one in callbacks
        ]
        self.model_accepts_loss_kwargs = False
        if hasattr(self.model, "add_model_tags"):
            self.model.add_model_tags(self._tag_names)

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer; `processing_class` of newer releases."""
        return self.processing_class

    @tokenizer.setter
    def tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.processing_class = tokenizer

    def create_accelerator_and_postprocess(self) -> None:
        """Disable the sampler with its own seed, which 4.37 does not have."""
        super().create_accelerator_and_postprocess()
        if self.args.data_seed is None and self.args.accelerator_config == AcceleratorConfig():
            self.accelerator.dataloader_config.use_seedable_sampler = False

    def _get_train_sampler(self, *args: object, **kwargs: object) -> Sampler[int] | None:
        """Make several processes draw the order of one process; newer accelerate draws a seed first."""
        sampler = super()._get_train_sampler(*args, **kwargs)
        is_shared = self.accelerator.num_processes > 1 and not self.accelerator.use_seedable_sampler
        return AgreedSampler.of(sampler) if is_shared and type(sampler) is RandomSampler else sampler

    @property
    def current_gradient_accumulation_steps(self) -> int:
        """The divisor of the loss: a full window, also if an epoch has fewer micro-steps."""
        steps: int = self.args.gradient_accumulation_steps
        return steps

    @current_gradient_accumulation_steps.setter
    def current_gradient_accumulation_steps(self, steps: int) -> None:
        """Ignore the value: newer releases set the actual micro-steps of a window."""

    def _measure_training(self, dataloader: DataLoader[Any]) -> Schedule:
        """Count only the full windows of an epoch."""
        schedule: Schedule = super()._measure_training(dataloader)
        if not has_length(dataloader):
            return schedule
        updates = max(schedule.steps_in_epoch // self.args.gradient_accumulation_steps, 1)
        max_steps, epochs = self.args.max_steps, self.args.num_train_epochs
        if max_steps > 0:
            epochs = max_steps / updates
        else:
            max_steps = math.ceil(epochs * updates)
        return dataclasses.replace(
            schedule,
            num_update_steps_per_epoch=updates,
            num_train_epochs=math.ceil(epochs),
            max_steps=max_steps,
        )

    def _maybe_log_save_evaluate(self, *args: object, **kwargs: object) -> None:
        """Log the learning rate of the next step, not of the last one."""
        super()._maybe_log_save_evaluate(*args, **{**kwargs, "learning_rate": None})

    def push_to_hub(  # type: ignore[override]
        self, commit_message: str | None = "End of training", blocking: bool = True, **kwargs: object
    ) -> str:
        """Push the model with the tags of this trainer.

        Mirrors `transformers.Trainer.push_to_hub`.

        Args:
            commit_message: the message of the commit.
            blocking: whether to wait for the upload.
            kwargs: arguments of the model card; `tags` are extended.

        Returns:
            The address of the repository, or the running upload.
        """
        tagged = trl_sanitze_kwargs_for_tagging(self.model, [*self._tag_names], kwargs) or {}
        pushed: str = super().push_to_hub(commit_message=commit_message, blocking=blocking, **tagged)
        return pushed


def _warn_of_missing_data(args: TrainingArguments) -> None:
    strategy = args.eval_strategy
    if strategy != IntervalStrategy.NO:
        warnings.warn(
            f"`eval_strategy={str(strategy.value)!r}`, `eval_dataset=None`: as with transformers 4.37, the "
            "first evaluation will end the run with an error. Pass an `eval_dataset`, or "
            "`eval_strategy='no'`.",
            stacklevel=4,
        )


def default_arguments() -> TrainingArguments:
    """Return the default arguments of HF's Trainer."""
    return TrainingArguments(output_dir="tmp_trainer")


def same_draws_everywhere() -> tuple[Any, ...]:
    """Set the state of Python's `random` in all processes to that of the first, and return it."""
    place = [random.getstate()]
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.broadcast_object_list(place)
        random.setstate(place[0])
    return place[0]


def is_peft_model(model: object) -> bool:
    """Whether a model is a PEFT model."""
    if not is_peft_available():
        return False
    from peft import PeftModel

    return isinstance(model, PeftModel)


def require_peft(peft_config: PeftConfig | None) -> None:
    """Refuse an adapter without PEFT.

    Raises:
        ValueError: there is a configuration, and PEFT is not installed.
    """
    if peft_config is not None and not is_peft_available():
        msg = (
            f"`peft_config={type(peft_config).__name__}`: PEFT is not installed and you passed a "
            "`peft_config` in the trainer's kwargs, please install it to use the PEFT models: `pip install "
            "peft`."
        )
        raise ValueError(msg)


def is_loaded_in_bits(model: object) -> bool:
    """Whether bitsandbytes has quantized a model."""
    return any(getattr(model, f"is_loaded_in_{bits}bit", False) for bits in (4, 8))


def prepared_for_bits(model: PreTrainedModel, args: TrainingArguments) -> PreTrainedModel:
    """Prepare a quantized model for the training of an adapter, with PEFT.

    Args:
        model: a quantized model.
        args: training arguments with the options of gradient checkpointing.
    """
    from peft import prepare_model_for_kbit_training

    options: dict[str, Any] = {"use_gradient_checkpointing": getattr(args, "gradient_checkpointing", False)}
    name = "gradient_checkpointing_kwargs"
    given = getattr(args, name, None)
    if given is not None and name in inspect.signature(prepare_model_for_kbit_training).parameters:
        options[name] = given
    return prepare_model_for_kbit_training(model, **options)


def let_inputs_require_grad(model: PreTrainedModel) -> None:
    """Make embeddings require gradients, for checkpointed layers above frozen ones."""
    if hasattr(model, "enable_input_require_grads"):
        model.enable_input_require_grads()
        return
    model.get_input_embeddings().register_forward_hook(_require_grad)


def _require_grad(module: nn.Module, inputs: object, output: Tensor) -> None:
    output.requires_grad_(True)
