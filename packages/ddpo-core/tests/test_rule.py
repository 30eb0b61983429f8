"""The rule, on histories made by hand and on a thousand made of noise."""

import json
from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ddpo_core import DDPOError
from ddpo_core.gaming.rule import Observation, Thresholds, accumulated, assess, deviations, drift, falls, noise

TINY = [0.01 * (-1) ** epoch for epoch in range(60)]  # noise of 0.01 * sqrt(2), small beside the changes below


def history_of(reward, held_out=None, signals=None):
    """One observation per epoch; the arguments are functions of the epoch, from 0, to which a little noise is added."""
    return [
        Observation(
            epoch + 1,
            reward(epoch) + jitter,
            {name: value(epoch) + jitter for name, value in (held_out or {}).items()},
            {name: value(epoch) + jitter for name, value in (signals or {}).items()},
        )
        for epoch, jitter in enumerate(TINY)
    ]


def rising(epoch):
    return epoch / 10


def flat(epoch):
    return 0.5


def falling_after_30(epoch):
    return 0.8 - max(0, epoch - 30) / 50


def test_a_flat_run_is_ok():
    verdict = assess(history_of(flat, {"judge": flat}, {"saturation": flat}))
    assert verdict == ("ok", "nothing has left its noise")


def test_a_run_that_improves_by_every_measure_is_ok():
    assert assess(history_of(rising, {"judge": rising})).status == "ok"


def test_a_held_out_reward_that_falls_while_the_reward_rises_is_hacking_by_its_name():
    history = history_of(rising, {"judge": falling_after_30, "other": flat})
    verdicts = [assess(history[:end]) for end in range(1, len(history) + 1)]
    assert {verdict.status for verdict in verdicts[:31]} == {"ok"}
    assert verdicts[-1].status == "hacked"
    # 0.8 is held until epoch 31; what is left of it in epoch 60 is 0.8 - 29 / 50, each with its jitter.
    assert verdicts[-1].reason.startswith("held-out judge fell from 0.81 (epoch 31) to 0.21, while the reward rose by")
    assert "other" not in verdicts[-1].reason
    statuses = [verdict.status for verdict in verdicts]
    assert statuses == sorted(statuses, key=["ok", "hacked"].index)  # once found, it stays found
    assert statuses.index("hacked") < 40


def test_a_held_out_reward_that_falls_with_the_reward_is_no_hacking():
    verdict = assess(history_of(lambda epoch: -epoch / 10, {"judge": falling_after_30}))
    assert verdict.status == "warning"
    assert verdict.reason.endswith("and the reward has not risen either")


def test_samples_that_change_are_a_warning_that_names_the_signal_and_its_drift():
    dark = {"dark_fraction": lambda epoch: 0.5 if epoch >= 30 else 0.0, "saturation": flat, "kl": rising}
    verdict = assess(history_of(rising, {"judge": flat}, dark))
    assert verdict.status == "warning"
    assert "dark_fraction by +" in verdict.reason
    assert "saturation" not in verdict.reason
    assert "kl" not in verdict.reason


def test_without_held_out_rewards_nothing_is_called_hacking():
    history = history_of(rising, signals={"saturation": falling_after_30})
    assert assess(history).status == "warning"


def test_a_run_that_recovers_is_ok_again():
    dip = {"judge": lambda epoch: 0.3 if 30 <= epoch < 35 else 0.8}
    history = history_of(rising, dip)
    assert assess(history[:35]).status == "hacked"
    assert assess(history).status == "ok"


def test_nothing_is_judged_before_there_is_a_baseline():
    assert assess([]) == ("ok", "too early to tell: 0 of 11 epochs")
    assert assess(history_of(rising, {"judge": falling_after_30})[:10]).reason == "too early to tell: 10 of 11 epochs"


def test_a_held_out_reward_that_is_measured_now_and_then_is_judged_by_its_measurements():
    every = history_of(rising, {"judge": falling_after_30})
    rare = [Observation(o.epoch, o.reward, o.held_out if o.epoch % 3 == 0 else {}, {}) for o in every]
    assert assess(rare).status == "hacked"
    few = [Observation(o.epoch, o.reward, o.held_out if o.epoch % 8 == 0 else {}, {}) for o in every]
    assert assess(few).status == "ok"  # seven measurements are no baseline of ten


def test_what_was_not_measured_is_passed_over():
    history = [Observation(i + 1, float(i), {}, {"diversity": None}) for i in range(30)]
    assert assess(history).status == "ok"
    assert drift(history) == {}


def seen_by_the_initial_policy(evidence, familiarity=flat, *, error=0.02, epochs=30, reward=rising):
    """A history as `initial_view_monitor` leaves it: means with their standard errors."""
    errors = {"prompt_evidence": error, "familiarity": error}
    return [
        Observation(i + 1, reward(i), {"prompt_evidence": evidence(i), "familiarity": familiarity(i)}, {}, errors)
        for i in range(epochs)
    ]


def falling_after_3(epoch):
    return 0.6 - max(0, epoch - 2) * 0.05


def test_a_measure_with_known_errors_is_judged_before_there_is_a_baseline():
    history = seen_by_the_initial_policy(falling_after_3)
    statuses = [assess(history[:end]).status for end in range(1, 7)]
    # The reference is 0.6 with an error of 0.02 / sqrt(3), so a fall of 0.05 k is 0.05 k / 0.0231 = 2.17 k errors:
    # beyond the slack of 1.5 it adds up to 0.67, 3.5, which is more than the limit of 3.
    assert statuses == ["ok", "ok", "ok", "ok", "hacked", "hacked"]
    reason = assess(history[:5]).reason
    assert reason.startswith("held-out prompt_evidence fell from 0.6 (epoch 3) to 0.5, while the reward rose by")


