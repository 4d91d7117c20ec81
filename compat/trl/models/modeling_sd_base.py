"""Stable Diffusion as a policy: pipelines that return the log-probability of each denoising step.

Mirrors `trl/models/modeling_sd_base.py` of TRL 0.7.11.
"""

from __future__ import annotations

import contextlib
import copy
import os
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

from safetensors.torch import load_file
from torch.distributions import Normal

from compat.errors import ArgumentError, CheckpointError, MissingLibraryError
from compat.trl.core import randn_tensor
from compat.trl.import_utils import is_peft_available
from compat.trl.models.files import find
from compat.trl.models.sd_utils import convert_state_dict_to_diffusers

try:
    from diffusers import DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from diffusers.utils import convert_unet_state_dict_to_peft
except ImportError as error:
    _MISSING = "DDPO: diffusers is not installed. Run `pip install 'lightning-hf-compat[diffusers]'`."
    raise MissingLibraryError(_MISSING) from error

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import torch
    from diffusers import AutoencoderKL
    from torch import nn
    from transformers import CLIPTextModel, CLIPTokenizer

LORA_WEIGHTS = "pytorch_lora_weights.safetensors"
"""The file in which diffusers stores LoRA weights."""

_ADAPTER = "default"
_OF_UNET = "unet"


@dataclass
class DDPOPipelineOutput:
    """Images, and the denoising steps that generated them.

    Attributes:
        images: (batch, channels, height, width), or the form of `output_type`.
        latents: the first latents and those after each step, (batch, channels, height, width).
        log_probs: the log-probability of each step, (batch,).
    """

    images: Any
    latents: Any
    log_probs: Any


@dataclass
class DDPOSchedulerOutput:
    """One denoising step.

    Attributes:
        latents: the latents after the step, (batch, channels, height, width).
        log_probs: its log-probability, averaged over the entries of the latents, (batch,).
    """

    latents: torch.Tensor
    log_probs: torch.Tensor


class DDPOStableDiffusionPipeline:
    """The interface of a pipeline for `DDPOTrainer`; a subclass defines all of it."""

    def __call__(self, *args: Any, **kwargs: Any) -> DDPOPipelineOutput:
        """Generate images; the arguments are those of `pipeline_step`."""
        self._is_missing("__call__")

    def scheduler_step(self, *args: Any, **kwargs: Any) -> DDPOSchedulerOutput:
        """Take one step, or evaluate a taken one; the arguments are those of `scheduler_step`."""
        self._is_missing("scheduler_step")

    @property
    def unet(self) -> UNet2DConditionModel:
        """The model that predicts noise."""
        self._is_missing("unet")

    @property
    def vae(self) -> AutoencoderKL:
        """The autoencoder between images and latents."""
        self._is_missing("vae")

    @property
    def tokenizer(self) -> CLIPTokenizer:
        """The tokenizer of the prompts."""
        self._is_missing("tokenizer")

    @property
    def scheduler(self) -> DDIMScheduler:
        """The scheduler, which has `timesteps`."""
        self._is_missing("scheduler")

    @property
    def text_encoder(self) -> CLIPTextModel:
        """The model that embeds the prompts."""
        self._is_missing("text_encoder")

    @property
    def autocast(self) -> Callable[[], contextlib.AbstractContextManager[Any]] | None:
        """The factory of the context in which the U-Net runs; None for that of the accelerator."""
        self._is_missing("autocast")

    def set_progress_bar_config(self, *args: object, **kwargs: object) -> None:
        """Configure the progress bar."""
        self._is_missing("set_progress_bar_config")

    def save_pretrained(self, *args: Any, **kwargs: Any) -> None:
        """Save the whole pipeline."""
        self._is_missing("save_pretrained")

    def get_trainable_layers(self, *args: Any, **kwargs: Any) -> Any:
        """Return the module or the list of parameters to train."""
        self._is_missing("get_trainable_layers")

    def save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        """Save the trained weights, before the accelerator saves its state."""
        self._is_missing("save_checkpoint")

    def load_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        """Load the trained weights, before the accelerator loads its state."""
        self._is_missing("load_checkpoint")

    def _is_missing(self, name: str) -> NoReturn:
        msg = f"{type(self).__name__} has no `{name}`. Define it in the subclass."
        raise NotImplementedError(msg)


