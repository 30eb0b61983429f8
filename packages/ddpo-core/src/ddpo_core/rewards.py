"""Calling a reward that somebody else wrote: believing nothing of what it returns, and beside the main thread."""

import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from ddpo_core.errors import NonFiniteError, ScoreError
from ddpo_core.types import RewardFunction

Result = TypeVar("Result")

Info = dict[str, list[Any]]


def score_images(
    reward_fn: RewardFunction,
    images: Float[Tensor, "batch ..."],
    prompts: Sequence[str],
    metadata: Sequence[Mapping[str, Any]],
) -> tuple[Float[Tensor, " batch"], Info]:
    """Score images and check the answer: one finite number per image, per-sample lists beside it.

    Returns:
        The scores, float32 on the CPU, and the reward's info as lists with one entry per image.

    Raises:
        NonFiniteError: If an image is NaN or infinite; the reward is not called, for it might like that.
        ScoreError: If the reward returns anything but `(scores, info)`, a wrong count, or a score that is not finite.

    Example:
        >>> brightness = lambda images, prompts, metadata: (images.mean((1, 2, 3)), {})
        >>> score_images(brightness, torch.ones(2, 3, 4, 4), ["a cat", "a dog"], [{}, {}])
        (tensor([1., 1.]), {})
    """
    if not torch.isfinite(images).all():
        raise NonFiniteError(
            "the model drew images that are NaN or infinite; its parameters or its dtype have failed: "
            "go on from the last checkpoint with a lower learning rate, or use dtype float32"
        )
    with torch.no_grad():
        returned = reward_fn(images, prompts, metadata)
    if not isinstance(returned, tuple) or len(returned) != 2:
        raise ScoreError(f"the reward returned {_brief(returned)}; want a pair (scores, info)")
    return _check_scores(returned[0], len(prompts)), _check_info(returned[1], len(prompts))


def join_info(parts: Sequence[Info]) -> Info:
    """Join what a reward told of parts of the samples.

    Raises:
        ScoreError: If it told other things of some parts.

    Example:
        >>> join_info([{"caption": ["a cat"]}, {"caption": ["a dog"]}])
        {'caption': ['a cat', 'a dog']}
    """
    keys = dict.fromkeys(key for part in parts for key in part)
    missing = [key for key in keys if any(key not in part for part in parts)]
    if missing:
        raise ScoreError(
            f"the reward returned info[{missing[0]!r}] for some batches only; want the same keys every time"
        )
    return {key: [value for part in parts for value in part[key]] for key in keys}


@runtime_checkable
class Submit(Protocol):
    """How work is handed over."""

    def __call__(self, work: Callable[[], Result], /) -> Callable[[], Result]:
        """Take work, and return what waits for its result."""
        ...


@contextmanager
def beside(threads: int, device: torch.device, stream: torch.cuda.Stream | None = None) -> Iterator[Submit]:
    """Run work in `threads` threads while the block goes on; with 0 it runs where it is submitted, at once.

    At most two pieces per thread are unfinished: then submitting waits. An exception of the work is raised where its
    result is asked for or where the next is submitted, with the traceback of its thread; work that has not begun is
    dropped then.

    Args:
        threads: How many, at least 0. With one, work is done in the order of submission.
        device: Where the block computes. If that is a GPU, it is the current one of the threads as well: a new thread
            begins with the first. If it is the CPU, each thread has one core: a second team of OpenMP threads slows
            everything after it, by 1.6 to 1.85 times where it was measured.
        stream: What the threads enqueue their work on a GPU in; None is the default stream.

    Example:
        >>> with beside(1, torch.device("cpu")) as submit:
        ...     results = [submit(lambda: 1), submit(lambda: 2)]
        ...     [result() for result in results]
        [1, 2]
    """
    if threads == 0:
        yield _at_once
        return
    take_gpu = partial(_take_gpu, device, stream) if device.type == "cuda" else None
    executor = ThreadPoolExecutor(threads, thread_name_prefix="ddpo", initializer=take_gpu)
    unfinished: deque[Future[Any]] = deque()

    def submit(work: Callable[[], Result]) -> Callable[[], Result]:
        while unfinished and (len(unfinished) >= 2 * threads or unfinished[0].done()):
            unfinished.popleft().result()
        future = executor.submit(work)
        unfinished.append(future)
        return future.result

    try:
        if device.type == "cpu":
            _confine(executor, threads)
        yield submit
    finally:
        executor.shutdown(cancel_futures=True)


def _check_scores(scores: Any, count: int) -> Tensor:
    try:
        # A copy: a reward may reuse its buffer for the next batch.
        checked = torch.as_tensor(scores).detach().to("cpu", torch.float32, copy=True)
    except (TypeError, ValueError, RuntimeError):
        raise ScoreError(f"the reward returned the scores {_brief(scores)}; want {count} numbers") from None
    if checked.shape != (count,):
        raise ScoreError(
            f"the reward returned scores of shape {tuple(checked.shape)} for {count} images; want ({count},)"
        )
    bad = torch.nonzero(~torch.isfinite(checked)).flatten().tolist()
    if bad:
        raise ScoreError(
            f"the reward returned {checked[bad[0]].item()} for image {bad[0]} of {count}; want finite scores"
        )
    return checked


def _check_info(info: Any, count: int) -> Info:
    if not isinstance(info, Mapping):
        raise ScoreError(f"the reward returned the info {_brief(info)}; want a dict of lists with one entry per image")
    checked = {str(key): values.tolist() if hasattr(values, "tolist") else values for key, values in info.items()}
    for key, values in checked.items():
        if not isinstance(values, Sequence) or isinstance(values, str) or len(values) != count:
            raise ScoreError(
                f"the reward returned info[{key!r}] = {_brief(values)}; want {count} entries, one per image"
            )
    return {key: list(values) for key, values in checked.items()}


def _brief(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _at_once(work: Callable[[], Result]) -> Callable[[], Result]:
    result = work()
    return lambda: result


def _take_gpu(device: torch.device, stream: torch.cuda.Stream | None) -> None:
    torch.cuda.set_device(device)
    if stream is not None:
        torch.cuda.set_stream(stream)


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
