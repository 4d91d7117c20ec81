"""Stable Diffusion as a policy: pipelines that tell how likely each step of theirs was.

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
"""The file in which diffusers keeps LoRA's weights."""

_ADAPTER = "default"
_OF_UNET = "unet"


@dataclass
class DDPOPipelineOutput:
    """Images, and how they came to be.

    Attributes:
        images: (batch, channels, height, width), or what `output_type` says.
        latents: those at the beginning and after each step, (batch, channels, height, width).
        log_probs: log-probability of each step, (batch,).
    """

    images: Any
    latents: Any
    log_probs: Any


@dataclass
class DDPOSchedulerOutput:
    """One step.

    Attributes:
        latents: those after it, (batch, channels, height, width).
        log_probs: its log-probability, a mean over the latents' entries, (batch,).
    """

    latents: torch.Tensor
    log_probs: torch.Tensor


class DDPOStableDiffusionPipeline:
    """What `DDPOTrainer` needs of a pipeline; a subclass defines all of it."""

    def __call__(self, *args: Any, **kwargs: Any) -> DDPOPipelineOutput:
        """Generates images; arguments as of `pipeline_step`."""
        self._is_missing("__call__")

    def scheduler_step(self, *args: Any, **kwargs: Any) -> DDPOSchedulerOutput:
        """Takes one step, or values one that was taken; arguments as of the function of that name."""
        self._is_missing("scheduler_step")

    @property
    def unet(self) -> UNet2DConditionModel:
        """The model that predicts noise."""
        self._is_missing("unet")

    @property
    def vae(self) -> AutoencoderKL:
        """The autoencoder, from images to latents and back."""
        self._is_missing("vae")

    @property
    def tokenizer(self) -> CLIPTokenizer:
        """The tokenizer of prompts."""
        self._is_missing("tokenizer")

    @property
    def scheduler(self) -> DDIMScheduler:
        """The scheduler, which has `timesteps`."""
        self._is_missing("scheduler")

    @property
    def text_encoder(self) -> CLIPTextModel:
        """The model that embeds prompts."""
        self._is_missing("text_encoder")

    @property
    def autocast(self) -> Callable[[], contextlib.AbstractContextManager[Any]] | None:
        """Makes the context in which the U-Net runs; None leaves it to the accelerator."""
        self._is_missing("autocast")

    def set_progress_bar_config(self, *args: object, **kwargs: object) -> None:
        """Sets how progress is shown."""
        self._is_missing("set_progress_bar_config")

    def save_pretrained(self, *args: Any, **kwargs: Any) -> None:
        """Saves the whole pipeline."""
        self._is_missing("save_pretrained")

    def get_trainable_layers(self, *args: Any, **kwargs: Any) -> Any:
        """Returns what is trained: a module, or a list of parameters."""
        self._is_missing("get_trainable_layers")

    def save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        """Saves what is trained, before the accelerator saves its state."""
        self._is_missing("save_checkpoint")

    def load_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        """Loads what is trained, before the accelerator loads its state."""
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
    """Takes one step of DDIM, or values one that was taken.

    Song et al., Denoising Diffusion Implicit Models (arXiv:2010.02502), equations (12) and (16): the step is
    normally distributed, and its log-probability is averaged over the entries of the latents.

    Args:
        self: the scheduler, whose steps have been set.
        model_output: what the U-Net predicts, (batch, channels, height, width).
        timestep: of the latents, a tensor of shape () or (batch,).
        sample: the latents, (batch, channels, height, width).
        eta: share of the noise of DDPM: 0 takes none, and leaves nothing to value.
        use_clipped_model_output: whether the noise follows from the clipped prediction of the image.
        generator: draws the noise, as `compat.trl.core.randn_tensor` says.
        prev_sample: latents after a step that was taken; drawn if left out.

    Returns:
        Latents after the step, and its log-probability, (batch,).

    Raises:
        ValueError: no steps have been set, the scheduler predicts something unknown, or there are both a
            generator and latents to value.
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
    # Without noise there is no density: infinities, as the formula gives them.
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
    """Returns mean and standard deviation, which broadcasts to it, of the latents after a step."""
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
    """Returns the share of the image in the latents of a timestep, in a shape that broadcasts to `like`."""
    kept: torch.Tensor = scheduler.alphas_cumprod[timestep.to(scheduler.alphas_cumprod.device)]
    return kept.to(like.device).reshape(-1, *[1] * (like.ndim - 1))


def _split(
    kind: str, predicted: torch.Tensor, sample: torch.Tensor, kept: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the image and the noise that make up the latents, by what the U-Net predicts of them."""
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
    """Has a scheduler take steps by `scheduler_step`, and keeps what they give."""

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
    """Generates images by a pipeline of diffusers, and records its steps.

    Args:
        self: a `StableDiffusionPipeline` with a `DDIMScheduler`.
        prompt: what images shall show; or `prompt_embeds`.
        height: the height of images, in pixels; the U-Net's own if omitted.
        width: the width of images, in pixels; the U-Net's own if omitted.
        num_inference_steps: number of steps.
        guidance_scale: weight of the prompt; above 1 the U-Net runs with and without it.
        negative_prompt: what images shall not show; or `negative_prompt_embeds`.
        num_images_per_prompt: number of images for each prompt.
        eta: share of the noise of DDPM in each step, which torch's global generator draws.
        generator: draws the first latents.
        latents: the first latents, (batch, channels, height, width); drawn if left out.
        prompt_embeds: embedded prompts, (batch, length, hidden).
        negative_prompt_embeds: embedded negative prompts, of the same shape.
        output_type: form of the images: "pil", "np", "pt", or "latent".
        return_dict: ignored.
        callback: called with number, timestep and latents of a step.
        callback_steps: number of steps from one call to the next.
        cross_attention_kwargs: handed to the attention processors.
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
    """A Stable Diffusion pipeline of diffusers, trained by LoRA or as a whole.

    Args:
        pretrained_model_name: folder or name on the Hub.
        pretrained_model_revision: branch, tag or commit there.
        use_lora: whether adapters are trained, and not the U-Net itself; they are if such lie beside it.

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
        """Generates images, see `pipeline_step`."""
        return pipeline_step(self.sd_pipeline, *args, **kwargs)

    def scheduler_step(self, *args: Any, **kwargs: Any) -> DDPOSchedulerOutput:
        """Takes or values one step, see the function of that name."""
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
        """The tokenizer of prompts."""
        return self.sd_pipeline.tokenizer

    @property
    def scheduler(self) -> DDIMScheduler:
        """The scheduler, one of DDIM."""
        return self.sd_pipeline.scheduler

    @property
    def text_encoder(self) -> CLIPTextModel:
        """The model that embeds prompts."""
        return self.sd_pipeline.text_encoder

    @property
    def autocast(self) -> Callable[[], contextlib.AbstractContextManager[Any]] | None:
        """None of its own, unless LoRA is trained: that does without, and saves memory."""
        return contextlib.nullcontext if self.use_lora else None

    def set_progress_bar_config(self, *args: object, **kwargs: object) -> None:
        """Sets how progress is shown, by arguments of tqdm."""
        self.sd_pipeline.set_progress_bar_config(*args, **kwargs)

    def save_pretrained(self, output_dir: str) -> None:
        """Saves the pipeline, and LoRA's weights beside it; the constructor reads both.

        Args:
            output_dir: a folder.
        """
        if not self.use_lora or not _adapters(self.unet):
            self.sd_pipeline.save_pretrained(output_dir)
            return
        self._save_lora(self.unet, output_dir)
        adapted = self.unet
        # The U-Net is saved without adapters: with them, its names could not be loaded.
        self.sd_pipeline.unet = bare = copy.deepcopy(adapted)
        try:
            bare.unload_lora()
            self.sd_pipeline.save_pretrained(output_dir)
        finally:
            self.sd_pipeline.unet = adapted

    def get_trainable_layers(self) -> Any:
        """Returns the U-Net, if LoRA is trained with an adapter in it: the loaded one, or a new one."""
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
                # Gradients of fp16 could not be unscaled.
                parameter.requires_grad_(True)
                parameter.data = parameter.data.float()
        return self.unet

    def save_checkpoint(self, models: list[Any], weights: object, output_dir: str) -> None:
        """Saves what is trained: LoRA's weights, or the U-Net in a folder `unet`.

        Args:
            models: the U-Net, unwrapped, as only entry.
            weights: not looked at.
            output_dir: a folder.

        Raises:
            ValueError: there is not one model, or it is not what is trained.
        """
        model = self._trained(models)
        if self.use_lora:
            self._save_lora(model, output_dir)
        else:
            model.save_pretrained(os.path.join(output_dir, _OF_UNET))

    def load_checkpoint(self, models: list[Any], input_dir: str) -> None:
        """Loads into the U-Net what `save_checkpoint` has written; arguments and errors as there.

        Raises:
            CheckpointError: LoRA's weights are not there, or are not those of this adapter.
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
    """Loads saved weights into the existing adapter, so that its optimizer keeps its parameters."""
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
