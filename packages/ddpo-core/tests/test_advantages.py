"""Statistics per prompt, by hand and by law."""

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ddpo_core import DDPOError, compute_advantages, per_epoch, per_group, per_prompt, per_run, within_prompts

rewards_lists = st.lists(st.floats(-100, 100, width=32), min_size=2, max_size=12)


def test_prompts_are_compared_with_their_own_rewards():
    # "cat" has 1, 2, 3 after the update: mean 2, population std sqrt(2/3). "dog" has too few, so the batch's
    # mean 3 / 2 and std 3 / 2 serve: (0 - 1.5) / 1.5.
    baseline = per_prompt(buffer_size=3, min_count=3)
    state, advantages = baseline({"cat": [1.0, 2.0]}, ["cat", "dog"], torch.tensor([3.0, 0.0]))
    assert state == {"cat": [1.0, 2.0, 3.0], "dog": [0.0]}
    torch.testing.assert_close(advantages, torch.tensor([(3 - 2) / (2 / 3) ** 0.5, -1.0]), rtol=1e-5, atol=0)


def test_the_oldest_rewards_leave_the_buffer():
    state, _ = per_prompt(buffer_size=3, min_count=1)({"cat": [1.0, 2.0]}, ["cat"] * 2, torch.tensor([3.0, 4.0]))
    assert state == {"cat": [2.0, 3.0, 4.0]}


@pytest.mark.parametrize("baseline", [per_prompt(), per_epoch(), per_run(), per_group()])
def test_the_state_passed_in_does_not_change_and_json_reads_the_new_one_back(baseline):
    before = {"cat": [1.0]}
    after, _ = baseline(before, ["cat"] * 2, torch.tensor([2, 3]))
    assert before == {"cat": [1.0]}
    assert json.loads(json.dumps(after)) == after


def test_equal_rewards_give_no_advantage():
    assert compute_advantages(torch.full((4,), 0.1)).tolist() == [0, 0, 0, 0]
    _, advantages = per_prompt(buffer_size=4, min_count=1)({}, ["cat"] * 4, torch.full((4,), 0.1))
    assert advantages.tolist() == [0, 0, 0, 0]


def test_rewards_of_unequal_count_are_refused():
    with pytest.raises(ValueError, match="zip"):
        per_prompt()({}, ["cat"], torch.tensor([1.0, 2.0]))


@given(rewards_lists)
def test_advantages_have_mean_0_and_std_at_most_1(rewards):
    advantages = compute_advantages(torch.tensor(rewards)).double()
    assert abs(advantages.mean()) < 1e-5
    assert advantages.std(correction=0) < 1 + 1e-5


@given(rewards_lists, st.floats(-10, 10))
def test_a_constant_bonus_changes_nothing(rewards, bonus):
    # In float64, so that the bonus does not round the rewards themselves.
    plain = torch.tensor(rewards, dtype=torch.float64)
    torch.testing.assert_close(compute_advantages(plain + bonus), compute_advantages(plain), atol=1e-6, rtol=1e-6)


@given(rewards_lists)
def test_one_prompt_with_a_whole_buffer_equals_the_batch(rewards):
    baseline = per_prompt(buffer_size=len(rewards), min_count=1)
    _, advantages = baseline({}, ["cat"] * len(rewards), torch.tensor(rewards))
    torch.testing.assert_close(advantages, compute_advantages(torch.tensor(rewards)))


def test_rewards_that_hardly_differ_any_more_move_the_policy_hardly_any_more():
    # Remembered: 0, 4, 3, 5. Mean 3, population variance (9 + 1 + 0 + 4) / 4 = 3.5; the epoch's mean is 4.
    state, advantages = per_run(buffer_size=3)({"cat": [0.0, 4.0]}, ["cat", "dog"], torch.tensor([3.0, 5.0]))
    assert state == {"cat": [0.0, 4.0, 3.0], "dog": [5.0]}
    torch.testing.assert_close(advantages, torch.tensor([-1.0, 1.0]) / 3.5**0.5, rtol=1e-5, atol=0)


@given(rewards_lists)
def test_the_first_epoch_of_a_run_is_its_own_measure(rewards):
    rewards = torch.tensor(rewards)
    _, advantages = per_run(buffer_size=len(rewards))({}, ["cat"] * len(rewards), rewards)
    torch.testing.assert_close(advantages, compute_advantages(rewards))


@pytest.mark.parametrize("dtype", [torch.int64, torch.float16, torch.float64])
@pytest.mark.parametrize("baseline", [per_prompt(min_count=3), per_epoch(), per_run(), per_group()])
def test_rewards_of_any_dtype_have_the_advantages_of_their_numbers(baseline, dtype):
    prompts, rewards = ["cat", "cat", "cat", "dog", "dog"], torch.tensor([1, 2, 5, 4, 2])
    _, advantages = baseline({}, prompts, rewards.to(dtype))
    _, expected = baseline({}, prompts, rewards.float())
    assert advantages.dtype == torch.float32
    assert advantages.abs().max() > 0.5
    torch.testing.assert_close(advantages, expected, rtol=1e-6, atol=1e-6)


def test_a_group_is_compared_with_itself_and_an_epoch_with_all():
    # Group: "a" has 1 and 3, "b" has 10 and 10. Epoch: mean 6, deviations -5, -3, 4, 4, so the variance is 66 / 4.
    rewards, prompts = torch.tensor([1.0, 3.0, 10.0, 10.0]), ["a", "a", "b", "b"]
    expected = {per_group: [-1.0, 1.0, 0.0, 0.0], per_epoch: [value / 16.5**0.5 for value in (-5, -3, 4, 4)]}
    for baseline, advantages in expected.items():
        state, compared = baseline()({}, prompts, rewards)
        assert state == {}
        torch.testing.assert_close(compared, torch.tensor(advantages), rtol=1e-5, atol=1e-6)


def test_what_is_applied_within_prompts_sees_one_prompt_at_a_time_in_order():
    seen = []
    within_prompts(lambda own: seen.append(own.tolist()) or own, torch.tensor([1.0, 2.0, 3.0]), ["b", "a", "b"])
    assert seen == [[1.0, 3.0], [2.0]]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: per_prompt(buffer_size=8), "min_count=16 can never be reached with buffer_size=8"),
        (lambda: per_prompt(min_count=0), "min_count=0"),
        (lambda: per_run(buffer_size=0), "buffer_size=0: want at least 1, or per_epoch"),
        (lambda: per_group()({}, ["a", "b"], torch.zeros(2)), "want samples_per_prompt >= 2"),
    ],
)
def test_a_baseline_that_could_not_work_is_one_clear_line(make, message):
    with pytest.raises(DDPOError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)
