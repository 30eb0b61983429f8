"""Sampling trajectories and scoring their images, and replaying log-probabilities through the very same function.

Sampling and replay meet in `Policy.transition`: with the same batch shape, a replay of what was just sampled gives the
same log-probabilities bit for bit, in every dtype.
"""

import math
import time
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache, lru_cache, partial
from itertools import accumulate
from operator import itemgetter
from typing import NamedTuple, TypeVar, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ddpo_core.prompts import PromptSet, pick_prompts
from ddpo_core.random import generator
from ddpo_core.rewards import Info, Submit, beside, join_info, score_images
from ddpo_core.types import (
    Conditioning,
    Params,
    Policy,
    Progress,
    RewardFunction,
    Timesteps,
    Trajectories,
    Transition,
)

Aligned = TypeVar("Aligned", bound=Tensor | tuple[Tensor, ...])
"""Tensors whose rows belong together: one tensor, a tuple or a NamedTuple of them."""


Result = TypeVar("Result")


class Rollout(NamedTuple):
    """Samples with their scores, one row per sample; images and scores are on the CPU."""

    trajectories: Trajectories
    prompts: PromptSet
    images: Tensor
    scores: Float[Tensor, " batch"]
    info: Info
    seconds_sampling: float
    seconds_reward: float


def roll_out(
    policy: Policy,
    params: Params,
    reward_fn: RewardFunction,
    prompts: PromptSet,
    *,
    seeds: Sequence[int],
    num_steps: int,
    batch_size: int,
    reward_workers: int | None = 0,
    steps: range | None = None,
    progress: Progress | None = None,
) -> Rollout:
    """Sample and score one image per prompt, `batch_size` at a time.

    Beyond float tolerance the results do not depend on the batch size. On a GPU the host runs ahead: noise is drawn
    while the batch before is denoised, and with threads for rewards, images are decoded and scored on a stream of their
    own while the next are denoised.

    Args:
        policy: The model with its sampler.
        params: The trainable leaves to sample with.
        reward_fn: The reward; called once per batch.
        prompts: One prompt and its metadata per sample.
        seeds: One noise seed per sample.
        num_steps: The number of denoising steps.
        batch_size: How many samples are denoised at once.
        reward_workers: Threads that score finished batches while the next are sampled; 0 scores between them, and
            None means 1 where the policy is on a GPU and 0 on a CPU.
        steps: The steps that are kept, as for `sample_trajectories`.
        progress: Called as `("sampling", done, total)` after every batch.

    Raises:
        NonFiniteError: If an image is not finite.
        ScoreError: If the reward does not return one finite score per image.

    Example:
        >>> from ddpo_core import toy
        >>> policy = toy.policy()
        >>> prompts = PromptSet(("right", "left"), ({}, {}))
        >>> roll_out(policy, policy.params, toy.reward, prompts, seeds=[0, 1], num_steps=4, batch_size=2).scores.shape
        torch.Size([2])
    """
    device = next(iter(params.values())).device
    threads = int(device.type != "cpu") if reward_workers is None else reward_workers
    main = torch.cuda.current_stream(device) if device.type == "cuda" else None
    stream = _second_stream(device) if main and threads else None
    places = [range(start, min(start + batch_size, len(seeds))) for start in range(0, len(seeds), batch_size)]
    drawing = [partial(policy.noise, seeds[part.start : part.stop], num_steps) for part in places]
    trajectories, scoring, seconds, start = None, [], 0.0, time.perf_counter()
    leaves = policy.cast(params)
    with beside(threads, device, stream) as submit, beside(int(main is not None), device, main) as draw:
        for part, noise in zip(places, _ahead(drawing, draw, count=int(main is not None)), strict=True):
            began = time.perf_counter()
            trajectories = trajectories or _begin(policy, prompts.prompts, noise, steps)
            _denoise(policy, leaves, trajectories, part, noise)
            with torch.no_grad(), _after(main, stream):
                images = policy.decode(trajectories.latents[part.start : part.stop, -1])
            images = images if stream else images.cpu()
            seconds += time.perf_counter() - began
            scoring.append(submit(partial(_score, reward_fn, images, pick_prompts(prompts, part))))
            if progress is not None:
                progress("sampling", part.stop, len(seeds))
        scored = [result() for result in scoring]
    assert trajectories is not None
    return Rollout(
        trajectories,
        prompts,
        torch.cat([part.images for part in scored]),
        torch.cat([part.scores for part in scored]),
        join_info([part.info for part in scored]),
        # Where the host runs ahead, its own time says nothing of the device's.
        max(part.arrived for part in scored) - start if stream else seconds,
        sum(part.seconds for part in scored),
    )


