"""How sure the difference between two models is, and what is kept of the evaluation of the first."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ddpo_core import Evaluation, PromptSet
from ddpo_core.runs.compare import compare_scores, fixed_prompts, load_base, save_base, with_others

SCORES = st.floats(-1e3, 1e3)


def test_the_interval_of_a_mean_is_that_of_the_normal_approximation():
    # 400 values of mean 0 and variance 1: the standard error is 1/20, and 1.96 of them are 0.098.
    values = np.tile([-1.0, 1.0], 200)
    found = compare_scores([0.0] * 400, values.tolist())
    assert found.base == (0, 0, 0)
    assert found.change.mean == 0
    assert found.change.low == pytest.approx(-0.098, abs=0.01)
    assert found.change.high == pytest.approx(0.098, abs=0.01)
    assert found.improved == 0.5


def test_pairing_takes_out_what_makes_a_prompt_hard():
    base = np.random.default_rng(0).normal(0, 100, 50)
    found = compare_scores(base.tolist(), (base + 1).tolist())
    assert found.change == pytest.approx((1, 1, 1))
    assert found.base.high - found.base.low > 10


@given(st.lists(st.tuples(SCORES, SCORES), min_size=1, max_size=20))
def test_any_scores_lie_within_their_interval_and_change_is_the_difference(pairs):
    base, finetuned = np.transpose(pairs)
    found = compare_scores(base.tolist(), finetuned.tolist())
    for scores, interval in ((base, found.base), (finetuned, found.finetuned), (finetuned - base, found.change)):
        assert interval.mean == pytest.approx(scores.mean(), abs=1e-9)
        assert scores.min() - 1e-9 <= interval.low <= interval.high <= scores.max() + 1e-9
    assert found.improved == np.mean(finetuned > base)


def test_images_of_one_prompt_count_for_less_than_images_of_different_prompts():
    # 20 prompts, of which half rise by one and half fall by one, in all of their 20 images: 400 differences of variance
    # 1, but 20 independent ones: the standard error is 1/sqrt(20), and 1.96 of them are 0.44 and not 0.098.
    prompts = [f"prompt {place % 20}" for place in range(400)]
    change = [1.0 if place % 20 < 10 else -1.0 for place in range(400)]
    found = compare_scores([0.0] * 400, change, clusters=prompts)
    assert found.change.mean == 0
    assert found.change.high == pytest.approx(0.44, abs=0.05)
    assert compare_scores([0.0] * 400, change).change.high == pytest.approx(0.098, abs=0.01)


def test_prompts_with_more_images_weigh_more():
    # The mean is that of the images: (3 * 1 + 0) / 4; both prompts drawn, one or the other: 3/4, 1 or 0.
    found = compare_scores([0.0] * 4, [1.0, 1.0, 1.0, 0.0], clusters=["a", "a", "a", "b"])
    assert found.change == (0.75, 0.0, 1.0)


def test_of_a_single_prompt_the_images_are_drawn():
    values = [-1.0, 1.0] * 200
    assert compare_scores([0.0] * 400, values, clusters=["a fox"] * 400) == compare_scores([0.0] * 400, values)


def test_a_shorter_set_is_repeated_and_a_longer_one_thinned_out():
    two = PromptSet(("a", "b"), ({"n": 1}, {"n": 2}))
    assert fixed_prompts(two, 5).prompts == ("a", "b", "a", "b", "a")
    assert fixed_prompts(two, 1) == PromptSet(("a",), ({"n": 1},))


def test_a_held_out_reward_that_is_the_optimised_one_is_not_asked_twice():
    asked = []

    def reward(images, prompts, metadata):
        asked.append(len(images))
        return images.mean((1, 2, 3)), {"seen": [True] * len(images)}

    def other(images, prompts, metadata):
        return -images.mean((1, 2, 3)), {}

    score = with_others(reward, {"same": reward, "other": other})
    scores, info = score(torch.full((2, 3, 4, 4), 0.5), ["a", "b"], [{}, {}])
    assert asked == [2]
    assert scores.tolist() == [0.5, 0.5]
    assert info == {"seen": [True, True], "same": [0.5, 0.5], "other": [-0.5, -0.5]}


def test_what_was_drawn_before_training_is_found_again_and_only_for_what_it_was_drawn_with(tmp_path):
    prompts = fixed_prompts(PromptSet(("a", "b", "c"), ({},) * 3), 20)
    levels = torch.arange(20).view(20, 1, 1, 1).expand(20, 3, 4, 4) / 255
    drawn = Evaluation(levels, torch.linspace(0, 1, 20), {"x": [0] * 20}, prompts, tuple(range(20)))
    save_base(tmp_path, drawn, described={"num_steps": 5})
    found = load_base(tmp_path, prompts, described={"num_steps": 5})
    assert found is not None
    assert torch.equal(found.images * 255, levels[:16] * 255)
    assert torch.equal(found.scores, drawn.scores)
    assert (found.prompts, found.seeds) == (prompts, drawn.seeds)
    assert load_base(tmp_path, prompts, described={"num_steps": 6}) is None
    assert load_base(tmp_path, fixed_prompts(prompts, 4), described={"num_steps": 5}) is None
    (tmp_path / "base.safetensors").write_bytes(b"torn")
    assert load_base(tmp_path, prompts, described={"num_steps": 5}) is None
    assert load_base(tmp_path / "elsewhere", prompts, described={"num_steps": 5}) is None
