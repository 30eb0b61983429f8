"""How training reaches across processes: two collective functions, and the identity for one process."""

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, distributed
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from ddpo_core.errors import DDPOError, ProcessError

# While one process draws sample sheets and saves, the others wait in a collective for so long.
_PATIENCE = timedelta(hours=1)
_FAREWELL = timedelta(seconds=10)
_FAILURE = "failure"


class Processes(NamedTuple):
    """The processes of a run as seen from one of them.

    - `average(tensors)`: the mean of each tensor over the processes.
    - `gather(tensor)`: the tensors of all processes, stacked along a new first axis in order of rank.
    """

    rank: int
    size: int
    average: Callable[[Sequence[Tensor]], Sequence[Tensor]]
    gather: Callable[[Tensor], Tensor]

    @property
    def is_writer(self) -> bool:
        """Whether this process is the one that writes files and talks to the terminal."""
        return self.rank == 0

    def concatenate(self, rows: Tensor) -> Tensor:
        """Put the rows of all processes one after another, in order of rank; each may have another number of them.

        Example:
            >>> SINGLE.concatenate(torch.tensor([1.0, 2.0]))
            tensor([1., 2.])
        """
        counts = self.gather(torch.tensor([len(rows)])).flatten().tolist()
        padded = torch.cat([rows, rows.new_zeros(max(counts) - len(rows), *rows.shape[1:])])
        return torch.cat([part[:count] for part, count in zip(self.gather(padded), counts, strict=True)])

    def gather_json(self, value: Any) -> list[Any]:
        """List what each process gives, plain data that JSON can hold, in order of rank.

        Example:
            >>> SINGLE.gather_json(["a cat", 1])
            [['a cat', 1]]
        """
        text = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
        counts = self.gather(torch.tensor([len(text)])).flatten().tolist()
        parts = torch.split_with_sizes(self.concatenate(text), counts)
        return [json.loads(part.numpy().tobytes()) for part in parts]


SINGLE = Processes(0, 1, list, partial(torch.unsqueeze, dim=0))
"""One process: nothing to average, nothing to gather."""


@contextmanager
def processes_from_environment(environment: Mapping[str, str] = os.environ) -> Iterator[Processes]:
    """Join the processes that `torchrun` started; without it, there is one.

    Collectives use gloo for tensors on the CPU and NCCL for those on GPUs. Each process takes the GPU of its
    `LOCAL_RANK`, so join before loading a policy. An exception that leaves the block in one process ends the others at
    their next collective, with a `ProcessError` that carries its text.

    Args:
        environment: Where `RANK`, `WORLD_SIZE`, `LOCAL_RANK`, `MASTER_ADDR` and `MASTER_PORT` are looked up.

    Raises:
        DDPOError: If the environment is incomplete, the processes do not meet, or there are fewer GPUs than processes.
        ProcessError: In a collective, if another process has failed.

    Example:
        >>> with processes_from_environment({}) as processes:
        ...     processes.size, processes.is_writer
        (1, True)
    """
    if "WORLD_SIZE" not in environment:
        yield SINGLE
        return
    rank, size = (_whole_number(environment, name) for name in ("RANK", "WORLD_SIZE"))
    if size == 1:
        yield SINGLE
        return
    _take_gpu(environment, rank)
    store = _meet(rank, size)
    try:
        yield Processes(rank, size, lambda tensors: _average(tensors, store), lambda tensor: _gather(tensor, store))
    except BaseException as error:
        with suppress(RuntimeError):
            store.compare_set(_FAILURE, "", f"process {rank} of {size} failed: {_line(error)}")
        distributed.destroy_process_group()
        _see_off(store, rank, size)
        raise
    distributed.destroy_process_group()


def _meet(rank: int, size: int) -> Any:
    """Set up the collectives; returns the store through which processes leave messages."""
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    try:
        store, _, _ = next(iter(rendezvous("env://", rank, size, timeout=_PATIENCE)))
        distributed.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=_PATIENCE)
    except (RuntimeError, ValueError) as error:
        raise DDPOError(
            f"process {rank} of {size} cannot meet the others: {_line(error)}; start all of them with torchrun"
        ) from None
    return PrefixStore("ddpo", store)


def _average(tensors: Sequence[Tensor], store: Any) -> Sequence[Tensor]:
    """Average in one call: many small ones would cost a round trip each."""
    flat = torch.cat([tensor.detach().flatten() for tensor in tensors])
    with _naming_the_culprit(store):
        distributed.all_reduce(flat)
    sizes = [tensor.numel() for tensor in tensors]
    parts = torch.split_with_sizes(flat / distributed.get_world_size(), sizes)
    return [part.view(tensor.shape) for part, tensor in zip(parts, tensors, strict=True)]


def _gather(tensor: Tensor, store: Any) -> Tensor:
    parts = [torch.empty_like(tensor) for _ in range(distributed.get_world_size())]
    with _naming_the_culprit(store):
        distributed.all_gather(parts, tensor.contiguous())
    return torch.stack(parts)


@contextmanager
def _naming_the_culprit(store: Any) -> Iterator[None]:
    """Turn the lost connection to a process that failed into the words it left behind."""
    try:
        yield
    except RuntimeError as error:
        try:
            store.wait([_FAILURE], _FAREWELL)
            words = store.get(_FAILURE).decode()
        except RuntimeError:
            words = f"another process ended without a word, or cannot be reached ({_line(error)})"
        raise ProcessError(words) from None


def _see_off(store: Any, rank: int, size: int) -> None:
    """Keep the store alive until everybody has read why: it lives in the first process unless torchrun keeps it."""
    with suppress(RuntimeError):
        store.set(f"left/{rank}", "")
        if rank == 0:
            store.wait([f"left/{other}" for other in range(1, size)], _FAREWELL)


def _take_gpu(environment: Mapping[str, str], rank: int) -> None:
    if not torch.cuda.is_available():
        return
    place = _whole_number({"LOCAL_RANK": str(rank), **environment}, "LOCAL_RANK")
    if place >= torch.cuda.device_count():
        raise DDPOError(
            f"process {place} of this machine finds {torch.cuda.device_count()} GPUs: "
            f"want torchrun --nproc-per-node {torch.cuda.device_count()} at most"
        )
    torch.cuda.set_device(place)


def _whole_number(environment: Mapping[str, str], name: str) -> int:
    text = environment.get(name)
    if text is None or not text.isdigit():
        raise DDPOError(f"the environment has {name}={text!r}: want a whole number; start with torchrun, or unset it")
    return int(text)


def _line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
