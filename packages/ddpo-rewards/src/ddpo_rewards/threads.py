"""Threads over a batch: for work that releases the interpreter lock, as Pillow's codecs and resizing do."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

_In = TypeVar("_In")
_Out = TypeVar("_Out")


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
