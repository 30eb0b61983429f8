"""One configuration: defaults by model, algorithm and what is trained; TOML in and out."""

import contextlib
import math
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ddpo_core import DDPOError, FitConfig, toy
from ddpo_core.runs.config import (
    OBJECTIVES,
    RunConfig,
    changed_versions,
    differences,
    label,
    read_run_config,
    read_toml,
    to_toml,
    validate,
)
from ddpo_core.runs.defaults import FOR_MODEL, left_out, run_config
from ddpo_core.runs.parts import make_objective, make_optimizer, make_policy

SPARSE = {"objective": {"name": "sparse-rwr"}}


def toml(text: str) -> dict[str, Any]:
    return tomllib.loads(text)


def test_what_is_given_overrides_the_file_the_file_the_preset_and_the_preset_the_defaults():
    stored = toml("epochs = 7\nseed = 3\n[fit]\nnum_steps = 4\n")
    config = run_config(
        {"seed": 5, "fit": {"samples_per_epoch": 8}}, stored=stored, preset={"epochs": 1, "lora_rank": 2}
    )
    assert (config.epochs, config.seed, config.fit.num_steps, config.fit.samples_per_epoch) == (7, 5, 4, 8)
    assert config.lora_rank == 2


def test_the_built_in_model_has_its_own_defaults_and_others_have_the_papers():
    ours, others = run_config({}), run_config({"model": "someone/model"})
    assert ours.fit.num_steps == FOR_MODEL["builtin:emoji"]["fit"]["num_steps"]
    assert others == RunConfig(model="someone/model")


def test_an_algorithm_and_a_whole_unet_bring_their_own_defaults_over_a_preset():
    task = {"model": "someone/model", "learning_rate": 1e-3, "fit": {"updates_per_epoch": 4}}
    chosen = run_config({"objective": {"name": "ddpo-sf"}, "trainable": "unet"}, preset=task)
    assert (chosen.fit.updates_per_epoch, chosen.learning_rate) == (1, 1e-5)
    told = run_config({}, stored={"trainable": "unet", "learning_rate": 2e-5}, preset=task)
    assert (told.fit.updates_per_epoch, told.learning_rate) == (4, 2e-5)
    assert run_config({"learning_rate": 3e-6}, stored={"trainable": "unet"}).learning_rate == 3e-6


def test_a_file_that_was_written_by_hand_keeps_its_word():
    stored = {"learning_rate": 7e-4, "fit": {"samples_per_prompt": 2}}
    kept = run_config({**SPARSE, "trainable": "unet"}, stored=stored)
    assert (kept.fit.samples_per_prompt, kept.fit.passes_per_epoch, kept.learning_rate) == (2, 5, 7e-4)


@pytest.mark.parametrize("name", ['name = "ddpo-is"\n', ""])
@pytest.mark.parametrize(
    ("option", "chosen", "message"),
    [
        ("clip_range = 1e-3", {"name": "rwr"}, "'clip_range' is an option of ddpo-is, and the objective is 'rwr'"),
        ("buffer_size = 64", {"baseline": "epoch"}, "buffer_size=64 does nothing with baseline='epoch'"),
    ],
)
def test_what_a_file_written_by_hand_says_of_another_objective_than_is_chosen_is_an_error(
    name, option, chosen, message
):
    stored = toml(f"[objective]\n{name}{option}")
    with pytest.raises(DDPOError, match=re.escape(message)):
        run_config({"objective": chosen}, stored=stored)
    run_config({}, stored=stored)


def test_of_a_preset_and_of_a_whole_file_it_is_left_out_and_named():
    said = {"objective": {"name": "ddpo-is", "clip_range": 1e-3, "timestep_fraction": 0.5}}
    rwr = {"objective": {"name": "rwr"}}
    chosen = run_config(rwr, preset=said)
    assert chosen.objective.timestep_fraction == 0.5
    assert left_out(chosen, said) == ["clip_range"]
    stored = toml(to_toml(run_config(said)))
    other = run_config(rwr, stored=stored)
    assert other.objective.timestep_fraction == 0.5
    assert {"clip_range", "baseline", "kl_weight"} < set(left_out(other, stored))
    assert "timestep_fraction" not in left_out(other, stored)
    assert left_out(run_config({}, stored=stored), stored) == []
    with pytest.raises(DDPOError, match=r"'clip_rang' is not an option"):
        run_config(rwr, stored={**stored, "objective": {**stored["objective"], "clip_rang": 1}})