def sample_images(
    policy: Policy, params: Params, prompts: Sequence[str], *, num_steps: int, seeds: Sequence[int]
) -> tuple[Trajectories, Tensor]:
    """Sample one trajectory per prompt and decode its image, which is on the CPU.

    Example:
        >>> from ddpo_core import toy
        >>> policy = toy.policy()
        >>> sample_images(policy, policy.params, ["right"], num_steps=4, seeds=[0])[1].shape
        torch.Size([1, 2])
    """
    trajectories = sample_trajectories(policy, params, prompts, num_steps=num_steps, seeds=seeds)
    with torch.no_grad():
        return trajectories, policy.decode(trajectories.latents[:, -1]).cpu()


def sample_trajectories(
    policy: Policy,
    params: Params,
    prompts: Sequence[str],
    *,
    num_steps: int,
    seeds: Sequence[int],
    steps: range | None = None,
) -> Trajectories:
    """Sample one trajectory per prompt; trajectory `i` is a function of `prompts[i]` and `seeds[i]` alone.

    Every unique prompt is encoded once. The latents are rounded to their storage dtype before their log-probability
    is taken, so that a replay sees what sampling saw (the reference implementation rounds afterwards).

    Args:
        policy: The model with its sampler.
        params: The trainable leaves to sample with.
        prompts: One prompt per sample.
        num_steps: The number of denoising steps.
        seeds: One non-negative integer per sample.
        steps: Keep the latents and log-probabilities of these steps only, `range(0)` for those of none; None keeps all.
            The sample itself always stays, and is the same.

    Raises:
        ValueError: If there are no prompts, not one seed per prompt, or `steps` is no part of `range(num_steps)`.

    Example:
        >>> from ddpo_core import toy
        >>> policy = toy.policy()
        >>> sample_trajectories(policy, policy.params, ["right", "left"], num_steps=4, seeds=[0, 1]).latents.shape
        torch.Size([2, 5, 2])
    """
    if not prompts or len(prompts) != len(seeds):
        raise ValueError(
            f"got {len(prompts)} prompts and {len(seeds)} seeds: want at least one prompt, a seed for each"
        )
    noise = policy.noise(seeds, num_steps)
    trajectories = _begin(policy, prompts, noise, steps)
    _denoise(policy, policy.cast(params), trajectories, range(len(prompts)), noise)
    return trajectories


def replay_log_probs(
    policy: Policy, params: Params, trajectories: Trajectories, steps: Sequence[int]
) -> Float[Tensor, "batch replayed"]:
    """Compute the log-probabilities of sampled steps under `params`, differentiable in `params`.

    Args:
        policy: The policy that was sampled.
        params: The trainable leaves to replay with.
        trajectories: What `sample_trajectories` returned.
        steps: Which steps, counted from 0 in the order of sampling, of those that were kept; one column each.

    Raises:
        ValueError: If a step was not kept.

    Example:
        >>> from ddpo_core import toy
        >>> policy = toy.policy()
        >>> sampled = sample_trajectories(policy, policy.params, ["right"], num_steps=4, seeds=[0])
        >>> replay_log_probs(policy, policy.params, sampled, [0, 2]).equal(sampled.log_probs[:, [0, 2]])
        True
    """
    conditioning = take_rows(trajectories.conditioning, trajectories.prompt_index)
    columns = []
    for step in steps:
        if step not in trajectories.steps:
            raise ValueError(
                f"step {step} was not kept in sampling, which kept {trajectories.steps}: want it among them"
            )
        index, place = torch.full_like(trajectories.prompt_index, step), step - trajectories.steps.start
        latents = trajectories.latents[:, place].contiguous()
        transition = policy.transition(params, latents, take_rows(trajectories.timesteps, index), conditioning)
        columns.append(transition_log_prob(transition, trajectories.latents[:, place + 1]))
    return torch.stack(columns, dim=1)


def transition_log_prob(transition: Transition, latents: Float[Tensor, "batch ..."]) -> Float[Tensor, " batch"]:
    r"""Compute the log-density of `latents`, averaged over the dimensions of a latent, in float32.

        1/d sum_i [ -(x_i - mean_i)^2 / (2 std_i^2) - log std_i - 1/2 log 2 pi ]

    The *mean* over the d dimensions, as in the reference implementation, not the sum: a ratio of two such densities
    is the d-th root of the true ratio, and `clip_range=1e-4` belongs to it. Dimensions with `std == 0` are
    deterministic: they contribute 0 and no gradient.

    Example:
        >>> transition_log_prob(Transition(torch.zeros(1, 2), torch.ones(1, 1)), torch.zeros(1, 2))
        tensor([-0.9189])

    Source: Black et al. 2023, section 4.3; ddpo-pytorch, `ddim_with_logprob.py`.
    """
    deterministic = transition.std == 0
    std = torch.where(deterministic, 1.0, transition.std.float())
    normalised = (latents.float() - transition.mean.float()) / std
    log_density = -0.5 * normalised.square() - std.log() - 0.5 * math.log(2 * math.pi)
    return torch.where(deterministic, 0.0, log_density).flatten(1).mean(1)


