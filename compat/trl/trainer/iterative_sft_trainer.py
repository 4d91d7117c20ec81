"""`IterativeSFTTrainer`: fine-tuning in steps that a script calls."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import DataLoader
from transformers import (
    DataCollatorForLanguageModeling,
    DataCollatorForSeq2Seq,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from compat.trl.core import PPODecorators
from compat.trl.trainer.legacy_trainer import Transformers437Trainer, default_arguments, is_peft_model

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from datasets import Dataset
    from torch.optim.lr_scheduler import LRScheduler
    from transformers import DataCollator, TrainingArguments
    from transformers.trainer_utils import EvalLoopOutput

__all__ = ["IterativeSFTTrainer"]

_IGNORED = -100
_PARTS = ("input_ids", "attention_mask", "labels")

_TRUNCATIONS: dict[str | None, Callable[[int], slice]] = {
    "keep_start": lambda length: slice(None, length),
    "keep_end": lambda length: slice(-length, None),
}


class IterativeSFTTrainer(Transformers437Trainer):
    """Fine-tunes a model by calls of `step`, each of which trains once on the given samples.

    Mirrors `trl.IterativeSFTTrainer` of 0.7.11.

    Args:
        model: the model.
        args: training arguments; `max_steps` is the length of the run for the scheduler, in micro-steps.
        tokenizer: the tokenizer of the model; its `truncation_side` is set.
        optimizers: an optimizer and a scheduler; built from `args` if None.
        data_collator: by default `DataCollatorForSeq2Seq` or `DataCollatorForLanguageModeling`.
        eval_dataset: evaluated every `eval_steps` steps.
        max_length: the maximum length of a text, in tokens. Tensors are not truncated, as in TRL 0.7.11; for
            them it is the maximum number of samples per step.
        truncation_mode: which end is kept, "keep_end" or "keep_start".
        preprocess_logits_for_metrics: as in `transformers.Trainer`, like `compute_metrics`.
        optimize_device_cache: whether to empty the device's cache after each step.

    Attributes:
        tr_loss: the sum of the losses since the last log.

    Raises:
        ValueError: the model or the tokenizer has a wrong type; neither a scheduler nor `max_steps` is given.
    """

    def __init__(
        self,
        model: PreTrainedModel | None = None,
        args: TrainingArguments | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        optimizers: tuple[Any, Any] = (None, None),
        data_collator: DataCollator | None = None,
        eval_dataset: Dataset | dict[str, Dataset] | None = None,
        max_length: int | None = None,
        truncation_mode: str | None = "keep_end",
        preprocess_logits_for_metrics: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None = None,
        compute_metrics: Callable[[EvalLoopOutput], dict[str, Any]] | None = None,
        optimize_device_cache: bool | None = False,
    ) -> None:
        args = default_arguments() if args is None else args
        _check_parts(model, tokenizer, scheduler=optimizers[1], max_steps=args.max_steps)
        self.is_encoder_decoder = bool(getattr(model.config, "is_encoder_decoder", False))  # type: ignore[union-attr]
        self.is_peft_model = is_peft_model(model)
        self.max_length = max_length
        self.truncation_mode = truncation_mode
        self.optimize_device_cache = optimize_device_cache
        if data_collator is None:
            data_collator = _default_collator(tokenizer, is_encoder_decoder=self.is_encoder_decoder)
        super().__init__(
            model=model,
            args=args,
            data_collator=data_collator,
            eval_dataset=eval_dataset,
            tokenizer=tokenizer,
            compute_metrics=compute_metrics,
            optimizers=optimizers,
            preprocess_logits_for_metrics=preprocess_logits_for_metrics,
        )
        self.create_optimizer_and_scheduler(self.args.max_steps)
        self.model_wrapped, self.optimizer, self.lr_scheduler = self.accelerator.prepare(
            self.model, self.optimizer, self.lr_scheduler
        )
        # There are no epochs.
        self.state.epoch = None
        self.tokenizer.truncation_side = "left" if truncation_mode == "keep_end" else "right"
        PPODecorators.optimize_device_cache = bool(optimize_device_cache)

    def prepare_model_inputs(
        self, input_ids: Any, attention_mask: Any, labels: Any
    ) -> dict[str, torch.Tensor]:
        """Collate the samples of a step.

        Args:
            input_ids: tensors of shape (length,), one per sample.
            attention_mask: the same; all ones if None.
            labels: the same; for encoder-decoder models.

        Returns:
            The inputs of the model, each (samples, length).

        Raises:
            ValueError: `truncation_mode` is unknown.
        """
        if attention_mask is None:
            attention_mask = [torch.ones_like(ids) for ids in input_ids]
        if isinstance(self.data_collator, DataCollatorForSeq2Seq):
            labels = [label.tolist() for label in labels]  # the collator converts lists to tensors faster
        parts = [input_ids, attention_mask, *([labels] if self.is_encoder_decoder else [])]
        samples = [dict(zip(_PARTS, sample, strict=False)) for sample in zip(*parts, strict=True)]
        batch = dict(self.data_collator(samples).to(self.model.device))
        if self.is_encoder_decoder:
            # The model computes them from the labels.
            batch.pop("decoder_input_ids", None)
            batch["labels"][batch["labels"] == self.tokenizer.pad_token_id] = _IGNORED
        return batch if self.max_length is None else self._cut(batch, self.max_length)

    def _cut(self, batch: dict[str, torch.Tensor], length: int) -> dict[str, torch.Tensor]:
        if self.truncation_mode not in _TRUNCATIONS:
            msg = (
                f"Unknown truncation mode: {self.truncation_mode}. `truncation_mode` is one of "
                f"{[*_TRUNCATIONS]}."
            )
            raise ValueError(msg)
        samples = len(next(iter(batch.values())))
        if samples > length:
            warnings.warn(
                f"`max_length={length}`: TRL 0.7.11 takes no more samples than this in a step, and "
                f"{samples} are given; {samples - length} are left out. Give fewer, or a larger "
                "`max_length`.",
                stacklevel=4,
            )
        kept = _TRUNCATIONS[self.truncation_mode](length)
        return {name: values[kept] for name, values in batch.items()}

    @staticmethod
    def _step_safety_checker(
        input_ids: list[torch.LongTensor],
        attention_mask: list[torch.LongTensor],
        labels: list[torch.LongTensor],
        texts: list[str],
        texts_labels: list[str],
    ) -> tuple[Any, ...]:
        """Check the arguments of `step`.

        Returns:
            The five arguments, unchanged.

        Raises:
            ValueError: an argument is not a list, or is a list of another type.
        """
        if texts is None:
            given = {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}
            for name, values in given.items():
                if name != "attention_mask" or values is not None:
                    _check_list(name, values, torch.Tensor, "tensors")
        else:
            _check_list("text", texts, str, "strings")
            if texts_labels is not None:
                _check_list("text_labels", texts_labels, str, "strings")
        return input_ids, attention_mask, labels, texts, texts_labels

    @PPODecorators.empty_device_cache()
    def step(
        self,
        input_ids: list[torch.LongTensor] | None = None,
        attention_mask: list[torch.LongTensor] | None = None,
        labels: list[torch.LongTensor] | None = None,
        texts: list[str] | None = None,
        texts_labels: list[str] | None = None,
    ) -> None:
        """Train on shuffled samples, in micro-batches of `per_device_train_batch_size`.

        Args:
            input_ids: tensors of shape (length,), one per sample.
            attention_mask: the same; all ones if None.
            labels: the same. The collator makes those of decoder-only models.
            texts: the samples as texts, instead of `input_ids`.
            texts_labels: if given, the `texts` themselves are the labels, as in TRL 0.7.11.

        Raises:
            ValueError: neither tensors nor texts are given, or they are not lists; an encoder-decoder model
                has no labels.
        """
        self.model.train()
        if self.state.global_step == 0:
            self.tr_loss = torch.tensor(0.0, device=self.args.device)
            self._globalstep_last_logged = 0
        columns = (input_ids, attention_mask, labels, texts, texts_labels)
        input_ids, attention_mask, labels, texts, texts_labels = map(_as_list, columns)
        _check_given(input_ids, labels, texts, texts_labels, is_encoder_decoder=self.is_encoder_decoder)
        self._step_safety_checker(input_ids, attention_mask, labels, texts, texts_labels)  # type: ignore[arg-type]
        if texts is not None:
            tokens = self.tokenizer(
                texts, max_length=self.max_length, truncation=True, padding=True, return_tensors="pt"
            )
            input_ids, attention_mask = tokens["input_ids"], tokens["attention_mask"]
            labels = input_ids if texts_labels is not None else labels
        if labels is None:
            warnings.warn(
                "No labels are provided. Setting labels to input_ids: each sample is its own label.",
                stacklevel=3,
            )
            labels = input_ids
        batch = self.prepare_model_inputs(input_ids, attention_mask, labels)
        names = [name for name in _PARTS if name in batch]
        counts = {name: len(batch[name]) for name in names}
        if len(set(counts.values())) > 1:
            msg = f"`step`: not as many of each: {counts}. Give lists of one length."
            raise ValueError(msg)
        samples = [dict(zip(names, row, strict=True)) for row in zip(*map(batch.get, names), strict=True)]  # type: ignore[arg-type]
        loader: DataLoader[Any] = DataLoader(
            samples,  # type: ignore[arg-type]
            batch_size=self.args.per_device_train_batch_size,
            shuffle=True,
        )
        with self._accumulating():
            for inputs in loader:
                self._micro_step(inputs)

    @contextlib.contextmanager
    def _accumulating(self) -> Iterator[None]:
        """Make the accelerator count accumulation windows, as current HF Trainers do themselves."""
        state = self.accelerator.gradient_state
        before = state.plugin_kwargs
        steps = self.args.gradient_accumulation_steps
        # No dataloader ends a window: a step continues the window of the previous step.
        state.plugin_kwargs = {**before, "num_steps": steps, "sync_with_dataloader": False}
        try:
            yield
        finally:
            state.plugin_kwargs = before
            state._set_sync_gradients(True)

    def _micro_step(self, inputs: dict[str, torch.Tensor]) -> None:
        accelerator = self.accelerator
        with accelerator.accumulate(self.model_wrapped):
            loss = self.compute_loss(self.model_wrapped, inputs)
            accelerator.backward(loss)
            if accelerator.sync_gradients and self.args.max_grad_norm is not None:
                accelerator.clip_grad_norm_(self.model_wrapped.parameters(), self.args.max_grad_norm)
            self.optimizer.step()
            # As accelerate did: users read gradients after a step, and none of them may become None.
            self.optimizer.zero_grad(set_to_none=False)
            if accelerator.sync_gradients and self.lr_scheduler is not None:
                # As accelerate does: a schedule counts samples, and several processes use more per step.
                for _ in range(1 if accelerator.split_batches else accelerator.num_processes):
                    self.lr_scheduler.step()
            self.state.global_step += 1
            self.tr_loss += loss.detach()
            self._maybe_log_save_evaluate()

    def _maybe_log_save_evaluate(self, *of_a_loop: object, **of_the_loop: object) -> None:
        """Evaluate and log if due; also serves the method of this name that HF's loop calls."""
        if of_a_loop:
            super()._maybe_log_save_evaluate(*of_a_loop, **of_the_loop)
            return
        step, args = self.state.global_step, self.args
        if args.eval_steps is not None and step % args.eval_steps == 0:
            self.evaluate(self.eval_dataset)
        if args.logging_steps is not None and step % args.logging_steps == 0:
            mean = self._nested_gather(self.tr_loss).mean().item() / (step - self._globalstep_last_logged)
            self.tr_loss -= self.tr_loss
            self._globalstep_last_logged = step
            self.log({"loss": round(mean, 4), "learning_rate": self._get_learning_rate()})


