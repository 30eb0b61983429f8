"""Work beside the main thread: bounded, in order, and with its exceptions where they belong."""

import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

import torch

Result = TypeVar("Result")


class Submit(Protocol):
    """How work is handed over."""

    def __call__(self, work: Callable[[], Result], /) -> Callable[[], Result]:
        """Take work, and return what waits for its result."""
        ...


@contextmanager
def beside(threads: int, *, own_cores: bool) -> Iterator[Submit]:
    """Run work in `threads` threads while the block goes on; with 0 it runs where it is submitted, at once.

    At most two pieces per thread are unfinished: then submitting waits. An exception of the work is raised where its
    result is asked for or where the next is submitted, with the traceback of its thread; work that has not begun is
    dropped then.

    Args:
        threads: How many, at least 0. With one, work is done in the order of submission.
        own_cores: Whether torch may use all cores in these threads. On a CPU that the block computes on, it must not:
            a second team of OpenMP threads slows everything after it, by 1.6 to 1.85 times where it was measured.

    Example:
        >>> with beside(1, own_cores=True) as submit:
        ...     results = [submit(lambda: 1), submit(lambda: 2)]
        ...     [result() for result in results]
        [1, 2]
    """
    if threads == 0:
        yield _at_once
        return
    executor = ThreadPoolExecutor(threads, thread_name_prefix="ddpo")
    unfinished: deque[Future[Any]] = deque()

    def submit(work: Callable[[], Result]) -> Callable[[], Result]:
        while unfinished and (len(unfinished) >= 2 * threads or unfinished[0].done()):
            unfinished.popleft().result()
        future = executor.submit(work)
        unfinished.append(future)
        return future.result

    try:
        if not own_cores:
            _confine(executor, threads)
        yield submit
    finally:
        executor.shutdown(cancel_futures=True)


def _at_once(work: Callable[[], Result]) -> Callable[[], Result]:
    result = work()
    return lambda: result


def _confine(executor: ThreadPoolExecutor, threads: int) -> None:
    """Give every thread of a new executor a team of one."""
    everybody = threading.Barrier(threads)

    def confine() -> None:
        torch.get_num_threads()  # A thread's first question replaces what was set before it by what is set for all.
        torch.set_num_threads(1)
        everybody.wait()

    own = torch.get_num_threads()
    for started in [executor.submit(confine) for _ in range(threads)]:
        started.result()
    # The number belongs to the thread that sets it, and is what threads yet to start begin with.
    torch.set_num_threads(own)
