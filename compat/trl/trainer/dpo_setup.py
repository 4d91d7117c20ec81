"""Parts of `DPOTrainer` that its constructor checks and builds."""

from __future__ import annotations

import copy
import warnings
from typing import TYPE_CHECKING, Any

from compat.trl.data.collators import DPODataCollatorWithPadding
from compat.trl.import_utils import is_wandb_available
from compat.trl.trainer.legacy_trainer import (
    is_loaded_in_bits,
    is_peft_model,
    let_inputs_require_grad,
    prepared_for_bits,
    require_peft,
)
from compat.trl.trainer.utils import peft_module_casting_to_bf16

if TYPE_CHECKING:
    from collections.abc import Callable

    from datasets import Dataset
    from peft import PeftConfig
    from torch import nn
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainingArguments

    from compat.trainer import Trainer


def adapted(
    model: PreTrainedModel | None,
    ref_model: nn.Module | None,
    args: TrainingArguments,
    peft_config: PeftConfig | None,
) -> tuple[PreTrainedModel | None, bool]:
    """Add the PEFT adapter, if there is one, and make inputs require gradients for checkpointing.

    Returns:
        The model, and whether parts of it were cast to bf16.

    Raises:
        ValueError: PEFT is not installed; both an adapter and a reference model are given.
    """
    require_peft(peft_config)
    if peft_config is not None:
        return _add_adapter(model, ref_model, args, peft_config)
    if args.gradient_checkpointing and model is not None:
        let_inputs_require_grad(model)
    return model, False


def _add_adapter(
    model: PreTrainedModel, ref_model: nn.Module | None, args: TrainingArguments, peft_config: PeftConfig
) -> tuple[PreTrainedModel, bool]:
    from peft import get_peft_model

    if ref_model is not None:
        msg = (
            "You passed both a ref_model and a peft_config. For training PEFT adapters with DPO there "
            "is no need to pass a reference model: it is the model without its adapter. Please pass "
            "`ref_model=None`."
        )
        raise ValueError(msg)
    if is_peft_model(model):
        model = model.merge_and_unload()
    if is_loaded_in_bits(model):
        model = prepared_for_bits(model, args)
    elif args.gradient_checkpointing:
        let_inputs_require_grad(model)
    is_cast = args.bf16 and getattr(model, "is_loaded_in_4bit", False)
    model = get_peft_model(model, peft_config)
    if is_cast:
        peft_module_casting_to_bf16(model)
    return model, bool(is_cast)


def check_options(
    model: object,
    tokenizer: PreTrainedTokenizerBase | None,
    is_encoder_decoder: bool | None,
    *,
    generate_during_eval: bool,
) -> None:
    """Check for required options.

    Raises:
        ValueError: Weights & Biases, `is_encoder_decoder` or the tokenizer is missing.
    """
    if generate_during_eval and not is_wandb_available():
        msg = (
            "`generate_during_eval=True` requires Weights and Biases to be installed. Please install "
            "`wandb` to resolve."
        )
        raise ValueError(msg)
    if model is None and is_encoder_decoder is None:
        msg = "When no model is provided, you need to pass the parameter is_encoder_decoder."
        raise ValueError(msg)
    if tokenizer is None:
        msg = "`tokenizer=None`: tokenizer must be specified to tokenize a DPO dataset. Pass one."
        raise ValueError(msg)


def tokenized(
    dataset: Dataset | dict[str, Dataset] | None,
    tokenize: Callable[[dict[str, Any]], dict[str, Any]],
    num_proc: int | None,
) -> Dataset | dict[str, Dataset] | None:
    """Tokenize the rows of a dataset, or of several by name.

    Args:
        dataset: the rows.
        tokenize: the function for a row.
        num_proc: the number of processes.
    """
    if isinstance(dataset, dict):
        return {name: tokenized(one, tokenize, num_proc) for name, one in dataset.items()}
    return None if dataset is None else dataset.map(tokenize, num_proc=num_proc)


