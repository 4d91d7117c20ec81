"""Proximal policy optimization, step by step. Mirrors `trl.trainer.ppo_trainer` of 0.7.11."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from datasets import Dataset
from torch.optim import Adam
from torch.utils.data import DataLoader
from transformers import DataCollatorForLanguageModeling
from typing_extensions import override

from compat.trl.algorithms import ppo, ppo_statistics
from compat.trl.algorithms.policy_batches import minibatches
from compat.trl.algorithms.ppo import Rollout
from compat.trl.core import (  # noqa: F401 (scripts import TRL's helpers from here)
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
from compat.trl.models import SUPPORTED_ARCHITECTURES, create_reference_model  # noqa: F401
from compat.trl.trainer import ppo_checks, ppo_inputs, ppo_logging, ppo_setup
from compat.trl.trainer.base import BaseTrainer, write_model_card
from compat.trl.trainer.clock import Clock
from compat.trl.trainer.model_cards import PPO_CARD
from compat.trl.trainer.ppo_config import PPOConfig  # noqa: TC001
from compat.trl.trainer.ppo_generation import generate_in_batches
from compat.trl.trainer.utils import AdaptiveKLController, FixedKLController, RunningMoments  # noqa: F401

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from pathlib import Path

    from torch import Tensor, nn
    from torch.optim import Optimizer
    from torch.optim.lr_scheduler import LRScheduler
    from transformers import BatchEncoding, PreTrainedTokenizerBase

    from compat.trl.models.modeling_base import PreTrainedModelWrapper

COLUMNS_OF_USERS = ("label", "query", "response")
"""Dataset columns that are kept for rewards and logs, although the model does not take them."""


class PPOTrainer(BaseTrainer):
    """Trains a language model with a value head by PPO. The user generates, scores, and calls `step`.

    Lightning Fabric places and wraps the model, and steps the optimizer. `config.lightning` holds its flags.

    Args:
        config: the configuration; the trainer sets the sizes of the job in it.
        model: the model to train, with a value head.
        ref_model: the reference model; by default a frozen copy, with PEFT the model without its adapter.
        tokenizer: pads queries and responses.
        dataset: the data of `dataloader`, which yields batches of `config.batch_size`.
        optimizer: the optimizer of the model; by default Adam.
        data_collator: the collator of the dataloader.
        num_shared_layers: the number of layers that a copied reference shares with the model.
        lr_scheduler: the schedule; `step` steps it once.

    Attributes:
        accelerator: an accelerate interface on Fabric.
        current_device: the device of the inputs.
        kl_ctl: the controller of the KL coefficient.
        running: running moments of scores.

    Raises:
        ValueError: an argument has a wrong type.
    """

    _tag_names = ("trl", "ppo")

    def __init__(
        self,
        config: PPOConfig | None = None,
        model: Any = None,
        ref_model: PreTrainedModelWrapper | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        dataset: torch.utils.data.Dataset[Any] | Dataset | None = None,
        optimizer: Optimizer | None = None,
        data_collator: Callable[..., Any] | None = None,
        num_shared_layers: int | None = None,
        lr_scheduler: LRScheduler | None = None,
    ) -> None:
        ppo_checks.check_parts(config, model, ref_model, tokenizer, dataset, lr_scheduler)
        assert config is not None
        super().__init__(config)
        set_seed(config.seed)
        self.accelerator = ppo_setup.build_accelerator(config)
        self.model: Any = model
        # An iterator, as in TRL: see `train_minibatch`.
        self.model_params: Iterator[nn.Parameter] = ppo_setup.trainable(model)
        self._has_clipped = False
        self.is_encoder_decoder = hasattr(model, "is_encoder_decoder")
        self.is_peft_model: bool = getattr(model, "is_peft_model", False)
        ppo_setup.complete_config(config, self.accelerator, self.is_encoder_decoder, self.is_peft_model)
        self.is_using_text_environment = getattr(config, "use_text_environment", False)
        self.ref_model = ppo_setup.reference_model(ref_model, model, num_shared_layers, self.is_peft_model)
        self.optional_peft_ctx = ppo_setup.adapter_context(self.accelerator.unwrap_model(model))
        self.tokenizer: Any = tokenizer
        self.dataset = dataset
        self._signature_columns: list[str] | None = None
        self.dataloader: Any = None if dataset is None else self.prepare_dataloader(dataset, data_collator)
        if dataset is None:
            ppo_checks.warn_of_missing_dataset(self.accelerator.num_processes)
        self.data_collator: Any = DataCollatorForLanguageModeling(tokenizer, mlm=False)
        self.optimizer: Any = optimizer or Adam(ppo_setup.trainable(model), lr=config.learning_rate)
        self.lr_scheduler: Any = lr_scheduler
        self.kl_ctl = ppo_setup.kl_controller(config)
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
            ppo_checks.check_hub_options(config.push_to_hub_if_best_kwargs)
            self.push_to_hub_kwargs = config.push_to_hub_if_best_kwargs
            self.compare_step = 0
            self.highest_reward = torch.tensor(-float("inf"))
        self.current_device = ppo_setup.input_device(self.model, self.accelerator)
        PPODecorators.optimize_device_cache = bool(config.optimize_device_cache)
        self.running = RunningMoments(self.accelerator)

    def _filter_kwargs(self, kwargs: dict[str, Any], target_func: Callable[..., Any]) -> dict[str, Any]:
        """Return the arguments that a function accepts."""
        taken = inspect.signature(target_func).parameters
        return {name: value for name, value in kwargs.items() if name in taken}

    def prepare_dataloader(self, dataset: Any, data_collator: Callable[..., Any] | None = None) -> Any:
        """Return a dataloader of shuffled, full batches of `config.batch_size`.

        Args:
            dataset: a dataset; columns without a model input are removed, except `COLUMNS_OF_USERS`.
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
        **generation_kwargs: object,
    ) -> Any:
        """Generate a response to a query, or to each query of a list.

        Args:
            query_tensor: tokens, shape (length,), or a list of such tensors.
            length_sampler: draws the number of new tokens, for one query or for each batch of a list.
            batch_size: queries of a list per call of the model.
            return_prompt: whether responses of decoder-only models begin with their queries.
            generate_ref_response: whether the reference model also generates.
            generation_kwargs: for the model's `generate`.

        Returns:
            A tensor of shape (1, length), or a list of tensors of shape (length,) for a list of queries; with
            `generate_ref_response` a pair of this and the same from the reference.

        Raises:
            ValueError: a tensor is not a single query.
        """
        query_tensor = ppo_inputs.as_list(query_tensor)
        options: dict[str, Any] = {"length_sampler": length_sampler, "return_prompt": return_prompt}
        if isinstance(query_tensor, list):
            answer: Callable[..., Any] = self._generate_batched
            options["batch_size"] = batch_size
        else:
            ppo_checks.check_query(query_tensor)
            answer = self._generate_one
            if length_sampler is not None:
                # Drawn once for both models.
                generation_kwargs["max_new_tokens"] = length_sampler()
        response = answer(self.model, query_tensor, **options, **generation_kwargs)
        if not generate_ref_response:
            return response
        with self.optional_peft_ctx():
            reference = self.model if self.is_peft_model else self.ref_model
            return response, answer(reference, query_tensor, **options, **generation_kwargs)

    def _generate_one(
        self,
        model: nn.Module,
        query: Tensor,
        *,
        return_prompt: bool,
        length_sampler: object,
        **options: object,
    ) -> Tensor:
        bare: Any = self.accelerator.unwrap_model(model)
        response: Tensor = bare.generate(input_ids=query.unsqueeze(0), **options)
        return response if return_prompt or self.is_encoder_decoder else response[:, len(query) :]

    def _generate_batched(
        self,
        model: nn.Module,
        query_tensors: list[Tensor],
        length_sampler: Callable[[], int] | None = None,
        batch_size: int = 4,
        return_prompt: bool = True,
        pad_to_multiple_of: int | None = None,
        remove_padding: bool = True,
        **generation_kwargs: object,
    ) -> list[Tensor]:
        return generate_in_batches(
            self.accelerator.unwrap_model(model),
            query_tensors,
            tokenizer=self.tokenizer,
            device=self.current_device,
            batch_size=batch_size,
            length_sampler=length_sampler,
            is_encoder_decoder=self.is_encoder_decoder,
            return_prompt=return_prompt,
            pad_to_multiple_of=pad_to_multiple_of,
            remove_padding=remove_padding,
            **generation_kwargs,
        )

    def _step_safety_checker(
        self,
        batch_size: int | None,
        queries: list[Tensor],
        responses: list[Tensor],
        scores: list[Tensor],
        masks: list[Tensor] | None = None,
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor], list[Tensor] | None]:
        """Check the arguments of `step` and move them to the device; scores become scalar tensors."""
        return ppo_inputs.checked(self.current_device, batch_size, queries, responses, scores, masks)

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
            response_masks: as many, shape (response length,); tokens with a zero are not trained on.

        Returns:
            Statistics: numbers and NumPy arrays.

        Raises:
            ValueError: an argument does not match `config.batch_size`, or has a wrong type.
        """
        clock = Clock()
        checked = self._step_safety_checker(
            self.config.batch_size, queries, responses, scores, response_masks
        )
        queries, responses, scores, response_masks = checked
        shaped = ppo_inputs.shape_scores(
            torch.tensor(scores, device=self.current_device), self.config, self.running
        )
        self._push_if_best(shaped)

        clock.start()
        inputs = self.prepare_model_inputs(queries, responses)
        if self.is_distributed:
            inputs = ppo_inputs.pad_across_processes(inputs, self.accelerator, self.tokenizer)
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
                # Without labels, the result covers the whole vocabulary.
                said, ref_said = (
                    logprobs_from_logits(each, None, gather=False)  # type: ignore[arg-type]
                    for each in (logits, ref_logits)
                )
            rewards, non_score_reward, kls = self.compute_rewards(shaped, said, ref_said, masks)
            clock.stop("time/ppo/compute_rewards")
            values, advantages, returns = self.compute_advantages(values, rewards, masks)
            clock.stop("time/ppo/compute_advantages")

        rollout = Rollout(logprobs.float(), values.float(), masks, advantages, returns)
        train_stats = self._optimize(queries, responses, inputs, rollout)
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

    def _push_if_best(self, scores: Tensor) -> None:
        if not hasattr(self, "highest_reward"):
            return
        mean = scores.mean()
        if self.compare_step % self.config.compare_steps == 0 and mean > self.highest_reward:
            self.highest_reward = mean
            self.push_to_hub(**self.push_to_hub_kwargs)
        self.compare_step += 1

    def _optimize(
        self, queries: list[Tensor], responses: list[Tensor], inputs: Mapping[str, Tensor], rollout: Rollout
    ) -> dict[str, Tensor]:
        """Train `ppo_epochs` times on a batch, and return the stacked statistics of all mini batches."""
        config = self.config
        collected: list[dict[str, Tensor]] = []
        for _ in range(config.ppo_epochs):
            # Drawn per epoch, because users also draw from NumPy's generator.
            order = np.random.permutation(config.batch_size)  # noqa: NPY002
            for chosen in minibatches(order, config.mini_batch_size):
                old = Rollout(*(tensor[chosen] for tensor in rollout))
                with self.accelerator.accumulate(self.model):
                    logprobs, logits, vpreds, _ = self.batched_forward_pass(
                        self.model,
                        [queries[place] for place in chosen],
                        [responses[place] for place in chosen],
                        {name: inputs[name][chosen] for name in inputs},
                        return_logits=True,
                    )
                    stats = self.train_minibatch(
                        old.logprobs,
                        old.values,
                        logprobs,
                        cast("Tensor", logits),
                        vpreds,
                        old.mask,
                        old.advantages,
                        old.returns,
                    )
                collected.append(stats)
            if config.early_stopping and self._early_stop(collected[-1]["policy/policykl"]):
                break
        return ppo_statistics.stack_minibatches(collected)

    def _early_stop(self, policykl: Tensor) -> bool:
        """Whether to stop early: the mean KL divergence of all processes exceeds 1.5 times `target_kl`."""
        if not self.config.early_stopping:
            return False
        if self.is_distributed:
            policykl = self.accelerator.reduce(policykl, reduction="mean")
        has_moved = bool(policykl > 1.5 * self.config.target_kl)
        if has_moved:
            self.optimizer.zero_grad()
        return has_moved

    def gather_stats(self, stats: dict[str, Any]) -> dict[str, Any]:
        """Average tensors over all processes; they have the same shape on each process."""
        self.accelerator.wait_for_everyone()
        return ppo_logging.averaged(stats, self.accelerator)

    def prepare_model_inputs(self, queries: list[Tensor], responses: list[Tensor]) -> BatchEncoding:
        """Collate queries with their responses, or both separately for encoder-decoder models.

        Args:
            queries: tokens, shape (query length,) each.
            responses: tokens, shape (response length,) each.

        Returns:
            `input_ids` and `attention_mask`, and `decoder_…` of both for encoder-decoder models.
        """
        return ppo_inputs.collate(
            self.data_collator, self.current_device, queries, responses, self.is_encoder_decoder
        )

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
            model: the model or its reference.
            queries: tokens, shape (query length,) each.
            responses: tokens, shape (response length,) each.
            model_inputs: the result of `prepare_model_inputs`, shape (batch size, length).
            return_logits: whether to also return logits, which are large.
            response_masks: shape (response length,) each.

        Returns:
            For each next token its log-probability, logits or None, value, and mask of response tokens; shape
            (batch size, length - 1), logits (batch size, length - 1, vocabulary).
        """
        model.eval()
        return ppo_inputs.forward_in_chunks(
            model,
            queries,
            responses,
            model_inputs,
            size=self.config.mini_batch_size,
            return_logits=return_logits,
            response_masks=response_masks,
            is_encoder_decoder=self.is_encoder_decoder,
        )

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

        As in TRL 0.7, `max_grad_norm` clips the first update only, because `model_params` is an iterator. Set
        `trainer.model_params = list(trainer.model_params)` to clip every update.

        The arguments are those of `loss`, in another order.

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
            ppo_checks.warn_of_single_clipping(self.config.max_grad_norm)
        self.accelerator.clip_grad_norm_(self.model_params, self.config.max_grad_norm)
        self._has_clipped = True

    def compute_rewards(
        self, scores: Iterable[Tensor], logprobs: Tensor, ref_logprobs: Tensor, masks: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Compute the rewards of tokens: KL penalties, plus the score at the last token of a response.

        Args:
            scores: a number per response.
            logprobs: log-probabilities of the model, shape (batch size, length), or (batch size, length,
                vocabulary) with `kl_penalty="full"`.
            ref_logprobs: log-probabilities of the reference, of the same shape.
            masks: one for response tokens, shape (batch size, length).

        Returns:
            Rewards, the penalties that they include, and the KL estimates; shape (batch size, length) each.
        """
        kls = torch.stack([self._kl_penalty(*pair) for pair in zip(logprobs, ref_logprobs, strict=False)])
        rewards, penalties = ppo.token_rewards(scores, kls, masks, self.kl_ctl.value)
        return rewards, penalties, kls

    def _kl_penalty(self, logprob: Tensor, ref_logprob: Tensor) -> Tensor:
        return ppo.estimate_kl(logprob, ref_logprob, self.config.kl_penalty)

    def compute_advantages(
        self, values: Tensor, rewards: Tensor, mask: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return masked values, whitened advantages and returns; see `ppo.estimate_advantages`."""
        config = self.config
        return ppo.estimate_advantages(
            values, rewards, mask, config.gamma, config.lam, whiten_rewards=config.whiten_rewards
        )

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
        """Compute the losses of PPO (Schulman et al. 2017, arXiv:1707.06347).

        Tensors have shape (batch size, length), `logits` (batch size, length, vocabulary). `logits`, `vpreds`
        and `logprobs` carry a graph; the others come from before the step, as in `Rollout`.

        Returns:
            The policy's loss; the value's, weighted by `vf_coef`; statistics.
        """
        config = self.config
        old = Rollout(old_logprobs, values, mask, advantages, returns)
        policy = ppo.policy_loss(logprobs, old, config.cliprange)
        value = ppo.value_loss(vpreds, old, config.cliprange_value)
        total = policy.loss + config.vf_coef * value.loss
        mean_ratio = masked_mean(policy.ratio, mask).item()
        if mean_ratio > config.ratio_threshold:
            ppo_checks.warn_of_skipped_batch(mean_ratio, config.ratio_threshold)
            policy, value = policy._replace(loss=policy.loss * 0.0), value._replace(loss=value.loss * 0.0)
            total = total * 0.0
        stats = ppo_statistics.loss_statistics(policy, value, total, old, logprobs, logits, vpreds)
        return policy.loss, config.vf_coef * value.loss, stats

    def record_step_stats(self, kl_coef: float, **data: Any) -> dict[str, Any]:
        """Summarize one step.

        Args:
            kl_coef: the KL coefficient.
            data: the arguments of `ppo_statistics.step_statistics`.
        """
        stats = ppo_statistics.step_statistics(
            kl_coef, **{name: data[name] for name in ppo_statistics.STEP_DATA}
        )
        kl = stats["objective/kl"].item()
        if kl < -1.0:
            ppo_checks.warn_of_negative_kl(kl)
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
            stats: the result of `step`.
            batch: name → a list; `query` and `response` hold the texts.
            rewards: one per example.
            columns_to_log: the columns of `batch` that are written to the table of Weights & Biases.

        Raises:
            ValueError: one of these columns is not in `batch`.
        """
        columns = list(columns_to_log)
        if not isinstance(rewards, torch.Tensor):
            rewards = torch.tensor(rewards).to(self.current_device)
        gathered: Tensor = self.accelerator.gather(rewards).flatten()
        makes_table = self.config.log_with == "wandb"
        texts = ppo_logging.gathered_columns(batch, columns, self.is_distributed) if makes_table else []
        if not self.accelerator.is_main_process:
            return
        logs: dict[str, Any] = {}
        if "query" not in batch and "response" not in batch:
            ppo_checks.warn_of_missing_texts()
        elif makes_table:
            logs["game_log"] = ppo_logging.game_log(columns, texts, gathered)
        logs |= {**ppo_logging.without_bfloat16(stats), **ppo_statistics.reward_statistics(gathered)}
        # TensorBoard does not count steps itself.
        is_counted = self.config.log_with == "tensorboard" or bool(self.accelerator.fabric.loggers)
        self.current_step += is_counted
        self.accelerator.log(logs, step=self.current_step if is_counted else None)

    def create_model_card(self, path: str, model_name: str | None = "TRL Model") -> None:
        """Write a model card with the title `model_name` to a folder, if the Hub knows the user."""
        write_model_card(path, PPO_CARD, model_name)

    @override
    def _save_pretrained(self, save_directory: str | Path) -> None:
        # All processes take part in gathering shards.
        weights = self.accelerator.get_state_dict(self.model)
        if self.accelerator.is_main_process:
            model: Any = self.accelerator.unwrap_model(self.model)
            model.save_pretrained(save_directory, state_dict=weights)
            self.tokenizer.save_pretrained(save_directory)
            self.create_model_card(str(save_directory))
        self.accelerator.wait_for_everyone()

    def _show_tokens(self, tokens: Tensor, masks: Tensor) -> None:
        """Print tokens, with a second colour for those that are trained on."""
        ppo_logging.show_tokens(self.tokenizer, tokens, masks)

    def _prepare_deepspeed(self, model: nn.Module) -> nn.Module:
        return self.accelerator.prepare_model(model, evaluation_mode=True)
