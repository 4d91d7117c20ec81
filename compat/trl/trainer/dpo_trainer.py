"""`DPOTrainer`: training on preferences without a reward model."""

from __future__ import annotations

import contextlib
import random
from collections import defaultdict
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch

from compat.trl.algorithms import dpo, dpo_tokens
from compat.trl.data.dpo_rows import RowTokenizer
from compat.trl.import_utils import is_wandb_available  # noqa: F401
from compat.trl.models import create_reference_model
from compat.trl.trainer import dpo_passes, dpo_reference, dpo_setup
from compat.trl.trainer.legacy_trainer import Transformers437Trainer, default_arguments, is_peft_model
from compat.trl.trainer.sft_trainer import load_by_name
from compat.trl.trainer.utils import (  # noqa: F401 (scripts import TRL's helpers from here)
    DPODataCollatorWithPadding,
    disable_dropout_in_model,
    pad_to_length,
    peft_module_casting_to_bf16,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from datasets import Dataset
    from peft import PeftConfig
    from torch import nn
    from torch.utils.data import DataLoader
    from transformers import (
        DataCollator,
        PreTrainedModel,
        PreTrainedTokenizerBase,
        TrainerCallback,
        TrainingArguments,
    )
    from transformers.trainer_utils import EvalLoopOutput

__all__ = ["DPOTrainer"]


_serves_windows = dpo_passes.serves_windows(lambda: DPOTrainer)


class DPOTrainer(Transformers437Trainer):
    """Trains a model on pairs of a chosen and a rejected answer.

    Mirrors `trl.DPOTrainer` of 0.7.11. Rafailov et al., Direct Preference Optimization (arXiv:2305.18290).
    Arguments of `transformers.Trainer` have the same meaning here.

    Args:
        model: a model, or the name of a causal model.
        ref_model: the reference; by default a copy of `model`, with PEFT `model` without its adapter.
        beta: the temperature of the loss, usually 0.1 to 0.5.
        label_smoothing: the probability of wrong preferences, for the sigmoid loss.
        loss_type: the loss, see `algorithms.dpo.preference_losses`.
        args, eval_dataset, model_init, callbacks, optimizers: as in `transformers.Trainer`.
        compute_metrics, preprocess_logits_for_metrics: as in `transformers.Trainer`.
        data_collator: the collator; by default `DPODataCollatorWithPadding`.
        label_pad_token_id: the label of tokens without a loss.
        padding_value: the padding value of inputs; by default the tokenizer's padding token.
        truncation_mode: which end of a long prompt is kept, "keep_end" or "keep_start".
        train_dataset: rows with texts `prompt`, `chosen` and `rejected`.
        tokenizer: the tokenizer of the model.
        max_length: tokens of prompt and answer, by default 512.
        max_prompt_length: tokens of the prompt, by default 128.
        max_target_length: tokens of an encoder-decoder model's answer, by default 128.
        peft_config: the adapter to train in place of the model.
        is_encoder_decoder: required without `model`.
        disable_dropout: whether to disable dropout in both models.
        generate_during_eval: whether evaluations log generated texts to Weights & Biases.
        precompute_ref_log_probs: whether the reference runs once before training.
        dataset_num_proc: the number of tokenizing processes.
        model_init_kwargs, ref_model_init_kwargs: options to load models by name.
        model_adapter_name, ref_adapter_name: the trained adapter and the reference's.
        reference_free: whether the reference is uniform.

    Raises:
        ValueError: options contradict each other, an option is missing, or rows have no texts.
    """

    _tag_names: ClassVar[list[str]] = ["trl", "dpo"]
    train_dataset: Any
    eval_dataset: Any

    def __init_subclass__(cls, **kwargs: object) -> None:
        """Make overrides of `get_batch_samples` serve transformers and TRL."""
        super().__init_subclass__(**kwargs)
        if "get_batch_samples" in vars(cls):
            override = vars(cls)["get_batch_samples"]
            cls.get_batch_samples = _serves_windows(override)  # type: ignore[method-assign]

    def __init__(
        self,
        model: PreTrainedModel | nn.Module | str | None = None,
        ref_model: PreTrainedModel | nn.Module | str | None = None,
        beta: float = 0.1,
        label_smoothing: float = 0,
        loss_type: Literal["sigmoid", "hinge", "ipo", "kto_pair"] = "sigmoid",
        args: TrainingArguments | None = None,
        data_collator: DataCollator | None = None,
        label_pad_token_id: int = -100,
        padding_value: int | None = None,
        truncation_mode: str = "keep_end",
        train_dataset: Dataset | None = None,
        eval_dataset: Dataset | dict[str, Dataset] | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        model_init: Callable[[], PreTrainedModel] | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
        preprocess_logits_for_metrics: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None = None,
        max_length: int | None = None,
        max_prompt_length: int | None = None,
        max_target_length: int | None = None,
        peft_config: PeftConfig | None = None,
        is_encoder_decoder: bool | None = None,
        disable_dropout: bool = True,
        generate_during_eval: bool = False,
        compute_metrics: Callable[[EvalLoopOutput], dict[str, Any]] | None = None,
        precompute_ref_log_probs: bool = False,
        dataset_num_proc: int | None = None,
        model_init_kwargs: dict[str, Any] | None = None,
        ref_model_init_kwargs: dict[str, Any] | None = None,
        model_adapter_name: str | None = None,
        ref_adapter_name: str | None = None,
        reference_free: bool = False,
    ) -> None:
        args = default_arguments() if args is None else args
        name = type(self).__name__
        policy: Any = load_by_name(model, model_init_kwargs, name)
        reference: Any = load_by_name(ref_model, ref_model_init_kwargs, name, "ref_model")
        # The flag is true if forward passes outside the Trainer need autocast.
        policy, self._peft_has_been_casted_to_bf16 = dpo_setup.adapted(policy, reference, args, peft_config)
        dpo_setup.check_options(
            policy, tokenizer, is_encoder_decoder, generate_during_eval=generate_during_eval
        )
        assert tokenizer is not None
        self.is_encoder_decoder = bool(
            is_encoder_decoder if policy is None else policy.config.is_encoder_decoder
        )
        self.is_peft_model = is_peft_model(policy)
        self.model_adapter_name = model_adapter_name
        self.ref_adapter_name = ref_adapter_name
        self.reference_free = reference_free
        self.max_length = dpo_setup.length_or_default("max_length", max_length, 512)
        self.max_prompt_length = dpo_setup.length_or_default("max_prompt_length", max_prompt_length, 128)
        if self.is_encoder_decoder:
            max_target_length = dpo_setup.length_or_default("max_target_length", max_target_length, 128)
        self.max_target_length = max_target_length
        self.use_dpo_data_collator = data_collator is None
        if data_collator is None:
            data_collator = dpo_setup.default_collator(
                tokenizer, label_pad_token_id, args, is_encoder_decoder=self.is_encoder_decoder
            )
        self.generate_during_eval = generate_during_eval
        self.label_pad_token_id = label_pad_token_id
        self.padding_value = tokenizer.pad_token_id if padding_value is None else padding_value
        self.truncation_mode = truncation_mode
        self.tokenizer = tokenizer
        self.precompute_ref_log_probs = precompute_ref_log_probs
        self._precomputed_train_ref_log_probs = False
        self._precomputed_eval_ref_log_probs = False
        if loss_type in dpo.UNSMOOTHED and label_smoothing > 0:
            dpo_setup.warn_of_smoothing(loss_type, label_smoothing)
        self.beta = beta
        self.label_smoothing = label_smoothing
        self.loss_type = loss_type
        self._stored_metrics: dict[str, dict[str, list[Any]]] = defaultdict(lambda: defaultdict(list))
        self.dataset_num_proc = dataset_num_proc
        # One process per machine does the work, and the others read its cache.
        with args.main_process_first(desc="tokenizing datasets"):
            train_dataset = self._tokenized(train_dataset)
            eval_dataset = self._tokenized(eval_dataset)
        self.ref_model: Any = reference
        super().__init__(
            model=policy,
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
        self.is_peft_model = is_peft_model(self.model)
        # A PEFT model is its own reference; precomputed log-probabilities need none.
        if self.ref_model is None and not self.is_peft_model and not precompute_ref_log_probs:
            self.ref_model = create_reference_model(self.model)
        for one in (self.model, self.ref_model):
            if disable_dropout and one is not None:
                disable_dropout_in_model(one)
        self._prepare_reference()

    def _tokenized(self, dataset: Dataset | dict[str, Dataset] | None) -> Dataset | dict[str, Dataset] | None:
        names = ("tokenize_row", "build_tokenized_answer")
        is_ours = all(getattr(type(self), name) is getattr(DPOTrainer, name) for name in names)
        # `datasets` pickles the function to find its result in the cache, preferably without the models.
        return dpo_setup.tokenized(
            dataset, self._rows if is_ours else self.tokenize_row, self.dataset_num_proc
        )

    def _prepare_reference(self) -> None:
        dpo_setup.check_precomputation(self, precompute_ref_log_probs=self.precompute_ref_log_probs)
        if self.ref_model is None:
            return
        if self.is_deepspeed_enabled:
            self.ref_model = self._prepare_deepspeed(self.ref_model)
        else:
            self.ref_model = self.accelerator.prepare_model(self.ref_model, evaluation_mode=True)

    def _prepare_deepspeed(self, model: nn.Module) -> nn.Module:
        return dpo_setup.frozen_engine(model, self.accelerator.state.deepspeed_plugin.deepspeed_config)

    @property
    def _rows(self) -> RowTokenizer:
        return RowTokenizer.of(self)

    def build_tokenized_answer(self, prompt: str, answer: str) -> dict[str, list[int]]:
        """Tokenize a prompt and its answer as one text, and split the tokens; see `RowTokenizer.split`."""
        return self._rows.split(prompt, answer)

    def tokenize_row(self, feature: dict[str, Any], model: PreTrainedModel | None = None) -> dict[str, Any]:
        """Tokenize a row, cut to the lengths of this trainer; see `RowTokenizer.tokenize`."""
        return self._rows.tokenize(feature, self.build_tokenized_answer, model)

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Return the training dataloader, with precomputed log-probabilities on request."""
        if self.precompute_ref_log_probs and not self._precomputed_train_ref_log_probs:
            self.train_dataset = self._with_reference(
                self.train_dataset, self.args.per_device_train_batch_size, "Train dataset reference log probs"
            )
            self._precomputed_train_ref_log_probs = True
        return super().get_train_dataloader()  # type: ignore[no-any-return]

    def get_eval_dataloader(self, eval_dataset: Dataset | str | None = None) -> DataLoader[Any]:
        """Return the dataloader of a dataset, a dataset's name, or by default the trainer's dataset."""
        if eval_dataset is None and self.eval_dataset is None:
            msg = "Trainer: evaluation requires an eval_dataset. Give the trainer one, or `evaluate`."
            raise ValueError(msg)
        if self.precompute_ref_log_probs:
            eval_dataset = self._with_reference_for_evaluation(eval_dataset)
        return super().get_eval_dataloader(eval_dataset)  # type: ignore[no-any-return]

    def _with_reference_for_evaluation(self, asked: Dataset | str | None) -> Dataset | str:
        own = self.eval_dataset
        dataset = own[asked] if isinstance(asked, str) else own if asked is None else asked
        if self.state.global_step and not self.is_peft_model and not dpo_reference.has_columns(dataset):
            dpo_reference.warn_of_trained_reference()
        found = self._with_reference(
            dataset, self.args.per_device_eval_batch_size, "Eval dataset reference log probs"
        )
        self._precomputed_eval_ref_log_probs = True
        if isinstance(own, dict):
            self.eval_dataset = {name: found if one is dataset else one for name, one in own.items()}
        elif own is dataset:
            self.eval_dataset = found
        return asked if isinstance(asked, str) else found

    def _with_reference(self, dataset: Dataset, batch_size: int, description: str) -> Dataset:
        compute = self.compute_reference_log_probs
        return dpo_reference.add_columns(
            dataset, batch_size, description, self.args, self.accelerator, self.data_collator, compute
        )

    def null_ref_context(self) -> contextlib.AbstractContextManager[None]:
        """Turn the model into its own reference: without its adapter, or with the reference's adapter."""
        model = self.accelerator.unwrap_model(self.model)
        if self.ref_adapter_name:
            return dpo_reference.adapter_set(
                model, self.ref_adapter_name, self.model_adapter_name or "default"
            )
        disabled: contextlib.AbstractContextManager[None] = (
            model.disable_adapter() if self.is_peft_model else contextlib.nullcontext()
        )
        return disabled

    @contextlib.contextmanager
    def _reference(self) -> Iterator[Any]:
        """Yield the reference model; inside the block, the model may be its own reference."""
        if self.ref_model is not None:
            yield self.ref_model
            return
        with self.null_ref_context():
            yield self.model

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        if self._peft_has_been_casted_to_bf16:
            return torch.autocast(self.accelerator.device.type)
        return contextlib.nullcontext()

    def compute_reference_log_probs(self, padded_batch: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the reference's log-probabilities of chosen and rejected answers, each (batch,)."""
        with torch.no_grad(), self._autocast(), self._reference() as reference:
            chosen, rejected, *_ = self.concatenated_forward(reference, padded_batch)
        return chosen, rejected

    @staticmethod
    def concatenated_inputs(
        batch: dict[str, Any],
        is_encoder_decoder: bool = False,
        label_pad_token_id: int = -100,
        padding_value: int = 0,
        device: torch.device | None = None,
    ) -> dict[str, torch.Tensor]:
        """Concatenate the chosen and the rejected side of a batch; see `dpo_tokens.concatenate_sides`."""
        return dpo_tokens.concatenate_sides(
            batch, is_encoder_decoder, label_pad_token_id, padding_value, device
        )

    def dpo_loss(
        self,
        policy_chosen_logps: torch.Tensor,
        policy_rejected_logps: torch.Tensor,
        reference_chosen_logps: torch.Tensor,
        reference_rejected_logps: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Compute the losses of `loss_type` and the implicit rewards; see `dpo.preference_losses`."""
        device = self.accelerator.device
        return dpo.preference_losses(
            policy_chosen_logps.to(device),
            policy_rejected_logps.to(device),
            reference_chosen_logps.to(device),
            reference_rejected_logps.to(device),
            loss_type=self.loss_type,
            beta=self.beta,
            label_smoothing=self.label_smoothing,
            reference_free=self.reference_free,
        )

    @staticmethod
    def get_batch_logps(
        logits: torch.Tensor,
        labels: torch.Tensor,
        average_log_prob: bool = False,
        label_pad_token_id: int = -100,
        is_encoder_decoder: bool = False,
    ) -> torch.Tensor:
        """Sum or average the log-probabilities of labels; see `dpo_tokens.label_logprobs`."""
        return dpo_tokens.label_logprobs(
            logits, labels, average_log_prob, label_pad_token_id, is_encoder_decoder
        )

    def concatenated_forward(
        self, model: nn.Module, batch: dict[str, Any]
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Run a model once over both sides of a batch.

        Args:
            model: the policy or the reference.
            batch: the result of `DPODataCollatorWithPadding`.

        Returns:
            Log-probabilities (batch,) of the chosen and the rejected answers, and the logits
            (batch, length, vocab) of both.
        """
        inputs = self.concatenated_inputs(
            batch,
            is_encoder_decoder=self.is_encoder_decoder,
            label_pad_token_id=self.label_pad_token_id,
            padding_value=self.padding_value,
            device=self.accelerator.device,
        )
        labels, size = inputs["concatenated_labels"], batch["chosen_labels"].shape[0]
        logits = dpo_passes.logits(model, inputs, self.is_encoder_decoder)
        logps = self.get_batch_logps(
            logits,
            labels,
            average_log_prob=self.loss_type == "ipo",
            is_encoder_decoder=self.is_encoder_decoder,
            label_pad_token_id=self.label_pad_token_id,
        )
        return logps[:size], logps[size:], logits[:size], logits[size:]

    def get_batch_loss_metrics(
        self, model: PreTrainedModel, batch: dict[str, Any], train_eval: Literal["train", "eval"] = "train"
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Return the loss of a batch, a scalar, and its metrics, scalars on the CPU.

        Args:
            model: the policy.
            batch: the result of `DPODataCollatorWithPadding`; may have the reference's log-probabilities.
            train_eval: "eval" prefixes the metrics with `eval_`.
        """
        chosen, rejected, chosen_logits, rejected_logits = self.concatenated_forward(model, batch)
        if batch.keys() >= {*dpo_reference.COLUMNS}:
            references = tuple(batch[name] for name in dpo_reference.COLUMNS)
        else:
            references = self._reference_logps(batch)
        losses, chosen_rewards, rejected_rewards = self.dpo_loss(chosen, rejected, *references)  # type: ignore[arg-type]
        rewards, logps = (chosen_rewards, rejected_rewards), (chosen, rejected)
        prefix = "eval_" if train_eval == "eval" else ""
        return losses.mean(), dpo.batch_metrics(rewards, logps, (chosen_logits, rejected_logits), prefix)

    def _reference_logps(self, batch: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
        with torch.no_grad(), self._reference() as reference:
            chosen, rejected, *_ = self.concatenated_forward(reference, batch)
        return chosen, rejected

    def compute_loss(  # type: ignore[override]
        self, model: PreTrainedModel | nn.Module, inputs: dict[str, Any], return_outputs: bool = False
    ) -> torch.Tensor | tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Return the loss of a batch, and store its metrics for the next log."""
        if not self.use_dpo_data_collator:
            dpo_setup.warn_of_other_collator("compute_loss")
        with self._autocast():
            loss, metrics = self.get_batch_loss_metrics(model, inputs, train_eval="train")
        self.store_metrics(metrics, train_eval="train")
        return (loss, metrics) if return_outputs else loss

    @_serves_windows
    def get_batch_samples(self, model: PreTrainedModel, batch: dict[str, Any]) -> tuple[list[str], list[str]]:
        """Return texts of the policy and of the reference, prompts included.

        Args:
            model: the policy.
            batch: `prompt_input_ids`, `prompt_attention_mask` (batch, length), optionally `reference_output`.
        """
        tokenizer, length = self.tokenizer, self.max_length
        with self._autocast():
            policy_output = dpo_passes.generate(model, batch, tokenizer, length)
            if "reference_output" in batch:
                reference_output = batch["reference_output"]
            else:
                with self._reference() as reference:
                    reference_output = dpo_passes.generate(reference, batch, tokenizer, length)
        policy, reference = (
            dpo_passes.decode(tokens, tokenizer, length) for tokens in (policy_output, reference_output)
        )
        return policy, reference

    def prediction_step(  # type: ignore[override]
        self,
        model: PreTrainedModel | nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        """Evaluate a batch, and store its metrics for the next log.

        Args:
            model: the policy.
            inputs: the result of `DPODataCollatorWithPadding`.
            prediction_loss_only: whether to return the loss only.
            ignore_keys: metrics to omit from the logits.

        Returns:
            The loss; the mean logits of both sides (2,); labels, zeros (2,).
        """
        if not self.use_dpo_data_collator:
            dpo_setup.warn_of_other_collator("prediction_step")
        if ignore_keys is None:
            ignore_keys = getattr(getattr(model, "config", None), "keys_to_ignore_at_inference", [])
        with torch.no_grad(), self._autocast():
            loss, metrics = self.get_batch_loss_metrics(model, inputs, train_eval="eval")
        self.store_metrics(metrics, train_eval="eval")
        if prediction_loss_only:
            return loss.detach(), None, None
        logits = dpo.mean_logits(metrics, ignore_keys or ()).to(self.accelerator.device)
        return loss.detach(), logits, torch.zeros(len(logits), device=logits.device)

    def store_metrics(self, metrics: dict[str, Any], train_eval: Literal["train", "eval"] = "train") -> None:
        """Store metrics, numbers by name, for the next log of training or of an evaluation."""
        for name, value in metrics.items():
            self._stored_metrics[train_eval][name].append(value)

    def evaluation_loop(
        self,
        dataloader: DataLoader[Any],
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Evaluate; with `generate_during_eval`, log some generated texts before."""
        if self.generate_during_eval:
            self._log_samples(dataloader.dataset)
        return super().evaluation_loop(
            dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix
        )

    def _log_samples(self, dataset: Dataset) -> None:
        indices = random.sample(range(len(dataset)), k=min(self.args.eval_batch_size, len(dataset)))
        batch = self._prepare_inputs(self.data_collator(list(dataset.select(indices))))
        texts = self.get_batch_samples(self.model, batch)
        self.log({"game_log": dpo_passes.table(batch["prompt"], *texts)})
        # The state with a table could not be saved as JSON.
        self.state.log_history.pop()

    def log(self, logs: dict[str, Any]) -> None:
        """Log, together with the means of the stored metrics; a log of training has a `loss`."""
        kept = self._stored_metrics.pop("train" if "loss" in logs else "eval", {})
        logs.update({name: torch.tensor(values).mean().item() for name, values in kept.items()})
        super().log(logs)
