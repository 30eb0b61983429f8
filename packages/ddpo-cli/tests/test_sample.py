"""`ddpo sample`: grids of a model or a run."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

SMALL = ("--num-images", "3", "--num-steps", "2", "--device", "cpu")


def pixels(path: str) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def test_a_model_is_drawn_and_the_path_of_the_grid_is_printed(ddpo, tiny_model):
    result = ddpo("sample", tiny_model, *SMALL, "--guidance-scale", "1")
    assert result.exit_code == 0, result.output
    assert result.stdout == "samples.png\n"
    assert pixels("samples.png").shape[1] > 2 * 128


def test_prompts_and_seeds_decide_the_images(ddpo, tiny_model):
    for name, seed in (("a", "5"), ("b", "5"), ("c", "6")):
        ddpo("sample", tiny_model, *SMALL, "--prompt", "a fox", "--seed", seed, "-o", f"{name}.png", "--separate", name)
    assert (pixels("a.png") == pixels("b.png")).all()
    assert not (pixels("a/00005-a-fox.png") == pixels("a/00006-a-fox.png")).all()
    assert (pixels("a/00006-a-fox.png") == pixels("c/00006-a-fox.png")).all()


def test_a_run_and_any_of_its_checkpoints_are_drawn_with_their_own_weights(ddpo, quick):
    ddpo(*quick, "--learning-rate", "0.1", "--output", "run")
    sources = {"model": quick[2:3], "run": ["run"], "first": ["run/checkpoints/epoch-000001"]}
    sources |= {"none": ["run", "--lora-scale", "0"], "half": ["run", "--lora-scale", "0.5"]}
    for name, source in sources.items():
        result = ddpo("sample", *source, *SMALL, "--guidance-scale", "1", "-o", f"{name}.png")
        assert result.exit_code == 0, result.output
    drawn = {name: pixels(f"{name}.png").tobytes() for name in sources}
    assert drawn["none"] == drawn["model"]
    assert len(set(drawn.values())) == 4


def test_what_is_drawn_separately_can_be_scored_with_its_prompts(ddpo, tiny_model):
    ddpo("sample", tiny_model, *SMALL, "--prompt", "a fox", "--prompt", "an ant", "--separate", "images")
    result = ddpo("score", "images", "--reward", "jpeg_compressibility", "--format", "json")
    assert [row["prompt"] for row in json.loads(result.stdout)] == ["a fox", "an ant", "a fox"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "model 'nowhere' does not exist"),
        (["--prompt", "x", "--prompts", "counting"], "the one or the other"),
        (["--prompts", "coutning"], "did you mean 'counting'"),
        (["--output", "."], "is a folder"),
        (["--lora-scale", "0.5"], "no LoRA was trained in 'builtin:emoji'"),
        (["--separate", "full"], "is not empty"),
    ],
)
def test_a_mistake_is_one_line(ddpo, arguments, message):
    Path("full").mkdir()
    Path("full/a.txt").touch()
    result = ddpo("sample", *arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert not Path("samples.png").exists()
