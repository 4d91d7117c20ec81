"""`DPOTrainer`: preferences trained into a model, without a model of rewards."""

from __future__ import annotations

import contextlib
import functools
import random
import warnings
from collections import defaultdict
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from accelerate.utils import tqdm
from torch.nn import functional
from torch.utils.data import DataLoader

from compat.trl.data.dpo_rows import SIDES, RowTokenizer
from compat.trl.import_utils import is_wandb_available
from compat.trl.models import create_reference_model
from compat.trl.trainer.legacy_trainer import (
    Transformers437Trainer,
    default_arguments,
    is_loaded_in_bits,
    is_peft_model,
    let_inputs_require_grad,
    prepared_for_bits,
    require_peft,
)
from compat.trl.trainer.sft_trainer import load_by_name
from compat.trl.trainer.utils import (
    DPODataCollatorWithPadding,
    disable_dropout_in_model,
    pad_to_length,
    peft_module_casting_to_bf16,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from datasets import Dataset
    from torch import nn
    from transformers import (
        DataCollator,
        PreTrainedModel,
        PreTrainedTokenizerBase,
        TrainerCallback,
        TrainingArguments,
    )
    from transformers.trainer_utils import EvalLoopOutput

__all__ = ["DPOTrainer"]

_REFERENCES = tuple(f"reference_{side}_logps" for side in SIDES)
_UNSMOOTHED = ("hinge", "ipo", "kto_pair")


def _serving_windows(method: Callable[..., Any]) -> Callable[..., Any]:
    """Let `get_batch_samples` also be what it has become in transformers: it reads an accumulation window.

    Theirs is called with an iterator, a number of batches and a device, TRL's with a model and a batch.
    """

    @functools.wraps(method)
    def either(self: Any, *args: Any, **kwargs: Any) -> Any:
        if len(args) + len(kwargs) > 2:  # noqa: PLR2004 (see above)
            return super(DPOTrainer, self).get_batch_samples(*args, **kwargs)
        return method(self, *args, **kwargs)

    return either


class DPOTrainer(Transformers437Trainer):
    """Train a model on pairs of answers of which one is preferred.

    Mirrors `trl.DPOTrainer` of 0.7.11. Rafailov et al., Direct Preference Optimization (arXiv:2305.18290).

    Args:
        model: a model, or the name of one to load as a causal model.
        ref_model: what it is held to; a copy of `model` where None, or `model` without its adapter.
        beta: how closely, usually 0.1 to 0.5; tau of IPO.
        label_smoothing: the share of pairs that are taken to be the wrong way round; of the sigmoid loss.
        loss_type: "sigmoid" (DPO), "hinge" (SLiC, arXiv:2305.10425), "ipo" (arXiv:2310.12036) or "kto_pair"
            (Ethayarajh et al., the KTO report).
        args: training arguments; as in `transformers.Trainer`, and so are `eval_dataset`, `model_init`,
            `callbacks`, `optimizers`, `compute_metrics` and `preprocess_logits_for_metrics`.
        data_collator: `DPODataCollatorWithPadding` where None.
        label_pad_token_id: the label of tokens without a loss.
        padding_value: pads what the model reads; the tokenizer's where None.
        truncation_mode: which end of a prompt is kept, "keep_end" or "keep_start".
        train_dataset: rows with texts `prompt`, `chosen` and `rejected`.
        tokenizer: the model's.
        max_length: longest prompt and answer together, in tokens; 512 where None.
        max_prompt_length: longest prompt; 128 where None.
        max_target_length: longest answer of an encoder-decoder model; 128 where None.
        peft_config: an adapter to train in place of the model.
        is_encoder_decoder: needed where there is no `model` yet.
        disable_dropout: whether dropout is switched off in both models.
        generate_during_eval: whether each evaluation logs what both models write, to Weights & Biases.
        precompute_ref_log_probs: whether the reference is asked once, ahead of training.
        dataset_num_proc: processes that tokenize.
        model_init_kwargs: options for loading the model by name.
        ref_model_init_kwargs: options for loading the reference by name.
        model_adapter_name: the adapter that is trained, where the model has several.
        ref_adapter_name: the adapter that is the reference.
        reference_free: whether the reference is taken to find all answers equally likely.

    Raises:
        ValueError: options that contradict each other or lack another one; rows that are no texts.
    """

    _tag_names: ClassVar[list[str]] = ["trl", "dpo"]
    train_dataset: Any
    eval_dataset: Any

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Let overrides of `get_batch_samples` be called by both of its names' owners."""
        super().__init_subclass__(**kwargs)
        if "get_batch_samples" in vars(cls):
            cls.get_batch_samples = _serving_windows(  # type: ignore[method-assign]
                vars(cls)["get_batch_samples"]
            )

    def __init__(  # noqa: C901, PLR0915 (TRL's options, one after the other)
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
        peft_config: Any = None,
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
        # Where this is set, whatever runs the model outside of the Trainer needs autocast.
        self._peft_has_been_casted_to_bf16 = False
        require_peft(peft_config)
        if peft_config is not None:
            policy = self._with_adapter(policy, reference, args, peft_config)
        elif args.gradient_checkpointing and policy is not None:
            let_inputs_require_grad(policy)
        if generate_during_eval and not is_wandb_available():
            msg = (
                "`generate_during_eval=True` requires Weights and Biases to be installed. Please install "
                "`wandb` to resolve."
            )
            raise ValueError(msg)
        if policy is None and is_encoder_decoder is None:
            msg = "When no model is provided, you need to pass the parameter is_encoder_decoder."
            raise ValueError(msg)
        if tokenizer is None:
            msg = "`tokenizer=None`: tokenizer must be specified to tokenize a DPO dataset. Pass one."
            raise ValueError(msg)
        self.is_encoder_decoder = bool(
            is_encoder_decoder if policy is None else policy.config.is_encoder_decoder
        )
        self.is_peft_model = is_peft_model(policy)
        self.model_adapter_name = model_adapter_name
        self.ref_adapter_name = ref_adapter_name
        self.reference_free = reference_free
        self.max_length = _length_or_default("max_length", max_length, 512)
        self.max_prompt_length = _length_or_default("max_prompt_length", max_prompt_length, 128)
        if self.is_encoder_decoder:
            max_target_length = _length_or_default("max_target_length", max_target_length, 128)
        self.max_target_length = max_target_length
        self.use_dpo_data_collator = data_collator is None
        if data_collator is None:
            data_collator = DPODataCollatorWithPadding(
                pad_token_id=tokenizer.pad_token_id,
                label_pad_token_id=label_pad_token_id,
                is_encoder_decoder=self.is_encoder_decoder,
            )
            _keep_columns(args)
        self.generate_during_eval = generate_during_eval
        self.label_pad_token_id = label_pad_token_id
        self.padding_value = tokenizer.pad_token_id if padding_value is None else padding_value
        self.truncation_mode = truncation_mode
        self.tokenizer = tokenizer
        self.precompute_ref_log_probs = precompute_ref_log_probs
        self._precomputed_train_ref_log_probs = False
        self._precomputed_eval_ref_log_probs = False
        if loss_type in _UNSMOOTHED and label_smoothing > 0:
            warnings.warn(
                f"`label_smoothing={label_smoothing}`: you are using a loss type that does not support label "
                f"smoothing, `{loss_type}`. Ignoring label_smoothing parameter: leave it out.",
                stacklevel=2,
            )
        self.beta = beta
        self.label_smoothing = label_smoothing
        self.loss_type = loss_type
        self._stored_metrics: dict[str, dict[str, list[Any]]] = defaultdict(lambda: defaultdict(list))
        self.dataset_num_proc = dataset_num_proc
        # One process per machine does the work, and the others read what it has cached.
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
        # The model without its adapter is a reference, and one that has been asked already is not needed.
        if self.ref_model is None and not self.is_peft_model and not precompute_ref_log_probs:
            self.ref_model = create_reference_model(self.model)
        for one in (self.model, self.ref_model):
            if disable_dropout and one is not None:
                disable_dropout_in_model(one)
        self._prepare_reference()

    def _with_adapter(self, model: Any, ref_model: Any, args: Any, peft_config: Any) -> Any:
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
        is_in_4_bits = getattr(model, "is_loaded_in_4bit", False)
        model = get_peft_model(model, peft_config)
        if args.bf16 and is_in_4_bits:
            peft_module_casting_to_bf16(model)
            self._peft_has_been_casted_to_bf16 = True
        return model

    def _tokenized(self, dataset: Any) -> Any:
        if isinstance(dataset, dict):
            return {name: self._tokenized(one) for name, one in dataset.items()}
        if dataset is None:
            return None
        names = ("tokenize_row", "build_tokenized_answer")
        is_ours = all(getattr(type(self), name) is getattr(DPOTrainer, name) for name in names)
        # Whatever rows are mapped by is pickled, to find its place in the cache: better without the models.
        tokenize = self._rows if is_ours else self.tokenize_row
        return dataset.map(tokenize, num_proc=self.dataset_num_proc)

    def _prepare_reference(self) -> None:
        if self.is_deepspeed_enabled:
            stage = self.accelerator.state.deepspeed_plugin.zero_stage
            if stage == 3 and self.precompute_ref_log_probs:  # noqa: PLR2004 (ZeRO's)
                msg = (
                    "You cannot use `precompute_ref_log_probs=True` with Deepspeed ZeRO-3. Please set "
                    "`precompute_ref_log_probs=False`."
                )
                raise ValueError(msg)
        if self.ref_model is None:
            return
        if self.is_deepspeed_enabled:
            self.ref_model = self._prepare_deepspeed(self.ref_model)
        else:
            self.ref_model = self.accelerator.prepare_model(self.ref_model, evaluation_mode=True)

    def _prepare_deepspeed(self, model: Any) -> Any:
        """Put a model that is not trained into an engine of DeepSpeed's: sharded as the other one, or not."""
        import copy

        import deepspeed

        config = copy.deepcopy(self.accelerator.state.deepspeed_plugin.deepspeed_config)
        # What is not trained has no optimizer that these could be about.
        for name in ("optimizer", "scheduler"):
            config.pop(name, None)
        zero = config["zero_optimization"]
        zero.pop("offload_optimizer", None)
        sizes = getattr(getattr(model, "config", None), "hidden_sizes", None)
        width = max(sizes) if sizes else getattr(getattr(model, "config", None), "hidden_size", None)
        if zero["stage"] != 3:  # noqa: PLR2004 (ZeRO's)
            zero["stage"] = 0
        elif width is not None:
            # What "auto" stands for; accelerate fills it in for the trained model alone.
            zero["reduce_bucket_size"] = width * width
            zero["stage3_param_persistence_threshold"] = 10 * width
            zero["stage3_prefetch_bucket_size"] = int(0.9 * width * width)
        engine, *_ = deepspeed.initialize(model=model, config=config)
        engine.eval()
        return engine

    @property
    def _rows(self) -> RowTokenizer:
        return RowTokenizer(
            tokenizer=self.tokenizer,
            is_encoder_decoder=self.is_encoder_decoder,
            max_length=self.max_length,
            max_prompt_length=self.max_prompt_length,
            max_target_length=self.max_target_length,
            truncation_mode=self.truncation_mode,
            label_pad_token_id=self.label_pad_token_id,
        )

    def build_tokenized_answer(self, prompt: str, answer: str) -> dict[str, list[int]]:
        """Tokenize a prompt and its answer as one text, and part the tokens; see `RowTokenizer.split`."""
        return self._rows.split(prompt, answer)

    def tokenize_row(self, feature: dict[str, Any], model: Any = None) -> dict[str, Any]:
        """Tokenize a row, cut to the lengths of this trainer; see `RowTokenizer.tokenize`."""
        return self._rows.tokenize(feature, self.build_tokenized_answer, model)

    def get_train_dataloader(self) -> DataLoader[Any]:
        """The training dataloader, with the reference's log-probabilities where they are asked for.

        Mirrors `transformers.Trainer.get_train_dataloader`.
        """
        if self.precompute_ref_log_probs and not self._precomputed_train_ref_log_probs:
            self.train_dataset = self._with_reference(
                self.train_dataset, self.args.per_device_train_batch_size, "Train dataset reference log probs"
            )
            self._precomputed_train_ref_log_probs = True
        loader: DataLoader[Any] = super().get_train_dataloader()
        return loader

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader[Any]:
        """The dataloader of an evaluation, with the reference's log-probabilities where they are asked for.

        Mirrors `transformers.Trainer.get_eval_dataloader`.

        Args:
            eval_dataset: a dataset, or the name of one; the trainer's own where None.

        Raises:
            ValueError: there is none.
        """
        if eval_dataset is None and self.eval_dataset is None:
            msg = "Trainer: evaluation requires an eval_dataset. Give the trainer one, or `evaluate`."
            raise ValueError(msg)
        if self.precompute_ref_log_probs:
            eval_dataset = self._with_reference_for_evaluation(eval_dataset)
        loader: DataLoader[Any] = super().get_eval_dataloader(eval_dataset)
        return loader

    def _with_reference_for_evaluation(self, asked: Any) -> Any:
        own = self.eval_dataset
        dataset = own[asked] if isinstance(asked, str) else own if asked is None else asked
        if self.state.global_step and not self.is_peft_model and not _has_reference(dataset):
            warnings.warn(
                "`precompute_ref_log_probs=True`: this dataset is evaluated for the first time, and the "
                "model has been trained already: it is its own reference as it is now. Call `evaluate()` "
                "once ahead of `train()`.",
                stacklevel=3,
            )
        found = self._with_reference(
            dataset, self.args.per_device_eval_batch_size, "Eval dataset reference log probs"
        )
        self._precomputed_eval_ref_log_probs = True
        if isinstance(own, dict):
            self.eval_dataset = {name: found if one is dataset else one for name, one in own.items()}
        elif own is dataset:
            self.eval_dataset = found
        return asked if isinstance(asked, str) else found

    def _with_reference(self, dataset: Any, batch_size: int, description: str) -> Any:
        """Add the columns of the reference's log-probabilities, unless they are there."""
        if _has_reference(dataset):
            return dataset
        loader = self.accelerator.prepare(
            DataLoader(
                dataset,
                batch_size=batch_size,
                collate_fn=self.data_collator,
                num_workers=self.args.dataloader_num_workers,
                pin_memory=self.args.dataloader_pin_memory,
                shuffle=False,
            )
        )
        columns: dict[str, list[torch.Tensor]] = {name: [] for name in _REFERENCES}
        for batch in tqdm(iterable=loader, desc=description, disable=self.args.disable_tqdm or None):
            gathered = self.accelerator.gather_for_metrics(self.compute_reference_log_probs(batch))
            for name, values in zip(columns, gathered, strict=True):
                columns[name].append(values.float().cpu())
        for name, values in columns.items():
            dataset = dataset.add_column(name=name, column=torch.cat(values).numpy())
        return dataset

    @contextlib.contextmanager
    def null_ref_context(self) -> Iterator[None]:
        """Have the model be its own reference: without its adapter, or with the reference's."""
        is_alone = self.is_peft_model and not self.ref_adapter_name
        model = self.accelerator.unwrap_model(self.model)
        with model.disable_adapter() if is_alone else contextlib.nullcontext():
            if self.ref_adapter_name:
                model.set_adapter(self.ref_adapter_name)
            try:
                yield
            finally:
                if self.ref_adapter_name:
                    model.set_adapter(self.model_adapter_name or "default")

    @contextlib.contextmanager
    def _reference(self) -> Iterator[Any]:
        """The reference model, or what is it for the length of the block."""
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
        """Ask the reference.

        Args:
            padded_batch: what `DPODataCollatorWithPadding` makes.

        Returns:
            Log-probabilities of the chosen and of the rejected answers, each (batch,).
        """
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
        """Put the chosen and the rejected side of a batch into one, in this order.

        Args:
            batch: what `DPODataCollatorWithPadding` makes.
            is_encoder_decoder: whether the model has an encoder of its own, which reads the prompts.
            label_pad_token_id: pads labels.
            padding_value: pads `input_ids`.
            device: where they go.

        Returns:
            `concatenated_*` for each key of the two sides, of shape (2 * batch, length).
        """
        kind = "labels" if is_encoder_decoder else "input_ids"
        length = max(batch[f"{side}_{kind}"].shape[1] for side in SIDES)

        def padded(key: str) -> torch.Tensor:
            if "labels" in key or is_encoder_decoder:
                fill = label_pad_token_id
            else:
                fill = padding_value if key.endswith("_input_ids") else 0
            return pad_to_length(batch[key], length, pad_value=fill)

        found: dict[str, torch.Tensor] = {}
        for key, values in batch.items():
            if key.startswith("chosen") and isinstance(values, torch.Tensor):
                other = key.replace("chosen", "rejected")
                together = torch.cat((padded(key), padded(other)), dim=0).to(device=device)
                found[key.replace("chosen", "concatenated")] = together
        if is_encoder_decoder:
            for part in ("input_ids", "attention_mask"):
                found[f"concatenated_{part}"] = batch[f"prompt_{part}"].repeat(2, 1).to(device=device)
        return found

    def dpo_loss(
        self,
        policy_chosen_logps: torch.Tensor,
        policy_rejected_logps: torch.Tensor,
        reference_chosen_logps: torch.Tensor,
        reference_rejected_logps: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The loss of `loss_type`, and the rewards that it implies.

        Args:
            policy_chosen_logps: log-probabilities of the answers, each (batch,); of IPO, by token.
            policy_rejected_logps: the same.
            reference_chosen_logps: the same, by the reference.
            reference_rejected_logps: the same, by the reference.

        Returns:
            Losses (batch,), of kto_pair (2 * batch,), and the rewards of both sides (batch,), detached.

        Raises:
            ValueError: `loss_type` is unknown.
        """
        device = self.accelerator.device
        chosen = policy_chosen_logps.to(device) - reference_chosen_logps.to(device)
        rejected = policy_rejected_logps.to(device) - reference_rejected_logps.to(device)
        logits = (policy_chosen_logps - policy_rejected_logps).to(device)
        if not self.reference_free:
            logits = logits - (reference_chosen_logps - reference_rejected_logps).to(device)
        losses = self._losses(logits, chosen, rejected)
        return losses, self.beta * chosen.detach(), self.beta * rejected.detach()

    def _losses(self, logits: torch.Tensor, chosen: torch.Tensor, rejected: torch.Tensor) -> torch.Tensor:
        beta, wrong = self.beta, self.label_smoothing
        if self.loss_type == "sigmoid":
            right_loss = -functional.logsigmoid(beta * logits)
            return right_loss * (1 - wrong) - functional.logsigmoid(-beta * logits) * wrong
        if self.loss_type == "hinge":
            return torch.relu(1 - beta * logits)
        if self.loss_type == "ipo":
            return (logits - 1 / (2 * beta)) ** 2
        if self.loss_type == "kto_pair":
            # Each side is held against the divergence that the other one shows.
            chosen_kl, rejected_kl = (ratios.mean().clamp(min=0) for ratios in (chosen, rejected))
            gains = torch.cat((beta * (chosen - rejected_kl), beta * (chosen_kl - rejected)), dim=0)
            return 1 - torch.sigmoid(gains)
        msg = (
            f"Unknown loss type: {self.loss_type}. `loss_type` should be one of {['sigmoid', *_UNSMOOTHED]}."
        )
        raise ValueError(msg)

    @staticmethod
    def get_batch_logps(
        logits: torch.Tensor,
        labels: torch.Tensor,
        average_log_prob: bool = False,
        label_pad_token_id: int = -100,
        is_encoder_decoder: bool = False,
    ) -> torch.Tensor:
        """The log-probabilities of labels.

        Args:
            logits: (batch, length, vocab).
            labels: (batch, length).
            average_log_prob: whether to take the mean over the tokens of an answer, and not the sum.
            label_pad_token_id: the label of tokens that do not count.
            is_encoder_decoder: whether logits stand at the place of their label, and not one ahead of it.

        Returns:
            Log-probabilities (batch,).

        Raises:
            ValueError: the two shapes differ.
        """
        if logits.shape[:-1] != labels.shape:
            msg = (
                "Logits (batch and sequence length dim) and labels must have the same shape: they are "
                f"{tuple(logits.shape[:-1])} and {tuple(labels.shape)}. Pad both alike."
            )
            raise ValueError(msg)
        predicted, targets = (logits, labels) if is_encoder_decoder else (logits[:, :-1], labels[:, 1:])
        counts = targets != label_pad_token_id
        chosen = targets.masked_fill(~counts, 0).unsqueeze(2)
        logps = predicted.log_softmax(-1).gather(2, chosen).squeeze(2)
        total = (logps * counts).sum(-1)
        return total / counts.sum(-1) if average_log_prob else total

    def concatenated_forward(
        self, model: nn.Module, batch: dict[str, Any]
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Run a model once over both sides of a batch.

        Args:
            model: the policy or the reference.
            batch: what `DPODataCollatorWithPadding` makes.

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
        options: dict[str, Any] = {}
        if self.is_encoder_decoder:
            options = {"labels": labels, "decoder_input_ids": inputs.get("concatenated_decoder_input_ids")}
        logits = model(
            inputs["concatenated_input_ids"],
            attention_mask=inputs["concatenated_attention_mask"],
            use_cache=False,
            **options,
        ).logits
        logps = self.get_batch_logps(
            logits,
            labels,
            average_log_prob=self.loss_type == "ipo",
            is_encoder_decoder=self.is_encoder_decoder,
            label_pad_token_id=self.label_pad_token_id,
        )
        return logps[:size], logps[size:], logits[:size], logits[size:]

    def get_batch_loss_metrics(
        self, model: Any, batch: dict[str, Any], train_eval: Literal["train", "eval"] = "train"
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The loss of a batch, and what is logged of it.

        Args:
            model: the policy.
            batch: what `DPODataCollatorWithPadding` makes; it may bring the reference's log-probabilities.
            train_eval: which names the metrics have; those of an evaluation begin with `eval_`.

        Returns:
            The loss, a scalar; `rewards/…`, `logps/…` and `logits/…`, scalars on the CPU.
        """
        chosen, rejected, chosen_logits, rejected_logits = self.concatenated_forward(model, batch)
        if batch.keys() >= {*_REFERENCES}:
            references = tuple(batch[name] for name in _REFERENCES)
        else:
            references = self._reference_logps(batch)
        losses, chosen_rewards, rejected_rewards = self.dpo_loss(chosen, rejected, *references)  # type: ignore[arg-type]
        found = {
            "rewards/chosen": chosen_rewards,
            "rewards/rejected": rejected_rewards,
            "rewards/accuracies": (chosen_rewards > rejected_rewards).float(),
            "rewards/margins": chosen_rewards - rejected_rewards,
            "logps/rejected": rejected,
            "logps/chosen": chosen,
            "logits/rejected": rejected_logits,
            "logits/chosen": chosen_logits,
        }
        prefix = "eval_" if train_eval == "eval" else ""
        return losses.mean(), {f"{prefix}{name}": v.detach().mean().cpu() for name, v in found.items()}

    def _reference_logps(self, batch: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
        with torch.no_grad(), self._reference() as reference:
            chosen, rejected, *_ = self.concatenated_forward(reference, batch)
        return chosen, rejected

    def compute_loss(  # type: ignore[override]
        self, model: PreTrainedModel | nn.Module, inputs: dict[str, Any], return_outputs: bool = False
    ) -> Any:
        """The loss of a batch; its metrics are kept for the next log.

        Args:
            model: the policy.
            inputs: what `DPODataCollatorWithPadding` makes.
            return_outputs: whether to return the metrics, too.
        """
        self._warn_of_other_collator("compute_loss")
        with self._autocast():
            loss, metrics = self.get_batch_loss_metrics(model, inputs, train_eval="train")
        self.store_metrics(metrics, train_eval="train")
        return (loss, metrics) if return_outputs else loss

    def _warn_of_other_collator(self, method: str) -> None:
        if not self.use_dpo_data_collator:
            warnings.warn(
                f"{method} is only implemented for DPODataCollatorWithPadding, and you passed a data "
                f"collator that is different. Have it make the same keys, or override `{method}`.",
                stacklevel=3,
            )

    @_serving_windows
    def get_batch_samples(self, model: Any, batch: dict[str, Any]) -> tuple[list[str], list[str]]:
        """Let the policy and the reference go on with the prompts of a batch.

        Args:
            model: the policy.
            batch: has `prompt_input_ids` and `prompt_attention_mask`, (batch, length), and may bring
                `reference_output`.

        Returns:
            What each has written, prompts included.
        """

        def written_by(writer: Any) -> Any:
            return writer.generate(
                input_ids=batch["prompt_input_ids"],
                attention_mask=batch["prompt_attention_mask"],
                max_length=self.max_length,
                do_sample=True,
                pad_token_id=self.tokenizer.pad_token_id,
            )

        def decoded(tokens: torch.Tensor) -> list[str]:
            padded = pad_to_length(tokens, self.max_length, self.tokenizer.pad_token_id)
            texts: list[str] = self.tokenizer.batch_decode(padded, skip_special_tokens=True)
            return texts

        with self._autocast():
            policy_output = written_by(model)
            if "reference_output" in batch:
                reference_output = batch["reference_output"]
            else:
                with self._reference() as reference:
                    reference_output = written_by(reference)
        return decoded(policy_output), decoded(reference_output)

    def prediction_step(  # type: ignore[override]
        self,
        model: PreTrainedModel | nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        """Evaluate a batch; its metrics are kept for the next log.

        Args:
            model: the policy.
            inputs: what `DPODataCollatorWithPadding` makes.
            prediction_loss_only: whether the loss is all that is asked for.
            ignore_keys: of `eval_logits/chosen` and `eval_logits/rejected`, those to leave out.

        Returns:
            The loss; the mean logits of both sides (2,); labels, zeros (2,).
        """
        self._warn_of_other_collator("prediction_step")
        if ignore_keys is None:
            ignore_keys = getattr(getattr(model, "config", None), "keys_to_ignore_at_inference", [])
        with torch.no_grad(), self._autocast():
            loss, metrics = self.get_batch_loss_metrics(model, inputs, train_eval="eval")
        self.store_metrics(metrics, train_eval="eval")
        if prediction_loss_only:
            return loss.detach(), None, None
        names = [
            name for name in ("eval_logits/chosen", "eval_logits/rejected") if name not in (ignore_keys or ())
        ]
        logits = torch.stack([metrics[name] for name in names]).to(self.accelerator.device)
        return loss.detach(), logits, torch.zeros(len(logits), device=logits.device)

    def store_metrics(self, metrics: dict[str, Any], train_eval: Literal["train", "eval"] = "train") -> None:
        """Keep metrics until the next log, which tells their means.

        Args:
            metrics: numbers by name.
            train_eval: whether it is the next log of training, or of an evaluation.
        """
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
        """Evaluate, and show some samples before where `generate_during_eval` asks for them.

        Mirrors `transformers.Trainer.evaluation_loop`.
        """
        if self.generate_during_eval:
            self._log_samples(dataloader.dataset)
        return super().evaluation_loop(
            dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix
        )

    def _log_samples(self, dataset: Any) -> None:
        import wandb

        indices = random.sample(range(len(dataset)), k=min(self.args.eval_batch_size, len(dataset)))
        batch = self._prepare_inputs(self.data_collator(list(dataset.select(indices))))
        texts = zip(batch["prompt"], *self.get_batch_samples(self.model, batch), strict=True)
        rows = [[prompt, *(text[len(prompt) :] for text in written)] for prompt, *written in texts]
        self.log({"game_log": wandb.Table(columns=["Prompt", "Policy", "Ref Model"], rows=rows)})
        # A table is no number: the state could not be saved with it.
        self.state.log_history.pop()

    def log(self, logs: dict[str, Any]) -> None:
        """Log, together with the means of the metrics kept since the last time.

        Mirrors `transformers.Trainer.log`.

        Args:
            logs: a log of training has a `loss`.
        """
        kept = self._stored_metrics.pop("train" if "loss" in logs else "eval", {})
        logs.update({name: torch.tensor(values).mean().item() for name, values in kept.items()})
        super().log(logs)


def _has_reference(dataset: Any) -> bool:
    return {*_REFERENCES} <= {*dataset.column_names}


def _length_or_default(name: str, given: int | None, default: int) -> int:
    if given is not None:
        return given
    warnings.warn(
        f"`{name}` is not set in the DPOTrainer's init: it will default to `{default}`. Set it yourself.",
        UserWarning,
        stacklevel=3,
    )
    return default


def _keep_columns(args: Any) -> None:
    if not args.remove_unused_columns:
        return
    args.remove_unused_columns = False
    warnings.warn(
        "When using DPODataCollatorWithPadding, you should set `remove_unused_columns=False` in your "
        "TrainingArguments: the model knows none of the columns by name. We have set it for you.",
        UserWarning,
        stacklevel=3,
    )
