"""How fast a reward scores, and how much memory it takes."""

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from time import perf_counter
from typing import Any

import numpy as np
from jaxtyping import UInt8

from ddpo_rewards.errors import RewardError
from ddpo_rewards.reward import Metadata, Reward
from ddpo_rewards.testing import plausible_metadata

_PROMPTS = ('a fox and the word "fox"', 'two dogs in a park, "no dogs"', 'a sign that says "open late"')
_COARSE = 16  # pixels between two shades of the drawn pictures, which the noise lies on


@dataclass(frozen=True, slots=True)
class Speed:
    """What was measured of a reward."""

    images: int
    """So many were scored, in calls of `batch_size`."""
    batch_size: int
    images_per_second: float
    """Over all calls together."""
    slowest: float
    """Images per second of the slowest call."""
    fastest: float
    first_call: float
    """Seconds of the call before those: whatever is loaded or compiled at the first."""
    memory: int | None
    """Most bytes that this process ever had, the reward's and its own; None where the system does not say."""
    gpu_memory: int | None
    """Most bytes that tensors took on the GPU; None without one."""


def measure_speed(
    reward: Reward,
    *,
    size: int = 512,
    seconds: float = 10.0,
    batch_size: int | None = None,
    prompts: Sequence[str] | None = None,
    metadata: Metadata | None = None,
    clock: Callable[[], float] = perf_counter,
) -> Speed:
    """Score drawn pictures for a while, in calls of what the reward runs at once; the first call does not count.

    Args:
        reward: is called with uint8 arrays, so nothing is read or decoded.
        size: of the pictures, pixels.
        seconds: calls are made until so much time has passed, two at least.
        batch_size: images per call; by default as many as the reward runs at once itself, else 32.
        prompts: to take in turn; by default plausible ones.
        metadata: to take in turn; by default plausible ones.
        clock: seconds, of any beginning.

    Raises:
        RewardError: as the reward does, or a size, time or number that is not positive.

    Example:
        >>> from ddpo_rewards import get_reward
        >>> speed = measure_speed(get_reward("jpeg_compressibility"), size=32, seconds=0.0, batch_size=4)
        >>> speed.images, speed.images_per_second > 0
        (8, True)
    """
    count = reward.batch_size if batch_size is None else batch_size
    if size < 1 or count < 1 or seconds < 0:
        raise RewardError(
            f"want size and batch_size of 1 or more, seconds of 0 or more; got {size}, {count}, {seconds}"
        )
    batches = _batches(size, count, prompts or _PROMPTS, metadata or [plausible_metadata()])
    _forget_gpu_peak()

    def call() -> float:
        batch = next(batches)
        began = clock()
        reward(*batch)
        return clock() - began

    first, times = call(), [call(), call()]
    while sum(times) < seconds:
        times.append(call())
    total = sum(times)
    return Speed(
        images=count * len(times),
        batch_size=count,
        images_per_second=count * len(times) / max(total, 1e-9),
        slowest=count / max(*times, 1e-9),
        fastest=count / max(min(times), 1e-9),
        first_call=first,
        memory=_peak_memory(),
        gpu_memory=_gpu_peak(),
    )


def drawn_picture(size: int, seed: int) -> UInt8[np.ndarray, "size size 3"]:
    """A picture of soft shades with some noise, which decoders and JPEG find about as hard as a photograph."""
    from PIL import Image

    random = np.random.default_rng(seed)
    coarse = random.integers(0, 256, (-(-size // _COARSE) + 1, -(-size // _COARSE) + 1, 3), np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC), np.int16)
    return np.asarray((smooth + random.integers(-8, 9, smooth.shape)).clip(0, 255), np.uint8)


def _batches(size: int, count: int, prompts: Sequence[str], metadata: Metadata) -> Iterator[tuple[Any, ...]]:
    """Pictures, prompts and metadata of one call after the other; at most 64 pictures are drawn."""
    pictures = [drawn_picture(size, seed) for seed in range(min(64, count))]
    columns = (cycle(pictures), cycle(prompts), cycle(metadata))
    while True:
        yield tuple(list(islice(column, count)) for column in columns)


def _forget_gpu_peak() -> None:
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def _gpu_peak() -> int | None:
    torch = sys.modules.get("torch")
    return None if torch is None or not torch.cuda.is_available() else int(torch.cuda.max_memory_allocated())


def _peak_memory() -> int | None:
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak if sys.platform == "darwin" else peak * 1024)
