"""Statistics per prompt, by hand and by law."""

import json

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from ddpo_core import DDPOError, compute_advantages, per_epoch, per_group, per_prompt, per_run, within_prompts
from ddpo_core.advantages import share_without_spread

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
    # In float64 and no closer than this, so that the bonus does not round their differences away.
    plain = torch.tensor(rewards, dtype=torch.float64)
    assume(plain.std(correction=0) > 1e-6 or plain.unique().numel() == 1)
    torch.testing.assert_close(compute_advantages(plain + bonus), compute_advantages(plain), atol=1e-6, rtol=1e-6)


@given(rewards_lists)
def test_one_prompt_with_a_whole_buffer_equals_the_batch(rewards):
    baseline = per_prompt(buffer_size=len(rewards), min_count=1)
    _, advantages = baseline({}, ["cat"] * len(rewards), torch.tensor(rewards))
    torch.testing.assert_close(advantages, compute_advantages(torch.tensor(rewards)))


def test_rewards_that_hardly_differ_any_more_move_the_policy_hardly_any_more():
    # Differences of the run: -4, 4 and now -1, 1, whose population variance is 34 / 4.
    before = {"differences": [-4.0, 4.0]}
    state, advantages = per_run()(before, ["cat", "dog"], torch.tensor([3.0, 5.0]))
    assert state == {"deviations": {"cat": [-1.0], "dog": [1.0]}, "differences": [-4.0, 4.0, -1.0, 1.0]}
    torch.testing.assert_close(advantages, torch.tensor([-1.0, 1.0]) / 8.5**0.5, rtol=1e-5, atol=0)


@given(st.lists(st.floats(1, 2, width=32), min_size=2, max_size=12))
def test_the_first_epoch_of_a_run_is_its_own_measure(rewards):
    # Without outliers: two values of equal distance are all that the middle of so few rewards can hold.
    rewards = torch.tensor([*rewards, *(3 - reward for reward in rewards)])
    _, advantages = per_run(buffer_size=len(rewards))({}, ["cat"] * len(rewards), rewards)
    torch.testing.assert_close(advantages, compute_advantages(rewards))


def test_that_one_prompt_always_brings_more_than_another_is_no_advantage():
    # "cat" brings 10 more than "dog". Within prompts the variance is 2, of means from four values 2 / 4; the means are
    # 5 and -5, their variance 50, so 49.5 of it is between prompts: the effects are 5 * 49.5 / 50.
    deviations = {"cat": [4.0, 6.0, 4.0, 6.0], "dog": [-4.0, -6.0, -4.0, -6.0]}
    within = 8 / 6
    effect = 5 * (50 - within / 4) / 50
    state, advantages = per_run(buffer_size=1)({"deviations": deviations}, ["cat", "dog"], torch.tensor([21.0, 11.0]))
    torch.testing.assert_close(advantages, torch.tensor([1.0, -1.0]), rtol=1e-5, atol=0)
    assert state["differences"] == pytest.approx([5 - effect, effect - 5])
    assert state["deviations"] == {"cat": [pytest.approx(5.0)], "dog": [pytest.approx(-5.0)]}


def test_what_is_remembered_of_a_prompt_counts_little_where_prompts_are_alike():
    deviations = {"cat": [-1.0, 1.2], "dog": [1.0, -1.1]}
    state, _ = per_run()({"deviations": deviations}, ["cat", "dog"], torch.tensor([1.0, 2.0]))
    assert state["differences"] == [-0.5, 0.5]


def test_a_single_reward_of_another_size_does_not_drown_the_others():
    ordinary = torch.linspace(-1, 1, 99)
    _, plain = per_run()({}, ["cat"] * 99, ordinary)
    state, advantages = per_run()({}, ["cat"] * 100, torch.cat([ordinary, torch.tensor([1e6])]))
    torch.testing.assert_close(advantages[:99], plain, rtol=0, atol=0.2)
    assert advantages[99] == advantages.max() < 6
    assert max(state["differences"]) < 4


def test_a_reward_that_is_nearly_always_the_same_keeps_its_rare_values():
    # One of fifty is 1: the middle 90 % are one value, and the std is sqrt(0.02 * 0.98) = 0.14.
    rewards = torch.tensor([0.0] * 49 + [1.0])
    _, advantages = per_run()({}, ["cat"] * 50, rewards)
    torch.testing.assert_close(advantages[-1], torch.tensor(0.98 / (0.02 * 0.98) ** 0.5), rtol=1e-5, atol=0)


@pytest.mark.parametrize("baseline", [per_prompt(min_count=2), per_epoch(), per_run(), per_group()])
@pytest.mark.parametrize("unit", [2.0**-40, 2.0**40])
def test_the_unit_of_the_reward_does_not_matter(baseline, unit):
    prompts, rewards = ["cat", "cat", "dog", "dog"], torch.tensor([1.0, 2.0, 5.0, 4.0])
    torch.testing.assert_close(baseline({}, prompts, unit * rewards)[1], baseline({}, prompts, rewards)[1])


def test_rewards_that_differ_by_their_rounding_alone_give_hardly_an_advantage():
    rewards = torch.tensor([1.0, 1.0, 1.0, 1.0 + 2**-23])
    for baseline in (per_prompt(min_count=1), per_epoch(), per_run(), per_group()):
        assert baseline({}, ["cat"] * 4, rewards)[1].abs().max() < 0.2


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


@pytest.mark.parametrize(
    ("prompts", "rewards", "expected"),
    [
        ("aabb", [1.0, 1.0, 2.0, 3.0], 1 / 2),
        ("abca", [5.0, 1.0, 2.0, 5.0], 1.0),  # a prompt's only sample has no spread to lack
        ("abc", [1.0, 1.0, 1.0], None),
    ],
)
def test_prompts_whose_samples_are_all_alike_are_counted(prompts, rewards, expected):
    assert share_without_spread(list(prompts), torch.tensor(rewards)) == expected