def scheduler_step(
    self: DDIMScheduler,
    model_output: torch.Tensor,
    timestep: Any,
    sample: torch.Tensor,
    eta: float = 0.0,
    use_clipped_model_output: bool = False,
    generator: torch.Generator | list[torch.Generator] | None = None,
    prev_sample: torch.Tensor | None = None,
) -> DDPOSchedulerOutput:
    """Take one DDIM step, or evaluate a step that was taken.

    Song et al., Denoising Diffusion Implicit Models (arXiv:2010.02502), equations (12) and (16): the latents
    after the step are normally distributed. The log-probability is averaged over their entries.

    Args:
        self: the scheduler, whose timesteps have been set.
        model_output: the prediction of the U-Net, (batch, channels, height, width).
        timestep: the timestep of the latents, a tensor of shape () or (batch,).
        sample: the latents, (batch, channels, height, width).
        eta: the fraction of DDPM's noise; without noise (0), the step has no density.
        use_clipped_model_output: whether to compute the noise from the clipped prediction of the image.
        generator: draws the noise, see `compat.trl.core.randn_tensor`.
        prev_sample: the latents after a step that was taken; drawn if omitted.

    Returns:
        The latents after the step, and its log-probability, (batch,).

    Raises:
        ValueError: no timesteps have been set, the prediction type of the scheduler is unknown, or both
            `generator` and `prev_sample` are given.
    """
    if self.num_inference_steps is None:
        msg = (
            "Number of inference steps is 'None': the scheduler does not know which step comes next. "
            "Run `set_timesteps` after creating the scheduler."
        )
        raise ArgumentError(msg)
    if prev_sample is not None and generator is not None:
        msg = (
            "Cannot pass both generator and prev_sample: there is nothing left to draw. Please make sure "
            "that either `generator` or `prev_sample` stays `None`."
        )
        raise ArgumentError(msg)
    mean, deviation = _distribution(self, model_output, timestep, sample, eta, use_clipped_model_output)
    if prev_sample is None:
        options = {"device": model_output.device, "dtype": model_output.dtype}
        noise = randn_tensor(model_output.shape, generator=generator, **options)  # type: ignore[arg-type]
        prev_sample = mean + deviation * noise
    # Without noise there is no density: the formula gives infinities.
    step = Normal(mean, deviation, validate_args=False)
    log_prob: torch.Tensor = step.log_prob(prev_sample.detach())  # type: ignore[no-untyped-call]
    return DDPOSchedulerOutput(prev_sample.to(sample.dtype), log_prob.flatten(1).mean(dim=1))


