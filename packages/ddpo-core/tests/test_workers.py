"""Rewards beside sampling: in order, bounded, confined to one core, and loud when they fail."""

import threading
import traceback
from functools import partial

import pytest
import torch

from ddpo_core import FitConfig, adamw, ddpo_is, fit, init, toy
from ddpo_core.rewards import beside

CPU = torch.device("cpu")
SMALL = FitConfig(num_steps=3, samples_per_epoch=16, updates_per_epoch=2, sample_batch_size=2)


def _epoch(reward_fn, workers):
    policy, optimizer = toy.policy(), adamw(1e-2)
    return next(
        fit(
            init(policy, optimizer, seed=0),
            policy=policy,
            optimizer=optimizer,
            reward_fn=reward_fn,
            prompts=["left", "right"],
            objective=ddpo_is(),
            config=SMALL.model_copy(update={"reward_workers": workers}),
        )
    )


@pytest.mark.parametrize("workers", [1, 3])
def test_an_epoch_is_the_same_bit_for_bit_with_rewards_in_threads(workers):
    threads = set()

    def reward(*arguments):
        threads.add(threading.current_thread())
        return toy.reward(*arguments)

    (state, info), (expected, described) = _epoch(reward, workers), _epoch(toy.reward, 0)
    assert threading.main_thread() not in threads
    assert all(torch.equal(state.params[name], leaf) for name, leaf in expected.params.items())
    assert torch.equal(info.scores, described.scores)
    assert info.info == described.info


def test_on_a_cpu_rewards_are_scored_between_the_batches_unless_told_otherwise():
    threads = set()

    def reward(*arguments):
        threads.add(threading.current_thread())
        return toy.reward(*arguments)

    _epoch(reward, None)
    assert threads == {threading.main_thread()}


def test_an_exception_of_a_reward_reaches_the_loop_with_its_traceback_and_stops_the_sampling():
    scored = []

    def broken(points, prompts, metadata):
        scored.append(len(points))
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine") as caught:
        _epoch(broken, 1)
    assert "broken" in [frame.name for frame in traceback.extract_tb(caught.value.__traceback__)]
    assert len(scored) < 8


def test_work_is_bounded_and_results_are_those_of_their_own_work():
    running, most, gate = [], [], threading.Event()

    def work(number):
        gate.wait()
        return number

    def open_the_gate():
        most.append(len(running))
        gate.set()

    with beside(2, CPU) as submit:
        # Four pieces fit; the fifth waits for the first, which the gate holds until the timer opens it.
        timer = threading.Timer(0.2, open_the_gate)
        timer.start()
        for number in range(8):
            running.append(submit(partial(work, number)))
        assert [result() for result in running] == list(range(8))
    assert most == [4]


def test_threads_of_the_cpu_do_not_start_a_second_team():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with beside(2, CPU) as submit:
            counts = [submit(torch.get_num_threads) for _ in range(4)]
            assert [count() for count in counts] == [1] * 4
            assert torch.get_num_threads() == 2
        # Where the block computes elsewhere, the threads may use all cores.
        with beside(1, torch.device("meta")) as submit:
            assert submit(torch.get_num_threads)() == 2
    finally:
        torch.set_num_threads(before)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="wants two GPUs")
def test_threads_take_the_gpu_of_the_block():
    with beside(1, torch.device("cuda:1")) as submit:
        assert submit(torch.cuda.current_device)() == 1
