"""The configuration of `DDPOTrainer`. Mirrors `trl.trainer.ddpo_config` of 0.7.11."""

from __future__ import annotations

import os
import sys
import warnings
from dataclasses import dataclass, field
from typing import Any, Literal

from compat.errors import MissingLibraryError
from compat.trl.core import flatten_dict
from compat.trl.import_utils import is_bitsandbytes_available, is_torchvision_available


@dataclass
class DDPOConfig:
    """The configuration of `DDPOTrainer`; sizes are in images, per process.

    Attributes:
        exp_name: the name of the experiment; by default that of the script, without `.py`.
        run_name: only for the tracker.
        seed: the seed of all random numbers; each process adds its rank.
        log_with: a tracker of accelerate: "wandb" or "tensorboard".
        tracker_kwargs: the name of a tracker → its arguments.
        accelerator_kwargs: further arguments of `accelerate.Accelerator`.
        project_kwargs: arguments of `accelerate.utils.ProjectConfiguration`; `project_dir`,
            `automatic_checkpoint_naming` and `total_limit` set the folder and the number of checkpoints.
        tracker_project_name: the name of the project at the tracker.
        logdir: only for the tracker.
        num_epochs: the number of epochs; each samples images and trains on them.
        save_freq: the number of epochs between checkpoints; the first epoch has none.
        num_checkpoint_limit: only for the tracker.
        mixed_precision: "no", "fp16" or "bf16"; modules without training are cast to it.
        allow_tf32: whether to multiply matrices in TF32, on devices that support it.
        resume_from: a folder `checkpoint_N`, or a folder of such folders, of which the newest is loaded.
        sample_num_steps: the number of denoising steps of an image.
        sample_eta: the fraction of DDPM's noise in each step, which makes steps random.
        sample_guidance_scale: the weight of the prompt.
        sample_batch_size: the number of images per sampled batch.
        sample_num_batches_per_epoch: the number of sampled batches per epoch.
        train_batch_size: the number of images per training batch.
        train_use_8bit_adam: whether to use the 8-bit optimizer of bitsandbytes.
        train_learning_rate: the learning rate of AdamW.
        train_adam_beta1: beta1 of AdamW.
        train_adam_beta2: beta2 of AdamW.
        train_adam_weight_decay: the weight decay of AdamW.
        train_adam_epsilon: epsilon of AdamW.
        train_gradient_accumulation_steps: the number of batches per optimizer step, each with all of its
            denoising steps.
        train_max_grad_norm: the maximum gradient norm, for clipping.
        train_num_inner_epochs: the number of passes over the images of an epoch.
        train_cfg: whether the U-Net runs with and without the prompt in training, as in sampling.
        train_adv_clip_max: the largest absolute advantage.
        train_clip_range: the clip range of the probability ratio.
        train_timestep_fraction: the fraction of the denoising steps that is trained on.
        per_prompt_stat_tracking: whether advantages are relative to rewards of the same prompt.
        per_prompt_stat_tracking_buffer_size: the number of rewards that are stored for a prompt.
        per_prompt_stat_tracking_min_count: with fewer rewards of a prompt than this, all rewards are used.
        async_reward_computation: whether to compute rewards in threads.
        max_workers: the number of these threads.
        negative_prompts: the negative prompts.
        lightning: flags of Lightning Fabric: accelerator, strategy, devices, num_nodes, precision, plugins,
            callbacks, loggers.

    Raises:
        ImportError: `train_use_8bit_adam` is set without bitsandbytes or a device for it.
    """

    exp_name: str = os.path.basename(sys.argv[0])[: -len(".py")]
    run_name: str | None = ""
    seed: int = 0
    log_with: Literal["wandb", "tensorboard"] | None = None
    tracker_kwargs: dict[str, Any] = field(default_factory=dict)
    accelerator_kwargs: dict[str, Any] = field(default_factory=dict)
    project_kwargs: dict[str, Any] = field(default_factory=dict)
    tracker_project_name: str = "trl"
    logdir: str = "logs"
    num_epochs: int = 100
    save_freq: int = 1
    num_checkpoint_limit: int = 5
    mixed_precision: str = "fp16"
    allow_tf32: bool = True
    resume_from: str | None = ""
    sample_num_steps: int = 50
    sample_eta: float = 1.0
    sample_guidance_scale: float = 5.0
    sample_batch_size: int = 1
    sample_num_batches_per_epoch: int = 2
    train_batch_size: int = 1
    train_use_8bit_adam: bool = False
    train_learning_rate: float = 3e-4
    train_adam_beta1: float = 0.9
    train_adam_beta2: float = 0.999
    train_adam_weight_decay: float = 1e-4
    train_adam_epsilon: float = 1e-8
    train_gradient_accumulation_steps: int = 1
    train_max_grad_norm: float = 1.0
    train_num_inner_epochs: int = 1
    train_cfg: bool = True
    train_adv_clip_max: float = 5
    train_clip_range: float = 1e-4
    train_timestep_fraction: float = 1.0
    per_prompt_stat_tracking: bool = False
    per_prompt_stat_tracking_buffer_size: int = 16
    per_prompt_stat_tracking_min_count: int = 16
    async_reward_computation: bool = False
    max_workers: int = 2
    negative_prompts: str | None = ""
    lightning: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.log_with not in {"wandb", "tensorboard"}:
            warnings.warn(
                "Accelerator tracking only supports image logging if `log_with` is set to 'wandb' or "
                "'tensorboard'.",
                UserWarning,
                stacklevel=3,
            )
        if self.log_with == "wandb" and not is_torchvision_available():
            warnings.warn(
                "Wandb image logging requires torchvision to be installed: `pip install torchvision`.",
                UserWarning,
                stacklevel=3,
            )
        if self.train_use_8bit_adam and not is_bitsandbytes_available():
            msg = (
                "`train_use_8bit_adam=True`: You need to install bitsandbytes to use 8bit Adam, and a CUDA "
                "device. You can install it with `pip install bitsandbytes`."
            )
            raise MissingLibraryError(msg)

    def to_dict(self) -> dict[str, Any]:
        """Return all values; nested ones under paths with slashes."""
        return flatten_dict(dict(vars(self)))
