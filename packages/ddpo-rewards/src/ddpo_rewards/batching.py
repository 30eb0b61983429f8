"""Run a network over many items in batches, halving the batch when memory runs out."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

from ddpo_rewards.threads import usable_cores
from ddpo_rewards.types import RewardError

_In = TypeVar("_In")
_Ready = TypeVar("_Ready")
_Out = TypeVar("_Out")


def map_batches(
    prepare: Callable[[_In], _Ready],
    run: Callable[[list[_Ready]], Sequence[_Out]],
    items: Sequence[_In],
    *,
    batch_size: int,
) -> list[_Out]:
    """Prepare items on all cores while the network runs over those that are ready; results in order.

    An out-of-memory batch is halved and tried again, and the smaller size is kept.

    Raises:
        RewardError: `batch_size` below 1, or a single item does not fit.

    Example:
        >>> map_batches(float, lambda batch: [2 * x for x in batch], [1, 2, 3], batch_size=2)
        [2.0, 4.0, 6.0]
    """
    if batch_size < 1:
        raise RewardError(f"batch_size={batch_size!r} is not positive; want 1 or more")
    results: list[_Out] = []
    with ThreadPoolExecutor(min(len(items), usable_cores())) as pool:
        ready = [pool.submit(prepare, item) for item in items]
        try:
            while len(results) < len(items):
                batch = [future.result() for future in ready[len(results) : len(results) + batch_size]]
                outputs = _run_or_none(run, batch)
                if outputs is not None:
                    results += outputs
                elif len(batch) == 1:
                    raise RewardError("out of memory on a single image; use a smaller model or another device")
                else:
                    batch_size = len(batch) // 2
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return results


def _run_or_none(run: Callable[[list[_Ready]], Sequence[_Out]], batch: list[_Ready]) -> Sequence[_Out] | None:
    """None where memory ran out; the exception, which holds the batch's tensors, is gone when this returns."""
    try:
        return run(batch)
    except (torch.OutOfMemoryError, MemoryError):
        pass
    except RuntimeError as error:
        # The CPU's and Apple's allocators have no exception of their own.
        if "out of memory" not in str(error) and "can't allocate memory" not in str(error):
            raise
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return None