def test_a_choice_takes_the_place_of_what_the_defaults_the_preset_or_a_run_say():
    assert None not in (run_config({}).lora_rank, run_config({}).learning_rate_half_life)
    falling = run_config({"learning_rate_cosine": 70})
    assert (falling.learning_rate_half_life, falling.learning_rate_cosine) == (None, 70)
    halving = run_config({"learning_rate_half_life": 9}, preset={"learning_rate_cosine": 70})
    assert (halving.learning_rate_half_life, halving.learning_rate_cosine) == (9.0, None)
    started = run_config({"lora": "some/lora"}, preset={"lora_rank": 4, "lora_alpha": 8.0})
    assert (started.lora, started.lora_rank, started.lora_alpha) == ("some/lora", None, None)
    assert run_config({"trainable": "unet"}, preset={"lora": "some/lora"}).lora is None
    stored = toml(to_toml(run_config({})))
    again = run_config({"learning_rate_cosine": 100, "trainable": "unet"}, stored=stored)
    assert (again.learning_rate_half_life, again.lora_rank) == (None, None)
    assert left_out(again, stored) == ["learning_rate_half_life", "lora_rank"]
    assert run_config({}, stored=toml(to_toml(again))) == again


def test_a_whole_file_gives_the_same_run_again():
    config = run_config({"reward": ["a", "0.5*b?c=d"], "fit": {"num_steps": 7}, "trainable": "unet"})
    stored = toml(to_toml(config))
    assert run_config({}, stored=stored) == config
    assert run_config({"trainable": "unet", "objective": {"name": "ddpo-is"}}, stored=stored) == config
    assert run_config({"seed": 1}, stored=stored) == config.model_copy(update={"seed": 1})


def test_of_a_whole_file_another_choice_keeps_what_was_chosen_and_not_what_were_the_defaults():
    # All of it stands in the file of a run, so that the learning rate of a LoRA would train a whole UNet.
    stored = toml(to_toml(run_config({"epochs": 9, "fit": {"num_steps": 7}, "objective": {"kl_weight": 0.5}})))
    whole = run_config({"trainable": "unet"}, stored=stored)
    assert whole == run_config(
        {"trainable": "unet", "epochs": 9, "fit": {"num_steps": 7}, "objective": {"kl_weight": 0.5}}
    )
    assert whole.learning_rate == 1e-5
    other = run_config({"model": "someone/model"}, stored=stored)
    assert (other.guidance_scale, other.learning_rate, other.epochs, other.fit.num_steps) == (5.0, 3e-4, 9, 7)
    stored = toml(to_toml(run_config({"epochs": 9})))
    for name in OBJECTIVES:
        chosen = {"objective": {"name": name}}
        assert run_config(chosen, stored=stored) == run_config({"epochs": 9, **chosen})


def test_an_algorithm_has_settings_of_its_own_on_the_embedded_model():
    rwr = {"objective": {"name": "rwr"}}
    ours, others = run_config(rwr), run_config({**rwr, "model": "someone/model"})
    assert (ours.learning_rate, ours.objective.inverse_temperature, ours.fit.passes_per_epoch) == (5e-4, 4.0, 1)
    assert (others.learning_rate, others.objective.inverse_temperature, others.fit.passes_per_epoch) == (3e-4, 0.2, 5)
    assert ours.fit.num_steps == 5
    assert run_config({**rwr, "learning_rate": 1e-3}).learning_rate == 1e-3


def test_another_algorithm_keeps_the_options_it_shares_and_another_baseline_drops_what_it_does_not_have():
    default = run_config({}).objective
    assert (default.name, default.baseline, default.buffer_size, default.clip_range) == ("ddpo-is", "run", None, 1e-4)
    other = run_config({"objective": {"name": "ddpo-sf"}}).objective
    assert (other.name, other.baseline, other.buffer_size) == ("ddpo-sf", "run", None)
    told = run_config({"objective": {"baseline": "epoch"}}).objective
    assert (told.baseline, told.buffer_size, told.clip_range) == ("epoch", None, 1e-4)
    assert run_config({"objective": {"name": "rwr", "timestep_fraction": 0.5}}).objective.timestep_fraction == 0.5


