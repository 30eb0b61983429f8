"""Tiny random pipelines of the real classes: what the tests train, save and load instead of mocks.

The libraries are imported where they are used: this file is also read by the process that only hands out the tests,
and all others would wait for it.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from diffusers import (
        AutoencoderKL,
        StableDiffusionPipeline,
        StableDiffusionXLPipeline,
        UNet2DConditionModel,
    )
    from transformers import CLIPTextConfig, CLIPTextModel

# Deadlines measure the machine, not the code.
settings.register_profile("ddpo", deadline=None)
settings.load_profile("ddpo")

SCHEDULER = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "clip_sample": False}


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    letters = "abcdefghijklmnopqrstuvwxyz"
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({token: place for place, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return folder


@pytest.fixture(scope="session")
def make_pipeline(tokenizer_folder: Path) -> "Callable[..., StableDiffusionPipeline]":
    """Make an untrained pipeline of 16x16 pixels and 8x8x4 latents, the same at every call."""
    import torch
    from diffusers import DDIMScheduler, StableDiffusionPipeline
    from transformers import CLIPTokenizer

    def make(**scheduler: object) -> StableDiffusionPipeline:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return StableDiffusionPipeline(
                vae=_vae(),
                text_encoder=_text_encoder(),
                tokenizer=CLIPTokenizer.from_pretrained(tokenizer_folder, model_max_length=12),
                unet=_unet(),
                scheduler=DDIMScheduler(**{"steps_offset": 1, "set_alpha_to_one": False, **SCHEDULER, **scheduler}),
                safety_checker=None,
                feature_extractor=None,
                requires_safety_checker=False,
            )

    return make


@pytest.fixture(scope="session")
def make_sdxl_pipeline(tokenizer_folder: Path) -> "Callable[..., StableDiffusionXLPipeline]":
    """Make an untrained pipeline of SDXL's kind: two text encoders, the size of the picture, Euler's scheduler."""
    import torch
    from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline
    from transformers import CLIPTextModelWithProjection, CLIPTokenizer

    def make(**options: object) -> StableDiffusionXLPipeline:
        tokenizer = CLIPTokenizer.from_pretrained(tokenizer_folder, model_max_length=12)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return StableDiffusionXLPipeline(
                vae=_vae(),
                text_encoder=_text_encoder(),
                text_encoder_2=CLIPTextModelWithProjection(_text_config(projection_dim=16)),
                tokenizer=tokenizer,
                tokenizer_2=tokenizer,
                unet=_unet(
                    cross_attention_dim=32,
                    transformer_layers_per_block=2,
                    addition_embed_type="text_time",
                    addition_time_embed_dim=8,
                    projection_class_embeddings_input_dim=6 * 8 + 16,
                ),
                scheduler=EulerDiscreteScheduler(
                    beta_start=0.00085,
                    beta_end=0.012,
                    beta_schedule="scaled_linear",
                    steps_offset=1,
                    timestep_spacing="leading",
                ),
                add_watermarker=False,
                **options,
            )

    return make


@pytest.fixture(scope="session")
def pipeline_folder(
    make_pipeline: "Callable[..., StableDiffusionPipeline]", tmp_path_factory: pytest.TempPathFactory
) -> str:
    folder = tmp_path_factory.mktemp("pipeline")
    make_pipeline().save_pretrained(folder)
    return str(folder)


def _unet(**options: object) -> "UNet2DConditionModel":
    from diffusers import UNet2DConditionModel

    config = {
        "sample_size": 8,
        "block_out_channels": (16, 32),
        "layers_per_block": 1,
        "norm_num_groups": 8,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "cross_attention_dim": 16,
        "attention_head_dim": 8,
    }
    return UNet2DConditionModel(**{**config, **options})


def _vae() -> "AutoencoderKL":
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=16,
    )


def _text_encoder() -> "CLIPTextModel":
    from transformers import CLIPTextModel

    return CLIPTextModel(_text_config())


def _text_config(**options: object) -> "CLIPTextConfig":
    from transformers import CLIPTextConfig

    return CLIPTextConfig(
        vocab_size=54,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=12,
        bos_token_id=52,
        eos_token_id=53,
        pad_token_id=53,
        **options,
    )
