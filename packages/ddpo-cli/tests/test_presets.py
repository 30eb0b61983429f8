"""The paper's tasks."""

from pathlib import Path

import pytest

from ddpo_cli.presets import list_presets, read_preset
from ddpo_cli.train import new_config
from ddpo_core import prompt_set
from ddpo_core.runs.config import validate
from ddpo_core.runs.defaults import FOR_MODEL
from ddpo_rewards import load_registry, parse_reference

TASKS = ("aesthetic", "alignment", "compressibility", "incompressibility")
SAMPLES, UPDATES, BUFFER, EPOCHS = 0, 1, 2, 3
REFERENCE = {  # ddpo-pytorch, config/dgx.py
    "compressibility": (256, 4, 16, 100),
    "incompressibility": (256, 4, 16, 100),
    "aesthetic": (256, 2, 32, 200),
    "alignment": (288, 2, 32, 200),
}


def test_there_are_the_four_tasks_of_the_paper_their_emoji_twins_and_its_case_of_gaming():
    assert list(list_presets()) == [*TASKS, *sorted(f"emoji-{task}" for task in (*TASKS, "counting"))]
    assert all(summary and not summary.startswith("#") for summary in list_presets().values())


@pytest.mark.parametrize("name", list_presets())
def test_every_preset_is_a_valid_configuration_with_a_reward_and_prompts_that_exist(name):
    config = new_config({}, None, name)
    assert all(load_registry().find_spec(parse_reference(reference).ref) for reference in config.reward)
    assert prompt_set(config.prompts).prompts


@pytest.mark.parametrize("task", TASKS)
def test_the_hyperparameters_are_those_of_the_reference(task):
    config = new_config({}, None, task)
    fit = config.fit
    assert (fit.samples_per_epoch, fit.updates_per_epoch, config.objective.buffer_size, config.epochs) == REFERENCE[
        task
    ]
    assert (config.model, config.guidance_scale, config.learning_rate) == ("CompVis/stable-diffusion-v1-4", 5.0, 3e-4)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("processes", [1, 8])
def test_one_gpu_and_eight_share_an_update_evenly_in_whole_batches(task, processes):
    fit = new_config({}, None, task).fit
    assert fit.samples_per_epoch % (fit.updates_per_epoch * processes) == 0
    assert fit.samples_per_epoch // processes % fit.sample_batch_size == 0
    assert fit.sample_batch_size == fit.micro_batch_size


@pytest.mark.parametrize("task", TASKS)
def test_an_emoji_twin_keeps_the_measured_defaults_of_the_embedded_model(task):
    twin = new_config({}, None, f"emoji-{task}")
    measured = validate(FOR_MODEL["builtin:emoji"])
    assert (twin.model, twin.learning_rate, twin.epochs) == ("builtin:emoji", measured.learning_rate, measured.epochs)
    assert twin.prompts == new_config({}, None, task).prompts


def test_no_emoji_preset_needs_a_download():
    for name in list_presets():
        if name.startswith("emoji-"):
            for reference in map(parse_reference, new_config({}, None, name).reward):
                weights = load_registry().find_spec(reference.ref).weights
                assert not weights or reference.options["model"] == "builtin:emoji"


def test_flags_override_the_file_the_file_the_preset_and_the_preset_the_defaults():
    Path("c.toml").write_text("epochs = 7\nseed = 3\n")
    config = new_config({"seed": 5}, Path("c.toml"), "aesthetic")
    assert (config.seed, config.epochs, config.fit.updates_per_epoch, config.lora_rank) == (5, 7, 2, 4)


def test_the_help_names_every_preset(ddpo, monkeypatch):
    text = "".join(ddpo("train", "--help").stdout.split())
    assert all(name in text for name in list_presets())
    assert read_preset("alignment")["prompts"] == "animals_activities"
