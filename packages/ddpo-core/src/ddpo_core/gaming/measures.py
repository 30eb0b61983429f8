"""What can be measured of samples: how they look, how alike they are, and what the initial policy makes of them."""

import math
from collections.abc import Sequence
from statistics import fmean
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pdist

from ddpo_core.constraints import Measure
from ddpo_core.distributed import SINGLE, Processes
from ddpo_core.errors import DDPOError
from ddpo_core.losses import kl_penalty
from ddpo_core.random import gaussian_noise, generator
from ddpo_core.sampling import Rollout, encode_once, replay_log_probs, stochastic_steps, take_rows, take_samples
from ddpo_core.types import Params, Policy, Trajectories

EVIDENCE, FAMILIARITY, MARGIN = "prompt_evidence", "familiarity", "prompt_margin"
NEGATIVE_KL = "negative_kl"

_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601
_DARK, _BRIGHT = 0.1, 0.9
_EDGE = 0.1
_LEVELS = 4  # per channel
_BATCH_PIXELS, _PART_VALUES = 2**20, 2**16


class InitialView(NamedTuple):
    """What the initial policy sees in samples."""

    familiarity: Float[Tensor, " batch"]
    """How well it knows such pictures: no unit, higher is more familiar."""
    margin: Float[Tensor, " batch"]
    """How much better it cleans them when told their prompts: 0 for no better."""