def stochastic_steps(timesteps: Timesteps) -> tuple[int, ...]:
    """List the steps with `std > 0`: the others have no log-probability and nothing to train.

    Example:
        >>> from ddpo_core import toy
        >>> stochastic_steps(toy.policy().timesteps(4))
        (0, 1, 2)
    """
    return tuple(step for step, std in enumerate(timesteps.std.tolist()) if std > 0)


def draw_prompts(prompts: PromptSet, *, seed: int, epoch: int, indices: Sequence[int]) -> PromptSet:
    """Draw the prompt of every index independently, by the weights of the set: a function of (seed, epoch, index).

    Example:
        >>> certain = PromptSet(("a cat", "a dog"), ({}, {}), weights=(0.0, 1.0))
        >>> draw_prompts(certain, seed=0, epoch=0, indices=[5, 6]).prompts
        ('a dog', 'a dog')
    """
    streams = [generator(seed, "prompt", epoch, index) for index in indices]
    if prompts.weights is None:
        return pick_prompts(prompts, [int(stream.integers(len(prompts))) for stream in streams])
    reach = list(accumulate(prompts.weights))
    # Beyond every place of weight 0; rounding may put the last number at the end of the reach, so the last that counts.
    last = max(place for place, weight in enumerate(prompts.weights) if weight > 0)
    return pick_prompts(prompts, [min(bisect_right(reach, stream.random() * reach[-1]), last) for stream in streams])


def encode_once(
    encode: Callable[[Sequence[str]], Conditioning], *, capacity: int = 512
) -> Callable[[Sequence[str]], Conditioning]:
    """Remember what the latest `capacity` prompts were encoded to, for as long as the returned function lives.

    Prompts are encoded one by one: in a batch, the last bits would depend on which prompts happened to be new, and a
    resumed run would differ from one that was never interrupted. What is remembered stays on the device: of SDXL's
    prompts, 512 are about 160 MB.

    Example:
        >>> calls = []
        >>> encode = encode_once(lambda prompts: calls.append(prompts) or torch.zeros(len(prompts), 1))
        >>> encode(["a cat", "a dog"]).shape, encode(["a cat"]).shape, calls
        (torch.Size([2, 1]), torch.Size([1, 1]), [['a cat'], ['a dog']])
    """
    remembered = lru_cache(capacity)(lambda prompt: encode([prompt]))
    return lambda prompts: concatenate_rows([remembered(prompt) for prompt in prompts])


def take_rows(rows: Aligned, index: Int[Tensor, " picked"]) -> Aligned:
    """Take the same rows of every tensor, as copies.

    Example:
        >>> take_rows((torch.arange(3), torch.arange(3) * 10), torch.tensor([2, 0]))
        (tensor([2, 0]), tensor([20,  0]))
    """
    return map_rows(lambda tensor: tensor[index], rows)


def take_samples(trajectories: Trajectories, indices: Sequence[int]) -> Trajectories:
    """Take some trajectories, in the order of their indices, as copies.

    Example:
        >>> from ddpo_core import toy
        >>> policy = toy.policy()
        >>> sampled = sample_trajectories(policy, policy.params, ["right", "left"], num_steps=4, seeds=[0, 1])
        >>> take_samples(sampled, [1, 1]).latents.shape
        torch.Size([2, 5, 2])
    """
    picked = list(indices)
    return trajectories._replace(
        latents=trajectories.latents[picked],
        log_probs=trajectories.log_probs[picked],
        prompt_index=trajectories.prompt_index[picked],
        prompts=tuple(trajectories.prompts[index] for index in picked),
    )


