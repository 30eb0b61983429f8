"""One configuration: defaults, preset, file, flags; TOML in and out."""

import contextlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ddpo_cli.train import new_config
from ddpo_cli.train_options import as_table, keys
from ddpo_core import toy
from ddpo_core.runs.config import OBJECTIVES, RunConfig, differences, read_run_config, to_toml, validate
from ddpo_core.runs.defaults import FOR_MODEL
from ddpo_core.runs.parts import make_objective


def resolve(file: Path | None, settings: dict[str, Any], preset: str | None = None) -> RunConfig:
    """The configuration of `ddpo train` with a file, a preset, and flags or settings by their paths."""
    return new_config(as_table({path.replace(".", "__"): value for path, value in settings.items()}), file, preset)


def write(text: str) -> Path:
    path = Path("c.toml")
    path.write_text(text, encoding="utf-8")
    return path


def test_flags_override_the_file_and_the_file_the_defaults():
    config = resolve(write("epochs = 7\nseed = 3\n[fit]\nnum_steps = 4\n"), {"seed": 5, "fit.samples_per_epoch": 8})
    assert (config.epochs, config.seed, config.fit.num_steps, config.fit.samples_per_epoch) == (7, 5, 4, 8)


def test_the_built_in_model_has_its_own_defaults_and_others_have_the_papers():
    ours, others = resolve(None, {}), resolve(None, {"model": "someone/model"})
    assert ours.fit.num_steps == FOR_MODEL["builtin:emoji"]["fit"]["num_steps"]
    assert others == RunConfig(model="someone/model")


def test_an_algorithm_and_a_whole_unet_bring_their_own_defaults_over_a_preset_and_flags_override_them():
    chosen = resolve(None, {"objective.name": "ddpo-sf", "trainable": "unet"}, preset="compressibility")
    assert (chosen.fit.updates_per_epoch, chosen.learning_rate) == (1, 1e-5)
    told = resolve(write('trainable = "unet"\nlearning_rate = 2e-5\n'), {}, preset="compressibility")
    assert (told.fit.updates_per_epoch, told.learning_rate) == (4, 2e-5)
    assert resolve(write('trainable = "unet"\n'), {"learning_rate": 3e-6}).learning_rate == 3e-6
    kept = resolve(write("[fit]\nsamples_per_prompt = 2\n"), {"objective.name": "sparse-rwr"}, preset="compressibility")
    assert (kept.fit.samples_per_prompt, kept.fit.passes_per_epoch) == (2, 50)


def test_an_algorithm_has_settings_of_its_own_on_the_embedded_model():
    ours, others = (
        resolve(None, {"objective.name": "rwr", "model": model}) for model in ("builtin:emoji", "someone/model")
    )
    assert (ours.learning_rate, ours.objective.inverse_temperature, ours.fit.passes_per_epoch) == (5e-4, 4.0, 1)
    assert (others.learning_rate, others.objective.inverse_temperature, others.fit.passes_per_epoch) == (3e-4, 0.2, 5)
    assert ours.fit.num_steps == 5
    assert resolve(None, {"objective.name": "rwr", "learning_rate": 1e-3}).learning_rate == 1e-3


def test_another_algorithm_keeps_the_options_it_shares_and_another_baseline_drops_what_it_does_not_have():
    default = resolve(None, {}).objective
    assert (default.name, default.baseline, default.buffer_size, default.clip_range) == ("ddpo-is", "run", None, 1e-4)
    other = resolve(None, {"objective.name": "ddpo-sf"}).objective
    assert (other.name, other.baseline, other.buffer_size) == ("ddpo-sf", "run", None)
    told = resolve(write('[objective]\nbaseline = "epoch"\n'), {}).objective
    assert (told.baseline, told.buffer_size, told.clip_range) == ("epoch", None, 1e-4)
    assert (
        resolve(None, {"objective.name": "rwr", "objective.timestep_fraction": 0.5}).objective.timestep_fraction == 0.5
    )


@pytest.mark.parametrize("algorithm", OBJECTIVES)
@pytest.mark.parametrize("model", ["builtin:emoji", "someone/model"])
def test_every_objective_can_be_made_of_its_defaults(algorithm, model):
    config = resolve(None, {"objective.name": algorithm, "model": model})
    make_objective(config.objective).check(toy.policy(), config.fit)


def test_what_is_written_is_read_back_as_it_was():
    config = resolve(None, {"reward": ["a", "0.5*b?c=d"], "device": "cpu", "dtype": "bfloat16", "learning_rate": 1e-4})
    Path("config.toml").write_text(to_toml(config), encoding="utf-8")
    assert read_run_config(Path()) == config
    assert resolve(Path("config.toml"), {}) == config


