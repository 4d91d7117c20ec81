"""Proximal policy optimization, step by step. Mirrors `trl.trainer.ppo_trainer` of 0.7.11."""

from __future__ import annotations

import contextlib
import inspect
import time
import warnings
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from accelerate.utils import ProjectConfiguration, gather_object
from datasets import Dataset
from torch.nn.functional import kl_div
from torch.optim import Adam
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader
from transformers import DataCollatorForLanguageModeling, PreTrainedTokenizerBase
from typing_extensions import override

from compat.fabric.accelerator import FabricAccelerator
from compat.trl.core import (
    WANDB_PADDING,
    PPODecorators,
    clip_by_value,
    convert_to_scalar,
    entropy_from_logits,
    flatten_dict,
    logprobs_from_logits,
    masked_mean,
    masked_var,
    masked_whiten,
    set_seed,
    stack_dicts,
    stats_to_np,
)
from compat.trl.import_utils import is_npu_available, is_xpu_available
from compat.trl.models import SUPPORTED_ARCHITECTURES, create_reference_model
from compat.trl.trainer.base import BaseTrainer, write_model_card
from compat.trl.trainer.ppo_config import PPOConfig
from compat.trl.trainer.utils import AdaptiveKLController, FixedKLController, RunningMoments

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from torch import Tensor, nn
    from torch.optim import Optimizer

MODEL_CARD = """---
license: apache-2.0
tags:
- trl
- ppo
- transformers
- reinforcement-learning
---

# {model_name}

A language model that was trained further by reinforcement learning (PPO), with
[TRL](https://github.com/huggingface/trl) 0.7's interface on PyTorch Lightning.

## Usage

```python
from transformers import pipeline

generator = pipeline("text-generation", model="{model_id}")
print(generator("Once upon a time"))
```

With its value head, to train it further:

```python
from transformers import AutoTokenizer
from compat.trl import AutoModelForCausalLMWithValueHead

tokenizer = AutoTokenizer.from_pretrained("{model_id}")
model = AutoModelForCausalLMWithValueHead.from_pretrained("{model_id}")
logits, _, values = model(**tokenizer("Once upon a time", return_tensors="pt"))
```
"""

COLUMNS_OF_USERS = ("label", "query", "response")
"""Columns that stay in a dataset though the model takes none: rewards and logs are made of them."""

KL_ESTIMATORS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "kl": lambda logprob, ref: logprob - ref,
    "abs": lambda logprob, ref: (logprob - ref).abs(),
    "mse": lambda logprob, ref: (logprob - ref).square() * 0.5,
    "full": lambda logprob, ref: kl_div(ref, logprob, log_target=True, reduction="none").sum(-1),
}
"""`PPOConfig.kl_penalty` → the estimate, from log-probabilities of tokens; "full" from whole vocabularies."""

PADDED_ACROSS = {"input_ids": True, "attention_mask": False}
"""What of a model's inputs is padded to one length on all processes → by the padding token, or by zeros."""


