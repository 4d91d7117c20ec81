"""Steps of diffusion, images with the likelihood of their steps, and whole runs of `DDPOTrainer`."""

from __future__ import annotations

import itertools
import tempfile
import warnings
from typing import Any

import torch
from diffusers import DDIMScheduler

from tests.trl import diffusion

PROMPTS = ("a boat", "the sea", "a warm soup", "a boat")


def steps(library: Any) -> dict[str, Any]:
    """One step of each kind that a scheduler can be asked for."""
    step = library("models.modeling_sd_base").scheduler_step
    torch.manual_seed(0)
    latents, predicted = torch.randn(3, 4, 4, 4), torch.randn(3, 4, 4, 4)
    times = torch.tensor([1, 401, 801])
    found = {}
    for name, config, given in (
        ("epsilon", {}, {"eta": 1.0}),
        ("sample", {"prediction_type": "sample"}, {"eta": 0.5}),
        ("v_prediction", {"prediction_type": "v_prediction"}, {"eta": 0.7, "use_clipped_model_output": True}),
        ("clipped", {"clip_sample": True, "clip_sample_range": 0.5}, {"eta": 1.0}),
        ("thresholded", {"thresholding": True}, {"eta": 1.0, "use_clipped_model_output": True}),
        ("linspace", {"timestep_spacing": "linspace", "set_alpha_to_one": True}, {"eta": 1.0}),
    ):
        scheduler = DDIMScheduler(**{"clip_sample": False, **config})
        scheduler.set_timesteps(5)
        torch.manual_seed(1)
        drawn = step(scheduler, predicted, times, latents, **given)
        valued = step(scheduler, predicted, times, latents, prev_sample=latents * 0.9, **given)
        alone = step(
            scheduler, predicted, times[1], latents, generator=torch.Generator().manual_seed(2), **given
        )
        for kind, output in (("drawn", drawn), ("valued", valued), ("alone", alone)):
            found[f"{name}_{kind}_latents"] = output.latents[:, 0]
            found[f"{name}_{kind}_log_probs"] = output.log_probs
    return found


def images(library: Any) -> dict[str, Any]:
    """Images, latents and log-probabilities of a pipeline that is called by itself."""
    pipeline = _pipeline(library, use_lora=False)
    pipeline.set_progress_bar_config(disable=True)
    torch.manual_seed(3)
    called = []
    output = pipeline(
        ["a boat", "the sea"],
        num_inference_steps=4,
        guidance_scale=3.0,
        negative_prompt=["soup", ""],
        eta=1.0,
        generator=torch.Generator().manual_seed(4),
        output_type="pt",
        callback=lambda number, timestep, latents: called.append([number, int(timestep), *latents.shape]),
        callback_steps=2,
    )
    again = pipeline(
        "a boat",
        num_inference_steps=3,
        guidance_scale=3.0,
        guidance_rescale=0.7,
        eta=0.5,
        output_type="latent",
    )
    return {
        "images": output.images[:, :, ::4, ::4],
        "latents": torch.stack(output.latents)[:, :, 0],
        "log_probs": torch.stack(output.log_probs),
        "rescaled": again.images[:, 0],
        "rescaled_log_probs": torch.stack(again.log_probs),
        "called": called,
        "timesteps": pipeline.scheduler.timesteps,
        "autocast": pipeline.autocast is None,
    }


def run(library: Any) -> dict[str, Any]:
    """Two epochs of the whole U-Net, with inner epochs and accumulation."""
    return _run(
        library,
        use_lora=False,
        train_num_inner_epochs=2,
        train_gradient_accumulation_steps=3,
        sample_num_batches_per_epoch=3,
        train_batch_size=1,
        sample_batch_size=2,
    )


def run_by_prompt(library: Any) -> dict[str, Any]:
    """Advantages by prompt, without guidance in training, and on some of the denoising steps."""
    return _run(
        library,
        use_lora=False,
        per_prompt_stat_tracking=True,
        per_prompt_stat_tracking_buffer_size=8,
        per_prompt_stat_tracking_min_count=2,
        train_cfg=False,
        train_timestep_fraction=0.7,
        sample_batch_size=4,
        sample_num_batches_per_epoch=1,
        train_batch_size=2,
        negative_prompts="soup",
        sample_guidance_scale=1.0 + 2e-4,
        train_adv_clip_max=0.5,
    )


def run_of_lora(library: Any) -> dict[str, Any]:
    """Two epochs of an adapter."""
    return _run(library, use_lora=True, sample_batch_size=2, train_batch_size=1, train_learning_rate=1e-3)


def _pipeline(library: Any, *, use_lora: bool) -> Any:
    kind = library("models.modeling_sd_base").DefaultDDPOStableDiffusionPipeline
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return kind(diffusion.save(folder), use_lora=use_lora)


def _run(library: Any, *, use_lora: bool, **given: Any) -> dict[str, Any]:
    seen: list[Any] = []

    def show(batches: list[Any], step: int, _tracker: Any) -> None:
        seen.extend(
            [step, list(words), list(told), list(images.shape)] for images, words, told, _, _ in batches
        )

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer, logged = _trainer(library, show, use_lora=use_lora, **given)
        # Without a tracker TRL has nothing to show images by.
        trainer.accelerator.trackers.append(None)
        trainer.train()
    names = ("loss", "approx_kl", "clipfrac", "inner_epoch", "epoch", "reward_mean", "reward_std")
    weights = trainer.sd_pipeline.unet.named_parameters()
    trained = [(name, each) for name, each in weights if each.requires_grad]
    rewards = [torch.as_tensor(values["reward"]) for _, values in logged if "reward" in values]
    return {
        **{name: [float(values[name]) for _, values in logged if name in values] for name in names},
        "reward": torch.stack(rewards),
        "steps": [step for step, _ in logged],
        "seen": seen,
        "trained": [len(trained), sum(each.numel() for _, each in trained)],
        "weights": torch.cat([each.flatten()[:2] for name, each in sorted(trained) if "attentions" in name]),
    }


def _trainer(library: Any, hook: Any = None, *, use_lora: bool, **given: Any) -> tuple[Any, list[Any]]:
    """A trainer, and the steps and values that it will log."""
    arguments = {
        "num_epochs": 2,
        "mixed_precision": "no",
        "save_freq": 10,
        "sample_num_steps": 3,
        "train_learning_rate": 3e-5,
        "train_clip_range": 1e-2,
        "sample_num_batches_per_epoch": 2,
        "seed": 7,
    }
    prompts = itertools.cycle(PROMPTS)
    logged: list[Any] = []
    trainer = library("trainer.ddpo_trainer").DDPOTrainer(
        library("trainer.ddpo_config").DDPOConfig(**{**arguments, **given}),
        lambda images, words, told: (images.mean(dim=(1, 2, 3)), {}),
        lambda: (next(prompts), {"a": 1}),
        _pipeline(library, use_lora=use_lora),
        hook,
    )
    trainer.accelerator.log = lambda values, step=None: logged.append((step, values))
    return trainer, logged
