import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ddpo_rewards import Reward, RewardError, RewardResult, RewardSpec, combine, combine_standardised, get_reward
from ddpo_rewards.combining import RunningStatistics, update_statistics


def brightness_reward(name="brightness", scale=1.0, offset=0.0):
    def score(images, prompts, metadata):
        return RewardResult(
            np.array([i.mean() * scale + offset for i in images], np.float32), {"pixels": [i.size for i in images]}
        )

    return Reward(RewardSpec(name=name, factory=score, takes="arrays"), score)


def test_a_sum_weighs_its_parts_and_shows_each(pictures):
    a, b = brightness_reward("a"), get_reward("jpeg_incompressibility")
    scores, info = combine((0.5, a), (-2.0, b))(pictures)
    assert scores == pytest.approx(0.5 * a(pictures).scores - 2.0 * b(pictures).scores, rel=1e-6)
    assert info["a"] == a(pictures).scores.tolist()
    assert info["a.pixels"] == [32 * 32 * 3] * 4
    assert info["jpeg_incompressibility.kilobytes"] == b(pictures).info["kilobytes"]


def test_references_carry_their_weights(pictures):
    reward = combine("2*jpeg_incompressibility", "jpeg_compressibility?quality=80")
    assert reward.spec.name == "2*jpeg_incompressibility + jpeg_compressibility"
    expected = 2 * get_reward("jpeg_incompressibility")(pictures).scores
    expected = expected + get_reward("jpeg_compressibility?quality=80")(pictures).scores
    assert reward(pictures).scores == pytest.approx(expected, rel=1e-6)


def test_one_reward_with_two_sets_of_options_is_told_apart(pictures):
    info = combine("jpeg_compressibility?quality=80", "jpeg_compressibility?quality=20")(pictures).info
    assert {"jpeg_compressibility?quality=80", "jpeg_compressibility?quality=20"} <= set(info)


def test_the_same_part_twice_and_no_part_are_refused():
    with pytest.raises(RewardError, match="combined 2 times"):
        combine("jpeg_compressibility", "3*jpeg_compressibility")
    with pytest.raises(RewardError, match="nothing to combine"):
        combine()
    with pytest.raises(RewardError, match="nothing to combine"):
        combine_standardised()


def test_a_sum_needs_what_its_parts_need(pictures):
    def score(images, prompts, metadata):
        return RewardResult(np.array([len(p) for p in prompts], np.float32), {})

    lengths = Reward(RewardSpec(name="lengths", factory=score, needs=frozenset({"prompts"}), takes="arrays"), score)
    with pytest.raises(RewardError, match=r"needs prompts: pass one per image \(4\)"):
        combine(lengths, "jpeg_compressibility")(pictures)


@given(st.lists(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=8), min_size=1, max_size=5))
def test_running_statistics_equal_those_of_everything_at_once(batches):
    statistics = RunningStatistics()
    for batch in batches:
        statistics = update_statistics(statistics, np.array(batch))
    everything = np.concatenate([np.array(batch) for batch in batches])
    assert statistics.count == len(everything)
    assert statistics.mean == pytest.approx(everything.mean(), abs=1e-9)
    assert statistics.std == pytest.approx(everything.std(), abs=1e-6)


def test_units_do_not_decide_a_standardised_sum(pictures):
    # An affine change of units, positive in scale, leaves standardised scores as they are.
    plain = combine_standardised(brightness_reward("a"), get_reward("jpeg_incompressibility"))
    scaled = combine_standardised(brightness_reward("a", 1000.0, 7.0), get_reward("jpeg_incompressibility"))
    for batch in (pictures, pictures[:2], pictures[::-1]):
        assert plain(batch).scores == pytest.approx(scaled(batch).scores, abs=1e-4)


def test_a_standardised_batch_has_mean_zero_and_shows_raw_scores(pictures):
    reward = combine_standardised("3*jpeg_compressibility")
    scores, info = reward(pictures)
    assert scores.mean() == pytest.approx(0, abs=1e-6)
    assert scores.std() == pytest.approx(3, abs=1e-5)
    assert info["jpeg_compressibility.raw"] == get_reward("jpeg_compressibility")(pictures).scores.tolist()


def test_a_constant_part_contributes_nothing(pictures):
    assert combine_standardised(brightness_reward("a", 0.0, 0.1))(pictures).scores.tolist() == [0.0] * 4


@pytest.mark.parametrize("scale", [1e-9, 1e-4, 1e6])
def test_a_small_unit_is_no_constant(pictures, scale):
    # Standardised scores have no unit: of any scale they are those of scale 1.
    small = combine_standardised(brightness_reward("a", scale))(pictures).scores
    assert small == pytest.approx(combine_standardised(brightness_reward("a"))(pictures).scores, abs=1e-4)


def test_a_standardised_sum_resumes_where_it_was(pictures):
    def fresh():
        return combine_standardised(brightness_reward("a"), "jpeg_compressibility")

    uninterrupted, before, after = fresh(), fresh(), fresh()
    uninterrupted(pictures)
    before(pictures)
    after.load_state(json.loads(json.dumps(before.state())))
    assert after(pictures[:3]).scores.tolist() == uninterrupted(pictures[:3]).scores.tolist()
    assert after.state() == uninterrupted.state()
