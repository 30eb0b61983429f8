"""When the steps of a run are halved: by hand, and over many simulated runs."""

import numpy as np
import pytest

from ddpo_core.runs.plateau import paired_gain, rate_scale

SAMPLES, EVALUATIONS, RUNS = 32, 13, 100  # 66 epochs with an evaluation in every five


def test_a_gain_is_that_of_the_signed_ranks():
    # Differences 1, -2, 2, 4 have the ranks 1, 2.5, 2.5, 4: (1 - 2.5 + 2.5 + 4) / sqrt(1 + 6.25 + 6.25 + 16).
    assert paired_gain([0.0, 0.0, 0.0, 0.0, 7.0], [1.0, -2.0, 2.0, 4.0, 7.0]) == pytest.approx(5 / 29.5**0.5)
    # Of zeros and ones: three rose and one fell.
    assert paired_gain([0.0, 0.0, 0.0, 1.0, 1.0, 0.0], [1.0, 1.0, 1.0, 0.0, 1.0, 0.0]) == pytest.approx(
        (3 - 1) / 4**0.5
    )


def test_the_unit_of_the_reward_does_not_matter():
    before, after = np.random.default_rng(0).normal(size=(2, SAMPLES))
    gain = paired_gain(before.tolist(), after.tolist())
    assert gain == paired_gain((2.0**60 * before).tolist(), (2.0**60 * after).tolist())
    assert gain == -paired_gain(after.tolist(), before.tolist())


@pytest.mark.parametrize("outlier", [1e30, -1e30])
def test_one_outlier_changes_little(outlier):
    zeros = [0.0] * SAMPLES
    differences = np.random.default_rng(0).normal(size=SAMPLES).tolist()
    moved = [outlier, *differences[1:]]
    # Its rank and sign change by at most 32 + 1, those of the others by one each way, over sqrt(32 33 65 / 6) = 107.
    assert abs(paired_gain(zeros, moved) - paired_gain(zeros, differences)) < (33 + 31) / 107


def test_evaluations_of_other_samples_are_refused():
    with pytest.raises(ValueError, match="got 2 scores before and 1 after"):
        paired_gain([0.0, 1.0], [1.0])


def test_steps_are_halved_after_three_evaluations_without_progress_over_the_best():
    low, middle, high = [0.0, 1.0], [1.0, 2.0], [2.0, 3.0]
    assert [rate_scale([low, *[low] * count]) for count in range(8)] == [1, 1, 1, 0.5, 0.5, 0.5, 0.25, 0.25]
    # Progress begins the count anew; what is better than the last but not than the best is none.
    assert rate_scale([low, low, low, middle, low, low]) == 1
    assert rate_scale([low, high, low, middle, low]) == 0.5
    # The best stays after a halving.
    assert rate_scale([low, high, low, low, low, middle, middle, middle]) == 0.25
    assert rate_scale([low, high, low, low, low, middle, middle, [3.0, 4.0], low]) == 0.5
    assert rate_scale([low] * 100) == 1 / 64


def _last_scales(rise, *, walk=0.0, noise=np.random.Generator.normal):
    """Simulate runs: a rise and a random walk from each evaluation to the next, in standard errors of a difference.

    Steps that are halved make half the way.
    """
    generator, error = np.random.default_rng(0), (2 / SAMPLES) ** 0.5
    scales = []
    for _ in range(RUNS):
        level, scale, seen = 0.0, 1.0, [noise(generator, size=SAMPLES).tolist()]
        for _ in range(EVALUATIONS):
            level += scale * error * (rise + walk * generator.normal())
            seen.append((level + noise(generator, size=SAMPLES)).tolist())
            scale = rate_scale(seen)
        scales.append(scale)
    return np.array(scales)


def _with_outliers(generator, size):
    return generator.normal(size=size) + 1e6 * generator.normal(size=size) * (generator.random(size) < 1 / size)


@pytest.mark.parametrize("noise", [np.random.Generator.normal, _with_outliers])
@pytest.mark.parametrize("walk", [0.0, 1.0])
def test_pure_noise_ends_in_small_steps(noise, walk):
    assert np.mean(_last_scales(0.0, walk=walk, noise=noise) <= 1 / 8) > 0.8


@pytest.mark.parametrize("noise", [np.random.Generator.normal, _with_outliers])
def test_a_steady_rise_keeps_its_steps(noise):
    assert np.mean(_last_scales(1.0, noise=noise) >= 1 / 2) > 0.9
    assert np.mean(_last_scales(2.0, noise=noise) == 1) > 0.9
