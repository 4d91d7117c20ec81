"""A tiny Stable Diffusion pipeline, whose weights are drawn from a seed and so are equal everywhere."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel

from tests.trl.setups import parts


def save(folder: Any) -> str:
    """Write the pipeline, images of 16 by 16, to a folder, and name it."""
    tokenizer = parts.tokenizer()
    tokenizer.model_max_length = 12
    unet = UNet2DConditionModel(
        sample_size=8,
        layers_per_block=1,
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=16,
        attention_head_dim=2,
        norm_num_groups=4,
    )
    vae = AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=4,
    )
    text = transformers.CLIPTextModel(
        transformers.CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=12,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
        )
    )
    for seed, model in enumerate((unet, vae, text)):
        _fill(model, seed)
    StableDiffusionPipeline(
        vae=vae,
        text_encoder=text,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=DDIMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            clip_sample=False,
            set_alpha_to_one=False,
            steps_offset=1,
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)
    return str(folder)


def _fill(model: torch.nn.Module, seed: int) -> None:
    """Draw the weights in the order of their names, which have a prefix in older transformers."""
    torch.manual_seed(seed)
    named = {name.removeprefix("text_model."): weight for name, weight in model.named_parameters()}
    for name, weight in sorted(named.items()):
        if weight.ndim > 1:
            torch.nn.init.normal_(weight, std=weight[0].numel() ** -0.5)
        else:
            torch.nn.init.normal_(weight, mean=float("norm" in name and "weight" in name), std=0.1)
