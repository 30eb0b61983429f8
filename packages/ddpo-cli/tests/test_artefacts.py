"""What a run leaves for others: the model card, and what trackers show."""

import re
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


def pixels(path: str) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def test_the_usage_on_the_model_card_draws_what_it_says(ddpo, quick, tiny_model):
    assert ddpo(*quick, "--learning-rate", "0.1", "--output", "run").exit_code == 0
    card = Path("run/lora/README.md").read_text()
    for picture in re.findall(r"!\[.*\]\((.+)\)", card):
        assert pixels(f"run/lora/{picture}").std() > 0
    assert str(tiny_model.parent) not in card
    code = card.split("```python\n")[1].split("```")[0]
    code = code.replace("'tiny'", repr(str(tiny_model))).replace("path/to/this/folder", "run/lora")
    exec(code.replace('"a fox"', '"a fox", height=16, width=16'), {})
    assert pixels("fox.png").shape == (16, 16, 3)


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "trackio"])
def test_a_tracker_that_is_not_installed_is_said_before_anything_is_loaded(ddpo, quick, monkeypatch, name):
    monkeypatch.setattr(sys, "path", [])  # nothing is installed
    monkeypatch.setattr(sys, "meta_path", [finder for finder in sys.meta_path if "Editable" not in str(finder)])
    for known in [key for key in sys.modules if key.partition(".")[0] == name]:
        monkeypatch.delitem(sys.modules, known)
    result = ddpo(*quick, "--tracker", name)
    assert result.exit_code == 2
    assert f"tracker {name!r} needs the package {name}: pip install {name}" in result.stderr
    assert not Path("runs").exists()