def _as_list(values: Any) -> Any:
    """Convert a dataset column, which newer releases of `datasets` read lazily, to a list."""
    is_column = isinstance(values, Sequence) and not isinstance(values, (str, tuple))
    return list(values) if is_column else values


def _check_parts(model: Any, tokenizer: object, *, scheduler: LRScheduler | None, max_steps: int) -> None:
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        msg = (
            "tokenizer must be a PreTrainedTokenizerBase like a PreTrainedTokenizer or a "
            f"PreTrainedTokenizerFast, got {type(tokenizer)}. Pass one."
        )
        raise ValueError(msg)  # noqa: TRY004 (TRL's)
    if not isinstance(model, PreTrainedModel) and not is_peft_model(model):
        msg = f"model must be a PreTrainedModel, got {type(model)}. Load one by `from_pretrained`."
        raise ValueError(msg)
    if not model.can_generate():
        warnings.warn(
            f"The current model class {type(model)} is not compatible with `.generate()`. Please make sure "
            "that this is intended.",
            stacklevel=3,
        )
    if scheduler is None and max_steps == -1:
        msg = (
            "`max_steps=-1`: when no scheduler is provided, you need to set the total number of training "
            "steps to perform `max_steps`."
        )
        raise ValueError(msg)


def _default_collator(tokenizer: PreTrainedTokenizerBase, *, is_encoder_decoder: bool) -> DataCollator:
    if is_encoder_decoder:
        warnings.warn(
            "No data collator is provided. Using 'DataCollatorForSeq2Seq' with 'labels_pad_token_id' set to "
            f"'{_IGNORED}' and 'pad_to_multiple_of' set to 8.",
            stacklevel=3,
        )
        return DataCollatorForSeq2Seq(tokenizer, label_pad_token_id=_IGNORED, pad_to_multiple_of=8)
    warnings.warn("No data collator is provided. Using 'DataCollatorForLanguageModeling'.", stacklevel=3)
    return DataCollatorForLanguageModeling(tokenizer, mlm=False)