def length_or_default(name: str, given: int | None, default: int) -> int:
    """Return a length; warn the caller of the constructor about the default."""
    if given is not None:
        return given
    warnings.warn(
        f"`{name}` is not set in the DPOTrainer's init: it will default to `{default}`. Set it yourself.",
        UserWarning,
        stacklevel=3,
    )
    return default


def default_collator(
    tokenizer: PreTrainedTokenizerBase,
    label_pad_token_id: int,
    args: TrainingArguments,
    *,
    is_encoder_decoder: bool,
) -> DPODataCollatorWithPadding:
    """Build the collator of DPO, and keep all columns of the dataset for it."""
    collator = DPODataCollatorWithPadding(
        pad_token_id=tokenizer.pad_token_id,
        label_pad_token_id=label_pad_token_id,
        is_encoder_decoder=is_encoder_decoder,
    )
    if args.remove_unused_columns:
        args.remove_unused_columns = False
        warnings.warn(
            "When using DPODataCollatorWithPadding, you should set `remove_unused_columns=False` in your "
            "TrainingArguments: the model knows none of the columns by name. We have set it for you.",
            UserWarning,
            stacklevel=3,
        )
    return collator


def warn_of_smoothing(loss_type: str, label_smoothing: float) -> None:
    """Warn the caller of the constructor that the loss has no label smoothing."""
    warnings.warn(
        f"`label_smoothing={label_smoothing}`: you are using a loss type that does not support label "
        f"smoothing, `{loss_type}`. Ignoring label_smoothing parameter: leave it out.",
        stacklevel=3,
    )


def warn_of_other_collator(method: str) -> None:
    """Warn the caller of a method that the data collator is not the default one."""
    warnings.warn(
        f"{method} is only implemented for DPODataCollatorWithPadding, and you passed a data "
        f"collator that is different. Have it make the same keys, or override `{method}`.",
        stacklevel=3,
    )


def check_precomputation(trainer: Trainer, *, precompute_ref_log_probs: bool) -> None:
    """Check that the reference may run before training.

    Raises:
        ValueError: ZeRO-3 shards the model.
    """
    if trainer.is_deepspeed_enabled:
        stage = trainer.accelerator.state.deepspeed_plugin.zero_stage
        if stage == 3 and precompute_ref_log_probs:  # noqa: PLR2004 (ZeRO's)
            msg = (
                "You cannot use `precompute_ref_log_probs=True` with Deepspeed ZeRO-3. Please set "
                "`precompute_ref_log_probs=False`."
            )
            raise ValueError(msg)


def frozen_engine(model: nn.Module, deepspeed_config: dict[str, Any]) -> nn.Module:
    """Put a frozen model into a DeepSpeed engine.

    Args:
        model: the reference model.
        deepspeed_config: DeepSpeed's configuration of the trained model.

    Returns:
        The engine; with ZeRO-3 it shards the model, otherwise it does not.
    """
    import deepspeed

    config = copy.deepcopy(deepspeed_config)
    for name in ("optimizer", "scheduler"):
        config.pop(name, None)
    zero = config["zero_optimization"]
    zero.pop("offload_optimizer", None)
    sizes = getattr(getattr(model, "config", None), "hidden_sizes", None)
    width = max(sizes) if sizes else getattr(getattr(model, "config", None), "hidden_size", None)
    if zero["stage"] != 3:  # noqa: PLR2004 (ZeRO's)
        zero["stage"] = 0
    elif width is not None:
        # The values of "auto", which accelerate sets only for the trained model.
        zero["reduce_bucket_size"] = width * width
        zero["stage3_param_persistence_threshold"] = 10 * width
        zero["stage3_prefetch_bucket_size"] = int(0.9 * width * width)
    engine, *_ = deepspeed.initialize(model=model, config=config)
    engine.eval()
    frozen: nn.Module = engine
    return frozen
