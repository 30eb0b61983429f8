"""Published scores are checked against an installation, not only shown."""

import hashlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from ddpo_rewards import ReferenceScore, Reward, RewardSpec, get_reward, list_rewards
from ddpo_rewards.testing import check_reward, verify_reference_scores


@pytest.fixture
def reward(tmp_path):
    """The red share of an image, whose published score of a red one is 1."""
    Image.new("RGB", (8, 8), "red").save(tmp_path / "a red.png")
    known = ReferenceScore(
        image="https://images.example/a%20red.png",
        sha256=hashlib.sha256((tmp_path / "a red.png").read_bytes()).hexdigest(),
        score=1.0,
        tolerance=0.05,
        source="by definition",
        prompt="red",
    )
    return reward_that_scores(lambda images, prompts, metadata: images[:, 0].mean((1, 2)), known)


def reward_that_scores(function, known):
    spec = RewardSpec(name="red", factory="red:red", needs={"prompts"}, reference_scores=(known,))
    return Reward(spec, function)


def test_a_reward_that_scores_as_published_is_verified(reward, tmp_path):
    (check,) = verify_reference_scores(reward, folder=tmp_path)
    assert check.passed
    assert check.name == "a red.png"
    assert check.message == "scores 1.0000, published is 1 +/- 0.05 (by definition)"


@pytest.mark.parametrize(("off", "passed"), [(0.04, True), (-0.04, True), (0.06, False), (-0.6, False)])
def test_a_score_beyond_the_tolerance_fails(reward, tmp_path, off, passed):
    (known,) = reward.spec.reference_scores
    other = reward_that_scores(lambda images, prompts, metadata: images[:, 0].mean((1, 2)) + off, known)
    (check,) = verify_reference_scores(other, folder=tmp_path)
    assert check.passed is passed


def test_an_image_that_is_missing_or_another_fails_and_says_so(reward, tmp_path):
    Image.new("RGB", (8, 8), "blue").save(tmp_path / "a red.png")
    (check,) = verify_reference_scores(reward, folder=tmp_path)
    assert not check.passed
    assert "is not the image that was scored" in check.message
    (tmp_path / "a red.png").unlink()
    (check,) = verify_reference_scores(reward, folder=tmp_path)
    assert not check.passed


def test_a_drawn_picture_is_checked_by_its_pixels():
    known = list_rewards()["jpeg_compressibility"].reference_scores[0]
    (check,) = verify_reference_scores(get_reward("jpeg_compressibility"))
    assert check.passed
    assert check.name == "disc"
    for wrong, complaint in (
        ({"sha256": "0" * 64}, "is not drawn here"),
        ({"image": "drawn:cat"}, "are noise, gradient"),
    ):
        spec = replace(get_reward("jpeg_compressibility").spec, reference_scores=(replace(known, **wrong),))
        (check,) = verify_reference_scores(Reward(spec, lambda images, prompts, metadata: [-2.565]))
        assert not check.passed
        assert complaint in check.message


def test_a_reward_that_fails_fails_its_check(reward, tmp_path):
    (known,) = reward.spec.reference_scores
    (check,) = verify_reference_scores(Reward(replace(reward.spec), lambda *_: ["x"]), folder=tmp_path)
    assert not check.passed
    assert "'red' returned" in check.message
    assert known.score == 1.0


def test_the_tolerance_of_the_aesthetic_score_sees_a_tower_without_quick_gelu(test_data):
    # rewards.md: plain GELU moves the score of a published photo from 5.0491 to 4.4425, by 0.6.
    (astronaut,) = list_rewards()["aesthetic"].reference_scores
    assert 5 * astronaut.tolerance < 0.6
    assert hashlib.sha256((test_data / "astronaut.png").read_bytes()).hexdigest() == astronaut.sha256


def mean_of(image):
    return float(np.asarray(image, np.float64)[1:, 1:].mean()) / 255


class Defect:
    """A reward that is right but for one thing."""

    def __init__(self, kind):
        self.kind, self.calls = kind, 0

    def __call__(self, images, prompts, metadata):
        self.calls += 1
        if isinstance(images, torch.Tensor):
            more = {"tensors score otherwise": 0.1, "beyond its range": 1.0}.get(self.kind, 0.0)
            return (images[:, :, 1:, 1:].mean((1, 2, 3)) + more).tolist()
        scores = [mean_of(image) for image in images]
        match self.kind:
            case "not a number":
                scores[0] = float("nan")
            case "infinite":
                scores[-1] = float("inf")
            case "too few":
                scores.pop()
            case "always fails":
                raise OSError("busy")
            case "beyond its range":
                scores = [score + 1 for score in scores]
            case "another score the second time" if self.calls == 2:
                scores = [score + 0.1 for score in scores]
            case "fails the second time" if self.calls == 2:
                raise OSError("busy")
            case "sorted":
                scores = sorted(scores)  # as the pictures are, at first
            case "another score alone" if len(images) == 1:
                scores = [score + 0.1 for score in scores]
            case "writes into images":
                images[0][0, 0] = 255 - images[0][0, 0]  # where nothing is scored
        return scores


DEFECTS = {
    "not a number": "scores",
    "infinite": "scores",
    "too few": "scores",
    "always fails": "scores",
    "beyond its range": "range",
    "another score the second time": "determinism",
    "fails the second time": "determinism",
    "sorted": "order",
    "another score alone": "batch invariance",
    "writes into images": "images unchanged",
    "tensors score otherwise": "tensor input",
}


def checks_of(defect):
    pictures = [np.full((8, 8, 3), level, np.uint8) for level in (10, 80, 150, 220)]
    spec = RewardSpec(name="defect", factory="x:x", takes="any", range=(0.0, 1.0))
    return check_reward(Reward(spec, Defect(defect)), images=pictures)


@pytest.mark.parametrize(("defect", "failing"), DEFECTS.items())
def test_each_check_fails_for_just_the_defect_that_it_is_for(defect, failing):
    checks = checks_of(defect)
    assert [check.name for check in checks if not check.passed] == [failing]
    assert len(checks) == (1 if failing == "scores" else 7)


def test_every_check_has_a_defect_and_none_fails_without():
    checks = checks_of("none")
    assert all(check.passed for check in checks)
    assert {check.name for check in checks} == set(DEFECTS.values())
