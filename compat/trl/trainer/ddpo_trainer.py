"""Training of diffusion models with rewards. Mirrors `trl.trainer.ddpo_trainer` of 0.7.11."""

from __future__ import annotations

import os
import re
import warnings
from collections import defaultdict
from concurrent.futures import Future, ThreadPoolExecutor
from logging import getLogger
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import ProjectConfiguration

from compat.errors import ArgumentError
from compat.fabric.accelerator import FabricAccelerator
from compat.trl.core import set_seed
from compat.trl.trainer.base import BaseTrainer, write_model_card
from compat.trl.trainer.model_cards import DDPO_CARD
from compat.trl.trainer.utils import PerPromptStatTracker

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from torch import Tensor, nn

    from compat.trl.models.modeling_sd_base import DDPOStableDiffusionPipeline
    from compat.trl.trainer.ddpo_config import DDPOConfig

_LOG = getLogger(__name__)

HALF = {"fp16": torch.float16, "bf16": torch.bfloat16}
"""accelerate's name of a precision → the type to which modules that only run inference are cast."""

OF_STEPS = ("timesteps", "latents", "next_latents", "log_probs")
"""The entries of a sample with one value for each denoising step, in the second dimension."""

_CHECKPOINT = re.compile(r"checkpoint_(\d+)$")
_STD_FLOOR = 1e-8

Sample = dict[str, "Tensor"]


