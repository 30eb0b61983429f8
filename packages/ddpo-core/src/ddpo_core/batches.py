"""What an update trains on: (sample, step) pairs, flattened, so that every micro-batch is full."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ddpo_core.randomness import generator
from ddpo_core.rows import take_rows
from ddpo_core.types import Conditioning, Timesteps, Trajectories


class Pairs(NamedTuple):
    """Which steps of which samples of some trajectories are trained, one entry per pair."""

    samples: Int[Tensor, " pairs"]
    steps: Int[Tensor, " pairs"]


class Batch(NamedTuple):
    """The data of some pairs, one row per pair."""

    latents: Float[Tensor, "pairs ..."]
    next_latents: Float[Tensor, "pairs ..."]
    step: Timesteps
    conditioning: Conditioning
    old_log_probs: Float[Tensor, " pairs"]
    advantages: Float[Tensor, " pairs"]


def choose_pairs(
    samples: Sequence[int],
    steps: Sequence[int],
    *,
    fraction: float,
    seed: int,
    epoch: int,
    indices: Sequence[int],
    pass_index: int = 0,
) -> Pairs:
    """Draw a random subset of `steps` for every sample, independently; a function of (seed, epoch, global index).

    Args:
        samples: Rows of the trajectories.
        steps: The steps that can be trained (`stochastic_steps`).
        fraction: The fraction of them that is trained, in (0, 1]; at least one step is.
        seed: The seed of the run.
        epoch: The epoch, from 0.
        indices: The global index of every sample.
        pass_index: Which pass over the samples of the epoch this is, from 0.

    Returns:
        Pairs on the CPU, sample by sample; the steps of a sample are in order.

    Example:
        >>> choose_pairs([0, 1], [0, 1, 2], fraction=1.0, seed=0, epoch=0, indices=[0, 1]).steps
        tensor([0, 1, 2, 0, 1, 2])

    Source: Black et al. 2023, appendix (a subset of timesteps); ddpo-pytorch, `train.py` (an independent permutation
        of the steps of every sample).
    """
    count = max(1, round(len(steps) * fraction))
    later = () if pass_index == 0 else (pass_index,)
    streams = [generator(seed, "steps", epoch, index, *later) for index in indices]
    chosen = [sorted(stream.permutation(steps)[:count].tolist()) for stream in streams]
    return Pairs(torch.tensor(samples).repeat_interleave(count), torch.tensor(chosen).flatten())


def window_steps(steps: Sequence[int], *, size: int, epoch: int, every: int) -> tuple[int, ...]:
    """Take `size` consecutive steps, one further every `every` epochs, and from the start again after the end.

    Args:
        steps: The steps that can be trained, in the order of sampling: noisiest first.
        size: How many are trained at a time; 0 means all.
        epoch: The epoch, from 0.
        every: After how many epochs the window moves.

    Example:
        >>> [window_steps(range(5), size=3, epoch=epoch, every=2) for epoch in (0, 1, 2, 6)]
        [(0, 1, 2), (0, 1, 2), (1, 2, 3), (0, 1, 2)]

    Source: Li et al. 2025 (MixGRPO), algorithm 1. Deviation: the steps outside the window are sampled with noise too,
        so that the samples of every epoch come from one and the same policy.
    """
    if size == 0 or size >= len(steps):
        return tuple(steps)
    start = epoch // every % (len(steps) - size + 1)
    return tuple(steps[start : start + size])


def gather_batch(trajectories: Trajectories, advantages: Float[Tensor, " batch"], pairs: Pairs) -> Batch:
    """Collect the data of pairs; nothing is copied but what they need."""
    samples, steps = pairs
    return Batch(
        trajectories.latents[samples, steps],
        trajectories.latents[samples, steps + 1],
        take_rows(trajectories.timesteps, steps),
        take_rows(trajectories.conditioning, trajectories.prompt_index[samples]),
        trajectories.log_probs[samples, steps],
        advantages[samples],
    )
