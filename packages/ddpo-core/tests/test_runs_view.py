"""What a page shows of a run: numbers by hand, and no file that could make reading it fail."""

import json
from math import sqrt

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from recorded import write_probe, write_run

from ddpo_core.runs.log import append_metrics, append_samples
from ddpo_core.runs.report import render_report
from ddpo_core.runs.run import open_run
from ddpo_core.runs.view import read_view


def begun(folder, config="epochs = 9\n"):
    folder.mkdir(exist_ok=True)
    (folder / "config.toml").write_text(config)
    return folder


def curves(run):
    return {(curve.room, curve.name): curve for curve in read_view(open_run(run)).curves}


def test_every_number_of_an_epoch_has_its_room(tmp_path):
    found = curves(write_run(tmp_path / "run", epochs=4))
    assert found.keys() == {
        ("reward", "reward_mean"), ("reward", "fixed_samples"), ("component", "sharpness"), ("held_out", "judge"),
        ("kept", "prompt_margin"), ("multiplier", "prompt_margin"), ("signal", "saturation"), ("signal", "kl"),
        *(("cost", stage) for stage in ("sampling", "reward", "training")), ("step", "0"), ("step", "1"),
        *(("health", name) for name in ("reward_std", "loss", "grad_norm", "ratio_mean", "clip_fraction",
                                        "clip_fraction_high", "clip_fraction_low", "prompts_without_spread")),
    }  # fmt: skip
    assert found["cost", "sampling"].values == [50.0] * 4  # half a second for ten images
    assert found["signal", "kl"].epochs == [2, 4]  # where it was measured
    assert (found["kept", "prompt_margin"].level, found["kept", "prompt_margin"].errors) == (0.15, [1.96 * 0.01] * 4)
    # Five tiles with -2, -1.9 ... -1.6 and 0.1 more per epoch.
    fixed = found["reward", "fixed_samples"]
    assert (fixed.epochs, fixed.values) == ([0, 2, 4], pytest.approx([-1.8, -1.6, -1.4]))
    assert found["component", "sharpness"].values == [5.0] * 4


@pytest.mark.parametrize(
    ("prompts", "rewards", "expected"),
    [
        # Each its own prompt: the standard error of a mean, sd/sqrt(n) with n - 1 degrees of freedom.
        ("abcd", [1.0, 2.0, 3.0, 4.0], sqrt(5 / 3) / 2),
        # Two prompts whose samples are alike are two observations: deviations -2 and 2 summed over pairs, so
        # (4^2 + 4^2) / 4^2 * 2 / (2 - 1) is the variance of the mean.
        ("aabb", [0.0, 0.0, 4.0, 4.0], 2.0),
        # One prompt: its samples are independent.
        ("aaaa", [1.0, 2.0, 3.0, 4.0], sqrt(5 / 3) / 2),
    ],
)
def test_the_interval_of_the_reward_is_by_prompts(tmp_path, prompts, rewards, expected):
    run = begun(tmp_path / "run")
    samples = [
        {"epoch": 1, "sample": i, "prompt": prompt, "reward": reward}
        for i, (prompt, reward) in enumerate(zip(prompts, rewards, strict=True))
    ]
    append_samples(run, samples)
    append_metrics(run, {"epoch": 1, "queries": 4, "reward_mean": 2.0, "reward_std": 9.0})
    assert curves(run)["reward", "reward_mean"].errors == [pytest.approx(1.96 * expected)]


def test_without_single_rewards_their_spread_tells_the_interval(tmp_path):
    run = begun(tmp_path / "run")
    append_metrics(run, {"epoch": 1, "queries": 16, "reward_mean": 2.0, "reward_std": 2.0})
    assert curves(run)["reward", "reward_mean"].errors == [pytest.approx(1.96 * 2.0 / 4)]


def test_the_evaluation_is_the_paired_change_and_paths_are_shortened(tmp_path):
    view = read_view(open_run(write_run(tmp_path / "run")))
    change = view.evaluation["change"]
    assert (change["mean"], change["low"], change["high"]) == (pytest.approx(0.5),) * 3
    assert (view.evaluation["improved"], view.status, view.model, view.best) == (1.0, "finished", 6, 5)
    assert (view.config["prompts"], view.config["fit.num_steps"]) == ("prompts.txt", "5")


def test_probes_lie_in_the_run_or_are_given(tmp_path):
    run, other = begun(tmp_path / "run"), write_probe(tmp_path / "other")
    write_probe(run / "probe")
    probes = read_view(open_run(run), probes=[other, other / "probe.json"]).probes
    assert [probe["verdict"] for probe in probes] == ["susceptible"] * 2
    assert probes[0]["tests"][0]["effect"] == [1.5, 1.0, 2.0]


UNEVEN = '{"epoch": 6, "prompts": ["a", "b"], "seeds": [0, 1], "scores": {"before": [1], "after": [1, 2]}}'


@pytest.mark.parametrize(
    ("file", "content", "note"),
    [
        ("samples/epoch-0002.png", "torn", "epoch-0002.png cannot be read"),
        ("evaluation.json", UNEVEN, "says of other images before than after"),
        ("evaluation.json", "[]", "evaluation.json"),
        ("probe.json", '{"verdict": "robust"}', "probe.json cannot be read"),
        ("metrics.jsonl", "{", "line 1 is no row"),
        ("config.toml", "=", "config.toml"),
        ("samples.jsonl", '{"epoch": 1}', None),
    ],
)  # fmt: skip
def test_what_is_damaged_costs_itself_and_a_note(tmp_path, file, content, note):
    run = write_run(tmp_path / "run")
    (run / file).write_text(content)
    view = read_view(open_run(run))
    assert note is None or any(note in told for told in view.notes)
    assert render_report([view]).startswith("<!doctype html>")


ANYTHING = [None, True, 0, -7, 10**400, 1.5, 1e300, float("nan"), "x", [1], {}, {"a": 1}, {"a": {"value": "x"}}]
METRICS = [
    "queries", "reward_mean", "reward_std", "kept", "signals", "held_out", "errors", "verdict", "reason",
    "seconds_sampling", "log_prob_change/0", "loss",
]  # fmt: skip
SAMPLES = ["sample", "prompt", "reward", "advantage", "info", "metadata"]


def rows_of(names):
    return st.lists(st.dictionaries(st.sampled_from(names), st.sampled_from(ANYTHING)), max_size=3)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(rows_of(METRICS), rows_of(SAMPLES))
def test_whatever_the_logs_hold_there_is_a_page(tmp_path, rows, samples):
    run = begun(tmp_path / "run")
    for name, told in (("metrics.jsonl", rows), ("samples.jsonl", samples)):
        lines = [json.dumps({"queries": 8, **row, "epoch": epoch}) for epoch, row in enumerate(told, 1)]
        (run / name).write_text("\n".join(lines))
    assert render_report([read_view(open_run(run))]).rstrip().endswith("</html>")
