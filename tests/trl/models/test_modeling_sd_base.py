from __future__ import annotations

import contextlib
import math
import sys
from typing import TYPE_CHECKING, Any

import pytest
import torch
from diffusers import DDIMScheduler
from safetensors.torch import load_file, save_file

from compat.errors import CheckpointError, MissingLibraryError
from compat.trl.models import (
    DDPOStableDiffusionPipeline,
    DefaultDDPOStableDiffusionPipeline,
    modeling_sd_base,
)
from compat.trl.models.modeling_sd_base import LORA_WEIGHTS, scheduler_step
from tests.trl import diffusion

if TYPE_CHECKING:
    from pathlib import Path

FIXED = ("unet", "vae", "tokenizer", "scheduler", "text_encoder", "autocast")
CALLED = (
    "__call__",
    "scheduler_step",
    "set_progress_bar_config",
    "save_pretrained",
    "get_trainable_layers",
    "save_checkpoint",
    "load_checkpoint",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return diffusion.save(tmp_path_factory.mktemp("pipeline"))


def loaded(folder: Any, *, use_lora: bool = False) -> DefaultDDPOStableDiffusionPipeline:
    expected = (
        pytest.warns(UserWarning, match="has no `pytorch_lora_weights")
        if use_lora
        else contextlib.nullcontext()
    )
    with expected:
        pipeline = DefaultDDPOStableDiffusionPipeline(str(folder), use_lora=use_lora)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def weights_of(pipeline: Any) -> dict[str, torch.Tensor]:
    return {name: each.detach().clone() for name, each in pipeline.unet.named_parameters()}


def adapted(folder: str) -> DefaultDDPOStableDiffusionPipeline:
    """A pipeline with an adapter that does something."""
    pipeline = loaded(folder, use_lora=True)
    torch.manual_seed(0)
    for name, each in pipeline.get_trainable_layers().named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(each)
    return pipeline


def scheduler(**config: Any) -> DDIMScheduler:
    made = DDIMScheduler(**{"clip_sample": False, **config})
    made.set_timesteps(10)
    return made


def test_a_step_is_that_of_the_paper() -> None:
    """Equations (12) and (16) of Song et al. (arXiv:2010.02502), in plain arithmetic."""
    eta, time, value, predicted, after = 0.6, 500, 0.7, -0.4, 0.9
    ddim = scheduler()
    kept, next_kept = (float(ddim.alphas_cumprod[each].double()) for each in (time, time - 100))
    deviation = eta * math.sqrt((1 - next_kept) / (1 - kept)) * math.sqrt(1 - kept / next_kept)
    image = (value - math.sqrt(1 - kept) * predicted) / math.sqrt(kept)
    mean = math.sqrt(next_kept) * image + math.sqrt(1 - next_kept - deviation**2) * predicted
    density = -((after - mean) ** 2) / (2 * deviation**2) - math.log(deviation) - math.log(2 * math.pi) / 2
    shape = (2, 1, 2, 2)
    found = scheduler_step(
        ddim,
        torch.full(shape, predicted),
        torch.tensor([time, time]),
        torch.full(shape, value),
        eta=eta,
        prev_sample=torch.full(shape, after),
    )
    assert found.log_probs.tolist() == pytest.approx([density, density], rel=1e-5)
    assert torch.equal(found.latents, torch.full(shape, after))


def test_a_step_agrees_with_that_of_diffusers() -> None:
    ddim = scheduler(prediction_type="v_prediction", clip_sample=True)
    torch.manual_seed(0)
    latents, predicted = torch.randn(1, 2, 3, 3), torch.randn(1, 2, 3, 3)
    given = {"eta": 0.8, "use_clipped_model_output": True}
    theirs = ddim.step(predicted, 700, latents, generator=torch.Generator().manual_seed(1), **given)
    ours = scheduler_step(
        ddim, predicted, torch.tensor(700), latents, generator=torch.Generator().manual_seed(1), **given
    )
    torch.testing.assert_close(ours.latents, theirs.prev_sample)


def test_gradients_reach_the_prediction_and_not_the_latents_after_it() -> None:
    predicted = torch.zeros(1, 1, 2, 2, requires_grad=True)
    after = torch.ones(1, 1, 2, 2, requires_grad=True)
    found = scheduler_step(
        scheduler(), predicted, torch.tensor([500]), torch.ones(1, 1, 2, 2), eta=1.0, prev_sample=after
    )
    found.log_probs.sum().backward()
    assert predicted.grad.abs().sum() > 0
    assert after.grad is None


@pytest.mark.parametrize(
    ("config", "given", "message"),
    [
        (
            {},
            {"generator": torch.Generator(), "prev_sample": torch.ones(1)},
            "Cannot pass both generator and",
        ),
        ({"prediction_type": "flow"}, {}, "prediction_type given as flow must be one of"),
    ],
)
def test_steps_that_make_no_sense_are_refused(config: Any, given: Any, message: str) -> None:
    ones = torch.ones(1, 1, 2, 2)
    with pytest.raises(ValueError, match=message):
        scheduler_step(scheduler(**config), ones, torch.tensor([500]), ones, eta=1.0, **given)


def test_steps_have_to_be_set_first() -> None:
    with pytest.raises(ValueError, match=r"Number of inference steps is 'None'.*`set_timesteps`"):
        scheduler_step(DDIMScheduler(), torch.ones(1, 1, 2, 2), torch.tensor([5]), torch.ones(1, 1, 2, 2))


def test_a_pipeline_records_its_steps(folder: str) -> None:
    pipeline = loaded(folder)
    given = {"num_inference_steps": 3, "eta": 1.0, "guidance_scale": 1.0, "output_type": "latent"}
    torch.manual_seed(1)
    output = pipeline("a boat", **given)
    assert (len(output.latents), len(output.log_probs)) == (4, 3)
    assert torch.equal(output.images, output.latents[-1])
    assert not output.images.requires_grad
    assert "step" not in vars(pipeline.scheduler)
    with pytest.raises(ValueError, match="`callback_steps=0`"):
        pipeline("a boat", callback_steps=0, **given)
    # What was recorded is what is valued anew.
    step = pipeline.scheduler.timesteps[1]
    embeds = pipeline.sd_pipeline.encode_prompt("a boat", "cpu", 1, do_classifier_free_guidance=False)[0]
    noise = pipeline.unet(output.latents[1], step, embeds).sample
    again = pipeline.scheduler_step(noise, step, output.latents[1], eta=1.0, prev_sample=output.latents[2])
    torch.testing.assert_close(again.log_probs, output.log_probs[1])


@pytest.mark.parametrize("use_lora", [True, False])
def test_what_is_trained(folder: str, use_lora: bool) -> None:
    pipeline = loaded(folder, use_lora=use_lora)
    trained = {
        name for name, each in pipeline.get_trainable_layers().named_parameters() if each.requires_grad
    }
    assert all(("lora_" in name) == use_lora for name in trained)
    assert len(trained) == (64 if use_lora else len(list(pipeline.unet.parameters())))
    assert not any(
        each.requires_grad for part in (pipeline.vae, pipeline.text_encoder) for each in part.parameters()
    )
    assert pipeline.autocast is (contextlib.nullcontext if use_lora else None)


def test_a_saved_adapter_is_loaded_and_trained_further(folder: str, tmp_path: Path) -> None:
    pipeline = adapted(folder)
    before = weights_of(pipeline)
    pipeline.save_pretrained(tmp_path)
    assert weights_of(pipeline).keys() == before.keys()
    # Nobody who loads the U-Net alone meets adapters.
    assert not [
        name
        for name in load_file(tmp_path / "unet" / "diffusion_pytorch_model.safetensors")
        if "lora" in name
    ]
    again = DefaultDDPOStableDiffusionPipeline(str(tmp_path), use_lora=False)
    assert again.use_lora
    trained = {name for name, each in again.get_trainable_layers().named_parameters() if each.requires_grad}
    assert trained == {name for name in before if "lora_" in name}
    after = weights_of(again)
    assert all(torch.equal(after[name], weight) for name, weight in before.items())


@pytest.mark.parametrize("use_lora", [True, False])
def test_checkpoints_are_loaded_into_what_is_trained(folder: str, use_lora: bool, tmp_path: Path) -> None:
    pipeline = adapted(folder) if use_lora else loaded(folder)
    before = weights_of(pipeline)
    pipeline.save_checkpoint([pipeline.unet], [], str(tmp_path))
    with torch.no_grad():
        for each in pipeline.unet.parameters():
            if each.requires_grad:
                each.zero_()
    pipeline.load_checkpoint([pipeline.unet], str(tmp_path))
    assert all(torch.equal(weight, before[name]) for name, weight in weights_of(pipeline).items())
    for wrong in ([pipeline.vae], []):
        with pytest.raises(ValueError, match=r"Unknown model type|should be of length 1, not 0"):
            pipeline.save_checkpoint(wrong, [], str(tmp_path))


def test_half_an_adapter_is_refused(folder: str, tmp_path: Path) -> None:
    pipeline = adapted(folder)
    with pytest.raises(CheckpointError, match="the checkpoint has no adapter"):
        pipeline.load_checkpoint([pipeline.unet], str(tmp_path))
    pipeline.save_checkpoint([pipeline.unet], [], str(tmp_path))
    weights = load_file(tmp_path / LORA_WEIGHTS)
    weights.popitem()
    save_file(weights, tmp_path / LORA_WEIGHTS)
    with pytest.raises(CheckpointError, match=r"1 are missing, 0 too many"):
        pipeline.load_checkpoint([pipeline.unet], str(tmp_path))


def test_lora_needs_peft(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(modeling_sd_base, "is_peft_available", lambda: False)
    pipeline = loaded(folder, use_lora=True)
    with pytest.raises(MissingLibraryError, match="`use_lora=True`: PEFT is not installed"):
        pipeline.get_trainable_layers()


def test_without_diffusers_the_way_out_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "diffusers", None)
    monkeypatch.delitem(sys.modules, modeling_sd_base.__name__)
    with pytest.raises(MissingLibraryError, match=r"lightning-hf-compat\[diffusers\]"):
        __import__(modeling_sd_base.__name__)


@pytest.mark.parametrize("name", FIXED + CALLED)
def test_a_pipeline_of_ones_own_says_what_it_lacks(name: str) -> None:
    class Own(DDPOStableDiffusionPipeline):
        pass

    with pytest.raises(NotImplementedError, match=f"Own has no `{name}`"):
        getattr(Own(), name)()
