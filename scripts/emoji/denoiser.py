"""Train the text encoder and the UNet of the embedded world together, on latents made once."""

from pathlib import Path

import inflect
import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from autoencoder import to_images
from icons import WORDS
from loop import Recipe, train

SINGLES_RECIPE = Recipe(name="denoiser", num_steps=5_200, batch_size=32, learning_rate=1e-3, cooldown=0.25)
SCENES_RECIPE = Recipe(
    name="denoiser_scenes", num_steps=8_500, batch_size=64, learning_rate=1e-3, cooldown=0.35, average_decay=0.999
)
_TEXT_WIDTH = 128
_EMPTY_CAPTIONS = 0.1
_SCHEDULE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
_LEAST_ALPHA = 1e-4


class Denoiser(nn.Module):
    """What is trained together: the caption's encoder and the network it conditions."""

    def __init__(self, tokenizer: CLIPTokenizer) -> None:
        """Build both from random weights."""
        super().__init__()
        self.text_encoder = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(tokenizer),
                hidden_size=_TEXT_WIDTH,
                intermediate_size=2 * _TEXT_WIDTH,
                num_hidden_layers=2,
                num_attention_heads=4,
                max_position_embeddings=tokenizer.model_max_length,
                projection_dim=_TEXT_WIDTH,
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
            )
        )
        # Attention only at 8x8 and in the middle: 40 % fewer milliseconds per step than at every level.
        self.unet = UNet2DConditionModel(
            sample_size=8,
            in_channels=16,
            out_channels=16,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            block_out_channels=(128, 160),
            layers_per_block=1,
            cross_attention_dim=_TEXT_WIDTH,
            attention_head_dim=4,
            norm_num_groups=16,
            # The caption also scales and shifts every block: it is learnt sooner than through attention alone.
            addition_embed_type="text",
            resnet_time_scale_shift="scale_shift",
        ).to(memory_format=torch.channels_last)


def build_scheduler() -> DDIMScheduler:
    """The noise schedule of Stable Diffusion, brought to almost no signal at the last timestep; predicts velocity.

    Without signal a sampler that starts from noise starts where training did, so white backgrounds come out white (Lin
    et al. 2023). Not to zero: there diffusers takes the square root of a rounding error when `eta` is 1.
    """
    zero_snr = DDIMScheduler(**_SCHEDULE, rescale_betas_zero_snr=True)
    alphas = zero_snr.alphas_cumprod.double().clamp(min=_LEAST_ALPHA)
    before = torch.cat([torch.ones(1, dtype=torch.float64), alphas[:-1]])
    return DDIMScheduler(
        **_SCHEDULE,
        trained_betas=(1 - alphas / before).tolist(),
        clip_sample=False,
        set_alpha_to_one=True,
        steps_offset=1,
        prediction_type="v_prediction",
        timestep_spacing="trailing",
    )


def load_latents(folder: Path, vae: AutoencoderKL, pixels: np.ndarray) -> Tensor:
    """Encode the pool once, scaled to unit variance by `vae.config.scaling_factor`; float16 [scenes, 16, 8, 8]."""
    path = folder / "latents.safetensors"
    if not path.exists():
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
            means = [vae.encode(to_images(part)).latent_dist.mean.float() for part in np.array_split(pixels, 512)]
        save_file({"latents": (torch.cat(means) * vae.config.scaling_factor).half().contiguous()}, path)
    return load_file(path)["latents"]


def train_denoiser(folder: Path, latents: Tensor, captions: list[str], tokenizer: CLIPTokenizer) -> Denoiser:
    """Train with resumable state in `folder`: what single words look like, then all scenes.

    One caption in ten is empty, which classifier-free guidance needs.
    """
    torch.manual_seed(0)
    model = Denoiser(tokenizer)
    # The same mathematics; PyTorch's fused attention is slow backwards in bfloat16.
    model.unet.set_attn_processor(AttnProcessor())
    tokens = tokenizer([*captions, ""], padding="max_length", truncation=True, return_tensors="pt").input_ids
    alphas = build_scheduler().alphas_cumprod
    singles = set(map(inflect.engine().a, WORDS))
    single_scenes = np.flatnonzero([caption in singles for caption in captions])
    for recipe, scenes in ((SINGLES_RECIPE, single_scenes), (SCENES_RECIPE, np.arange(len(captions)))):

        def loss_fn(
            model: Denoiser, rng: np.random.Generator, recipe: Recipe = recipe, scenes: np.ndarray = scenes
        ) -> Tensor:
            chosen = torch.from_numpy(rng.choice(scenes, recipe.batch_size))
            spoken = torch.from_numpy(rng.random(recipe.batch_size) >= _EMPTY_CAPTIONS)
            spoken_tokens = tokens[torch.where(spoken, chosen, len(captions))]
            return _velocity_error(model, latents[chosen].float(), spoken_tokens, alphas)

        model = train(model, loss_fn, folder, recipe)
    return model


def _velocity_error(model: Denoiser, latents: Tensor, tokens: Tensor, alphas: Tensor) -> Tensor:
    """Mean squared error of v = sqrt(a) noise - sqrt(1 - a) latents (Salimans and Ho 2022)."""
    timesteps = torch.randint(len(alphas), (len(latents),))
    noise = torch.randn_like(latents)
    signal = alphas[timesteps].sqrt()[:, None, None, None]
    spread = (1 - alphas[timesteps]).sqrt()[:, None, None, None]
    noisy = (signal * latents + spread * noise).contiguous(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        context = model.text_encoder(tokens).last_hidden_state
        predicted = model.unet(noisy, timesteps, context).sample
    return F.mse_loss(predicted.float(), signal * noise - spread * latents)
