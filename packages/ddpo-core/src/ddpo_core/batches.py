"""What an update trains on: (sample, step) pairs, flattened, so that every micro-batch is full."""

from collections.abc import Iterator, Sequence
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
    samples: Sequence[int], steps: Sequence[int], *, fraction: float, seed: int, epoch: int, indices: Sequence[int]
) -> Pairs:
    """Draw a random subset of `steps` for every sample, independently; a function of (seed, epoch, global index).

    Args:
        samples: Rows of the trajectories.
        steps: The steps that can be trained (`stochastic_steps`).
        fraction: The fraction of them that is trained, in (0, 1]; at least one step is.
        seed: The seed of the run.
        epoch: The epoch, from 0.
        indices: The global index of every sample.

    Returns:
        Pairs on the CPU, sample by sample; the steps of a sample are in order.

    Example:
        >>> choose_pairs([0, 1], [0, 1, 2], fraction=1.0, seed=0, epoch=0, indices=[0, 1]).steps
        tensor([0, 1, 2, 0, 1, 2])

    Source: Black et al. 2023, appendix (a subset of timesteps); ddpo-pytorch, `train.py` (an independent permutation
        of the steps of every sample).
    """
    count = max(1, round(len(steps) * fraction))
    chosen = [sorted(generator(seed, "steps", epoch, index).permutation(steps)[:count].tolist()) for index in indices]
    return Pairs(torch.tensor(samples).repeat_interleave(count), torch.tensor(chosen).flatten())


def split_pairs(pairs: Pairs, size: int) -> Iterator[Pairs]:
    """Split pairs into micro-batches of `size`; the last may be smaller."""
    starts = range(0, len(pairs.samples), size)
    return (Pairs(*(index[start : start + size] for index in pairs)) for start in starts)


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
