"""Names and parameters of `transformers.Trainer` that were added or removed between its releases."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

from transformers import trainer_pt_utils, trainer_utils
from transformers.integrations import deepspeed
from transformers.utils import logging

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch import nn
    from torch.utils.data import DataLoader
    from transformers import TrainerState, TrainingArguments

    from compat.upstream.values import Loader, Output, ProcessingClass

logger = logging.get_logger("transformers.trainer")


class LegacyMethods:
    """Members that the installed release has removed, or does not have yet.

    Listed after HF's Trainer among the base classes, so that HF's own members take precedence.

    Attributes:
        use_apex: whether NVIDIA apex computes in half precision; never.
        use_cpu_amp: whether the CPU's own autocast does; never, accelerate's is used.
        is_tp_enabled: whether accelerate shards the model's tensors; never.
    """

    use_apex = False
    use_cpu_amp = False
    is_tp_enabled = False
    args: TrainingArguments
    accelerator: Accelerator
    processing_class: ProcessingClass
    state: TrainerState

    @property
    def tokenizer(self) -> ProcessingClass:
        """The older name of `processing_class`. Mirrors `transformers.Trainer.tokenizer` of 4.53."""
        logger.warning_once("`Trainer.tokenizer` is deprecated. Use `Trainer.processing_class`.")
        return self.processing_class

    @tokenizer.setter
    def tokenizer(self, processing_class: ProcessingClass) -> None:
        logger.warning_once("`Trainer.tokenizer` is deprecated. Set `Trainer.processing_class`.")
        self.processing_class = processing_class

    @staticmethod
    def num_tokens(train_dl: DataLoader[Any], max_steps: int | None = None) -> int:
        """Count the tokens of a dataloader, padding included, by iterating over it.

        Mirrors `transformers.Trainer.num_tokens` of 4.53.

        Args:
            train_dl: batches with `input_ids` of shape (batch, length).
            max_steps: micro-steps to count for; each then counts as many tokens as the first batch.

        Returns:
            The number of tokens; 0, with a logged warning, if the batches have no `input_ids`.
        """
        total = 0
        for batch in train_dl:
            if "input_ids" not in batch:
                logger.warning("Cannot count tokens: the batches have no `input_ids`.")
                return total
            count: int = batch["input_ids"].numel()
            if max_steps is not None:
                return count * max_steps
            total += count
        return total

    def torch_jit_model_eval(self, model: nn.Module, dataloader: Loader, training: bool = False) -> nn.Module:
        """Return the model unchanged: this release of transformers traces none, with the same results.

        Mirrors `transformers.Trainer.torch_jit_model_eval` of 4.53.

        Args:
            model: the model.
            dataloader: the source of the batch with which 4.53 traces.
            training: whether the model is to be trained.
        """
        _warn_of_no_effect("torch_jit_model_eval", "no longer traces models")
        return model

    def ipex_optimize_model(
        self, model: nn.Module, training: bool = False, dtype: object = None
    ) -> nn.Module:
        """Return the model unchanged: this release of transformers has no IPEX, with the same results.

        Mirrors `transformers.Trainer.ipex_optimize_model` of 4.37.

        Args:
            model: the model.
            training: whether the model is to be trained.
            dtype: the type that IPEX would compute in.
        """
        _warn_of_no_effect("ipex_optimize_model", "no longer uses IPEX")
        return model

    def compare_trainer_and_checkpoint_args(
        self, training_args: TrainingArguments, trainer_state: TrainerState
    ) -> None:
        """Log a warning for arguments of a resumed run that differ from those of its checkpoint.

        Mirrors `transformers.Trainer.compare_trainer_and_checkpoint_args` of 4.53.

        Args:
            training_args: the arguments of this run.
            trainer_state: the state that the checkpoint holds.
        """
        trainer_utils.compare_trainer_and_checkpoint_args(training_args, trainer_state)

    def propagate_args_to_deepspeed(self, auto_find_batch_size: bool = False) -> None:
        """Fill the "auto" values of a DeepSpeed configuration that accelerate supplies.

        Mirrors `transformers.Trainer.propagate_args_to_deepspeed` of 4.53.

        Args:
            auto_find_batch_size: whether the batch size has just been found, and replaces the configured one.
        """
        deepspeed.propagate_args_to_deepspeed(self.accelerator, self.args, auto_find_batch_size)

    def get_sp_size(self) -> int:
        """Return the processes of one sequence. Mirrors `transformers.Trainer.get_sp_size` of 5.23."""
        return self._parallel_size("sp_size")

    def get_cp_size(self) -> int:
        """Return the processes of one context. Mirrors `transformers.Trainer.get_cp_size` of 5.23."""
        return self._parallel_size("cp_size")

    def _parallel_size(self, name: str) -> int:
        return int(getattr(getattr(self.accelerator, "parallelism_config", None), name, 1))

    def end(self) -> None:
        """Finish the trackers, and leave the process group if there is one.

        Mirrors `transformers.Trainer.end` of 5.23: the last call of a script, as nothing that talks to other
        processes works after it.
        """
        self.accelerator.end_training()

    # Private, but called by subclasses of 2024 that reimplement a whole method.

    def _nested_gather(self, tensors: Output, name: str | None = None) -> Output:
        return trainer_pt_utils.nested_gather(tensors, self.args.parallel_mode, name)

    def _sorted_checkpoints(
        self, output_dir: str | None = None, checkpoint_prefix: str = "checkpoint", use_mtime: bool = False
    ) -> list[str]:
        checkpoints: list[str] = trainer_utils.sort_checkpoints(
            output_dir or self.args.output_dir, checkpoint_prefix, use_mtime, self.state.best_model_checkpoint
        )
        return checkpoints


def values_of_4(
    values: tuple[Any, ...], args: TrainingArguments, dataloader: Loader, batch_size: int
) -> tuple[Any, ...]:
    """Convert the result of `set_initial_training_values` of 5.23 to that of 4.53.

    Args:
        values: the result.
        args: the arguments.
        dataloader: the train dataloader.
        batch_size: samples in an update step.
    """
    epochs, updates, examples, samples, _, _, max_steps = values
    length = len(dataloader) if trainer_utils.has_length(dataloader) else None
    if args.max_steps > 0:
        samples = max_steps * batch_size
    return epochs, updates, examples if length else samples, samples, args.max_steps < 0, length, max_steps


def values_of_5(values: tuple[Any, ...], args: TrainingArguments, batch_size: int) -> tuple[Any, ...]:
    """Convert the result of `set_initial_training_values` of 4.53 to that of 5.23.

    Args:
        values: the result.
        args: the arguments.
        batch_size: samples in an update step.
    """
    *first, _, length, max_steps = values
    micro_steps = max_steps * args.gradient_accumulation_steps if length is None else length
    return (*first, batch_size, micro_steps, max_steps)


def _warn_of_no_effect(method: str, reason: str) -> None:
    warnings.warn(
        f"`Trainer.{method}`: transformers {reason}; the model is returned as it is. Drop the call.",
        UserWarning,
        stacklevel=3,
    )
