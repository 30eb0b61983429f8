"""Tensors whose rows belong together: taking and joining the rows of a tensor, a tuple or a NamedTuple."""

from collections.abc import Callable, Iterator, Sequence
from operator import itemgetter
from typing import TypeVar, cast

import torch
from jaxtyping import Int
from torch import Tensor

Rows = TypeVar("Rows", bound=Tensor | tuple[Tensor, ...])


def take_rows(rows: Rows, index: Int[Tensor, " picked"]) -> Rows:
    """Take the same rows of every tensor, as copies.

    Example:
        >>> take_rows((torch.arange(3), torch.arange(3) * 10), torch.tensor([2, 0]))
        (tensor([2, 0]), tensor([20,  0]))
    """
    return map_rows(lambda tensor: tensor[index], rows)


def split_rows(rows: Rows, size: int) -> Iterator[Rows]:
    """Split rows into parts of `size`; the last may be smaller.

    Example:
        >>> [part.tolist() for part in split_rows(torch.arange(5), 2)]
        [[0, 1], [2, 3], [4]]
    """
    count = len(rows) if isinstance(rows, Tensor) else len(rows[0])
    for start in range(0, count, size):
        yield map_rows(itemgetter(slice(start, start + size)), rows)


def map_rows(function: Callable[[Tensor], Tensor], rows: Rows) -> Rows:
    """Apply a function to every tensor.

    Example:
        >>> map_rows(torch.neg, (torch.arange(2), torch.ones(2)))
        (tensor([ 0, -1]), tensor([-1., -1.]))
    """
    if isinstance(rows, Tensor):
        return cast(Rows, function(rows))
    return _rebuild(rows, [function(tensor) for tensor in rows])


def concatenate_rows(parts: Sequence[Rows]) -> Rows:
    """Join parts of one kind below each other.

    Example:
        >>> concatenate_rows([torch.arange(2), torch.arange(3)])
        tensor([0, 1, 0, 1, 2])
    """
    first = parts[0]
    if isinstance(first, Tensor):
        return cast(Rows, torch.cat(cast(list[Tensor], list(parts))))
    return _rebuild(first, [torch.cat(tensors) for tensors in zip(*parts, strict=True)])


def _rebuild(like: Rows, tensors: list[Tensor]) -> Rows:
    # A NamedTuple takes its fields one by one, a plain tuple takes them all at once.
    return cast(Rows, type(like)(*tensors) if hasattr(like, "_fields") else tuple(tensors))