def _distribution(
    scheduler: DDIMScheduler,
    predicted: torch.Tensor,
    timestep: torch.Tensor,
    sample: torch.Tensor,
    eta: float,
    from_clipped: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the mean of the latents after a step, and the standard deviation, which broadcasts to it."""
    config = scheduler.config
    before = timestep - config.num_train_timesteps // scheduler.num_inference_steps
    now_kept = _kept(scheduler, timestep, sample)
    next_kept = _kept(scheduler, before.clamp(0, config.num_train_timesteps - 1), sample)
    image, noise = _split(config.prediction_type, predicted, sample, now_kept)
    if config.thresholding:
        image = scheduler._threshold_sample(image)
    elif config.clip_sample:
        image = image.clamp(-config.clip_sample_range, config.clip_sample_range)
    if from_clipped:
        noise = (sample - now_kept.sqrt() * image) / (1 - now_kept).sqrt()
    variance = (1 - next_kept) / (1 - now_kept) * (1 - now_kept / next_kept)
    deviation = eta * variance.sqrt()
    mean = next_kept.sqrt() * image + (1 - next_kept - deviation**2).sqrt() * noise
    return mean, deviation


def _kept(scheduler: DDIMScheduler, timestep: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Return the fraction of the image in the latents of a timestep, broadcastable to `like`."""
    kept: torch.Tensor = scheduler.alphas_cumprod[timestep.to(scheduler.alphas_cumprod.device)]
    return kept.to(like.device).reshape(-1, *[1] * (like.ndim - 1))


def _split(
    kind: str, predicted: torch.Tensor, sample: torch.Tensor, kept: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the image and the noise in the latents, computed from the U-Net's prediction."""
    of_image, of_noise = kept.sqrt(), (1 - kept).sqrt()
    if kind == "epsilon":
        return (sample - of_noise * predicted) / of_image, predicted
    if kind == "sample":
        return predicted, (sample - of_image * predicted) / of_noise
    if kind == "v_prediction":
        return of_image * sample - of_noise * predicted, of_image * predicted + of_noise * sample
    msg = (
        f"prediction_type given as {kind} must be one of `epsilon`, `sample`, or `v_prediction`. "
        "Change the scheduler's configuration."
    )
    raise ArgumentError(msg)


class _Recorder:
    """Makes a scheduler step with `scheduler_step`, and records the results."""

    def __init__(self, scheduler: DDIMScheduler, eta: float) -> None:
        self.scheduler = scheduler
        self.eta = eta
        self.latents: list[torch.Tensor] = []
        self.log_probs: list[torch.Tensor] = []

    def step(
        self, model_output: torch.Tensor, timestep: Any, sample: torch.Tensor, return_dict: bool = True
    ) -> tuple[torch.Tensor]:
        taken = scheduler_step(self.scheduler, model_output, timestep, sample, self.eta)
        self.latents = [*(self.latents or [sample]), taken.latents]
        self.log_probs.append(taken.log_probs)
        return (taken.latents,)

    @contextlib.contextmanager
    def recording(self) -> Iterator[None]:
        self.scheduler.step = self.step
        try:
            yield
        finally:
            del self.scheduler.step


def pipeline_step(
    self: StableDiffusionPipeline,
    prompt: str | list[str] | None = None,
    height: int | None = None,
    width: int | None = None,
    num_inference_steps: int = 50,
    guidance_scale: float = 7.5,
    negative_prompt: str | list[str] | None = None,
    num_images_per_prompt: int | None = 1,
    eta: float = 0.0,
    generator: torch.Generator | list[torch.Generator] | None = None,
    latents: torch.Tensor | None = None,
    prompt_embeds: torch.Tensor | None = None,
    negative_prompt_embeds: torch.Tensor | None = None,
    output_type: str | None = "pil",
    return_dict: bool = True,
    callback: Callable[[int, int, torch.Tensor], None] | None = None,
    callback_steps: int = 1,
    cross_attention_kwargs: dict[str, Any] | None = None,
    guidance_rescale: float = 0.0,
) -> DDPOPipelineOutput:
    """Generate images with a diffusers pipeline, and record its steps.

    Args:
        self: a `StableDiffusionPipeline` with a `DDIMScheduler`.
        prompt: the prompts; alternatively `prompt_embeds`.
        height: the height of images, in pixels; the U-Net's own if omitted.
        width: the width of images, in pixels; the U-Net's own if omitted.
        num_inference_steps: the number of denoising steps.
        guidance_scale: the weight of the prompt; above 1, the U-Net runs with and without it.
        negative_prompt: the negative prompts; alternatively `negative_prompt_embeds`.
        num_images_per_prompt: the number of images for each prompt.
        eta: the fraction of DDPM's noise in each step, drawn by torch's global generator.
        generator: draws the first latents.
        latents: the first latents, (batch, channels, height, width); drawn if omitted.
        prompt_embeds: embedded prompts, (batch, length, hidden).
        negative_prompt_embeds: embedded negative prompts, of the same shape.
        output_type: the form of the images: "pil", "np", "pt", or "latent".
        return_dict: ignored.
        callback: called with the number, the timestep and the latents of a step.
        callback_steps: the number of steps between calls.
        cross_attention_kwargs: passed to the attention processors.
        guidance_rescale: Lin et al. (arXiv:2305.08891), equation 16.

    Returns:
        Images, latents and log-probabilities, without gradients.
    """
    if not isinstance(callback_steps, int) or callback_steps < 1:
        msg = f"`callback_steps={callback_steps!r}`: not a number of steps. Give 1 or more."
        raise ArgumentError(msg)
    recorder = _Recorder(self.scheduler, eta)

    def call_back(_pipeline: object, number: int, timestep: Any, given: dict[str, Any]) -> dict[str, Any]:
        if callback is not None and number % callback_steps == 0:
            callback(number, timestep, given["latents"])
        return given

    with recorder.recording():
        output = self(
            prompt=prompt,
            height=height,
            width=width,
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            negative_prompt=negative_prompt,
            num_images_per_prompt=num_images_per_prompt,
            generator=generator,
            latents=latents,
            prompt_embeds=prompt_embeds,
            negative_prompt_embeds=negative_prompt_embeds,
            output_type=output_type,
            cross_attention_kwargs=cross_attention_kwargs,
            guidance_rescale=guidance_rescale,
            callback_on_step_end=call_back,
        )
    return DDPOPipelineOutput(output.images, recorder.latents, recorder.log_probs)


class DefaultDDPOStableDiffusionPipeline(DDPOStableDiffusionPipeline):
    """A Stable Diffusion pipeline of diffusers; either LoRA weights or the whole U-Net is trained.

    Args:
        pretrained_model_name: a folder or a name on the Hub.
        pretrained_model_revision: a branch, tag or commit on the Hub.
        use_lora: whether to train an adapter instead of the U-Net itself; implied by saved LoRA weights.

    Attributes:
        sd_pipeline: the pipeline of diffusers.
    """

    def __init__(
        self, pretrained_model_name: str, *, pretrained_model_revision: str = "main", use_lora: bool = True
    ) -> None:
        revision = {"revision": pretrained_model_revision}
        self.sd_pipeline = StableDiffusionPipeline.from_pretrained(pretrained_model_name, **revision)
        self.pretrained_model = pretrained_model_name
        self.pretrained_revision = pretrained_model_revision
        self.use_lora = use_lora
        if find(pretrained_model_name, LORA_WEIGHTS, **revision) is not None:
            _needs_peft()
            self.sd_pipeline.load_lora_weights(
                pretrained_model_name, weight_name=LORA_WEIGHTS, adapter_name=_ADAPTER, **revision
            )
            self.use_lora = True
        elif use_lora:
            warnings.warn(
                f"`{pretrained_model_name}` has no `{LORA_WEIGHTS}`: training begins with a new adapter. If "
                "you are aware that the pretrained model has no lora weights to it, ignore this message.",
                stacklevel=2,
            )
        self.sd_pipeline.scheduler = DDIMScheduler.from_config(self.sd_pipeline.scheduler.config)
        self.sd_pipeline.safety_checker = None
        for part in (self.vae, self.text_encoder):
            part.requires_grad_(False)
        self.unet.requires_grad_(not self.use_lora)

    def __call__(self, *args: Any, **kwargs: Any) -> DDPOPipelineOutput:
        """Generate images; see `pipeline_step`."""
        return pipeline_step(self.sd_pipeline, *args, **kwargs)

    def scheduler_step(self, *args: Any, **kwargs: Any) -> DDPOSchedulerOutput:
        """Take or evaluate one step; see the function `scheduler_step`."""
        return scheduler_step(self.scheduler, *args, **kwargs)

    @property
    def unet(self) -> UNet2DConditionModel:
        """The model that predicts noise."""
        return self.sd_pipeline.unet

    @property
    def vae(self) -> AutoencoderKL:
        """The autoencoder."""
        return self.sd_pipeline.vae

    @property
    def tokenizer(self) -> CLIPTokenizer:
        """The tokenizer of the prompts."""
        return self.sd_pipeline.tokenizer

    @property
    def scheduler(self) -> DDIMScheduler:
        """The DDIM scheduler."""
        return self.sd_pipeline.scheduler

    @property
    def text_encoder(self) -> CLIPTextModel:
        """The model that embeds the prompts."""
        return self.sd_pipeline.text_encoder

    @property
    def autocast(self) -> Callable[[], contextlib.AbstractContextManager[Any]] | None:
        """None, or with LoRA a null context, since training without autocast saves memory."""
        return contextlib.nullcontext if self.use_lora else None

    def set_progress_bar_config(self, *args: object, **kwargs: object) -> None:
        """Configure the progress bar with arguments of tqdm."""
        self.sd_pipeline.set_progress_bar_config(*args, **kwargs)

    def save_pretrained(self, output_dir: str) -> None:
        """Save the pipeline, and the LoRA weights next to it; the constructor reads both.

        Args:
            output_dir: a folder.
        """
        if not self.use_lora or not _adapters(self.unet):
            self.sd_pipeline.save_pretrained(output_dir)
            return
        self._save_lora(self.unet, output_dir)
        adapted = self.unet
        # The U-Net is saved without adapters, because its names could not be loaded with them.
        self.sd_pipeline.unet = bare = copy.deepcopy(adapted)
        try:
            bare.unload_lora()
            self.sd_pipeline.save_pretrained(output_dir)
        finally:
            self.sd_pipeline.unet = adapted

    def get_trainable_layers(self) -> Any:
        """Return the U-Net; with LoRA, it has an adapter, either the loaded one or a new one."""
        if not self.use_lora:
            return self.unet
        _needs_peft()
        from peft import LoraConfig

        if not _adapters(self.unet):
            targets = ["to_k", "to_q", "to_v", "to_out.0"]
            config = LoraConfig(r=4, lora_alpha=4, init_lora_weights="gaussian", target_modules=targets)
            self.unet.add_adapter(config)
        for name, parameter in self.unet.named_parameters():
            if "lora_" in name:
                # fp16 gradients could not be unscaled.
                parameter.requires_grad_(True)
                parameter.data = parameter.data.float()
        return self.unet

    def save_checkpoint(self, models: list[Any], weights: object, output_dir: str) -> None:
        """Save the trained weights: the LoRA weights, or the U-Net in a folder `unet`.

        Args:
            models: the unwrapped U-Net as the only entry.
            weights: ignored.
            output_dir: a folder.

        Raises:
            ValueError: there is not exactly one model, or it is not the trained one.
        """
        model = self._trained(models)
        if self.use_lora:
            self._save_lora(model, output_dir)
        else:
            model.save_pretrained(os.path.join(output_dir, _OF_UNET))

    def load_checkpoint(self, models: list[Any], input_dir: str) -> None:
        """Load into the U-Net the weights written by `save_checkpoint`; see there for arguments and errors.

        Raises:
            CheckpointError: the LoRA weights are missing, or do not belong to this adapter.
        """
        model = self._trained(models)
        if self.use_lora:
            _load_lora(model, os.path.join(input_dir, LORA_WEIGHTS))
            return
        loaded = UNet2DConditionModel.from_pretrained(input_dir, subfolder=_OF_UNET)
        model.register_to_config(**loaded.config)
        model.load_state_dict(loaded.state_dict())

    def _save_lora(self, unet: UNet2DConditionModel, output_dir: str) -> None:
        from peft.utils import get_peft_model_state_dict

        weights = convert_state_dict_to_diffusers(get_peft_model_state_dict(unet))
        self.sd_pipeline.save_lora_weights(save_directory=output_dir, unet_lora_layers=weights)

    def _trained(self, models: list[Any]) -> UNet2DConditionModel:
        if len(models) != 1:
            msg = (
                "`models`: Given how the trainable params were set, this should be of length 1, not "
                f"{len(models)}. Prepare the U-Net alone."
            )
            raise ArgumentError(msg)
        model = models[0]
        if not (_adapters(model) if self.use_lora else isinstance(model, UNet2DConditionModel)):
            wanted = "with an adapter" if self.use_lora else "of diffusers"
            msg = f"Unknown model type {type(model)}: `use_lora={self.use_lora}` trains a U-Net {wanted}."
            raise ArgumentError(msg)
        return model


def _adapters(model: nn.Module) -> Any:
    return getattr(model, "peft_config", None)


def _needs_peft() -> None:
    if not is_peft_available():
        msg = "`use_lora=True`: PEFT is not installed. Run `pip install peft`, or train without LoRA."
        raise MissingLibraryError(msg)


def _load_lora(unet: UNet2DConditionModel, path: str) -> None:
    """Load saved weights into the existing adapter, so that the optimizer keeps its parameters."""
    from peft.utils import set_peft_model_state_dict

    if not os.path.isfile(path):
        msg = f"`{path}` is missing: the checkpoint has no adapter. Choose another checkpoint."
        raise CheckpointError(msg)
    saved = {name.removeprefix(f"{_OF_UNET}."): weight for name, weight in load_file(path).items()}
    (adapter,) = _adapters(unet)
    wrong = set_peft_model_state_dict(unet, convert_unet_state_dict_to_peft(saved), adapter)
    missing = [name for name in wrong.missing_keys if "lora_" in name]
    if missing or wrong.unexpected_keys:
        msg = (
            f"`{path}`: these are not the weights of this adapter ({len(missing)} are missing, "
            f"{len(wrong.unexpected_keys)} too many). Choose another checkpoint."
        )
        raise CheckpointError(msg)