def test_unfamiliar_samples_alone_are_a_warning():
    verdict = assess(seen_by_the_initial_policy(flat, falling_after_3)[:8])
    assert verdict.status == "warning"
    assert verdict.reason == "the samples have changed: held-out familiarity fell from 0.6 (epoch 3) to 0.35"


def test_where_samples_are_unfamiliar_a_small_fall_of_the_evidence_is_enough():
    def slightly(epoch):
        return 0.6 if epoch < 6 else 0.55  # 0.05 / 0.0218 = 2.3 errors: 0.8 beyond the slack, a quarter of the limit

    assert assess(seen_by_the_initial_policy(slightly)[:7]).status == "ok"
    assert assess(seen_by_the_initial_policy(slightly, falling_after_3)[:7]).status == "hacked"


def test_evidence_that_rises_or_stays_is_ok():
    assert assess(seen_by_the_initial_policy(rising, rising)).status == "ok"
    assert assess(seen_by_the_initial_policy(flat, flat)).status == "ok"


def test_noise_of_known_size_raises_few_alarms():
    random = np.random.default_rng(2)
    hacked = 0
    for _ in range(250):
        evidence, familiarity = (random.standard_normal((2, 60)) * 0.02 + 0.6).tolist()
        history = seen_by_the_initial_policy(evidence.__getitem__, familiarity.__getitem__, epochs=60)
        hacked += any(assess(history[:end]).status == "hacked" for end in range(2, 61, 2))
    assert hacked <= 10  # 4 %, of runs of 60 epochs


def test_units_do_not_matter():
    history = history_of(rising, {"judge": falling_after_30}, {"saturation": rising})
    scaled = [
        Observation(o.epoch, 1e3 * o.reward - 7, {"judge": 1e-3 * o.held_out["judge"]}, {"saturation": 9.0})
        for o in history
    ]
    assert [assess(history[:end]).status == "hacked" for end in range(60)] == [
        assess(scaled[:end]).status == "hacked" for end in range(60)
    ]


def test_a_history_survives_json_to_the_bit():
    history = history_of(rising, {"judge": falling_after_30}, {"saturation": lambda epoch: epoch / 3})
    read = [Observation(**row) for row in json.loads(json.dumps([asdict(observation) for observation in history]))]
    assert read == history
    assert assess(read) == assess(history)


def test_noise_alone_raises_no_more_alarms_than_stated():
    # Healthy runs: the reward rises, one held-out reward with it and one not, signals stay; independent normal noise.
    random = np.random.default_rng(0)
    epochs, runs = 100, 400
    hacked = warned = 0
    for _ in range(runs):
        values = random.standard_normal((epochs, 11))
        values[:, 0] += np.linspace(0, 20, epochs)
        values[:, 1] += np.linspace(0, 3, epochs)
        history = [
            Observation(
                i + 1,
                row[0],
                {"judge": row[1], "other": row[2]},
                {f"signal {place}": value for place, value in enumerate(row[3:])},
            )
            for i, row in enumerate(values.tolist())
        ]
        statuses = {assess(history[:end]).status for end in range(25, epochs + 1, 25)}
        hacked += "hacked" in statuses
        warned += "warning" in statuses
    assert hacked <= 2
    assert warned <= 2


def test_noise_around_a_real_fall_is_found_nearly_always():
    # After epoch 50 the held-out reward loses 0.2 standard deviations per epoch: 10 in the end.
    random = np.random.default_rng(1)
    found = 0
    for _ in range(200):
        values = random.standard_normal((100, 2))
        values[:, 0] += np.linspace(0, 20, 100)
        values[50:, 1] -= 0.2 * np.arange(50)
        history = [Observation(i + 1, row[0], {"judge": row[1]}, {}) for i, row in enumerate(values.tolist())]
        found += assess(history).status == "hacked"
    assert found >= 190


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": 1}, "want 2 <= window"),
        ({"window": 11}, "want 2 <= window"),
        ({"fall_limit": 0.0}, "want both above 0"),
        ({"drift_limit": -1.0}, "want both above 0"),
    ],
)
def test_thresholds_that_cannot_work_are_refused(options, message):
    with pytest.raises(DDPOError, match=message):
        Thresholds(**options)


@given(st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=30))
def test_a_trend_adds_little_to_the_noise(values):
    # (d + s)^2 has the mean d^2 + 2 d s + s^2: a slope of s adds at most |s| / sqrt(2) to the noise.
    sloped = [value + 3.0 * place for place, value in enumerate(values)]
    assert noise(sloped) == pytest.approx(noise(values), abs=3.0 / 2**0.5 + 1e-6)


def test_a_constant_series_neither_deviates_nor_falls():
    assert deviations([2.0] * 5, baseline=3) == [0, 0]
    assert falls([2.0] * 5, window=2) == [0, 0, 0]


def test_a_series_too_short_has_no_changes():
    assert deviations([1.0, 2.0], baseline=2) == falls([1.0, 2.0], window=2) == []


def test_changes_within_the_slack_never_add_up():
    assert accumulated([1.0] * 1000, slack=1.0, limit=0.5) == 0
    assert accumulated([1.5] * 3, slack=1.0, limit=5.0) == 1.5  # 3 x 0.5
    assert accumulated([1.5] * 3, slack=1.0, limit=0.5) == 1.0  # never more than two limits