def split_rows(rows: Aligned, size: int) -> Iterator[Aligned]:
    """Split rows into parts of `size`; the last may be smaller.

    Example:
        >>> [part.tolist() for part in split_rows(torch.arange(5), 2)]
        [[0, 1], [2, 3], [4]]
    """
    count = len(rows) if isinstance(rows, Tensor) else len(rows[0])
    for start in range(0, count, size):
        yield map_rows(itemgetter(slice(start, start + size)), rows)


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor of the CPU to a device without waiting for what the device is doing.

    A copy from memory that is not pinned waits until all work before it is done.

    Example:
        >>> to_device(torch.zeros(2), torch.device("cpu"))
        tensor([0., 0.])
    """
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def map_rows(function: Callable[[Tensor], Tensor], rows: Aligned) -> Aligned:
    """Apply a function to every tensor.

    Example:
        >>> map_rows(torch.neg, (torch.arange(2), torch.ones(2)))
        (tensor([ 0, -1]), tensor([-1., -1.]))
    """
    if isinstance(rows, Tensor):
        return cast(Aligned, function(rows))
    return _rebuild(rows, [function(tensor) for tensor in rows])


def concatenate_rows(parts: Sequence[Aligned]) -> Aligned:
    """Join parts of one kind below each other.

    Example:
        >>> concatenate_rows([torch.arange(2), torch.arange(3)])
        tensor([0, 1, 0, 1, 2])
    """
    first = parts[0]
    if isinstance(first, Tensor):
        return cast(Aligned, torch.cat(cast(list[Tensor], list(parts))))
    return _rebuild(first, [torch.cat(tensors) for tensors in zip(*parts, strict=True)])


class _Scored(NamedTuple):
    images: Tensor
    scores: Tensor
    info: Info
    arrived: float
    """When the images were there."""
    seconds: float


def _begin(policy: Policy, prompts: Sequence[str], noise: Tensor, steps: range | None) -> Trajectories:
    """Encode prompts and make room for their trajectories; `noise` is that of a batch of them.

    The room is made here and not where it is filled: what is born under inference_mode cannot be saved for backward.
    """
    num_steps = noise.shape[1] - 1
    kept = range(num_steps) if steps is None else steps
    if not kept:
        kept = range(num_steps, num_steps)
    if kept.step != 1 or kept.start < 0 or kept.stop > num_steps:
        raise ValueError(f"steps={steps!r}: want a part of range({num_steps}), one step after another")
    unique, timesteps = tuple(dict.fromkeys(prompts)), policy.timesteps(num_steps)
    parts = range(0, len(unique), len(noise))
    conditioning = concatenate_rows([policy.encode(unique[start : start + len(noise)]) for start in parts])
    places = {prompt: place for place, prompt in enumerate(unique)}
    rows = len(kept) + 1 + (len(kept) > 0 and kept.stop < num_steps)
    return Trajectories(
        noise.new_empty(len(prompts), rows, *noise.shape[2:]),
        noise.new_zeros(len(prompts), num_steps, dtype=torch.float32),
        conditioning,
        to_device(torch.tensor([places[prompt] for prompt in prompts]), noise.device),
        timesteps,
        stochastic_steps(timesteps),
        tuple(prompts),
        kept,
    )


@torch.inference_mode()
def _denoise(policy: Policy, params: Params, trajectories: Trajectories, samples: range, noise: Tensor) -> None:
    """Fill some rows of trajectories."""
    rows, kept = slice(samples.start, samples.stop), trajectories.steps
    latents, log_probs = trajectories.latents[rows], trajectories.log_probs[rows]
    conditioning = take_rows(trajectories.conditioning, trajectories.prompt_index[rows])
    entering = noise[:, 0].contiguous()
    for step, index in enumerate(torch.arange(noise.shape[1] - 1, device=noise.device)):
        transition = policy.transition(
            params, entering, take_rows(trajectories.timesteps, index.expand(len(noise))), conditioning
        )
        leaving = torch.empty_like(entering).copy_(transition.mean + transition.std * noise[:, step + 1])
        if step == kept.start:
            latents[:, 0] = entering
        if step in kept:
            latents[:, step - kept.start + 1] = leaving
            log_probs[:, step] = transition_log_prob(transition, leaving)
        entering = leaving
    latents[:, -1] = entering


def _score(reward_fn: RewardFunction, decoded: Tensor, prompts: PromptSet) -> _Scored:
    images = decoded.cpu()
    arrived = time.perf_counter()
    scores, info = score_images(reward_fn, images, prompts.prompts, prompts.metadata)
    return _Scored(images, scores, info, arrived, time.perf_counter() - arrived)


def _ahead(works: Iterable[Callable[[], Result]], submit: Submit, *, count: int) -> Iterator[Result]:
    """Give the results of work in its order, with so many pieces begun before they are asked for."""
    begun: deque[Callable[[], Result]] = deque()
    for work in works:
        begun.append(submit(work))
        if len(begun) > count:
            yield begun.popleft()()
    yield from (result() for result in begun)


@cache
def _second_stream(device: torch.device) -> torch.cuda.Stream:
    """Give a GPU's one stream for decoding: what is freed on a stream is taken again on that stream alone."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


@contextmanager
def _after(main: torch.cuda.Stream | None, stream: torch.cuda.Stream | None) -> Iterator[None]:
    """Let the block's work wait for that of `main` so far, and then go on beside it on `stream`; None is no stream."""
    if main is not None and stream is not None:
        stream.wait_stream(main)
    with torch.cuda.stream(stream):
        yield


def _rebuild(like: Aligned, tensors: list[Tensor]) -> Aligned:
    # A NamedTuple takes its fields one by one, a plain tuple takes them all at once.
    return cast(Aligned, type(like)(*tensors) if hasattr(like, "_fields") else tuple(tensors))
