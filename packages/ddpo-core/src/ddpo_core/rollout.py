"""Sampling and scoring: which prompt each sample has, its trajectory, its image, its score."""

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ddpo_core.errors import ScoreError
from ddpo_core.prompts import PromptSet, pick_prompts
from ddpo_core.randomness import generator
from ddpo_core.rows import concatenate_rows
from ddpo_core.sampling import sample_trajectories
from ddpo_core.scoring import Info, score_images
from ddpo_core.types import Conditioning, Params, Policy, Progress, RewardFunction, Trajectories
from ddpo_core.workers import beside


class Rollout(NamedTuple):
    """Samples with their scores, one row per sample; images and scores are on the CPU."""

    trajectories: Trajectories
    prompts: PromptSet
    images: Tensor
    scores: Float[Tensor, " batch"]
    info: Info
    seconds_sampling: float
    seconds_reward: float


class Scored(NamedTuple):
    """The scores of a batch, and how long they took."""

    scores: Float[Tensor, " batch"]
    info: Info
    seconds: float


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
    progress: Progress | None = None,
) -> Rollout:
    """Sample and score one image per prompt, `batch_size` at a time.

    Beyond float tolerance the results do not depend on the batch size.

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
        progress: Told after every batch.

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
    parts = []
    with beside(threads, own_cores=device.type != "cpu") as submit:
        for start in range(0, len(seeds), batch_size):
            end = min(start + batch_size, len(seeds))
            part = pick_prompts(prompts, range(start, end))
            trajectories, images, seconds = _sample(policy, params, part, seeds[start:end], num_steps)
            scoring = submit(partial(_score, reward_fn, images, part))
            parts.append((trajectories, part, images, seconds, scoring))
            if progress is not None:
                progress("sampling", end, len(seeds))
        return _join([_finish(*part) for part in parts])


def draw_prompts(prompts: PromptSet, *, seed: int, epoch: int, indices: Sequence[int]) -> PromptSet:
    """Draw the prompt of every global sample index, uniformly and independently.

    Example:
        >>> draw_prompts(PromptSet(("a cat",), ({},)), seed=0, epoch=0, indices=[5, 6]).prompts
        ('a cat', 'a cat')
    """
    drawn = [int(generator(seed, "prompt", epoch, index).integers(len(prompts.prompts))) for index in indices]
    return pick_prompts(prompts, drawn)


def encode_once(encode: Callable[[Sequence[str]], Conditioning]) -> Callable[[Sequence[str]], Conditioning]:
    """Remember what a prompt was encoded to, for as long as the returned function lives.

    Prompts are encoded one by one: in a batch, the last bits would depend on which prompts happened to be new, and a
    resumed run would differ from one that was never interrupted.

    Example:
        >>> calls = []
        >>> encode = encode_once(lambda prompts: calls.append(prompts) or torch.zeros(len(prompts), 1))
        >>> encode(["a cat", "a dog"]).shape, encode(["a cat"]).shape, calls
        (torch.Size([2, 1]), torch.Size([1, 1]), [['a cat'], ['a dog']])
    """
    memory: dict[str, Conditioning] = {}

    def encode_remembered(prompts: Sequence[str]) -> Conditioning:
        memory.update({prompt: encode([prompt]) for prompt in prompts if prompt not in memory})
        return concatenate_rows([memory[prompt] for prompt in prompts])

    return encode_remembered


def _sample(
    policy: Policy, params: Params, prompts: PromptSet, seeds: Sequence[int], num_steps: int
) -> tuple[Trajectories, Tensor, float]:
    start = time.perf_counter()
    trajectories = sample_trajectories(policy, params, prompts.prompts, num_steps=num_steps, seeds=seeds)
    with torch.no_grad():
        images = policy.decode(trajectories.latents[:, -1]).cpu()
    return trajectories, images, time.perf_counter() - start


def _score(reward_fn: RewardFunction, images: Tensor, prompts: PromptSet) -> Scored:
    start = time.perf_counter()
    scores, info = score_images(reward_fn, images, prompts.prompts, prompts.metadata)
    return Scored(scores, info, time.perf_counter() - start)


def _finish(
    trajectories: Trajectories,
    prompts: PromptSet,
    images: Tensor,
    seconds_sampling: float,
    scoring: Callable[[], Scored],
) -> Rollout:
    scores, info, seconds_reward = scoring()
    return Rollout(trajectories, prompts, images, scores, info, seconds_sampling, seconds_reward)


def _join(parts: Sequence[Rollout]) -> Rollout:
    if len(parts) == 1:
        return parts[0]
    return Rollout(
        _join_trajectories([part.trajectories for part in parts]),
        PromptSet(
            tuple(prompt for part in parts for prompt in part.prompts.prompts),
            tuple(row for part in parts for row in part.prompts.metadata),
        ),
        torch.cat([part.images for part in parts]),
        torch.cat([part.scores for part in parts]),
        _join_info([part.info for part in parts]),
        sum(part.seconds_sampling for part in parts),
        sum(part.seconds_reward for part in parts),
    )


def _join_trajectories(parts: Sequence[Trajectories]) -> Trajectories:
    index, offset = [], 0
    for part in parts:
        index.append(part.prompt_index + offset)
        offset += len(dict.fromkeys(part.prompts))
    return Trajectories(
        torch.cat([part.latents for part in parts]),
        torch.cat([part.log_probs for part in parts]),
        concatenate_rows([part.conditioning for part in parts]),
        torch.cat(index),
        parts[0].timesteps,
        parts[0].stochastic,
        tuple(prompt for part in parts for prompt in part.prompts),
    )


def _join_info(parts: Sequence[Info]) -> Info:
    keys = dict.fromkeys(key for part in parts for key in part)
    missing = [key for key in keys if any(key not in part for part in parts)]
    if missing:
        raise ScoreError(
            f"the reward returned info[{missing[0]!r}] for some batches only; want the same keys every time"
        )
    return {key: [value for part in parts for value in part[key]] for key in keys}
