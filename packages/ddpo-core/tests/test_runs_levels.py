"""What a run keeps: references with levels, measured once."""

import json
import math

import pytest
import torch

from ddpo_core import DDPOError, Level, PromptSet, measure_base, toy
from ddpo_core.runs.config import parse_keep, references
from ddpo_core.runs.defaults import run_config
from ddpo_core.runs.folder import LEVELS
from ddpo_core.runs.levels import find_levels, make_measures

POLICY, PROMPTS = toy.policy(), PromptSet(("left", "right") * 4, ({},) * 8)


def height(points, prompts, metadata):
    return 2 + points[:, 1], {}


def _find(run, *texts, rewards=None):
    measures = make_measures(texts, rewards or {}, policy=POLICY, prompts=PROMPTS, batch_size=4)
    return find_levels(run, texts, measures, policy=POLICY, prompts=PROMPTS, num_steps=4, batch_size=4)


def test_a_reference_has_no_level_an_absolute_one_or_a_share():
    assert parse_keep("prompt_margin") == ("prompt_margin", None, False)
    assert parse_keep("my_plugin:score?size=2 >= -0.5") == ("my_plugin:score?size=2", -0.5, False)
    assert parse_keep("clip_score>=97.5 %") == ("clip_score", 0.975, True)


@pytest.mark.parametrize("text", ["", ">=1", "clip_score>=", "clip_score>=much", "clip_score>=1%%"])
def test_what_is_no_level_is_one_clear_line(text):
    with pytest.raises(DDPOError, match=r"want REF, REF>=NUMBER or REF>=PERCENT%"):
        parse_keep(text)


def test_a_configuration_keeps_each_signal_once_and_nothing_where_that_is_said():
    assert run_config({}).keep == ("prompt_margin", "familiarity")
    assert run_config({"keep": "none"}).keep == ()
    assert run_config({"model": "someone/model"}).keep == ()
    for keep in (["a", "a>=1"], ["none", "a"]):
        with pytest.raises(DDPOError, match="beside another: want each signal once, or none alone"):
            run_config({"keep": keep})
    with pytest.raises(DDPOError, match="want REF, REF>=NUMBER"):
        run_config({"keep": "a>=b"})


@pytest.mark.parametrize("text", ["negative_kl", "negative_kl>=0", "negative_kl>=0.1", "negative_kl>=-90%"])
def test_a_divergence_is_kept_below_0_or_is_one_clear_line(text):
    with pytest.raises(DDPOError, match=r"is 0 before training: want negative_kl>=NUMBER below 0, as -0.001"):
        run_config({"keep": text})


def test_a_divergence_has_its_level_as_its_unit_for_before_training_no_sample_differs(tmp_path):
    assert _find(tmp_path, "negative_kl>=-0.25") == {"negative_kl": Level(-0.25, unit=0.25)}


def test_only_what_the_initial_policy_sees_leaves_it_no_judge():
    assert run_config({"keep": "negative_kl>=-0.001"}).judged_samples == run_config({"keep": "none"}).judged_samples > 0
    assert run_config({"keep": "familiarity"}).judged_samples == 0


def test_only_rewards_have_to_be_given():
    assert references(("familiarity", "a:b>=1", "prompt_margin>=90%", "negative_kl>=-1")) == ("a:b",)


def test_levels_are_measured_once_and_read_back_as_they_were(tmp_path):
    found = _find(tmp_path, "prompt_margin", "height>=50%", "familiarity>=0.5", rewards={"height": height})
    assert found["familiarity"].value == 0.5
    assert found["height"].ceiling == math.inf
    base = measure_base(
        POLICY, make_measures(["height"], {"height": height}, policy=POLICY, prompts=PROMPTS, batch_size=4), PROMPTS,
        num_steps=4, seeds=range(128, 136),
    )["height"]  # fmt: skip
    assert found["height"].value == pytest.approx(base.mean().item() / 2)
    assert json.loads((tmp_path / LEVELS).read_text())["height"]["ceiling"] is None

    def never(*args):
        raise AssertionError("measured again")

    again = find_levels(
        tmp_path, ("prompt_margin", "height>=50%", "familiarity>=0.5"), (never,), policy=POLICY, prompts=PROMPTS,
        num_steps=4, batch_size=4,
    )  # fmt: skip
    assert again == found


def test_what_is_kept_newly_is_measured_and_the_others_stay(tmp_path):
    before = _find(tmp_path, "familiarity")
    assert _find(tmp_path, "familiarity", "prompt_margin")["familiarity"] == before["familiarity"]


def test_a_share_of_what_is_not_above_0_is_refused_and_leaves_no_file(tmp_path):
    with pytest.raises(DDPOError, match=r"loss is -1 before training, of which 90% is no level: want loss>=NUMBER"):
        _find(tmp_path, "loss>=90%", rewards={"loss": lambda images, prompts, metadata: (-torch.ones(len(images)), {})})
    assert not (tmp_path / LEVELS).exists()


def test_a_damaged_file_says_what_to_do(tmp_path):
    (tmp_path / LEVELS).write_text("{")
    with pytest.raises(DDPOError, match="is damaged: delete it"):
        _find(tmp_path, "familiarity")


def test_a_level_is_what_the_loop_takes(tmp_path):
    assert all(isinstance(level, Level) and level.unit > 0 for level in _find(tmp_path, "prompt_margin").values())
