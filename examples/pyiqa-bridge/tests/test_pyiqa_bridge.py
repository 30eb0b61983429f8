"""The bridge against a stand-in for pyiqa that has what the bridge uses of pyiqa 0.1.16, and no weights to download."""

import sys
from types import ModuleType

import numpy as np
import pyiqa_bridge
import pytest

from ddpo_rewards import RewardError
from ddpo_rewards.reward import adapt


class Lightness:
    """Called like a metric of pyiqa: images [batch, 3, height, width] in [0, 1] in, [batch, 1] out."""

    def __init__(self, lower_better, device):
        self.lower_better, self.device = lower_better, device

    def __call__(self, images):
        assert images.min() >= 0
        assert images.max() <= 1
        return images.mean((1, 2, 3))[:, None]


@pytest.fixture(autouse=True)
def pyiqa(monkeypatch):
    module = ModuleType("pyiqa")
    module.list_models = lambda mode: {"NR": ["dark", "light"], "FR": ["psnr"]}[mode]
    module.create_metric = lambda name, device=None: Lightness(name == "dark", device)
    monkeypatch.setitem(sys.modules, "pyiqa", module)
    return module


def scored(ref, images, **options):
    import torch

    function = adapt(pyiqa_bridge.resolve_reward(ref, options), ref)
    return function(torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float(), None, None)


def test_a_metric_scores_images_and_higher_is_better():
    images = [np.full((4, 4, 3), level, np.float32) for level in (0.25, 0.75)]
    scores, info = scored("pyiqa://light", images)
    assert scores.tolist() == info["pyiqa"].tolist() == [0.25, 0.75]
    scores, info = scored("pyiqa://dark", images, device="cpu")
    assert scores.tolist() == [-0.25, -0.75]
    assert info["pyiqa"].tolist() == [0.25, 0.75]


def test_another_scheme_is_not_for_this_plugin():
    assert pyiqa_bridge.resolve_reward("http://localhost", {}) is None


def test_what_pyiqa_lacks_or_compares_is_refused_with_what_there_is():
    for name in ("psnr", "none"):
        with pytest.raises(RewardError, match=f"no metric '{name}' that needs no reference image; it has dark, light"):
            pyiqa_bridge.resolve_reward(f"pyiqa://{name}", {})


def test_without_pyiqa_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyiqa", None)
    with pytest.raises(RewardError, match="pip install pyiqa"):
        pyiqa_bridge.resolve_reward("pyiqa://light", {})
