"""From references to rewards."""

from pathlib import Path

import pytest

from ddpo_cli.setup import build_reward

MODULE = "def score(images, *, endpoint=''):\n    return [float(len(endpoint))] * len(images)\n"


@pytest.mark.parametrize("options", ["", "?endpoint=http://127.0.0.1:1/v1"])
def test_a_module_in_the_working_directory_is_found_whatever_its_options_say(monkeypatch, options):
    import sys

    import torch

    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry not in ("", str(Path.cwd()))])
    name = f"local_{len(options)}"
    Path(f"{name}.py").write_text(MODULE)
    reward = build_reward([f"{name}:score{options}"])
    assert reward(torch.zeros(1, 3, 8, 8)).scores.tolist() == [len(options.partition("=")[2])]