@pytest.mark.parametrize("algorithm", OBJECTIVES)
@pytest.mark.parametrize("model", ["builtin:emoji", "someone/model"])
def test_every_objective_can_be_made_of_its_defaults(algorithm, model):
    config = run_config({"objective": {"name": algorithm}, "model": model})
    make_objective(config.objective).check(toy.policy(), config.fit)


def test_what_is_written_is_read_back_as_it_was(tmp_path):
    config = run_config({"reward": ["a", "0.5*b?c=d"], "device": "cpu", "dtype": "bfloat16", "learning_rate": 1e-4})
    (tmp_path / "config.toml").write_text(to_toml(config), encoding="utf-8")
    assert read_run_config(tmp_path) == config


def test_the_versions_that_ran_and_the_device_are_written_down_and_compared(tmp_path):
    file = tmp_path / "config.toml"
    file.write_text(to_toml(run_config({}), "cpu").replace('pillow = "', 'pillow = "0.'), encoding="utf-8")
    changed = changed_versions(tmp_path, "cuda")
    assert set(changed) == {"pillow", "device"}
    assert changed["device"] == ("cpu", "cuda")
    assert changed["pillow"][0] == f"0.{changed['pillow'][1]}"


def test_the_size_of_the_pictures_is_part_of_a_run(make_pipeline, tmp_path):
    make_pipeline().save_pretrained(tmp_path)
    config = run_config(
        {"model": str(tmp_path), "device": "cpu", "height": 32, "width": 16, "negative_prompt": "a dog"}
    )
    policy = make_policy(config)
    assert policy.decode(policy.noise([0], 1)[:, 0]).shape == (1, 3, 32, 16)


def test_the_schedule_is_counted_in_epochs():
    def rates(count, **options):
        config = run_config({"model": "x", "learning_rate": 0.8, "weight_decay": 0.0, "epochs": 4, **options})
        optimizer = make_optimizer(config)
        params = {"weight": torch.zeros(1, dtype=torch.float64)}
        state, seen = optimizer.init(params), []
        for _ in range(count):
            # Adam steps by its learning rate where all gradients were the same.
            after, state = optimizer.update({"weight": -torch.ones(1, dtype=torch.float64)}, state, params)
            seen.append(float(after["weight"] - params["weight"]))
            params = after
        return pytest.approx(seen, rel=1e-6)

    two = {"updates_per_epoch": 2}  # updates per epoch
    assert rates(3, fit=two) == [0.8, 0.8, 0.8]
    assert rates(5, fit=two, learning_rate_half_life=1) == [0.8 / 2**0, 0.8 / 2**0.5, 0.4, 0.4 / 2**0.5, 0.2]
    assert rates(3, fit=two, learning_rate_half_life="inf") == [0.8, 0.8, 0.8]
    # Half a cosine over two epochs of two updates: (1 + cos(k pi / 4)) / 2.
    falling = [0.8 * (1 + math.cos(k * math.pi / 4)) / 2 for k in range(4)]
    assert rates(5, fit=two, epochs=2, learning_rate_cosine=2) == [*falling, 0.0]
    # One epoch of warming up: thirds of the rate, then what follows.
    assert rates(5, fit=two, epochs=3, learning_rate_cosine=2, learning_rate_warmup=1) == [
        0.8 / 3, 0.8 * 2 / 3, *falling[:3]
    ]  # fmt: skip
    # One update in each of two passes is two per epoch as well.
    assert rates(3, fit={"updates_per_epoch": 1, "passes_per_epoch": 2}, learning_rate_half_life=1) == [
        0.8, 0.8 / 2**0.5, 0.4
    ]  # fmt: skip