def _check_given(
    input_ids: object, labels: object, texts: object, texts_labels: object, *, is_encoder_decoder: bool
) -> None:
    if input_ids is None and texts is None:
        msg = "Step should include `input_ids` or `texts` as keyword arguments. Pass one of them."
        raise ValueError(msg)
    if input_ids is not None and texts is not None:
        warnings.warn(
            "Both 'input_ids' and 'texts' are provided. 'input_ids' will be overwritten using inputs "
            "provided by the 'texts' keyword argument: pass one of them.",
            stacklevel=4,
        )
    if is_encoder_decoder and labels is None and texts_labels is None:
        msg = (
            "No 'labels' or 'text_labels' are provided. When using an encoder-decoder architecture, "
            "'labels' or 'text_labels' must be passed."
        )
        raise ValueError(msg)
    if is_encoder_decoder and texts_labels is not None and texts is not None and texts_labels != texts:
        warnings.warn(
            "`texts_labels`: TRL 0.7.11 takes the `texts` themselves for labels, whatever is given here. "
            "Pass `input_ids` and `labels` to have labels of their own.",
            stacklevel=4,
        )


def _check_list(name: str, values: object, kind: type, plural: str) -> None:
    shown = f"'{name}'" if kind is str else name
    if not isinstance(values, list):
        msg = f"{shown} must be a list of {plural} - got {type(values)}. Pass a list."
        raise ValueError(msg)  # noqa: TRY004 (TRL's)
    if not isinstance(values[0], kind):
        msg = f"Elements in {shown} must be {plural} - got {type(values[0])}."
        raise ValueError(msg)  # noqa: TRY004 (TRL's)
