"""`RewardTrainer`: training of a model that scores texts, on pairs with a preferred text."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch.nn import functional
from transformers.trainer_pt_utils import nested_detach

from compat.trl.trainer.legacy_trainer import (
    PLAIN_ARGUMENTS,
    Transformers437Trainer,
    is_loaded_in_bits,
    is_peft_model,
    prepared_for_bits,
    require_peft,
)
from compat.trl.trainer.reward_config import RewardConfig
from compat.trl.trainer.utils import RewardDataCollatorWithPadding, compute_accuracy

if TYPE_CHECKING:
    from collections.abc import Callable

    from datasets import Dataset
    from peft import PeftConfig
    from torch import nn
    from transformers import (
        DataCollator,
        EvalPrediction,
        PreTrainedModel,
        PreTrainedTokenizerBase,
        TrainerCallback,
        TrainingArguments,
    )

__all__ = ["RewardTrainer"]

_LENGTH_BY_DEFAULT = 512


class RewardTrainer(Transformers437Trainer):
    """Trains a reward model to give the chosen one of two texts the higher score.

    Mirrors `trl.RewardTrainer` of 0.7.11. The loss is that of Bradley and Terry, with the margin of Llama 2
    (arXiv:2307.09288) if the rows have one.

    Args:
        model: a model that scores a text with one label, for example an `AutoModelForSequenceClassification`.
        args: a `RewardConfig`; plain training arguments are accepted with a warning. Otherwise as in
            `transformers.Trainer`, like `eval_dataset`, `model_init`, `callbacks`, `optimizers` and
            `preprocess_logits_for_metrics`.
        data_collator: the collator; by default `RewardDataCollatorWithPadding`.
        train_dataset: rows with `input_ids_chosen`, `attention_mask_chosen`, `input_ids_rejected` and
            `attention_mask_rejected`, and optionally a `margin`.
        tokenizer: pads sequences; required by the default collator.
        compute_metrics: by default `compute_accuracy`.
        max_length: the old place of `RewardConfig.max_length`.
        peft_config: an adapter to train instead of the model.

    Raises:
        ValueError: `max_length` is set twice; the default collator has no tokenizer; PEFT is missing.
    """

    _tag_names: ClassVar[list[str]] = ["trl", "reward-trainer"]

    def __init__(
        self,
        model: PreTrainedModel | nn.Module | None = None,
        args: RewardConfig | None = None,
        data_collator: DataCollator | None = None,
        train_dataset: Dataset | None = None,
        eval_dataset: Dataset | dict[str, Dataset] | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        model_init: Callable[[], PreTrainedModel] | None = None,
        compute_metrics: Callable[[EvalPrediction], dict[str, Any]] | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
        preprocess_logits_for_metrics: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None = None,
        max_length: int | None = None,
        peft_config: PeftConfig | None = None,
    ) -> None:
        args = RewardConfig(output_dir="tmp_trainer") if args is None else args
        max_length = _settled_length(args, max_length)
        require_peft(peft_config)
        if peft_config is not None and not is_peft_model(model):
            model = _with_adapter(model, args, peft_config)
        self.use_reward_data_collator = data_collator is None
        if data_collator is None:
            data_collator = _default_collator(args, tokenizer, max_length)
        super().__init__(
            model=model,
            args=args,
            data_collator=data_collator,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            tokenizer=tokenizer,
            model_init=model_init,
            compute_metrics=compute_accuracy if compute_metrics is None else compute_metrics,
            callbacks=callbacks,
            optimizers=optimizers,
            preprocess_logits_for_metrics=preprocess_logits_for_metrics,
        )

    def compute_loss(  # type: ignore[override]
        self, model: PreTrainedModel | nn.Module, inputs: dict[str, Any], return_outputs: bool = False
    ) -> torch.Tensor | tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Score both sides of a batch, and compare them.

        Args:
            model: the model that scores.
            inputs: the result of `RewardDataCollatorWithPadding`.
            return_outputs: whether to also return the scores.

        Returns:
            The loss, a scalar; on request together with `rewards_chosen` and `rewards_rejected` (batch, 1).
        """
        if not self.use_reward_data_collator:
            warnings.warn(
                "The current compute_loss is implemented for RewardDataCollatorWithPadding, and there is "
                "another `data_collator`. Have it make the same keys, or override `compute_loss`.",
                stacklevel=2,
            )
        scores = {
            f"rewards_{side}": model(
                input_ids=inputs[f"input_ids_{side}"],
                attention_mask=inputs[f"attention_mask_{side}"],
                return_dict=True,
            )["logits"]
            for side in ("chosen", "rejected")
        }
        lead = scores["rewards_chosen"] - scores["rewards_rejected"]
        if "margin" in inputs:
            lead = lead - inputs["margin"]
        loss = -functional.logsigmoid(lead).mean()
        return (loss, scores) if return_outputs else loss

    def prediction_step(  # type: ignore[override]
        self,
        model: PreTrainedModel | nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
        """Score both sides of a batch.

        Args:
            model: the model that scores.
            inputs: the result of `RewardDataCollatorWithPadding`.
            prediction_loss_only: whether to return only the loss.
            ignore_keys: the ones of `rewards_chosen` and `rewards_rejected` to omit.

        Returns:
            The loss; the preferences (batch, 2), which sum to 1, the chosen side first; labels (batch,), all
            zero, since the first side is the correct one.
        """
        inputs = self._prepare_inputs(inputs)
        if ignore_keys is None:
            ignore_keys = getattr(getattr(self.model, "config", None), "keys_to_ignore_at_inference", [])
        with torch.no_grad():
            loss, scores = self.compute_loss(model, inputs, return_outputs=True)
        loss = loss.detach()
        if prediction_loss_only:
            return loss, None, None
        kept = nested_detach(
            tuple(score for name, score in scores.items() if name not in (ignore_keys or ()))
        )
        # For a model with several labels, their mean counts.
        preferences = torch.stack(kept).mean(dim=2).softmax(dim=0).T
        return loss, preferences, self._prepare_inputs(torch.zeros(len(preferences)))


def _settled_length(args: TrainingArguments, max_length: int | None) -> int | None:
    if type(args) in PLAIN_ARGUMENTS:
        warnings.warn(
            "Using `transformers.TrainingArguments` for `args` is deprecated. Please use `RewardConfig` "
            "instead.",
            FutureWarning,
            stacklevel=3,
        )
    configured = getattr(args, "max_length", None)
    if max_length is None:
        return configured
    if configured is not None:
        msg = (
            f"`max_length={max_length}`, `args.max_length={configured}`: you cannot specify both. Please "
            "use the `RewardConfig` to set it once."
        )
        raise ValueError(msg)
    warnings.warn(
        f"`max_length={max_length}`: the argument is deprecated. Please use the `RewardConfig` to set it "
        "instead.",
        FutureWarning,
        stacklevel=3,
    )
    return max_length


def _default_collator(
    args: TrainingArguments, tokenizer: PreTrainedTokenizerBase, max_length: int | None
) -> RewardDataCollatorWithPadding:
    if tokenizer is None:
        msg = (
            "`tokenizer=None`: a tokenizer must be specified when using the default "
            "RewardDataCollatorWithPadding, which pads by it. Pass one, or a `data_collator`."
        )
        raise ValueError(msg)
    if max_length is None:
        max_length = _LENGTH_BY_DEFAULT
        warnings.warn(
            "When using RewardDataCollatorWithPadding, you should set `max_length` in RewardConfig. It "
            f"will be set to `{max_length}` by default, but you should do it yourself in the future.",
            UserWarning,
            stacklevel=3,
        )
    if args.remove_unused_columns:
        args.remove_unused_columns = False
        warnings.warn(
            "When using RewardDataCollatorWithPadding, you should set `remove_unused_columns=False` in your "
            "RewardConfig: the model knows none of the columns by name. We have set it for you.",
            UserWarning,
            stacklevel=3,
        )
    return RewardDataCollatorWithPadding(tokenizer, max_length=max_length)


def _with_adapter(
    model: PreTrainedModel | nn.Module | None, args: TrainingArguments, peft_config: PeftConfig
) -> PreTrainedModel | nn.Module | None:
    from peft import get_peft_model

    if is_loaded_in_bits(model) or getattr(model, "is_quantized", False):
        model = prepared_for_bits(model, args)
    return get_peft_model(model, peft_config)
