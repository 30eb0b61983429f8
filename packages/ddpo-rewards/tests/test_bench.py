"""Speeds are what was called for, in so much time."""

from itertools import count

import numpy as np
import pytest

from ddpo_rewards import Reward, RewardError, RewardSpec, get_reward
from ddpo_rewards.bench import drawn_picture, measure_speed


def reward_that_notes(calls):
    def score(images, prompts, metadata):
        calls.append((len(images), images[0].shape, prompts, metadata))
        return [0.0] * len(images)

    return Reward(RewardSpec(name="notes", factory="x:x", takes="arrays", needs={"prompts", "metadata"}), score)


def test_the_first_call_does_not_count_and_the_rest_fills_the_time():
    calls = []
    ticks = count(step=0.5)  # every look at the clock is half a second later, so that a call takes half a second
    speed = measure_speed(reward_that_notes(calls), size=8, seconds=2.0, batch_size=3, clock=lambda: next(ticks))
    assert [size for size, *_ in calls] == [3] * 5  # one, and four halves of a second
    assert (speed.images, speed.batch_size, speed.first_call) == (12, 3, 0.5)
    assert (speed.images_per_second, speed.slowest, speed.fastest) == (6.0, 6.0, 6.0)
    assert speed.memory is None or speed.memory > 1e6
    assert {shape for _, shape, *_ in calls} == {(8, 8, 3)}
    assert all('"' in prompt for _, _, prompts, _ in calls for prompt in prompts)  # what ocr_match reads


def test_a_reward_is_called_with_what_it_runs_at_once():
    speed = measure_speed(get_reward("jpeg_compressibility"), size=16, seconds=0.0)
    assert speed.batch_size == 32
    assert speed.slowest <= speed.images_per_second <= speed.fastest


def test_drawn_pictures_differ_and_are_always_the_same():
    assert np.array_equal(drawn_picture(20, 1), drawn_picture(20, 1))
    assert not np.array_equal(drawn_picture(20, 1), drawn_picture(20, 2))
    assert drawn_picture(5, 0).shape == (5, 5, 3)


@pytest.mark.parametrize("options", [{"size": 0}, {"batch_size": 0}, {"seconds": -1.0}])
def test_limits_have_to_make_sense(options):
    with pytest.raises(RewardError, match="want size and batch_size"):
        measure_speed(reward_that_notes([]), **options)