class PPOTrainer(BaseTrainer):
    """Optimizes a language model with a value head by PPO; its user generates, scores, and calls `step`.

    Lightning Fabric places, wraps and steps: `lightning={...}` of the configuration holds its flags.

    Args:
        config: the configuration; sizes of the job are filled in.
        model: the model to train, with a value head.
        ref_model: the model whose distribution it is to stay near; a frozen copy where it is left out, the
            model itself without its adapter with PEFT.
        tokenizer: pads queries and responses.
        dataset: for `dataloader`, which yields batches of `config.batch_size`.
        optimizer: of the model's parameters; Adam where it is left out.
        data_collator: of the dataloader.
        num_shared_layers: how many layers a copied reference shares with the model.
        lr_scheduler: stepped once in each `step`.

    Attributes:
        accelerator: accelerate's face over Fabric.
        current_device: where tensors lie.
        kl_ctl: the controller of the KL coefficient.
        running: running moments of scores.

    Raises:
        ValueError: an argument of a kind that PPO cannot work with.
    """

    _tag_names = ("trl", "ppo")

    def __init__(
        self,
        config: PPOConfig | None = None,
        model: Any = None,
        ref_model: Any = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        dataset: torch.utils.data.Dataset[Any] | Dataset | None = None,
        optimizer: Optimizer | None = None,
        data_collator: Callable[..., Any] | None = None,
        num_shared_layers: int | None = None,
        lr_scheduler: LRScheduler | None = None,
    ) -> None:
        _check(config, model, ref_model, tokenizer, dataset, lr_scheduler)
        assert config is not None
        super().__init__(config)
        set_seed(config.seed)
        self.accelerator = FabricAccelerator(
            further=config.accelerator_kwargs,
            lightning=config.lightning,
            log_with=config.log_with,
            gradient_accumulation_steps=config.gradient_accumulation_steps,
            project_config=ProjectConfiguration(**(config.project_kwargs or {})),
        )
        self.model: Any = model
        # Handed out once, as TRL does: see `train_minibatch`.
        self.model_params: Iterator[nn.Parameter] = filter(_trains, model.parameters())
        self._has_clipped = False
        self.is_encoder_decoder = hasattr(model, "is_encoder_decoder")
        self.is_peft_model: bool = getattr(model, "is_peft_model", False)
        self._fill_in(config)
        self.is_using_text_environment = getattr(config, "use_text_environment", False)
        self.ref_model = self._reference(ref_model, num_shared_layers)
        self.optional_peft_ctx: Callable[[], contextlib.AbstractContextManager[Any]] = (
            self.accelerator.unwrap_model(model).pretrained_model.disable_adapter  # type: ignore[union-attr,assignment]
            if self.is_peft_model
            else contextlib.nullcontext
        )
        self.tokenizer: Any = tokenizer
        self.dataset = dataset
        self._signature_columns: list[str] | None = None
        self.dataloader: Any = None if dataset is None else self.prepare_dataloader(dataset, data_collator)
        if dataset is None:
            self._warn_of_missing_dataset()
        self.data_collator: Any = DataCollatorForLanguageModeling(tokenizer, mlm=False)
        self.optimizer: Any = optimizer or Adam(filter(_trains, model.parameters()), lr=config.learning_rate)
        self.lr_scheduler: Any = lr_scheduler
        self.kl_ctl = _controller(config)
        self.model, self.optimizer, self.data_collator, self.dataloader, self.lr_scheduler = (
            self.accelerator.prepare(
                self.model, self.optimizer, self.data_collator, self.dataloader, self.lr_scheduler
            )
        )
        if self.ref_model is not None:
            self.ref_model = self.accelerator.prepare(self.ref_model)
        self.is_distributed = self.accelerator.num_processes > 1
        self.current_step = 0
        if config.push_to_hub_if_best_kwargs:
            self._compare_with_the_best(config.push_to_hub_if_best_kwargs)
        self.current_device = self._device()
        PPODecorators.optimize_device_cache = bool(config.optimize_device_cache)
        self.running = RunningMoments(self.accelerator)

    def _fill_in(self, config: PPOConfig) -> None:
        """Tell the configuration what is known now, and the trackers the configuration."""
        processes: int = self.accelerator.num_processes
        assert config.backward_batch_size is not None
        config.world_size = processes
        config.global_backward_batch_size = config.backward_batch_size * processes
        config.global_batch_size = config.batch_size * processes
        config.is_encoder_decoder = self.is_encoder_decoder
        config.is_peft_model = self.is_peft_model
        told = config.to_dict()
        self.accelerator.init_trackers(
            config.tracker_project_name,
            config=told if config.log_with == "tensorboard" else {"trl_ppo_trainer_config": told},
            init_kwargs=config.tracker_kwargs or {},
        )

    def _reference(self, ref_model: Any, num_shared_layers: int | None) -> Any:
        if ref_model is not None:
            if num_shared_layers is not None:
                warnings.warn(
                    "`num_shared_layers` is ignored when `ref_model` is provided: these two share no layers.",
                    UserWarning,
                    stacklevel=3,
                )
            return ref_model
        if self.is_peft_model:
            return None
        return create_reference_model(self.model, num_shared_layers=num_shared_layers)

    def _warn_of_missing_dataset(self) -> None:
        warnings.warn(
            "No dataset is provided. Make sure to set config.batch_size to the correct value before "
            "training.",
            UserWarning,
            stacklevel=3,
        )
        if self.accelerator.num_processes > 1:
            warnings.warn(
                "No dataset is provided, and there are several processes: each would see the same data. Give "
                "a dataset, or take `trainer.accelerator.prepare(dataloader)` of your own dataloader.",
                UserWarning,
                stacklevel=3,
            )

    def _compare_with_the_best(self, options: dict[str, Any]) -> None:
        if "repo_id" not in options:
            msg = (
                "`push_to_hub_if_best_kwargs`: You have to specify repo_id in order to push the model to the "
                "hub! Give {'repo_id': ...}."
            )
            raise ValueError(msg)
        self.push_to_hub_kwargs = options
        self.compare_step = 0
        self.highest_reward = torch.tensor(-float("inf"))

    def _device(self) -> torch.device:
        """Where tensors lie: the first device of the kind there is, for a model spread over several."""
        if not getattr(self.model, "is_sequential_parallel", False):
            device: torch.device = self.accelerator.device
            return device
        kind = "xpu" if is_xpu_available() else "npu" if is_npu_available() else "cuda"
        return torch.device(f"{kind}:0")

    def _filter_kwargs(self, kwargs: dict[str, Any], target_func: Callable[..., Any]) -> dict[str, Any]:
        """Those of some arguments that a function takes."""
        taken = inspect.signature(target_func).parameters
        return {name: value for name, value in kwargs.items() if name in taken}

    def prepare_dataloader(self, dataset: Any, data_collator: Callable[..., Any] | None = None) -> Any:
        """A dataloader of shuffled, whole batches of `config.batch_size`.

        Args:
            dataset: columns of a `datasets.Dataset` go that the model does not take, but for those of
                `COLUMNS_OF_USERS`.
            data_collator: makes a batch of a list of examples.
        """
        if isinstance(dataset, Dataset):
            dataset = self._remove_unused_columns(dataset)
        return DataLoader(
            dataset, batch_size=self.config.batch_size, collate_fn=data_collator, shuffle=True, drop_last=True
        )

    def _set_signature_columns_if_needed(self) -> None:
        if self._signature_columns is None:
            taken = inspect.signature(self.model.forward).parameters
            self._signature_columns = [*taken, *COLUMNS_OF_USERS]

    def _remove_unused_columns(self, dataset: Dataset) -> Dataset:
        if not self.config.remove_unused_columns:
            return dataset
        self._set_signature_columns_if_needed()
        assert self._signature_columns is not None
        return dataset.remove_columns(sorted({*dataset.column_names}.difference(self._signature_columns)))

    def generate(
        self,
        query_tensor: Tensor | list[Tensor],
        length_sampler: Callable[[], int] | None = None,
        batch_size: int = 4,
        return_prompt: bool = True,
        generate_ref_response: bool = False,
        **generation_kwargs: Any,
    ) -> Any:
        """Generate a response to a query, or to each query of a list.

        Args:
            query_tensor: tokens, shape (length,), or a list of such tensors.
            length_sampler: draws the number of new tokens, for one query or for each batch of a list.
            batch_size: queries of a list that are answered together.
            return_prompt: whether a response begins with its query; those of encoder-decoder models never do.
            generate_ref_response: whether the reference model answers as well.
            generation_kwargs: for the model's `generate`.

        Returns:
            A tensor of shape (1, length) for one query, a list of tensors of shape (length,) for a list;
            with `generate_ref_response` a pair of the model's and the reference's.

        Raises:
            ValueError: a tensor that is no single query.
        """
        query_tensor = _as_list(query_tensor)
        options: dict[str, Any] = {"length_sampler": length_sampler, "return_prompt": return_prompt}
        if isinstance(query_tensor, list):
            answer: Callable[..., Any] = self._generate_batched
            options["batch_size"] = batch_size
        else:
            if not isinstance(query_tensor, torch.Tensor) or query_tensor.dim() != 1:
                is_tensor = isinstance(query_tensor, torch.Tensor)
                got = tuple(query_tensor.shape) if is_tensor else type(query_tensor)
                way_out = "Take its rows: `list(query_tensor)`" if is_tensor else "Give `torch.tensor(...)`"
                msg = (
                    "query_tensor must be a tensor of shape (`seq_len`) or a list of tensors of shape "
                    f"(`seq_len`) - got {got}. {way_out}."
                )
                raise ValueError(msg)
            answer = self._generate_one
            if length_sampler is not None:
                # One draw, for both models.
                generation_kwargs["max_new_tokens"] = length_sampler()
        response = answer(self.model, query_tensor, **options, **generation_kwargs)
        if not generate_ref_response:
            return response
        with self.optional_peft_ctx():
            reference = self.model if self.is_peft_model else self.ref_model
            return response, answer(reference, query_tensor, **options, **generation_kwargs)

    def _generate_one(
        self, model: Any, query: Tensor, *, return_prompt: bool, length_sampler: Any, **generation_kwargs: Any
    ) -> Tensor:
        bare: Any = self.accelerator.unwrap_model(model)
        response: Tensor = bare.generate(input_ids=query.unsqueeze(0), **generation_kwargs)
        has_prompt = not self.is_encoder_decoder
        return response[:, len(query) :] if has_prompt and not return_prompt else response

    def _generate_batched(
        self,
        model: Any,
        query_tensors: list[Tensor],
        length_sampler: Callable[[], int] | None = None,
        batch_size: int = 4,
        return_prompt: bool = True,
        pad_to_multiple_of: int | None = None,
        remove_padding: bool = True,
        **generation_kwargs: Any,
    ) -> list[Tensor]:
        has_prompt = not self.is_encoder_decoder
        bare: Any = self.accelerator.unwrap_model(model)
        outputs: list[Tensor] = []
        with _padding_on("left" if has_prompt else self.tokenizer.padding_side, self.tokenizer):
            for start in range(0, len(query_tensors), batch_size):
                if length_sampler is not None:
                    generation_kwargs["max_new_tokens"] = length_sampler()
                queries = query_tensors[start : start + batch_size]
                inputs = self.tokenizer.pad(
                    {"input_ids": queries, "attention_mask": [torch.ones_like(query) for query in queries]},
                    padding=True,
                    max_length=None,
                    pad_to_multiple_of=pad_to_multiple_of,
                    return_tensors="pt",
                ).to(self.current_device)
                generated = bare.generate(**inputs, **generation_kwargs)
                for row, mask in zip(generated, inputs["attention_mask"], strict=False):
                    response = row
                    if has_prompt:
                        padding, prompt = int((1 - mask).sum()), int(mask.sum())
                        response = row[padding if return_prompt else padding + prompt :]
                    outputs.append(self._until_end(response) if remove_padding else response)
        return outputs

    def _until_end(self, response: Tensor) -> Tensor:
        """A response up to its first end of sequence, which is kept."""
        ends = (response == self.tokenizer.eos_token_id).nonzero()
        return response[: int(ends[0]) + 1] if len(ends) else response

    def _step_safety_checker(
        self,
        batch_size: int | None,
        queries: list[Tensor],
        responses: list[Tensor],
        scores: list[Tensor],
        masks: list[Tensor] | None = None,
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor], list[Tensor] | None]:
        """Check what `step` is given, and move it to the device; scores become tensors without dimensions."""
        queries, responses, scores = map(_as_list, (queries, responses, scores))
        for name, tensors in (("queries", queries), ("responses", responses), ("scores", scores)):
            if not isinstance(tensors, list):
                msg = f"{name} must be a list of tensors - got {type(tensors)}. Give `list({name})`."
                raise ValueError(msg)  # noqa: TRY004 (TRL's)
            if not all(isinstance(tensor, torch.Tensor) for tensor in tensors[:1]):
                msg = (
                    f"Elements in {name} must be tensors - got {type(tensors[0])}. Give `torch.tensor(...)`."
                )
                raise ValueError(msg)
            if batch_size is not None and len(tensors) != batch_size:
                msg = (
                    f"Batch size ({batch_size}) does not match number of examples - but got {len(tensors)} "
                    f"for: {name}. Give as many, or set `PPOConfig(batch_size={len(tensors)})`."
                )
                raise ValueError(msg)
        for score in scores:
            if score.dim() > 1:
                msg = f"Scores must be 1-dimensional - got {score.dim()} for {score}. Give one number each."
                raise ValueError(msg)

        def here(tensors: list[Tensor]) -> list[Tensor]:
            return [tensor.to(self.current_device) for tensor in tensors]

        squeezed = [score.squeeze() for score in here(scores)]
        return here(queries), here(responses), squeezed, None if masks is None else here(masks)

    @PPODecorators.empty_device_cache()
    def step(
        self,
        queries: list[Tensor],
        responses: list[Tensor],
        scores: list[Tensor],
        response_masks: list[Tensor] | None = None,
    ) -> dict[str, Any]:
        """Optimize the model on one batch.

        Args:
            queries: `config.batch_size` tensors of tokens, shape (query length,).
            responses: as many, shape (response length,), without their queries.
            scores: as many, one number each.
            response_masks: as many, shape (response length,); tokens of zero are not trained on.

        Returns:
            Statistics: numbers and NumPy arrays.

        Raises:
            ValueError: what is given does not fit `config.batch_size`, or is not of these kinds.
        """
        clock = _Clock()
        checked = self._step_safety_checker(
            self.config.batch_size, queries, responses, scores, response_masks
        )
        queries, responses, scores, response_masks = checked
        shaped = self._shape_scores(torch.tensor(scores, device=self.current_device))
        self._push_if_best(shaped)

        clock.start()
        inputs = self._pad_across_processes(self.prepare_model_inputs(queries, responses))
        with torch.no_grad():
            is_full = self.config.kl_penalty == "full"
            logprobs, logits, values, masks = self.batched_forward_pass(
                self.model,
                queries,
                responses,
                inputs,
                return_logits=is_full,
                response_masks=response_masks,
            )
            with self.optional_peft_ctx():
                ref_logprobs, ref_logits, _, _ = self.batched_forward_pass(
                    self.model if self.is_peft_model else self.ref_model,
                    queries,
                    responses,
                    inputs,
                    return_logits=is_full,
                )
            clock.stop("time/ppo/forward_pass")
            said, ref_said = logprobs, ref_logprobs
            if is_full:
                # Without labels: those of the whole vocabulary.
                said, ref_said = (
                    logprobs_from_logits(each, None, gather=False)  # type: ignore[arg-type]
                    for each in (logits, ref_logits)
                )
            rewards, non_score_reward, kls = self.compute_rewards(shaped, said, ref_said, masks)
            clock.stop("time/ppo/compute_rewards")
            values, advantages, returns = self.compute_advantages(values, rewards, masks)
            clock.stop("time/ppo/compute_advantages")

        batch = {
            "logprobs": logprobs.float(),
            "values": values.float(),
            "masks": masks,
            "advantages": advantages,
            "returns": returns,
        }
        train_stats = self._optimize(queries, responses, inputs, batch)
        clock.stop("time/ppo/optimize_step")
        stats = self.record_step_stats(
            scores=shaped,
            logprobs=logprobs,
            ref_logprobs=ref_logprobs,
            non_score_reward=non_score_reward,
            train_stats=train_stats,
            kl_coef=self.kl_ctl.value,
            masks=masks,
            queries=queries,
            responses=responses,
            kls=kls,
        )
        if self.is_distributed:
            stats = self.gather_stats(stats)
        stats = stats_to_np(stats)
        clock.stop("time/ppo/calc_stats")
        stats["ppo/learning_rate"] = self.optimizer.param_groups[0]["lr"]
        self.kl_ctl.update(stats["objective/kl"], self.config.batch_size * self.accelerator.num_processes)
        stats.update(clock.times())
        if self.config.log_with != "wandb":
            stats = convert_to_scalar(stats)
        if self.lr_scheduler is not None:
            self.lr_scheduler.step()
        return stats

    def _shape_scores(self, scores: Tensor) -> Tensor:
        """Scale, normalize and clip scores, as the configuration asks."""
        config = self.config
        if config.use_score_scaling:
            self.running.update(scores)
            mean, std = (
                torch.as_tensor(moment).to(scores) for moment in (self.running.mean, self.running.std)
            )
            centred = scores - mean if config.use_score_norm else scores
            scores = centred / (std + torch.finfo(scores.dtype).eps)
        if config.score_clip is not None:
            scores = scores.float().clip(-config.score_clip, config.score_clip).to(scores.dtype)
        return scores

    def _push_if_best(self, scores: Tensor) -> None:
        if not hasattr(self, "highest_reward"):
            return
        mean = scores.mean()
        if self.compare_step % self.config.compare_steps == 0 and mean > self.highest_reward:
            self.highest_reward = mean
            self.push_to_hub(**self.push_to_hub_kwargs)
        self.compare_step += 1

    def _pad_across_processes(self, inputs: Any) -> Any:
        if not self.is_distributed:
            return inputs
        for prefix in ("", "decoder_"):
            for name, is_token in PADDED_ACROSS.items():
                if prefix + name in inputs:
                    inputs[prefix + name] = self.accelerator.pad_across_processes(
                        inputs[prefix + name],
                        dim=1,
                        pad_index=self.tokenizer.pad_token_id if is_token else 0,
                        pad_first=self.tokenizer.padding_side == "left",
                    )
        return inputs

    def _optimize(
        self, queries: list[Tensor], responses: list[Tensor], inputs: Any, batch: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Go through a batch `ppo_epochs` times; statistics of each mini batch, stacked."""
        config = self.config
        collected: list[dict[str, Tensor]] = []
        for _ in range(config.ppo_epochs):
            # One epoch after the other: NumPy's generator is its user's as well.
            order = np.random.permutation(config.batch_size)  # noqa: NPY002
            for start in range(0, config.batch_size, config.mini_batch_size):
                chosen = order[start : start + config.mini_batch_size]
                part = {name: values[chosen] for name, values in batch.items()}
                with self.accelerator.accumulate(self.model):
                    logprobs, logits, vpreds, _ = self.batched_forward_pass(
                        self.model,
                        [queries[place] for place in chosen],
                        [responses[place] for place in chosen],
                        {name: inputs[name][chosen] for name in inputs},
                        return_logits=True,
                    )
                    collected.append(
                        self.train_minibatch(
                            part["logprobs"],
                            part["values"],
                            logprobs,
                            cast("Tensor", logits),
                            vpreds,
                            part["masks"],
                            part["advantages"],
                            part["returns"],
                        )
                    )
            if config.early_stopping and self._early_stop(collected[-1]["policy/policykl"]):
                break
        stacked: dict[str, Tensor] = stack_dicts(collected)
        # These are looked at token by token: one row, so that they are not averaged.
        advantages = stacked["policy/advantages"].flatten().unsqueeze(0)
        stacked["policy/advantages"] = torch.nan_to_num(advantages, WANDB_PADDING)
        stacked["policy/ratio"] = stacked["policy/ratio"].flatten().unsqueeze(0)
        return stacked

    def _early_stop(self, policykl: Tensor) -> bool:
        """Whether the policy has moved half as far again as `target_kl`, on average over processes."""
        if not self.config.early_stopping:
            return False
        if self.is_distributed:
            policykl = self.accelerator.reduce(policykl, reduction="mean")
        has_moved = bool(policykl > 1.5 * self.config.target_kl)
        if has_moved:
            self.optimizer.zero_grad()
        return has_moved

    def gather_stats(self, stats: dict[str, Any]) -> dict[str, Any]:
        """Average the tensors among statistics over all processes.

        Args:
            stats: name → value; tensors have the same shape on each process.
        """
        self.accelerator.wait_for_everyone()
        return {
            name: self.accelerator.reduce(value.to(self.accelerator.device), reduction="mean")
            if isinstance(value, torch.Tensor)
            else value
            for name, value in stats.items()
        }

    def prepare_model_inputs(self, queries: list[Tensor], responses: list[Tensor]) -> Any:
        """Padded inputs of the model: queries with their responses, or both apart for encoder-decoders.

        Args:
            queries: tokens, shape (query length,) each.
            responses: tokens, shape (response length,) each.

        Returns:
            `input_ids` and `attention_mask`, and the same with `decoder_` before them for encoder-decoders.
        """
        if not self.is_encoder_decoder:
            return self._collate(
                [torch.cat([query, response]) for query, response in zip(queries, responses, strict=False)]
            )
        inputs, decoder = self._collate(queries), self._collate(responses)
        inputs.update({f"decoder_{name}": decoder[name] for name in PADDED_ACROSS})
        return inputs

    def _collate(self, texts: list[Tensor]) -> Any:
        collated = self.data_collator(
            [{"input_ids": text, "attention_mask": torch.ones_like(text)} for text in texts]
        ).to(self.current_device)
        # No loss of language modelling is wanted.
        collated.pop("labels", None)
        return collated

    @PPODecorators.empty_device_cache()
    def batched_forward_pass(
        self,
        model: Any,
        queries: list[Tensor],
        responses: list[Tensor],
        model_inputs: Mapping[str, Tensor],
        return_logits: bool = False,
        response_masks: list[Tensor] | None = None,
    ) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
        """Compute log-probabilities and values, `mini_batch_size` examples at a time.

        Args:
            model: the model, or its reference.
            queries: tokens, shape (query length,) each.
            responses: tokens, shape (response length,) each.
            model_inputs: of `prepare_model_inputs`, shape (batch size, length).
            return_logits: whether logits are wanted, too; they are large.
            response_masks: shape (response length,) each.

        Returns:
            Log-probabilities of each next token, shape (batch size, length - 1); logits, shape (batch size,
            length - 1, vocabulary), or None; values, shape (batch size, length - 1); masks, one where the
            next token is one of the response, shape (batch size, length - 1).
        """
        model.eval()
        prefix = "decoder_" if self.is_encoder_decoder else ""
        chunks: list[tuple[Tensor, ...]] = []
        for start in range(0, len(queries), self.config.mini_batch_size):
            window = slice(start, start + self.config.mini_batch_size)
            inputs = {name: tensor[window] for name, tensor in model_inputs.items()}
            logits, _, values = model(**inputs)
            tokens, attention = inputs[f"{prefix}input_ids"], inputs[f"{prefix}attention_mask"]
            chunk = (
                logprobs_from_logits(logits[:, :-1, :], tokens[:, 1:]),
                values[:, :-1],
                self._mask_of_responses(
                    attention,
                    queries[window],
                    responses[window],
                    None if response_masks is None else response_masks[window],
                ),
            )
            chunks.append((*chunk, logits[:, :-1]) if return_logits else chunk)
        logprobs, all_values, masks, *all_logits = (torch.cat(parts) for parts in zip(*chunks, strict=True))
        return logprobs, all_logits[0] if all_logits else None, all_values, masks

    def _mask_of_responses(
        self,
        attention: Tensor,
        queries: list[Tensor],
        responses: list[Tensor],
        response_masks: list[Tensor] | None,
    ) -> Tensor:
        """One where the next token is one of the response, and is to be trained on."""
        masks = torch.zeros_like(attention[:, 1:])
        for row, (query, response) in enumerate(zip(queries, responses, strict=False)):
            if self.is_encoder_decoder:
                # The first token of the decoder is not predicted, and neither is what follows the last one.
                start, end = 1, int(attention[row].sum()) - 1
                offset = start
            else:
                padding = int(attention[row].nonzero()[0])
                start, offset = padding + len(query) - 1, 0
                end = start + len(response)
            masks[row, start:end] = attention[row, 1:][start:end]
            if response_masks is not None:
                masks[row, start:end] *= response_masks[row][offset : offset + end - start]
        return masks

    @PPODecorators.empty_device_cache()
    def train_minibatch(
        self,
        old_logprobs: Tensor,
        values: Tensor,
        logprobs: Tensor,
        logits: Tensor,
        vpreds: Tensor,
        mask: Tensor,
        advantages: Tensor,
        returns: Tensor,
    ) -> dict[str, Tensor]:
        """Run the backward pass of one mini batch, and step at the end of an accumulation window.

        With `max_grad_norm`, TRL 0.7 clips the gradients of the trainer's first update alone, since it hands
        out `model_params` once; so does this, and says so. With
        `trainer.model_params = list(trainer.model_params)` each update is clipped.

        Args:
            old_logprobs: log-probabilities before the step, shape (mini batch, length).
            values: values before the step, of the same shape.
            logprobs: log-probabilities, with their graph, of the same shape.
            logits: logits, with their graph, shape (mini batch, length, vocabulary).
            vpreds: values, with their graph, shape (mini batch, length).
            mask: one for tokens of responses, shape (mini batch, length).
            advantages: shape (mini batch, length).
            returns: shape (mini batch, length).

        Returns:
            Statistics.
        """
        self.model.train()
        policy, value, stats = self.loss(
            old_logprobs, values, logits, vpreds, logprobs, mask, advantages, returns
        )
        self.accelerator.backward(policy + value)
        if self.config.max_grad_norm is not None and self.accelerator.sync_gradients:
            self._clip()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return stats

    def _clip(self) -> None:
        is_given_once = not isinstance(self.model_params, (list, tuple))
        if is_given_once and self._has_clipped:
            warnings.warn(
                f"`max_grad_norm={self.config.max_grad_norm}`: as in TRL 0.7, gradients are clipped in the "
                "first update alone. To have them clipped in each, make a list of `trainer.model_params` "
                "before the first step: `trainer.model_params = list(trainer.model_params)`.",
                UserWarning,
                stacklevel=4,
            )
        self.accelerator.clip_grad_norm_(self.model_params, self.config.max_grad_norm)
        self._has_clipped = True

    def compute_rewards(
        self, scores: Iterable[Tensor], logprobs: Tensor, ref_logprobs: Tensor, masks: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Rewards of each token: the KL penalty, and at the last one of a response its score.

        Args:
            scores: one per response.
            logprobs: the model's, shape (batch size, length); with `kl_penalty="full"` those of the whole
                vocabulary, shape (batch size, length, vocabulary).
            ref_logprobs: the reference's, of the same shape.
            masks: one for tokens of responses, shape (batch size, length).

        Returns:
            Rewards, the penalties among them, and the KL estimates; shape (batch size, length) each.
        """
        kls = torch.stack([self._kl_penalty(*pair) for pair in zip(logprobs, ref_logprobs, strict=False)])
        penalties = -self.kl_ctl.value * kls
        last = torch.stack([mask.nonzero()[-1] for mask in masks])
        each = torch.stack([torch.as_tensor(score) for score in scores]).to(penalties).unsqueeze(1)
        # Out of place: log-probabilities may carry a graph.
        return penalties.scatter_add(1, last, each), penalties, kls

    def _kl_penalty(self, logprob: Tensor, ref_logprob: Tensor) -> Tensor:
        estimator = KL_ESTIMATORS.get(self.config.kl_penalty)
        if estimator is None:
            msg = f"`kl_penalty={self.config.kl_penalty!r}`: choose among {', '.join(KL_ESTIMATORS)}."
            raise NotImplementedError(msg)
        return estimator(logprob, ref_logprob)

    def compute_advantages(
        self, values: Tensor, rewards: Tensor, mask: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Generalized advantage estimation (Schulman et al. 2016, arXiv:1506.02438, equation 16).

        Args:
            values: shape (batch size, length).
            rewards: shape (batch size, length).
            mask: one for tokens of responses, shape (batch size, length).

        Returns:
            Masked values; whitened advantages; returns; shape (batch size, length) each.
        """
        values, rewards = values * mask, rewards * mask
        if self.config.whiten_rewards:
            rewards = masked_whiten(rewards, mask, shift_mean=False)
        following = torch.cat([values[:, 1:], torch.zeros_like(values[:, :1])], dim=1)
        deltas = rewards + self.config.gamma * following - values
        advantages = torch.empty_like(deltas)
        decay = self.config.gamma * self.config.lam
        running = torch.zeros_like(deltas[:, 0])
        for token in range(deltas.shape[1] - 1, -1, -1):
            running = deltas[:, token] + decay * running
            advantages[:, token] = running
        returns = advantages + values
        return values, masked_whiten(advantages, mask).detach(), returns

    def loss(
        self,
        old_logprobs: Tensor,
        values: Tensor,
        logits: Tensor,
        vpreds: Tensor,
        logprobs: Tensor,
        mask: Tensor,
        advantages: Tensor,
        returns: Tensor,
    ) -> tuple[Tensor, Tensor, dict[str, Any]]:
        """The clipped surrogate objective and value loss of PPO (Schulman et al. 2017, arXiv:1707.06347).

        Args:
            old_logprobs: log-probabilities before the step, shape (batch size, length).
            values: values before the step, of the same shape.
            logits: shape (batch size, length, vocabulary).
            vpreds: values, with their graph, shape (batch size, length).
            logprobs: log-probabilities, with their graph, of the same shape.
            mask: one for tokens of responses, of the same shape.
            advantages: of the same shape.
            returns: of the same shape.

        Returns:
            The policy's loss; the value's, weighted by `vf_coef`; statistics.
        """
        config = self.config

        def mean(what: Tensor) -> Tensor:
            averaged: Tensor = masked_mean(what, mask)
            return averaged

        errors = (vpreds - returns) ** 2
        near = clip_by_value(vpreds, values - config.cliprange_value, values + config.cliprange_value)
        clipped_errors = (near - returns) ** 2
        value_loss = 0.5 * mean(torch.maximum(errors, clipped_errors))

        ratio = torch.exp(logprobs - old_logprobs)
        surrogates = -advantages * ratio
        clipped_surrogates = -advantages * ratio.clamp(1.0 - config.cliprange, 1.0 + config.cliprange)
        policy_loss = mean(torch.maximum(surrogates, clipped_surrogates))
        total = policy_loss + config.vf_coef * value_loss

        mean_ratio = mean(ratio).item()
        if mean_ratio > config.ratio_threshold:
            warnings.warn(
                f"The average ratio of batch ({mean_ratio:.2f}) exceeds threshold "
                f"{config.ratio_threshold:.2f}. Skipping batch.",
                UserWarning,
                stacklevel=2,
            )
            policy_loss, value_loss, total = policy_loss * 0.0, value_loss * 0.0, total * 0.0

        stats = {
            "loss": {"policy": policy_loss, "value": value_loss, "total": total},
            "policy": {
                "entropy": mean(entropy_from_logits(logits)),
                "approxkl": 0.5 * mean((logprobs - old_logprobs) ** 2),
                "policykl": mean(old_logprobs - logprobs),
                "clipfrac": mean((clipped_surrogates > surrogates).float()),
                "advantages": advantages,
                "advantages_mean": mean(advantages),
                "ratio": ratio,
            },
            "returns": {"mean": mean(returns), "var": masked_var(returns, mask)},
            "val": {
                "vpred": mean(vpreds),
                "error": mean(errors),
                "clipfrac": mean((clipped_errors > errors).float()),
                "mean": mean(values),
                "var": masked_var(values, mask),
            },
        }
        flat = {name: value.detach() for name, value in flatten_dict(stats).items()}
        return policy_loss, config.vf_coef * value_loss, flat

    def record_step_stats(self, kl_coef: float, **data: Any) -> dict[str, Any]:
        """The statistics of one step.

        Args:
            kl_coef: the KL coefficient of the step.
            data: `scores`, `logprobs`, `ref_logprobs`, `non_score_reward`, `train_stats`, `masks`, `queries`,
                `responses` and `kls` of the step.

        Returns:
            Name → number, array or tensor.
        """
        mask = data["masks"]
        kl_of_each = (data["kls"] * mask).sum(axis=-1)
        kl = kl_of_each.mean()
        if kl.item() < -1.0:
            warnings.warn(
                f"KL divergence is starting to become negative: {kl.item():.2f} - this might be a precursor "
                "for failed training. Sometimes the generation kwargs are not correctly set: generate with "
                "nothing that changes probabilities (`top_k=0, top_p=1.0, do_sample=True`), or review the "
                "hyperparameters.",
                UserWarning,
                stacklevel=2,
            )
        stats = {
            "objective/kl": kl,
            "objective/kl_dist": kl_of_each,
            "objective/logprobs": data["logprobs"],
            "objective/ref_logprobs": data["ref_logprobs"],
            "objective/kl_coef": kl_coef,
            "objective/entropy": (-data["logprobs"] * mask).sum(axis=-1).mean(),
            "ppo/mean_non_score_reward": masked_mean(data["non_score_reward"], mask),
            "ppo/mean_scores": data["scores"].mean(),
            "ppo/std_scores": data["scores"].std(),
        }
        for kind in ("queries", "responses"):
            lengths = torch.tensor([len(text) for text in data[kind]], dtype=torch.float)
            stats[f"tokens/{kind}_len_mean"] = lengths.mean().item()
            stats[f"tokens/{kind}_len_std"] = lengths.std().item()
            stats[f"tokens/{kind}_dist"] = lengths.numpy()
        stats.update({f"ppo/{name}": value.mean(axis=0) for name, value in data["train_stats"].items()})
        stats["ppo/val/var_explained"] = 1 - stats["ppo/val/error"] / stats["ppo/returns/var"]
        return stats

    def log_stats(
        self,
        stats: dict[str, Any],
        batch: dict[str, Any],
        rewards: list[Tensor] | Tensor,
        columns_to_log: Iterable[str] = ("query", "response"),
    ) -> None:
        """Write statistics, and rewards with their texts, to the trackers.

        Args:
            stats: of `step`.
            batch: name → a list; `query` and `response` hold the texts.
            rewards: one per example.
            columns_to_log: the columns of `batch` that go into Weights & Biases' table.

        Raises:
            ValueError: one of them is not in `batch`.
        """
        columns = list(columns_to_log)
        if not isinstance(rewards, torch.Tensor):
            rewards = torch.tensor(rewards).to(self.current_device)
        gathered: Tensor = self.accelerator.gather(rewards).flatten()
        makes_table = self.config.log_with == "wandb"
        texts = self._gathered_columns(batch, columns) if makes_table else []
        if not self.accelerator.is_main_process:
            return
        logs: dict[str, Any] = {}
        if "query" not in batch and "response" not in batch:
            warnings.warn(
                "The game logs will not be logged because the batch does not contain the keys 'query' and "
                "'response'.",
                UserWarning,
                stacklevel=2,
            )
        elif makes_table:
            import wandb

            rows = [list(row) for row in zip(*texts, gathered.cpu().tolist(), strict=False)]
            logs["game_log"] = wandb.Table(columns=[*columns, "reward"], rows=rows)
        logs.update(stats)
        logs.update(
            {
                name: value.float()
                for name, value in logs.items()
                if isinstance(value, torch.Tensor) and value.dtype == torch.bfloat16
            }
        )
        logs["env/reward_mean"] = gathered.mean().item()
        logs["env/reward_std"] = gathered.std().item()
        logs["env/reward_dist"] = gathered.cpu().numpy()
        # TensorBoard counts nothing by itself.
        is_counted = self.config.log_with == "tensorboard" or bool(self.accelerator.fabric.loggers)
        self.current_step += is_counted
        self.accelerator.log(logs, step=self.current_step if is_counted else None)

    def _gathered_columns(self, batch: dict[str, Any], columns: list[str]) -> list[Any]:
        if any(column not in batch for column in columns):
            msg = (
                f"Columns to log {columns} are not present in the batch {list(batch)}. Give `columns_to_log`."
            )
            raise ValueError(msg)
        texts = [batch[column] for column in columns]
        return [gather_object(column) for column in texts] if self.is_distributed else texts

    def create_model_card(self, path: str, model_name: str | None = "TRL Model") -> None:
        """Write a model card, where the hub knows its user.

        Args:
            path: the folder.
            model_name: the card's title.
        """
        write_model_card(path, MODEL_CARD, model_name)

    @override
    def _save_pretrained(self, save_directory: Any) -> None:
        # Shards are put together by all processes.
        weights = self.accelerator.get_state_dict(self.model)
        if self.accelerator.is_main_process:
            model: Any = self.accelerator.unwrap_model(self.model)
            model.save_pretrained(save_directory, state_dict=weights)
            self.tokenizer.save_pretrained(save_directory)
            self.create_model_card(str(save_directory))
        self.accelerator.wait_for_everyone()

    def _show_tokens(self, tokens: Tensor, masks: Tensor) -> None:
        """Print tokens, those that are trained on in another colour."""
        from rich import print as show
        from rich.text import Text

        text = Text()
        for token, mask in zip(tokens, masks, strict=False):
            colour = "deep_sky_blue1" if mask == 1 else "cyan3"
            text.append(self.tokenizer.decode(token.item()), style=f"black on {colour}")
            text.append(" ")
        show(text)

    def _prepare_deepspeed(self, model: Any) -> Any:
        return self.accelerator.prepare_model(model, evaluation_mode=True)


class _Clock:
    """Wall-clock seconds of the parts of one step, one after the other."""

    def __init__(self) -> None:
        self._begin = self._last = time.time()
        self._times: dict[str, float] = {}

    def start(self) -> None:
        self._last = time.time()

    def stop(self, name: str) -> None:
        self._times[name] = time.time() - self._last
        self.start()

    def times(self) -> dict[str, float]:
        return {**self._times, "time/ppo/total": time.time() - self._begin}


def _trains(parameter: nn.Parameter) -> bool:
    return parameter.requires_grad


def _controller(config: Any) -> AdaptiveKLController | FixedKLController:
    if config.adap_kl_ctrl:
        return AdaptiveKLController(config.init_kl_coef, config.target, config.horizon)
    return FixedKLController(config.init_kl_coef)


def _as_list(values: Any) -> Any:
    """What newer releases of datasets give for a column, as the list that it was."""
    return list(values) if type(values).__name__ == "Column" else values


@contextlib.contextmanager
def _padding_on(side: str, tokenizer: Any) -> Iterator[None]:
    """Have a tokenizer pad on one side, also if the block fails."""
    before = tokenizer.padding_side
    tokenizer.padding_side = side
    try:
        yield
    finally:
        tokenizer.padding_side = before


def _check(config: Any, model: Any, ref_model: Any, tokenizer: Any, dataset: Any, lr_scheduler: Any) -> None:
    """Refuse what PPO cannot work with, before anything is built."""
    architectures = " or ".join(kind.__name__ for kind in SUPPORTED_ARCHITECTURES)
    wrong = (
        (isinstance(config, PPOConfig), f"config must be a PPOConfig, got {type(config)}."),
        (
            isinstance(tokenizer, PreTrainedTokenizerBase),
            "tokenizer must be a PreTrainedTokenizerBase like a PreTrainedTokenizer or a "
            f"PreTrainedTokenizerFast, got {type(tokenizer)}.",
        ),
        (
            isinstance(model, SUPPORTED_ARCHITECTURES),
            f"model must be a PreTrainedModelWrapper, got {type(model)} - supported architectures are: "
            f"{architectures}.",
        ),
        (
            ref_model is None or isinstance(ref_model, SUPPORTED_ARCHITECTURES),
            f"ref_model must be a PreTrainedModelWrapper or `None`, got {type(ref_model)} - supported "
            f"architectures are: {architectures}.",
        ),
        (
            dataset is None or isinstance(dataset, (torch.utils.data.Dataset, Dataset)),
            f"dataset must be a torch.utils.data.Dataset or datasets.Dataset, got {type(dataset)}.",
        ),
        (
            lr_scheduler is None or isinstance(lr_scheduler, LRScheduler),
            f"lr_scheduler must be a torch.optim.lr_scheduler.LRScheduler, got {type(lr_scheduler)}.",
        ),
    )
    for is_right, message in wrong:
        if not is_right:
            raise ValueError(message)
