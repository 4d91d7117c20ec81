"""`SFTTrainer`: supervised fine-tuning on texts, padded or packed."""

from __future__ import annotations

import copy
import warnings
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from datasets import Dataset
from datasets.arrow_writer import SchemaInferenceError
from datasets.exceptions import DatasetGenerationError
from transformers import AutoModelForCausalLM, AutoTokenizer, DataCollatorForLanguageModeling

from compat.trl.extras.dataset_formatting import get_formatting_func_from_dataset
from compat.trl.models.files import load_model
from compat.trl.trainer.legacy_trainer import (
    Transformers437Trainer,
    default_arguments,
    is_loaded_in_bits,
    is_peft_model,
    let_inputs_require_grad,
    prepared_for_bits,
    require_peft,
    same_draws_everywhere,
)
from compat.trl.trainer.utils import (
    ConstantLengthDataset,
    DataCollatorForCompletionOnlyLM,
    neftune_post_forward_hook,
    peft_module_casting_to_bf16,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

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

__all__ = ["SFTTrainer"]

_LONGEST_BY_DEFAULT = 1024


class SFTTrainer(Transformers437Trainer):
    """Fine-tunes a causal model on texts.

    Mirrors `trl.SFTTrainer` of 0.7.11.

    Args:
        model: a model, or the name of one to load as a causal model.
        args: training arguments; as in `transformers.Trainer`, like `data_collator`, `model_init`,
            `compute_metrics`, `callbacks`, `optimizers` and `preprocess_logits_for_metrics`.
        train_dataset: rows with a text, with the input of `formatting_func`, with a chat or with an
            instruction; torch's datasets are used unchanged.
        eval_dataset: the same, or several by name.
        tokenizer: the tokenizer; by default the model's own.
        peft_config: an adapter to train instead of the model.
        dataset_text_field: the column with the text.
        packing: whether to concatenate texts and cut them into sequences of `max_seq_length`.
        formatting_func: with packing, maps one row to a text; without, maps a batch of rows to a list of
            texts.
        max_seq_length: the maximum length of a sequence, in tokens; by default the tokenizer's own, and at
            most 1024.
        infinite: has no effect except for a warning: `max_steps` sets the length of the run.
        num_of_sequences: the approximate number of sequences that are packed at a time.
        chars_per_token: an estimate that determines how many texts are read for packing.
        dataset_num_proc: the number of tokenizing processes, without packing.
        dataset_batch_size: the number of rows tokenized at a time, without packing.
        neftune_noise_alpha: overrides the value in `args`.
        model_init_kwargs: options to load the model by name.
        dataset_kwargs: options of `_prepare_dataset`: `append_concat_token`, `add_special_tokens`.

    Raises:
        ValueError: options contradict each other; a dataset has no text; there is too little text to pack.
    """

    _tag_names: ClassVar[list[str]] = ["trl", "sft"]

    def __init__(  # noqa: C901, PLR0912 (TRL's options, one after the other)
        self,
        model: PreTrainedModel | nn.Module | str | None = None,
        args: TrainingArguments | None = None,
        data_collator: DataCollator | None = None,
        train_dataset: Dataset | None = None,
        eval_dataset: Dataset | dict[str, Dataset] | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        model_init: Callable[[], PreTrainedModel] | None = None,
        compute_metrics: Callable[[EvalPrediction], dict[str, Any]] | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
        preprocess_logits_for_metrics: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None = None,
        peft_config: PeftConfig | None = None,
        dataset_text_field: str | None = None,
        packing: bool | None = False,
        formatting_func: Callable[[Any], Any] | None = None,
        max_seq_length: int | None = None,
        infinite: bool | None = None,
        num_of_sequences: int | None = 1024,
        chars_per_token: float | None = 3.6,
        dataset_num_proc: int | None = None,
        dataset_batch_size: int = 1000,
        neftune_noise_alpha: float | None = None,
        model_init_kwargs: dict[str, Any] | None = None,
        dataset_kwargs: dict[str, Any] | None = None,
    ) -> None:
        if packing and isinstance(data_collator, DataCollatorForCompletionOnlyLM):
            msg = (
                "`packing=True`: a DataCollatorForCompletionOnlyLM looks for templates in whole texts, "
                "which packing cuts; they are not compatible. Set `packing=False`, or leave the "
                "`data_collator` out."
            )
            raise ValueError(msg)
        if infinite is not None:
            warnings.warn(
                f"`infinite={infinite}` is deprecated and has no effect. Use `TrainingArguments.max_steps` "
                "or `num_train_epochs` to say how long to train.",
                stacklevel=2,
            )
        args = default_arguments() if args is None else args
        model = load_by_name(model, model_init_kwargs, type(self).__name__)
        if peft_config is not None:
            model, args = _with_adapter(model, args, peft_config)
        tokenizer = _tokenizer_of(model) if tokenizer is None else tokenizer
        if max_seq_length is None:
            max_seq_length = min(tokenizer.model_max_length, _LONGEST_BY_DEFAULT)
            warnings.warn(
                "You didn't pass a `max_seq_length` argument to the SFTTrainer, this will default to "
                f"{max_seq_length}. Longer texts are cut: pass the length that you want.",
                stacklevel=2,
            )
        self.dataset_num_proc = dataset_num_proc
        self.dataset_batch_size = dataset_batch_size
        if neftune_noise_alpha is not None:
            warnings.warn(
                f"You passed `neftune_noise_alpha={neftune_noise_alpha}` to the SFTTrainer: it will "
                f"override the one in the `TrainingArguments`, {args.neftune_noise_alpha}. Pass it there "
                "alone.",
                stacklevel=2,
            )
            args.neftune_noise_alpha = neftune_noise_alpha
        if formatting_func is None and dataset_text_field is None:
            formatting_func = get_formatting_func_from_dataset(train_dataset, tokenizer)
        if not packing:
            if formatting_func is None and dataset_text_field is None:
                msg = (
                    "You passed `packing=False` to the SFTTrainer, but you didn't pass a "
                    "`dataset_text_field` or `formatting_func` argument, and the dataset has neither chats "
                    "nor instructions. Pass one of them."
                )
                raise ValueError(msg)
            if data_collator is None:
                data_collator = DataCollatorForLanguageModeling(tokenizer=tokenizer, mlm=False)

        def prepared(dataset: Dataset) -> Dataset:
            return self._prepare_dataset(
                dataset,
                tokenizer,
                packing,
                dataset_text_field,
                max_seq_length,
                formatting_func,
                num_of_sequences,
                chars_per_token,
                remove_unused_columns=args.remove_unused_columns,
                **(dataset_kwargs or {}),
            )

        self._draws = same_draws_everywhere()
        # One process per machine does the work, and the others read its cache.
        with args.main_process_first(desc="preparing datasets"):
            if train_dataset is not None:
                train_dataset = prepared(train_dataset)
            if isinstance(eval_dataset, dict):
                eval_dataset = {name: prepared(dataset) for name, dataset in eval_dataset.items()}
            elif eval_dataset is not None:
                eval_dataset = prepared(eval_dataset)
        if tokenizer.padding_side not in (None, "right"):
            warnings.warn(
                f"You passed a tokenizer with `padding_side={tokenizer.padding_side!r}`, which is not equal "
                "to `right`, to the SFTTrainer. That can overflow in half precision: set "
                "`tokenizer.padding_side = 'right'`.",
                stacklevel=2,
            )
        super().__init__(
            model=model,
            args=args,
            data_collator=data_collator,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            tokenizer=tokenizer,
            model_init=model_init,
            compute_metrics=compute_metrics,
            callbacks=callbacks,
            optimizers=optimizers,
            preprocess_logits_for_metrics=preprocess_logits_for_metrics,
        )
        if packing and self.train_dataset is not None:
            self.train_dataset.infinite = self.args.max_steps > 0
            if self.train_dataset.infinite:
                warnings.warn(
                    f"You passed `packing=True` to the SFTTrainer, and `max_steps={self.args.max_steps}`: "
                    "the dataset is gone through until these steps are made.",
                    stacklevel=2,
                )

    def _prepare_dataset(
        self,
        dataset: Dataset,
        tokenizer: PreTrainedTokenizerBase,
        packing: bool | None,
        dataset_text_field: str | None,
        max_seq_length: int,
        formatting_func: Callable[[Any], Any] | None,
        num_of_sequences: int | None,
        chars_per_token: float | None,
        remove_unused_columns: bool = True,
        append_concat_token: bool = True,
        add_special_tokens: bool = True,
    ) -> Dataset:
        """Tokenize a dataset; torch's datasets, including streams of `datasets`, are used unchanged."""
        if dataset is None:
            msg = "The dataset should not be None. Give one."
            raise ValueError(msg)
        if isinstance(dataset, torch.utils.data.Dataset):
            return dataset
        if not packing:
            return self._prepare_non_packed_dataloader(
                tokenizer,
                dataset,
                dataset_text_field,
                max_seq_length,
                formatting_func,
                add_special_tokens,
                remove_unused_columns,
            )
        return self._prepare_packed_dataloader(
            tokenizer,
            dataset,
            dataset_text_field,
            max_seq_length,
            num_of_sequences,
            chars_per_token,
            formatting_func,
            append_concat_token,
            add_special_tokens,
        )

    def _prepare_non_packed_dataloader(
        self,
        tokenizer: PreTrainedTokenizerBase,
        dataset: Dataset,
        dataset_text_field: str | None,
        max_seq_length: int,
        formatting_func: Callable[[Any], Any] | None = None,
        add_special_tokens: bool = True,
        remove_unused_columns: bool = True,
    ) -> Dataset:
        """Tokenize each row separately, and truncate long ones."""

        def tokenize(rows: Mapping[str, Any]) -> dict[str, Any]:
            texts = (
                rows[dataset_text_field]
                if dataset_text_field is not None
                else _formatted(formatting_func, rows)
            )
            tokens = tokenizer(
                texts,
                add_special_tokens=add_special_tokens,
                truncation=True,
                padding=False,
                max_length=max_seq_length,
                return_overflowing_tokens=False,
                return_length=False,
            )
            return {name: tokens[name] for name in ("input_ids", "attention_mask")}

        extra = sorted({*dataset.column_names} - {"input_ids", "labels", "attention_mask"})
        if extra and not remove_unused_columns:
            warnings.warn(
                "You passed `remove_unused_columns=False` on a non-packed dataset: the default collator "
                f"cannot put texts into a batch, and the columns {extra} are kept. Give a `data_collator` "
                "that takes them out.",
                stacklevel=2,
            )
        return dataset.map(
            tokenize,
            batched=True,
            remove_columns=dataset.column_names if remove_unused_columns else None,
            num_proc=self.dataset_num_proc,
            batch_size=self.dataset_batch_size,
        )

    def _prepare_packed_dataloader(
        self,
        tokenizer: PreTrainedTokenizerBase,
        dataset: Dataset,
        dataset_text_field: str | None,
        max_seq_length: int,
        num_of_sequences: int | None,
        chars_per_token: float | None,
        formatting_func: Callable[[Any], Any] | None = None,
        append_concat_token: bool = True,
        add_special_tokens: bool = True,
    ) -> Dataset:
        """Pack a dataset once; the result is kept in the cache of `datasets`."""
        if dataset_text_field is None and formatting_func is None:
            msg = (
                "You need to pass a `dataset_text_field` or `formatting_func` argument to the SFTTrainer "
                "if you want to use `packing=True`: the dataset has neither chats nor instructions."
            )
            raise ValueError(msg)
        if tokenizer is None:
            msg = "`tokenizer=None`: packing needs one. You need to pass a tokenizer to the SFTTrainer."
            raise ValueError(msg)
        rows = ConstantLengthDataset(
            tokenizer,
            dataset,
            dataset_text_field=dataset_text_field,
            formatting_func=formatting_func,
            seq_length=max_seq_length,
            infinite=False,
            num_of_sequences=num_of_sequences,  # type: ignore[arg-type]
            chars_per_token=chars_per_token,  # type: ignore[arg-type]
            eos_token_id=tokenizer.eos_token_id,
            append_concat_token=append_concat_token,
            add_special_tokens=add_special_tokens,
        )
        try:
            return Dataset.from_generator(_sequences, gen_kwargs={"rows": rows, "draws": self._draws})
        except (DatasetGenerationError, SchemaInferenceError) as error:
            msg = (
                "Error occurred while packing the dataset. Make sure that your dataset has enough samples "
                f"to at least yield one packed sequence: {max_seq_length} tokens (`max_seq_length`)."
            )
            raise ValueError(msg) from error

    def _trl_activate_neftune(self, model: PreTrainedModel) -> PreTrainedModel:
        """Make the embeddings of a model add noise in training, until `neftune_hook_handle.remove()`."""
        inner = self.accelerator.unwrap_model(model)
        embeddings = (inner.base_model.model if is_peft_model(inner) else inner).get_input_embeddings()
        embeddings.neftune_noise_alpha = self.neftune_noise_alpha
        self.neftune_hook_handle = embeddings.register_forward_hook(neftune_post_forward_hook)
        return model

    def _activate_neftune(self, model: PreTrainedModel) -> PreTrainedModel:
        """Do the same under the name of transformers 4.37 and 4.53."""
        return self._trl_activate_neftune(model)


def load_by_name(
    model: PreTrainedModel | nn.Module | str | None,
    options: dict[str, Any] | None,
    trainer: str,
    role: str = "model",
) -> PreTrainedModel | nn.Module | None:
    """Load a causal model if its name is given.

    Args:
        model: a model, or the name of one.
        options: options to load it.
        trainer: the name of the trainer, for messages.
        role: the name of the argument, for messages.

    Returns:
        The model.

    Raises:
        ValueError: there are options, but `model` is not a name.
    """
    if not isinstance(model, str):
        if options is not None:
            prefix = "" if role == "model" else "ref_"
            msg = (
                f"You passed {prefix}model_kwargs to the {trainer}. But your {role} is already "
                f"instantiated. Leave `{prefix}model_init_kwargs` out, or pass the {role} by name."
            )
            raise ValueError(msg)
        return model
    warnings.warn(
        f"You passed a {role.replace('_model', ' model')}_id to the {trainer}: `{model}` is loaded by "
        "`AutoModelForCausalLM`. Load it yourself to have another class.",
        stacklevel=3,
    )
    return load_model(AutoModelForCausalLM, model, **(options or {}))


def _sequences(rows: ConstantLengthDataset, draws: tuple[Any, ...]) -> Iterator[dict[str, Any]]:
    """Yield the packed sequences; `draws` keeps the caches of different seeds apart."""
    yield from rows


def _formatted(formatting_func: Any, rows: Mapping[str, Any]) -> list[str]:
    texts = formatting_func(rows)
    if not isinstance(texts, list):
        msg = (
            "The `formatting_func` should return a list of processed strings, one for each row of the "
            f"batch that it is given, and it returned {type(texts).__name__}: that can lead to silent bugs. "
            "Return a list, or set `packing=True`, where it is given one row at a time."
        )
        raise ValueError(msg)  # noqa: TRY004 (TRL's)
    return texts


def _tokenizer_of(model: PreTrainedModel) -> PreTrainedTokenizerBase:
    config = getattr(model, "config", None)
    if config is None:
        msg = "`tokenizer=None`: there is no model whose own could be loaded. Pass a `tokenizer`."
        raise ValueError(msg)
    tokenizer = AutoTokenizer.from_pretrained(config._name_or_path)
    if getattr(tokenizer, "pad_token", None) is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _with_adapter(
    model: PreTrainedModel, args: TrainingArguments, peft_config: PeftConfig
) -> tuple[Any, Any]:
    require_peft(peft_config)
    from peft import PeftConfig, get_peft_model

    if not isinstance(peft_config, PeftConfig):
        msg = (
            "If you want to use the PeftModel, you need to pass a PeftConfig object to the SFTTrainer. and "
            f"you passed a {type(peft_config)}."
        )
        raise ValueError(msg)  # noqa: TRY004 (TRL's)
    if is_peft_model(model):
        return model, args
    options = getattr(args, "gradient_checkpointing_kwargs", None) or {}
    if is_loaded_in_bits(model):
        model = prepared_for_bits(model, args)
        args = copy.copy(args)
        args.gradient_checkpointing = False
    elif args.gradient_checkpointing and options.get("use_reentrant", True):
        let_inputs_require_grad(model)
    is_in_4_bits = getattr(model, "is_loaded_in_4bit", False)
    model = get_peft_model(model, peft_config)
    if args.bf16 and is_in_4_bits:
        peft_module_casting_to_bf16(model)
    return model, args
