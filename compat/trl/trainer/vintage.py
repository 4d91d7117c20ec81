"""The Trainer that TRL 0.7's trainers were written for: that of transformers 4.37, on ours."""

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
    from torch import nn

    from compat.upstream.schedule import Schedule

PLAIN_ARGUMENTS = (HFTrainingArguments, TrainingArguments)
"""The classes of arguments that know nothing of a trainer's own."""


class VintageFlow(DefaultFlowCallback):  # type: ignore[misc]
    """Logs, evaluates and saves when 4.37 did: the last step is one like any other.

    Today's evaluates and saves there as well, whatever `eval_steps` and `save_steps` say.
    """

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        """Decide what is to be done after a step."""
        before = dict(vars(control))
        super().on_step_end(args, state, control, **kwargs)
        for what, steps in (("should_evaluate", state.eval_steps), ("should_save", state.save_steps)):
            if steps <= 0 or state.global_step % steps:
                setattr(control, what, before[what])
        return control


class VintageTrainer(Trainer):
    """A Trainer with the arithmetic and the names of 4.37.

    The loss of a micro-batch is its own mean, divided by `gradient_accumulation_steps`, whatever the model
    could do with the number of tokens in the window. A window that an epoch ends in goes on in the next
    epoch; only where the window is longer than the epoch does each epoch end with a step. Samples are drawn
    in the order of then, by torch's own random numbers, unless `accelerator_config` or `data_seed` ask for
    another one. After the last step there is an evaluation or a checkpoint only where it is time for one.

    Args:
        tokenizer: `processing_class` in today's words.
        eval_dataset: as in `compat.Trainer`. Where there is none, an `eval_strategy` fails at the first
            evaluation and not before.
        kwargs: as in `compat.Trainer`.
    """

    _tag_names: ClassVar[list[str]] = ["trl"]
    carries_windows: ClassVar[bool] = True

    def __init__(self, *, tokenizer: Any = None, eval_dataset: Any = None, **kwargs: Any) -> None:
        lacks_data = eval_dataset is None
        # Today's Trainer refuses to be made where it is to evaluate and has nothing to evaluate on.
        super().__init__(
            processing_class=tokenizer, eval_dataset={} if lacks_data else eval_dataset, **kwargs
        )
        if lacks_data:
            self.eval_dataset = None
            _tell_of_missing_data(self.args)
        callbacks = self.callback_handler.callbacks
        callbacks[:] = [VintageFlow() if type(one) is DefaultFlowCallback else one for one in callbacks]
        self.model_accepts_loss_kwargs = False
        if hasattr(self.model, "add_model_tags"):
            self.model.add_model_tags(self._tag_names)

    @property
    def tokenizer(self) -> Any:
        """What tokenizes; `processing_class` in today's words."""
        return self.processing_class

    @tokenizer.setter
    def tokenizer(self, tokenizer: Any) -> None:
        self.processing_class = tokenizer

    def create_accelerator_and_postprocess(self) -> None:
        """Have samples drawn as in 4.37, which had no sampler with a seed of its own."""
        super().create_accelerator_and_postprocess()
        if self.args.data_seed is None and self.args.accelerator_config == AcceleratorConfig():
            self.accelerator.dataloader_config.use_seedable_sampler = False

    def _get_train_sampler(self, *args: Any, **kwargs: Any) -> Any:
        """Have several processes draw their order as one does; accelerate of today draws a seed besides."""
        sampler = super()._get_train_sampler(*args, **kwargs)
        is_shared = self.accelerator.num_processes > 1 and not self.accelerator.use_seedable_sampler
        return AgreedSampler.of(sampler) if is_shared and type(sampler) is RandomSampler else sampler

    @property
    def current_gradient_accumulation_steps(self) -> int:
        """What a loss is divided by: a whole window, also where an epoch has fewer micro-steps."""
        steps: int = self.args.gradient_accumulation_steps
        return steps

    @current_gradient_accumulation_steps.setter
    def current_gradient_accumulation_steps(self, steps: int) -> None:
        """Newer releases divide by the micro-steps that a window has in fact."""

    def _measure_training(self, dataloader: Any) -> Schedule:
        """Count the whole windows of an epoch alone."""
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

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        """Log the learning rate that comes next, and not the one that has been stepped by."""
        super()._maybe_log_save_evaluate(*args, **{**kwargs, "learning_rate": None})

    def push_to_hub(  # type: ignore[override]
        self, commit_message: str | None = "End of training", blocking: bool = True, **kwargs: Any
    ) -> str:
        """Push the model, tagged as this trainer's.

        Mirrors `transformers.Trainer.push_to_hub`.

        Args:
            commit_message: of the commit.
            blocking: whether to wait for its end.
            kwargs: for the model card; `tags` are added to.

        Returns:
            The address of the repository, or the upload that is under way.
        """
        tagged = trl_sanitze_kwargs_for_tagging(self.model, [*self._tag_names], kwargs) or {}
        pushed: str = super().push_to_hub(commit_message=commit_message, blocking=blocking, **tagged)
        return pushed


