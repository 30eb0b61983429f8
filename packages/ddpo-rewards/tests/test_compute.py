import threading

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ddpo_rewards import RewardError
from ddpo_rewards.compute import BatchSize, map_batches


def network_that_fits(most, error):
    """A network that runs out of memory on more than `most` items, and notes the batches it did run."""
    ran = []

    def run(batch):
        if len(batch) > most:
            raise error
        ran.append(len(batch))
        return [10 * item for item in batch]

    return run, ran


@given(st.lists(st.integers(), min_size=1, max_size=40), st.integers(1, 50), st.integers(1, 50))
def test_results_come_in_order_whatever_fits(items, batch_size, most):
    run, ran = network_that_fits(most, torch.OutOfMemoryError("CUDA out of memory"))
    assert map_batches(lambda x: x + 1, run, items, batch_size=BatchSize(batch_size)) == [10 * (x + 1) for x in items]
    assert max(ran) <= min(batch_size, most)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("MPS backend out of memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes"),
        MemoryError(),
    ],
)
def test_a_batch_that_does_not_fit_is_halved_and_the_size_kept(error):
    run, ran = network_that_fits(3, error)
    assert map_batches(int, run, range(10), batch_size=BatchSize(8)) == [10 * i for i in range(10)]
    assert ran == [2, 2, 2, 2, 2]  # 8, 4 and then 2 at a time


def test_a_size_that_fits_is_remembered_by_the_next_call():
    run, ran = network_that_fits(3, torch.OutOfMemoryError("CUDA out of memory"))
    size = BatchSize(8)
    map_batches(int, run, range(8), batch_size=size)
    ran.clear()
    map_batches(int, lambda batch: run(batch), range(4), batch_size=size)
    assert ran == [2, 2]
    assert size.most == 2


def test_a_single_item_that_does_not_fit_is_an_error():
    run, _ = network_that_fits(0, torch.OutOfMemoryError())
    with pytest.raises(RewardError, match="out of memory on a single image"):
        map_batches(int, run, [1, 2], batch_size=BatchSize(2))


@pytest.mark.parametrize("batch_size", [0, -1])
def test_a_batch_size_has_to_be_positive(batch_size):
    with pytest.raises(RewardError, match=f"batch_size={batch_size}"):
        BatchSize(batch_size)


def test_another_error_passes_and_stops_the_preparation():
    def run(batch):
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        map_batches(int, run, range(100), batch_size=BatchSize(1))


def test_items_are_prepared_while_the_network_runs():
    # The network waits for the last item: it would wait for ever if all were not prepared in the meantime.
    last = threading.Event()
    items = range(6)

    def prepare(item):
        if item == items[-1]:
            last.set()
        return item

    def run(batch):
        assert last.wait(30)
        return batch

    assert map_batches(prepare, run, items, batch_size=BatchSize(2)) == list(items)
