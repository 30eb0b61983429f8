"""Where and how work runs: devices, precisions, threads, and batches that are halved when memory runs out.

Threads are for work that releases the interpreter lock, as Pillow's codecs and resizing do.
"""

import math
import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain, islice
from typing import TYPE_CHECKING, TypeAlias, TypeVar

from ddpo_rewards.errors import RewardError

if TYPE_CHECKING:
    import torch

# Any where torch is not imported: what they are is checked where they are chosen.
Device: TypeAlias = "str | torch.device | None"
DType: TypeAlias = "str | torch.dtype | None"
_DTYPES = ("float32", "float16", "bfloat16")
_In = TypeVar("_In")
_Ready = TypeVar("_Ready")
_Out = TypeVar("_Out")


def choose_device(device: Device) -> "torch.device":
    """The device asked for, else a GPU where there is one.

    Raises:
        RewardError: no such device.
    """
    import torch

    if device is None:
        device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        chosen = torch.device(device)
        torch.empty(0, device=chosen)
    # An unknown name, a build without CUDA and an absent GPU each raise another type.
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise RewardError(f"device={device!r} cannot be used: {str(error).splitlines()[0]}") from error
    return chosen


def choose_dtype(dtype: DType, device: "torch.device") -> "torch.dtype":
    """The dtype asked for, else float16 on an NVIDIA GPU and float32 elsewhere.

    Raises:
        RewardError: not one of float32, float16 and bfloat16.

    Example:
        >>> import torch
        >>> choose_dtype(None, torch.device("cpu"))
        torch.float32
    """
    import torch

    if dtype is None:
        return torch.float16 if device.type == "cuda" else torch.float32
    name = str(dtype).removeprefix("torch.")
    if name not in _DTYPES:
        raise RewardError(f"dtype={dtype!r} is not known; want one of {', '.join(_DTYPES)}")
    return getattr(torch, name)  # type: ignore[no-any-return]


def usable_cores() -> int:
    """Cores this process may run on; fewer than the machine has in a container or under taskset."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def map_in_threads(function: Callable[[_In], _Out], items: Sequence[_In], *, workers: int | None = None) -> list[_Out]:
    """Apply a function to every item, by default on all cores; results in order; the first exception is raised.

    Example:
        >>> map_in_threads(abs, [-1, 2])
        [1, 2]
    """
    threads = min(len(items), workers or usable_cores())
    if threads <= 1:
        return [function(item) for item in items]
    with ThreadPoolExecutor(threads) as pool:
        futures = [pool.submit(function, item) for item in items]
        try:
            return [future.result() for future in futures]
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def map_ahead(
    function: Callable[[_In], _Out], items: Iterable[_In], *, ahead: int, workers: int | None = None
) -> Generator[_Out, None, None]:
    """Apply a function to items in threads, to at most `ahead` of them beyond the result that is taken; in order.

    Items are drawn as they are needed, so there may be more than fit in memory. Closing the generator, or dropping it,
    ends the threads.

    Example:
        >>> from itertools import count, islice
        >>> list(islice(map_ahead(abs, count(-2), ahead=2), 4))
        [2, 1, 0, 1]
    """
    with ThreadPoolExecutor(workers or usable_cores()) as pool:
        waiting: deque[Future[_Out]] = deque()
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) > ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


@dataclass(slots=True)
class BatchSize:
    """How many items a network takes at once; it shrinks where memory runs out, and stays so as long as this lives.

    Raises:
        RewardError: below 1.
    """

    most: int

    def __post_init__(self) -> None:
        """Check it where it is set: the network runs much later."""
        if self.most < 1:
            raise RewardError(f"batch_size={self.most!r} is not positive; want 1 or more")


def map_batches(
    prepare: Callable[[_In], _Ready],
    run: Callable[[list[_Ready]], Sequence[_Out]],
    items: Sequence[_In],
    *,
    batch_size: BatchSize,
) -> list[_Out]:
    """Prepare items on all cores while the network runs over those that are ready; results in order.

    An out-of-memory batch is halved and tried again; `batch_size` keeps the smaller size for later calls.

    Raises:
        RewardError: a single item does not fit.

    Example:
        >>> map_batches(float, lambda batch: [2 * x for x in batch], [1, 2, 3], batch_size=BatchSize(2))
        [2.0, 4.0, 6.0]
    """
    results: list[_Out] = []
    threads = min(len(items), usable_cores())
    # One task per thread and batch: handing over each item would take as long as what is often done to it, nothing.
    share = math.ceil(min(len(items), batch_size.most) / threads)
    with ThreadPoolExecutor(threads) as pool:
        parts = [
            pool.submit(lambda part: [prepare(item) for item in part], items[start : start + share])
            for start in range(0, len(items), share)
        ]
        ready = chain.from_iterable(part.result() for part in parts)
        batch: list[_Ready] = []
        try:
            while len(results) < len(items):
                batch += islice(ready, max(0, batch_size.most - len(batch)))
                tried = batch[: batch_size.most]
                outputs = _run_or_none(run, tried)
                if outputs is not None:
                    results += outputs
                    batch = batch[len(tried) :]
                elif len(tried) == 1:
                    raise RewardError("out of memory on a single image; use a smaller model or another device")
                else:
                    batch_size.most = len(tried) // 2
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return results


def _run_or_none(run: Callable[[list[_Ready]], Sequence[_Out]], batch: list[_Ready]) -> Sequence[_Out] | None:
    """None where memory ran out; the exception, which holds the batch's tensors, is gone when this returns."""
    import torch

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