def image_statistics(images: Float[Tensor, "batch ..."]) -> dict[str, Float[Tensor, " batch"]]:
    """Describe each image `[3, height, width]`, values in [0, 1], by six numbers.

    With the luma `0.299 r + 0.587 g + 0.114 b` of a pixel:

    - `saturation`: mean of `(max - min) / max` over the channels of a pixel, 0 for black; 0 to 1.
    - `dark_fraction`, `bright_fraction`: share of the pixels of a luma below 0.1, above 0.9.
    - `edge_density`: share of the pairs of neighbours, beside and below, whose luma differs by more than 0.1.
    - `colour_entropy`: entropy in bits of the histogram of 4 x 4 x 4 colours; 0 to 6.
    - `high_frequency_share`: share of the luma's spectral power, its mean aside, above a quarter of a cycle per pixel
      (half of what pixels can carry) in either direction; 0 for a constant image.

    Raises:
        DDPOError: If these are no images of at least 2 x 2 pixels.

    Example:
        >>> {name: value.item() for name, value in image_statistics(torch.zeros(1, 3, 4, 4)).items() if value != 0}
        {'dark_fraction': 1.0}
    """
    if images.ndim != 4 or images.shape[1] != 3 or min(images.shape[2:]) < 2:
        raise DDPOError(
            f"image statistics need images [batch, 3, height, width] of at least 2 x 2 pixels, not {list(images.shape)}"
        )
    # A whole epoch in float64, with its spectra, would take gigabytes; a batch stays in the cache.
    size = max(1, _BATCH_PIXELS // math.prod(images.shape[2:]))
    starts = range(0, max(1, len(images)), size)
    parts = [_statistics(images[start : start + size].float().clamp(0, 1)) for start in starts]
    return {name: torch.cat([part[name] for part in parts]).float() for name in parts[0]}


def prompt_diversity(
    images: Float[Tensor, "batch ..."], prompts: Sequence[str], *, processes: Processes = SINGLE
) -> float | None:
    """Mean distance of two images of one prompt: the root mean square difference of their values.

    First over the pairs of a prompt, then over the prompts with two images or more; None where there is none. Several
    processes each give their own images, and all get the number for all of them.

    Example:
        >>> prompt_diversity(torch.tensor([[0.0, 0.0], [1.0, 7.0], [9.0, 9.0]]), ["a cat", "a cat", "a dog"])
        5.0
        >>> prompt_diversity(torch.zeros(2, 2), ["a cat", "a dog"]) is None
        True
    """
    rows: dict[str, list[int]] = {}
    for row, prompt in enumerate(prompt for part in processes.gather_json(list(prompts)) for prompt in part):
        rows.setdefault(prompt, []).append(row)
    groups = [group for group in rows.values() if len(group) > 1]
    if not groups:
        return None
    values = images.flatten(1)
    squares = [torch.zeros(math.comb(len(group), 2), dtype=torch.float64) for group in groups]
    # A part of all images at a time: those of all processes at once need not fit in memory.
    for start in range(0, values.shape[1], _PART_VALUES):
        everyones = processes.concatenate(values[:, start : start + _PART_VALUES].contiguous()).double().cpu()
        for place, group in enumerate(groups):
            squares[place] += pdist(everyones[group]).square()
    return fmean((square / values.shape[1]).sqrt().mean().item() for square in squares)


@torch.no_grad()
def initial_kl(policy: Policy, params: Params, trajectories: Trajectories) -> float:
    """KL divergence of a policy from the initial one, on its own trajectories, in closed form.

    The mean of `kl_penalty(params' mean, policy.params' mean, std)` over the stochastic steps; the mean over latent
    dimensions as everywhere, so that it does not grow with the size of the images. 0 before training.

    Raises:
        DDPOError: If every step is deterministic.

    Example:
        >>> from ddpo_core import sample_trajectories, toy
        >>> policy = toy.policy()
        >>> sampled = sample_trajectories(policy, policy.params, ["left"], num_steps=4, seeds=[0])
        >>> initial_kl(policy, policy.params, sampled)
        0.0

    Source: Fan et al. 2023 (DPOK), eq. 9.
    """
    steps = stochastic_steps(trajectories.timesteps)
    if not steps:
        raise DDPOError("every step of this policy is deterministic, so it has no KL divergence: want eta above 0")
    conditioning = take_rows(trajectories.conditioning, trajectories.prompt_index)
    divergences = []
    for step in steps:
        rows = take_rows(trajectories.timesteps, torch.full_like(trajectories.prompt_index, step))
        latents = trajectories.latents[:, step - trajectories.steps.start].contiguous()
        now = policy.transition(params, latents, rows, conditioning)
        reference = policy.transition(policy.params, latents, rows, conditioning)
        divergences.append(kl_penalty(now.mean, reference.mean, now.std))
    return torch.stack(divergences).mean().item()


@torch.no_grad()
def initial_view(
    policy: Policy,
    latents: Float[Tensor, "batch ..."],
    prompts: Sequence[str],
    others: Sequence[str],
    *,
    seeds: Sequence[int],
) -> InitialView:
    """Ask the initial policy what it sees in each sample.

    With `e(p)` its error of denoising a sample that is noised half-way (`num_train_timesteps / 2`) when told `p`:

        familiarity = -log e(prompt)
        margin      = e(other) - e(prompt)

    A diffusion model is a classifier of what it draws: it cleans a fox better when told "a fox" than "a bear". Where
    training has given up the pictures, the prompt makes no difference any more. Before that, samples become unlike
    what it was trained on, and it cleans them worse whatever it is told.

    Args:
        policy: Its initial `params` are asked, whatever the samples were drawn with.
        latents: The clean latents of the samples (`EpochInfo.latents`).
        prompts: What each was drawn for.
        others: Another prompt for each.
        seeds: The noise of each is a function of its seed.

    Raises:
        DDPOError: If the policy has no denoising error.

    Example:
        >>> from ddpo_core import toy
        >>> seen = initial_view(toy.policy(), torch.tensor([[-1.0, 0.0]]), ["left"], ["right"], seeds=[0])
        >>> seen.margin.item() > 0.5
        True

    Source: Li et al. 2023 (Your Diffusion Model is Secretly a Zero-Shot Classifier), equation 6. Deviation: at one
        time.
    """
    if policy.denoising_error is None:
        raise DDPOError("this policy has no denoising_error, which tells what it sees in a sample: want one")
    device = next(iter(policy.params.values())).device
    clean = latents.to(device).float()
    noise = gaussian_noise(seeds, clean.shape[1:]).to(device)
    time = torch.full((len(clean),), policy.num_train_timesteps // 2, device=device)
    told, mistold = (
        policy.denoising_error(policy.params, clean, noise, time, policy.encode(texts)).clamp(min=1e-30).cpu()
        for texts in (prompts, others)
    )
    return InitialView(-told.log(), mistold - told)


def draw_comparisons(
    prompts: Sequence[str], unique: Sequence[str], *, seeds: Sequence[int]
) -> tuple[list[int], list[str]]:
    """Draw for each sample, by its seed, the seed of the noise to look at it with, and another prompt of `unique`.

    Each sample its own other prompt: with one for all samples of a prompt, their margins would rise and fall together,
    and the error of their mean would be larger than it looks.

    Example:
        >>> _, others = draw_comparisons(["a cat", "a cat", "a dog"], ["a cat", "a dog"], seeds=[0, 1, 2])
        >>> others
        ['a dog', 'a dog', 'a cat']
    """
    # Streams of their own: from its own seed a sample would be noised with the noise that it was drawn from.
    streams = [generator(seed, "view") for seed in seeds]
    own = [int(stream.integers(2**63)) for stream in streams]
    places = {prompt: place for place, prompt in enumerate(unique)}
    steps = [int(stream.integers(1, len(unique))) for stream in streams]
    return own, [unique[(places[prompt] + step) % len(unique)] for prompt, step in zip(prompts, steps, strict=True)]


def initial_view_measure(policy: Policy, prompts: Sequence[str], *, batch_size: int = 8) -> Measure:
    """Measure the `prompt_margin` and `familiarity` of samples, which need no other model, for `fit` to keep.

    Args:
        policy: Its initial `params` are asked.
        prompts: Each sample is compared with one of these that is not its own, drawn by its seed.
        batch_size: How many samples are looked at at once.

    Raises:
        DDPOError: If there is no other prompt to compare with.

    Example:
        >>> from ddpo_core import PromptSet, measure_base, toy
        >>> policy = toy.policy()
        >>> base = measure_base(policy, [initial_view_measure(policy, ["left", "right"])],
        ...                     PromptSet(("left", "right"), ({}, {})), num_steps=4, seeds=[0, 1])
        >>> bool((base["prompt_margin"] > 0).all())
        True
    """
    unique = list(dict.fromkeys(prompts))
    if len(unique) < 2:
        raise DDPOError(f"prompt_margin compares prompts with each other: want at least 2, not {unique!r}")
    remembering = policy._replace(encode=encode_once(policy.encode))

    def measure(rollout: Rollout, seeds: Sequence[int]) -> dict[str, Tensor]:
        texts, latents = rollout.prompts.prompts, rollout.trajectories.latents[:, -1]
        own, others = draw_comparisons(texts, unique, seeds=seeds)
        parts = [slice(start, start + batch_size) for start in range(0, len(texts), batch_size)]
        views = [initial_view(remembering, latents[part], texts[part], others[part], seeds=own[part]) for part in parts]
        return {
            MARGIN: torch.cat([view.margin for view in views]),
            FAMILIARITY: torch.cat([view.familiarity for view in views]),
        }

    return measure


def negative_kl_measure(policy: Policy, *, batch_size: int = 8) -> Measure:
    """Measure how far samples are from what the initial policy would have drawn, as `negative_kl`, for `fit` to keep.

        negative_kl = mean over the stochastic steps of (log_prob of the initial policy - log_prob)

    0 before training. Its mean estimates minus the `initial_kl` without bias, with a standard error of about
    `sqrt(2 kl / (latent dimensions * steps * samples))`. Kept above a level, it is a KL penalty whose weight adapts.

    Args:
        policy: Its initial `params` are compared with.
        batch_size: How many samples are looked at at once; that of sampling makes it exactly 0 before training.

    Raises:
        DDPOError: When it measures, if every step is deterministic.

    Example:
        >>> from ddpo_core import PromptSet, measure_base, toy
        >>> policy = toy.policy()
        >>> base = measure_base(policy, [negative_kl_measure(policy)], PromptSet(("left", "right"), ({}, {})),
        ...                     num_steps=4, seeds=[0, 1])
        >>> base["negative_kl"]
        tensor([0., 0.])

    Source: Ziegler et al. 2019 (Fine-Tuning Language Models from Human Preferences), section 2.2: the penalty in the
        reward, and its adaptive weight.
    """

    @torch.no_grad()
    def measure(rollout: Rollout, seeds: Sequence[int]) -> dict[str, Tensor]:
        trajectories = rollout.trajectories
        steps = list(trajectories.stochastic)
        if not steps:
            raise DDPOError("every step of this policy is deterministic, so it has no KL divergence: want eta above 0")
        rows = range(len(seeds))
        parts = (take_samples(trajectories, rows[start : start + batch_size]) for start in rows[::batch_size])
        differences = [
            replay_log_probs(policy, policy.params, part, steps) - part.log_probs[:, steps] for part in parts
        ]
        return {NEGATIVE_KL: torch.cat(differences).mean(1).cpu()}

    return measure


def _statistics(images: Tensor) -> dict[str, Tensor]:
    """Measure a batch. What is compared or counted is exact in float32; what is summed is in float64."""
    weights = torch.tensor(_LUMA, dtype=torch.float64, device=images.device)
    luma = (images.double() * weights[:, None, None]).sum(1)
    return {
        "saturation": _saturation(images),
        "dark_fraction": (luma < _DARK).double().mean((1, 2)),
        "bright_fraction": (luma > _BRIGHT).double().mean((1, 2)),
        "edge_density": _edge_density(luma),
        "colour_entropy": _colour_entropy(images),
        "high_frequency_share": _high_frequency_share(luma),
    }


def _saturation(images: Tensor) -> Tensor:
    brightest, darkest = images.amax(1).double(), images.amin(1).double()
    spread = (brightest - darkest) / brightest.clamp(min=torch.finfo(torch.float64).tiny)
    return spread.mean((1, 2))


def _edge_density(luma: Tensor) -> Tensor:
    beside, below = luma.diff(dim=2).abs() > _EDGE, luma.diff(dim=1).abs() > _EDGE
    return torch.cat([beside.flatten(1), below.flatten(1)], 1).double().mean(1)


def _colour_entropy(images: Tensor) -> Tensor:
    levels = (images * _LEVELS).long().clamp(max=_LEVELS - 1)
    colours = (levels[:, 0] * _LEVELS + levels[:, 1]) * _LEVELS + levels[:, 2]
    pixels = colours.flatten(1)
    own = torch.arange(len(pixels), device=pixels.device)[:, None] * _LEVELS**3
    counts = torch.bincount((pixels + own).flatten(), minlength=len(pixels) * _LEVELS**3).view(len(pixels), -1)
    shares = counts.double() / pixels.shape[1]
    return -torch.where(shares > 0, shares * shares.clamp(min=1e-300).log2(), 0.0).sum(1)


def _high_frequency_share(luma: Tensor) -> Tensor:
    contrast = luma - luma.mean((1, 2), keepdim=True)
    # The spectrum of real numbers is symmetric: half of it, whose columns count twice but for those without a twin.
    power = torch.fft.rfft2(contrast).abs().square()
    width = luma.shape[2]
    power[:, :, 1 : (width + 1) // 2] *= 2
    vertical = torch.fft.fftfreq(luma.shape[1], device=luma.device).abs()
    horizontal = torch.fft.rfftfreq(width, device=luma.device)
    is_high = torch.maximum(vertical[:, None], horizontal[None]) > 0.25
    # Rounding leaves a constant image some 1e-30 of power, which would have a spectrum of its own.
    has_contrast = contrast.square().mean((1, 2)) > 1e-12
    share = (power * is_high).sum((1, 2)) / power.sum((1, 2)).clamp(min=torch.finfo(power.dtype).tiny)
    return torch.where(has_contrast, share, 0.0)