def test_a_label_keeps_weights_and_leaves_out_options():
    assert label(["2*aesthetic?device=cpu", "my_plugin:score"]) == "2*aesthetic+my_plugin:score"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epoch = 1", "'epoch' is not an option; did you mean 'epochs'?"),
        ("[fit]\nnum_stesp = 1", "'num_stesp' is not an option; did you mean 'num_steps'?"),
        ("num_steps = 1", "'num_steps' stands outside its table; write it under [fit]"),
        ("fit = 3", "fit=3: want a table, [fit]"),
        ("objective = 3", "objective=3: want a table, [objective]"),
        ("clip_range = 1", "'clip_range' stands outside its table; write it under [objective]"),
        ('algorithm = "rwr"', "'algorithm' is the flag for the name of the objective"),
        ('[objective]\nname = "ppo"', "objective.name='ppo': want one of ddpo-is, ddpo-sf, rwr, sparse-rwr"),
        (
            '[objective]\nname = "rwr"\nclip_range = 1e-3',
            "'clip_range' is an option of ddpo-is, and the objective is 'rwr'; leave it out",
        ),
        ("[objective]\nclip_rang = 1", "'clip_rang' is not an option; did you mean 'clip_range'?"),
        (
            '[objective]\nbaseline = "epoch"\nbuffer_size = 8',
            "buffer_size=8 does nothing with baseline='epoch'",
        ),
        ('[objective]\nbaseline = "group"', "baseline='group' compares the samples of a prompt"),
        ("[objective]\nkl_weight = -1", "kl_weight=-1: input should be greater than or equal to 0"),
        ("epochs = 0", "epochs=0: input should be greater than 0"),
        ("ema_decay = 1.0", "ema_decay=1.0: input should be less than 1"),
        ("ema_decay = 0", "ema_decay=0: input should be greater than 0"),
        (
            "learning_rate_cosine = 66\nlearning_rate_half_life = 60",
            "learning_rate_half_life=60.0 and learning_rate_cosine=66 are two ways for the learning rate to fall",
        ),
        (
            "epochs = 23\nlearning_rate_cosine = 20\nlearning_rate_warmup = 2",
            "epochs=23 go on after epoch 22, when learning_rate_cosine=20 has taken the learning rate to 0: want",
        ),
        ('lora = "x"\nlora_rank = 4', "lora_rank=4 is for a fresh LoRA, and lora='x' brings its own: leave one out"),
        ('trainable = "unet"\nlora = "x"', "lora='x' is of a LoRA, and trainable='unet' has none: leave it out"),
        ('trainable = "unet"\nlora_rank = 4', "lora_rank=4 is of a LoRA, and trainable='unet' has none"),
    ],
)
def test_a_mistake_in_the_file_is_one_line_that_says_what_to_do(text, message):
    with pytest.raises(ValueError, match=r"^[^\n]*$") as error:
        run_config({}, stored=toml(text))
    assert str(error.value).startswith(message)


def test_a_missing_file_a_folder_and_what_is_no_toml_are_told_apart(tmp_path):
    with pytest.raises(DDPOError, match=r"there is no configuration file 'no\.toml'"):
        read_toml(Path("no.toml"))
    with pytest.raises(DDPOError, match="is a folder"):
        read_toml(tmp_path)
    (tmp_path / "c.toml").write_text("epochs = ")
    with pytest.raises(DDPOError, match=r"c\.toml' is no valid TOML"):
        read_toml(tmp_path / "c.toml")


KEYS = st.sampled_from([*RunConfig.model_fields, "algorithm", "versions"])
INNER = st.sampled_from([*FitConfig.model_fields, *OBJECTIVES["ddpo-is"].model_fields, *OBJECTIVES["rwr"].model_fields])
VALUES = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.lists(st.integers()) | st.just({})


TABLES = st.dictionaries(KEYS, VALUES | st.dictionaries(INNER, VALUES))


@given(TABLES, TABLES)
def test_any_values_give_a_configuration_or_an_error(chosen: dict[str, Any], stored: dict[str, Any]):
    with contextlib.suppress(DDPOError):
        assert isinstance(run_config(chosen, stored=stored), RunConfig)


def test_differences_name_both_values_and_leave_out_what_may_change():
    before = validate({})
    after = validate({"epochs": 1, "seed": 2, "fit": {"num_steps": 3, "micro_batch_size": 1}})
    assert differences(before, after) == ["seed: 0 -> 2", "num_steps: 50 -> 3"]


def test_the_initial_policy_judges_unless_what_it_sees_is_kept():
    assert run_config({}).judged_samples == 0
    assert run_config({"keep": "none"}).judged_samples == 32
    assert run_config({"keep": "clip_score>=97%"}).judged_samples == 32
    assert run_config({"evidence_samples": 4}).judged_samples == 4
    with pytest.raises(DDPOError, match=r"on_hack='stop' acts when .* keep='none'"):
        run_config({"on_hack": "stop"})
    assert run_config({"on_hack": "stop", "keep": "none"}).on_hack == "stop"