def test_the_versions_that_ran_are_written_down():
    assert 'ddpo-core = "' in to_toml(resolve(None, {}))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epoch = 1", "c.toml: 'epoch' is not an option; did you mean 'epochs'?"),
        ("[fit]\nnum_stesp = 1", "c.toml: 'num_stesp' is not an option; did you mean 'num_steps'?"),
        ("num_steps = 1", "c.toml: 'num_steps' stands outside its table; write it under [fit]"),
        ("fit = 3", "c.toml: fit=3: want a table, [fit]"),
        ("objective = 3", "c.toml: objective=3: want a table, [objective]"),
        ("clip_range = 1", "c.toml: 'clip_range' stands outside its table; write it under [objective]"),
        ('algorithm = "rwr"', "c.toml: 'algorithm' is the flag for the name of the objective"),
        ('[objective]\nname = "ppo"', "c.toml: objective.name='ppo': want one of ddpo-is, ddpo-sf, rwr, sparse-rwr"),
        (
            '[objective]\nname = "rwr"\nclip_range = 1e-3',
            "c.toml: 'clip_range' is an option of ddpo-is, and the objective is 'rwr'; leave it out",
        ),
        ("[objective]\nclip_rang = 1", "c.toml: 'clip_rang' is not an option; did you mean 'clip_range'?"),
        (
            '[objective]\nbaseline = "epoch"\nbuffer_size = 8',
            "c.toml: buffer_size=8 does nothing with baseline='epoch'",
        ),
        ('[objective]\nbaseline = "group"', "c.toml: baseline='group' compares the samples of a prompt"),
        ("[objective]\nkl_weight = -1", "c.toml: kl_weight=-1: input should be greater than or equal to 0"),
        ("epochs = ", "'c.toml' is no valid TOML"),
        ("epochs = 0", "c.toml: epochs=0: input should be greater than 0"),
    ],
)
def test_a_mistake_in_the_file_is_one_line_that_says_what_to_do(text, message):
    with pytest.raises(ValueError, match=r"^[^\n]*$") as error:
        resolve(write(text), {})
    assert str(error.value).startswith(message)


def test_a_contradiction_is_said_of_the_flags_the_file_or_both():
    file = write("[objective]\nclip_range = 1e-3")
    with pytest.raises(ValueError, match=r"^c\.toml and the flags: 'clip_range' is an option of ddpo-is, and the obj"):
        resolve(file, {"objective.name": "rwr"})
    with pytest.raises(ValueError, match=r"^epochs=0: "):
        resolve(file, {"epochs": "0"})
    with pytest.raises(ValueError, match=r"^c\.toml: epochs=0: "):
        resolve(write("epochs = 0"), {"seed": "1"})


def test_where_nothing_says_what_to_learn_the_embedded_model_learns_to_draw_what_it_is_told():
    alignment = ("llava_bertscore?model=builtin:emoji",)
    assert resolve(None, {}).reward == resolve(write("epochs = 3\n"), {}).reward == alignment
    assert resolve(None, {}).prompts == "animals_activities"
    assert resolve(None, {"reward": ["jpeg_compressibility"]}).prompts == "simple_animals"
    for settings in ({"model": "some/model"}, {"reward": ["jpeg_compressibility"]}):
        assert resolve(None, settings).reward == ("jpeg_compressibility",)
    assert resolve(write('reward = ["symmetry"]\n'), {}).reward == ("symmetry",)


def test_options_of_another_algorithm_are_said_to_be_left_out_of_a_preset_and_of_the_file_of_a_run(capsys):
    resolve(None, {"objective.name": "rwr"}, preset="aesthetic")
    assert capsys.readouterr().err == (
        "--preset aesthetic: what it says of clip_range, advantage_clip, baseline, buffer_size, min_count is left out, "
        "since the run has no use for it\n"
    )
    Path("config.toml").write_text(to_toml(resolve(None, {})), encoding="utf-8")
    assert resolve(Path("config.toml"), {"objective.name": "rwr"}).objective.inverse_temperature == 4.0
    assert "config.toml: what it says of baseline, " in capsys.readouterr().err
    resolve(Path("config.toml"), {"epochs": "3"}, preset="emoji-aesthetic")
    assert capsys.readouterr().err == ""


def test_a_missing_file_and_a_folder_are_told_apart():
    with pytest.raises(ValueError, match=r"there is no configuration file 'no\.toml'"):
        resolve(Path("no.toml"), {})
    with pytest.raises(ValueError, match="is a folder"):
        resolve(Path(), {})


KEYS = st.sampled_from(list(keys()))
VALUES = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.lists(st.integers()) | st.just({})


@given(st.dictionaries(KEYS, VALUES))
def test_any_values_give_a_configuration_or_a_value_error(flags: dict[str, Any]):
    with contextlib.suppress(ValueError):
        assert isinstance(resolve(None, flags), RunConfig)


def test_differences_name_both_values_and_leave_out_what_may_change():
    before = validate({})
    after = validate({"epochs": 1, "seed": 2, "fit": {"num_steps": 3, "micro_batch_size": 4}})
    assert differences(before, after) == ["seed: 0 -> 2", "num_steps: 50 -> 3"]