def _tell_of_missing_data(args: Any) -> None:
    strategy = args.eval_strategy
    if strategy != IntervalStrategy.NO:
        warnings.warn(
            f"`eval_strategy={str(strategy.value)!r}`, `eval_dataset=None`: as with transformers 4.37, the "
            "first evaluation will end the run with an error. Pass an `eval_dataset`, or "
            "`eval_strategy='no'`.",
            stacklevel=4,
        )


def default_arguments() -> TrainingArguments:
    """What HF's Trainer takes where it is given no arguments."""
    return TrainingArguments(output_dir="tmp_trainer")


def same_draws_everywhere() -> Any:
    """Have Python's `random` stand at the same place in all processes of a job, and return that place."""
    place = [random.getstate()]
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.broadcast_object_list(place)
        random.setstate(place[0])
    return place[0]


def is_peft_model(model: Any) -> bool:
    """Whether a model is PEFT's."""
    if not is_peft_available():
        return False
    from peft import PeftModel

    return isinstance(model, PeftModel)


def require_peft(peft_config: Any) -> None:
    """Refuse an adapter where PEFT is missing.

    Raises:
        ValueError: there is a configuration and no PEFT.
    """
    if peft_config is not None and not is_peft_available():
        msg = (
            f"`peft_config={type(peft_config).__name__}`: PEFT is not installed and you passed a "
            "`peft_config` in the trainer's kwargs, please install it to use the PEFT models: `pip install "
            "peft`."
        )
        raise ValueError(msg)


def is_loaded_in_bits(model: Any) -> bool:
    """Whether bitsandbytes has quantized a model."""
    return any(getattr(model, f"is_loaded_in_{bits}bit", False) for bits in (4, 8))


def prepared_for_bits(model: Any, args: Any) -> Any:
    """Have PEFT make a quantized model fit for an adapter to be trained on it.

    Args:
        model: a quantized model.
        args: training arguments, whose gradient checkpointing is set up here.
    """
    from peft import prepare_model_for_kbit_training

    options: dict[str, Any] = {"use_gradient_checkpointing": getattr(args, "gradient_checkpointing", False)}
    name = "gradient_checkpointing_kwargs"
    given = getattr(args, name, None)
    if given is not None and name in inspect.signature(prepare_model_for_kbit_training).parameters:
        options[name] = given
    return prepare_model_for_kbit_training(model, **options)


def let_inputs_require_grad(model: Any) -> None:
    """Let gradients reach checkpointed layers below which nothing is trained."""
    if hasattr(model, "enable_input_require_grads"):
        model.enable_input_require_grads()
        return
    model.get_input_embeddings().register_forward_hook(_require_grad)


def _require_grad(module: nn.Module, inputs: Any, output: Any) -> None:
    output.requires_grad_(True)