class DDPOTrainer(BaseTrainer):
    """Trains a diffusion model on rewards of its images, with the policy gradient of its denoising steps.

    Black et al., Training Diffusion Models with Reinforcement Learning (arXiv:2305.13301). Lightning Fabric
    places and wraps the model, and steps the optimizer; `lightning={...}` in the configuration has its flags.

    Args:
        config: the configuration.
        reward_function: maps images (batch, channels, height, width), prompts and their metadata to rewards,
            (batch,), and reward metadata.
        prompt_function: returns a prompt and its metadata.
        sd_pipeline: the pipeline to train.
        image_samples_hook: called in each step with images, prompts, metadata, rewards and reward metadata
            of all batches, the number of the step, and the first tracker or None.

    Attributes:
        accelerator: an accelerate interface on Fabric.
        trainable_layers: the trained module, or a list of parameters.
        first_epoch: the number of the first epoch; as in TRL, it is one above the number of the checkpoint,
            which counts checkpoints and not epochs.

    Raises:
        ValueError: batch sizes do not divide each other, a requested checkpoint does not exist, or the
            strategy shards models.
    """

    _tag_names = ("trl", "ddpo")

    def __init__(
        self,
        config: DDPOConfig,
        reward_function: Callable[[Tensor, tuple[str], tuple[Any]], Any],
        prompt_function: Callable[[], tuple[str, Any]],
        sd_pipeline: DDPOStableDiffusionPipeline,
        image_samples_hook: Callable[[Any, Any, Any], Any] | None = None,
    ) -> None:
        super().__init__(config)
        if image_samples_hook is None:
            warnings.warn("No image_samples_hook provided; no images will be logged", stacklevel=2)
        self.prompt_fn = prompt_function
        self.reward_fn = reward_function
        self.image_samples_callback = image_samples_hook
        self.sd_pipeline = sd_pipeline
        self.num_train_timesteps = int(config.sample_num_steps * config.train_timestep_fraction)
        self.first_epoch = self._resumed_epoch() if config.resume_from else 0
        self.accelerator = self._accelerator()
        if self.accelerator.is_sharding:
            msg = (
                f"`lightning={config.lightning}`: images are sampled, and checkpoints written, by a U-Net "
                "that is whole. Choose the strategy 'ddp'."
            )
            raise ArgumentError(msg)
        is_okay, message = self._config_check()
        if not is_okay:
            raise ArgumentError(message)
        self._tell_trackers()
        set_seed(config.seed + self.accelerator.process_index)
        self._place_pipeline()
        self.autocast = sd_pipeline.autocast or self.accelerator.autocast
        self._prepare(sd_pipeline.get_trainable_layers())
        self.neg_prompt_embed = self._embed(config.negative_prompts or "")[1]
        if config.per_prompt_stat_tracking:
            self.stat_tracker = PerPromptStatTracker(
                config.per_prompt_stat_tracking_buffer_size, config.per_prompt_stat_tracking_min_count
            )
        if config.async_reward_computation:
            self.executor = ThreadPoolExecutor(max_workers=config.max_workers)
        if config.resume_from:
            _LOG.info("Resuming from %s", config.resume_from)
            self.accelerator.load_state(config.resume_from)

    def _resumed_epoch(self) -> int:
        """Find the checkpoint to resume from, and return the number of the next epoch."""
        folder = os.path.normpath(os.path.expanduser(self.config.resume_from))
        found = _CHECKPOINT.search(folder)
        if found is None:
            numbers = [int(name[1]) for name in map(_CHECKPOINT.match, os.listdir(folder)) if name]
            if not numbers:
                msg = (
                    f"`resume_from={self.config.resume_from!r}`: No checkpoints found in {folder}. "
                    "Give a folder `checkpoint_N`, or one with such folders."
                )
                raise ArgumentError(msg)
            folder = os.path.join(folder, f"checkpoint_{max(numbers)}")
            found = _CHECKPOINT.search(folder)
        assert found is not None
        self.config.resume_from = folder
        return int(found[1]) + 1

    def _accelerator(self) -> FabricAccelerator:
        config = self.config
        project = ProjectConfiguration(**config.project_kwargs)
        if config.resume_from:
            project.iteration = self.first_epoch
        return FabricAccelerator(
            further=config.accelerator_kwargs,
            lightning=config.lightning,
            log_with=config.log_with,
            mixed_precision=config.mixed_precision,
            project_config=project,
            # Gradients are also accumulated over the denoising steps of an image.
            gradient_accumulation_steps=config.train_gradient_accumulation_steps * self.num_train_timesteps,
        )

    def _tell_trackers(self) -> None:
        told = self.config.to_dict()
        if self.accelerator.is_main_process:
            self.accelerator.init_trackers(
                self.config.tracker_project_name,
                config=told if self.config.log_with == "tensorboard" else {"ddpo_trainer_config": told},
                init_kwargs=self.config.tracker_kwargs,
            )
        _LOG.info("\n%s", self.config)

    def _place_pipeline(self) -> None:
        """Move the pipeline to the device; cast modules without training to the half precision, if any."""
        self.sd_pipeline.set_progress_bar_config(
            position=1,
            disable=not self.accelerator.is_local_main_process,
            leave=False,
            desc="Timestep",
            dynamic_ncols=True,
        )
        dtype = HALF.get(self.accelerator.mixed_precision, torch.float32)
        for part in (self.sd_pipeline.vae, self.sd_pipeline.text_encoder, self.sd_pipeline.unet):
            part.to(self.accelerator.device)
            if part.dtype != dtype:
                part.to(dtype)
        if self.config.allow_tf32 and self.accelerator.device.type == "cuda":
            torch.backends.cuda.matmul.allow_tf32 = True

    def _prepare(self, layers: nn.Module | list[nn.Parameter]) -> None:
        """Set up the trained module or parameters and the optimizer with Fabric."""
        self.accelerator.register_save_state_pre_hook(self._save_model_hook)
        self.accelerator.register_load_state_pre_hook(self._load_model_hook)
        self.optimizer = self._setup_optimizer(layers if isinstance(layers, list) else layers.parameters())
        prepared, self.optimizer = self.accelerator.prepare(layers, self.optimizer)
        self._is_whole = (
            not isinstance(layers, list) and self.accelerator.unwrap_model(prepared) is self._bare_unet
        )
        # A wrapper synchronizes only the gradients of its own forward.
        self._policy: Any = prepared if self._is_whole else self.sd_pipeline.unet
        has_lora = getattr(self.sd_pipeline, "use_lora", False)
        self.trainable_layers: Any = (
            [parameter for parameter in prepared.parameters() if parameter.requires_grad]
            if has_lora and not isinstance(prepared, list)
            else prepared
        )

    @property
    def _bare_unet(self) -> Any:
        return self.accelerator.unwrap_model(self.sd_pipeline.unet)

    @property
    def _trained_parameters(self) -> list[Any]:
        layers = self.trainable_layers
        return layers if isinstance(layers, list) else list(layers.parameters())

    def _embed(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Return the tokens of prompts, (batch, length), and their embeddings, (batch, length, hidden)."""
        tokenizer = self.sd_pipeline.tokenizer
        tokens = tokenizer(
            prompts,
            return_tensors="pt",
            padding="max_length",
            truncation=True,
            max_length=tokenizer.model_max_length,
        ).input_ids.to(self.accelerator.device)
        with torch.no_grad():
            return tokens, self.sd_pipeline.text_encoder(tokens)[0]

    def compute_rewards(self, prompt_image_pairs: Any, is_async: bool = False) -> Iterator[tuple[Any, ...]]:
        """Compute the rewards of images.

        Args:
            prompt_image_pairs: images, prompts and metadata of each batch.
            is_async: whether to use threads; the reward function may then return futures.

        Returns:
            Two tuples: the rewards of each batch, (batch,), and their metadata.
        """
        mapping: Any = self.executor.map if is_async else map
        found = mapping(lambda pair: self.reward_fn(*pair), prompt_image_pairs)
        rewards = [
            (torch.as_tensor(_done(reward), device=self.accelerator.device), _done(metadata))
            for reward, metadata in found
        ]
        return zip(*rewards, strict=True)

    def step(self, epoch: int, global_step: int) -> int:
        """Sample images, compute their rewards, and train on them.

        Args:
            epoch: the number of the epoch; a checkpoint is written at multiples of `save_freq` above zero.
            global_step: the number of optimizer steps so far, used as the step of logs.

        Returns:
            The number of optimizer steps afterwards.

        Raises:
            ValueError: an accumulation window has not ended with the batches, or checkpoints have no folder.
        """
        batches, pairs = self._generate_samples(
            self.config.sample_num_batches_per_epoch, self.config.sample_batch_size
        )
        samples: Sample = {key: torch.cat([batch[key] for batch in batches]) for key in batches[0]}
        rewards = self._reward(pairs, epoch, global_step)
        samples["advantages"] = self._own_advantages(samples.pop("prompt_ids"), rewards)
        for inner_epoch in range(self.config.train_num_inner_epochs):
            samples = self._shuffled(samples)
            self.sd_pipeline.unet.train()
            global_step = self._train_batched_samples(
                inner_epoch, epoch, global_step, self._rebatched(samples)
            )
            if not self.accelerator.sync_gradients:
                msg = (
                    "Optimization step should have been performed by this point. Please check calculated "
                    "gradient accumulation settings, `train_gradient_accumulation_steps` for one."
                )
                raise ArgumentError(msg)
        if self._is_saved_after(epoch):
            self._check_place_of_checkpoints()
            self.accelerator.save_state()
        return global_step

    def _reward(self, pairs: list[list[Any]], epoch: int, global_step: int) -> Any:
        """Reward images, call the hook, and log; return the rewards of all processes as an array."""
        rewards, metadata = self.compute_rewards(pairs, is_async=self.config.async_reward_computation)
        for pair, reward, told in zip(pairs, rewards, metadata, strict=True):
            pair.extend([reward, told])
        if self.image_samples_callback is not None:
            tracker = next(iter(self.accelerator.trackers), None)
            self.image_samples_callback(pairs, global_step, tracker)
        gathered = self.accelerator.gather(torch.cat(rewards)).cpu()
        # numpy does not support bfloat16.
        everywhere = (gathered.float() if gathered.dtype == torch.bfloat16 else gathered).numpy()
        moments = {"reward_mean": float(everywhere.mean()), "reward_std": float(everywhere.std())}
        self.accelerator.log({"reward": everywhere, "epoch": epoch, **moments}, step=global_step)
        return everywhere

    def _own_advantages(self, prompt_ids: Tensor, rewards: Any) -> Tensor:
        """Return the advantages of this process's images, (batch,)."""
        if self.config.per_prompt_stat_tracking:
            tokens = self.accelerator.gather(prompt_ids).cpu().numpy()
            prompts = self.sd_pipeline.tokenizer.batch_decode(tokens, skip_special_tokens=True)
            advantages = self.stat_tracker.update(prompts, rewards)
        else:
            advantages = (rewards - rewards.mean()) / (rewards.std() + _STD_FLOOR)
        by_process = torch.as_tensor(advantages).reshape(self.accelerator.num_processes, -1)
        return by_process[self.accelerator.process_index].to(self.accelerator.device)

    def _shuffled(self, samples: Sample) -> Sample:
        """Shuffle the images, and the denoising steps of each image separately."""
        device = self.accelerator.device
        count, steps = samples["timesteps"].shape
        order = torch.randperm(count, device=device)
        shuffled = {key: value[order] for key, value in samples.items()}
        orders = torch.stack([torch.randperm(steps, device=device) for _ in range(count)])
        rows = torch.arange(count, device=device)[:, None]
        return {key: value[rows, orders] if key in OF_STEPS else value for key, value in shuffled.items()}

    def _rebatched(self, samples: Sample) -> list[Sample]:
        size = self.config.train_batch_size
        split = {key: value.reshape(-1, size, *value.shape[1:]) for key, value in samples.items()}
        return [dict(zip(split, rows, strict=True)) for rows in zip(*split.values(), strict=True)]

    def calculate_loss(
        self,
        latents: Tensor,
        timesteps: Tensor,
        next_latents: Tensor,
        log_probs: Tensor,
        advantages: Tensor,
        embeds: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Compute the loss of one denoising step of each image.

        Args:
            latents: the latents before the step, (batch, channels, height, width).
            timesteps: (batch,).
            next_latents: the latents after the step.
            log_probs: the log-probability of the step when it was sampled, (batch,).
            advantages: (batch,).
            embeds: the embeddings of prompts, (batch, length, hidden); with `train_cfg` preceded by those of
                negative prompts, (2 * batch, length, hidden).

        Returns:
            The loss, the approximate KL divergence and the fraction of clipped ratios, scalars.
        """
        config = self.config
        with self.autocast():
            times = 2 if config.train_cfg else 1
            noise = self._policy(torch.cat([latents] * times), torch.cat([timesteps] * times), embeds).sample
            if config.train_cfg:
                without, within = noise.chunk(2)
                noise = without + config.sample_guidance_scale * (within - without)
            now = self.sd_pipeline.scheduler_step(
                noise, timesteps, latents, eta=config.sample_eta, prev_sample=next_latents
            ).log_probs
        difference = now - log_probs
        ratio = torch.exp(difference)
        bound = config.train_adv_clip_max
        loss = self.loss(torch.clamp(advantages, -bound, bound), config.train_clip_range, ratio)
        approx_kl = 0.5 * (difference**2).mean()
        clipfrac = ((ratio - 1.0).abs() > config.train_clip_range).float().mean()
        return loss, approx_kl, clipfrac

    def loss(self, advantages: Tensor, clip_range: float, ratio: Tensor) -> Tensor:  # type: ignore[override]
        """Compute PPO's clipped policy loss, a scalar.

        Args:
            advantages: (batch,).
            clip_range: the maximal distance between the ratio and 1.
            ratio: the probability of the step now, divided by that when it was sampled, (batch,).
        """
        clipped = torch.clamp(ratio, 1.0 - clip_range, 1.0 + clip_range)
        return torch.maximum(-advantages * ratio, -advantages * clipped).mean()

    def _setup_optimizer(
        self, trainable_layers_parameters: Iterator[nn.Parameter] | list[nn.Parameter]
    ) -> Any:
        config = self.config
        if config.train_use_8bit_adam:
            import bitsandbytes

            kind: Any = bitsandbytes.optim.AdamW8bit
        else:
            kind = torch.optim.AdamW
        return kind(
            trainable_layers_parameters,
            lr=config.train_learning_rate,
            betas=(config.train_adam_beta1, config.train_adam_beta2),
            weight_decay=config.train_adam_weight_decay,
            eps=config.train_adam_epsilon,
        )

    def _save_model_hook(self, models: list[Any], weights: list[Any], output_dir: str) -> None:
        if self.accelerator.is_main_process:
            bare = [self.accelerator.unwrap_model(model) for model in models]
            self.sd_pipeline.save_checkpoint(bare, weights, output_dir)
        # Otherwise the accelerator would write them again.
        weights.pop()

    def _load_model_hook(self, models: list[Any], input_dir: str) -> None:
        bare = [self.accelerator.unwrap_model(model) for model in models]
        self.sd_pipeline.load_checkpoint(bare, input_dir)
        models.pop()

    def _generate_samples(self, iterations: int, batch_size: int) -> tuple[list[Sample], list[list[Any]]]:
        """Sample images.

        Args:
            iterations: the number of batches.
            batch_size: the number of images per batch.

        Returns:
            For each batch, the training data; and for each batch, images, prompts and metadata.
        """
        self.sd_pipeline.unet.eval()
        negative = self.neg_prompt_embed.repeat(batch_size, 1, 1)
        samples, pairs = [], []
        for _ in range(iterations):
            prompts, metadata = zip(*[self.prompt_fn() for _ in range(batch_size)], strict=True)
            prompt_ids, embeds = self._embed(list(prompts))
            with self.autocast():
                output = self.sd_pipeline(
                    prompt_embeds=embeds,
                    negative_prompt_embeds=negative,
                    num_inference_steps=self.config.sample_num_steps,
                    guidance_scale=self.config.sample_guidance_scale,
                    eta=self.config.sample_eta,
                    output_type="pt",
                )
            latents = torch.stack(output.latents, dim=1)
            samples.append(
                {
                    "prompt_ids": prompt_ids,
                    "prompt_embeds": embeds,
                    "timesteps": self.sd_pipeline.scheduler.timesteps.repeat(batch_size, 1),
                    "latents": latents[:, :-1],
                    "next_latents": latents[:, 1:],
                    "log_probs": torch.stack(output.log_probs, dim=1),
                    "negative_prompt_embeds": negative,
                }
            )
            pairs.append([output.images, prompts, metadata])
        return samples, pairs

    def _train_batched_samples(
        self, inner_epoch: int, epoch: int, global_step: int, batched_samples: list[Sample]
    ) -> int:
        """Train on batches, and return the number of optimizer steps afterwards."""
        info: dict[str, list[Tensor]] = defaultdict(list)
        for sample in batched_samples:
            embeds = sample["prompt_embeds"]
            if self.config.train_cfg:
                embeds = torch.cat([sample["negative_prompt_embeds"], embeds])
            for place in range(self.num_train_timesteps):
                self._train_on(sample, place, embeds, info)
                if self.accelerator.sync_gradients:
                    means = {name: torch.stack(values).mean() for name, values in info.items()}
                    means = self.accelerator.reduce(means, reduction="mean")
                    told = {name: mean.item() for name, mean in means.items()}
                    self.accelerator.log(
                        {**told, "epoch": epoch, "inner_epoch": inner_epoch}, step=global_step
                    )
                    global_step += 1
                    info.clear()
        return global_step

    def _train_on(self, sample: Sample, place: int, embeds: Tensor, info: dict[str, list[Tensor]]) -> None:
        """Run one micro-step, on the denoising step at one position of each image."""
        with self.accelerator.accumulate(self._policy):
            timesteps, latents, next_latents, log_probs = (sample[key][:, place] for key in OF_STEPS)
            found = self.calculate_loss(
                latents, timesteps, next_latents, log_probs, sample["advantages"], embeds
            )
            for name, value in zip(("loss", "approx_kl", "clipfrac"), found, strict=True):
                info[name].append(value.detach())
            self.accelerator.backward(found[0])
            if self.accelerator.sync_gradients:
                self._average_gradients()
                self.accelerator.clip_grad_norm_(self._trained_parameters, self.config.train_max_grad_norm)
            self.optimizer.step()
            self.optimizer.zero_grad()

    def _average_gradients(self) -> None:
        """Average gradients over processes if no wrapper does, that is, if only parts of the U-Net train."""
        if self.accelerator.num_processes == 1 or self._is_whole:
            return
        for parameter in self._trained_parameters:
            if parameter.grad is not None:
                parameter.grad = self.accelerator.reduce(parameter.grad, reduction="mean")

    def _config_check(self) -> tuple[bool, str]:
        """Whether batch sizes divide each other, and a description of the problem if they do not."""
        config, processes = self.config, self.accelerator.num_processes
        sample, train = config.sample_batch_size, config.train_batch_size
        sampled = sample * processes * config.sample_num_batches_per_epoch
        trained = train * processes * config.train_gradient_accumulation_steps
        if sample < train:
            return False, (
                f"`sample_batch_size={sample}`: Sample batch size ({sample}) must be greater than or equal "
                f"to the train batch size ({train}). Raise it, or lower `train_batch_size`."
            )
        if sample % train:
            return False, (
                f"`sample_batch_size={sample}`: Sample batch size ({sample}) must be divisible by the train "
                f"batch size ({train}). Change one of them."
            )
        if sampled % trained:
            return False, (
                f"`train_gradient_accumulation_steps={config.train_gradient_accumulation_steps}`: Number of "
                f"samples per epoch ({sampled}) must be divisible by the total train batch size ({trained}). "
                "Change it, or `sample_num_batches_per_epoch`."
            )
        return True, ""

    def train(self, epochs: int | None = None) -> None:
        """Train up to a given epoch.

        Args:
            epochs: the number of that epoch; `num_epochs` of the configuration if omitted.

        Raises:
            ValueError: checkpoints would be written, and have no folder.
        """
        last = self.config.num_epochs if epochs is None else epochs
        if any(map(self._is_saved_after, range(self.first_epoch, last))):
            self._check_place_of_checkpoints()
        global_step = 0
        for epoch in range(self.first_epoch, last):
            global_step = self.step(epoch, global_step)

    def _is_saved_after(self, epoch: int) -> bool:
        return epoch != 0 and epoch % self.config.save_freq == 0

    def _check_place_of_checkpoints(self) -> None:
        project = self.accelerator.project_configuration
        if project.project_dir is None or not project.automatic_checkpoint_naming:
            msg = (
                f"`save_freq={self.config.save_freq}`: checkpoints have no place. Give "
                "`project_kwargs={'project_dir': ..., 'automatic_checkpoint_naming': True}`, or a "
                "`save_freq` beyond the last epoch."
            )
            raise ArgumentError(msg)

    def create_model_card(self, path: str, model_name: str | None = "TRL DDPO Model") -> None:
        """Write a model card, if the Hub knows the user.

        Args:
            path: the folder.
            model_name: the title of the card.
        """
        write_model_card(path, DDPO_CARD, model_name)

    def _save_pretrained(self, save_directory: str | Path) -> None:
        if self.accelerator.is_main_process:
            self.sd_pipeline.save_pretrained(save_directory)
            self.create_model_card(str(save_directory))


def _done(value: Any) -> Any:
    return value.result() if isinstance(value, Future) else value
