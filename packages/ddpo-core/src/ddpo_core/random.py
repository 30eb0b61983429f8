"""Randomness as a pure function of (seed, purpose, epoch, index): nothing is drawn from a state that could be lost."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

# A stream's number is part of the meaning of a seed: append, never reorder.
_PURPOSES = ("noise", "prompt", "steps", "regression", "shuffle", "view")


def generator(seed: int, purpose: str, *index: int) -> np.random.Generator:
    """Make the generator of one purpose at one place; streams of different arguments are independent.

    Raises:
        ValueError: If `seed` or an index is negative, or the purpose is unknown.

    Example:
        >>> int(generator(7, "prompt", 0, 3).integers(100)) == int(generator(7, "prompt", 0, 3).integers(100))
        True
    """
    return np.random.default_rng(_sequence(seed, purpose, *index))


def sample_seeds(seed: int, epoch: int, indices: Sequence[int]) -> tuple[int, ...]:
    """Derive the 64-bit noise seed of every global sample index of an epoch.

    Example:
        >>> sample_seeds(0, 1, [4, 5])[1] == sample_seeds(0, 1, [5])[0]
        True
    """
    return tuple(int(_sequence(seed, "noise", epoch, index).generate_state(1, np.uint64)[0]) for index in indices)


def shuffled_minibatches(
    samples: int, minibatches: int, *, seed: int, epoch: int, pass_index: int = 0
) -> Int[np.ndarray, "minibatches columns"]:
    """Deal the global sample indices of an epoch into minibatches, mixed anew in every pass over them.

    The first pass deals a permutation; later ones permute every column over the minibatches. So the samples of a
    column stay with it, and processes that own columns share every minibatch of every pass equally.

    Args:
        samples: How many, a multiple of `minibatches`.
        minibatches: How many per pass.
        seed: The seed of the run.
        epoch: The epoch, from 0.
        pass_index: The pass, from 0.

    Example:
        >>> first, second = (shuffled_minibatches(8, 2, seed=0, epoch=0, pass_index=place) for place in (0, 1))
        >>> first.shape, sorted(first.flatten().tolist()), bool((first == second).all())
        ((2, 4), [0, 1, 2, 3, 4, 5, 6, 7], False)
        >>> (np.sort(first, 0) == np.sort(second, 0)).all()
        np.True_

    Source: jannerm/ddpo and ddpo-pytorch, `train.py`, which shuffle all samples in every pass; the fixed columns are
        ours.
    """
    dealt = generator(seed, "shuffle", epoch).permutation(samples).reshape(minibatches, -1)
    return dealt if pass_index == 0 else generator(seed, "shuffle", epoch, pass_index).permuted(dealt, axis=0)


def gaussian_noise(seeds: Sequence[int], shape: Sequence[int]) -> Float[Tensor, "batch ..."]:
    """Draw standard normal float32 noise on the CPU; row `i` is a function of `seeds[i]` alone.

    NumPy and not `torch.Generator`: torch's CPU generator keeps 32 bits of a seed, so long runs would meet equal
    noise, and its numbers depend on how many are drawn at once.

    Example:
        >>> gaussian_noise([3, 4], (2,))[1].equal(gaussian_noise([4], (2,))[0])
        True
    """
    rows = [np.random.default_rng(seed).standard_normal(tuple(shape), dtype=np.float32) for seed in seeds]
    return torch.from_numpy(np.stack(rows))


def _sequence(seed: int, purpose: str, *index: int) -> np.random.SeedSequence:
    return np.random.SeedSequence(seed, spawn_key=(_PURPOSES.index(purpose), *index))
