"""Batches of a table get their scores, row by row, whatever form their images have."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from ddpo_rewards import Reward, RewardError, RewardSpec
from ddpo_rewards.batches import ScoreBatches


def encoded(level):
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), (level,) * 3).save(buffer, "PNG")
    return buffer.getvalue()


def lightness(needs=(), name="light", calls=None):
    def function(images, prompts, metadata):
        if calls is not None:
            calls.append((prompts, metadata))
        return [float(image.mean()) for image in images], {"shape": [list(image.shape) for image in images]}

    return Reward(RewardSpec(name=name, factory="x:x", takes="arrays", needs=frozenset(needs)), function)


def test_images_of_every_form_are_scored_in_order(tmp_path):
    Image.new("RGB", (4, 4), (50,) * 3).save(tmp_path / "a.png")
    images = [
        encoded(10),
        {"bytes": encoded(20), "path": None},
        np.full((4, 4, 3), 30, np.uint8),
        Image.new("RGB", (4, 4), (40,) * 3),
        str(tmp_path / "a.png"),
        {"bytes": None, "path": str(tmp_path / "a.png")},
        b"broken",
        {"bytes": None, "path": None},
    ]
    batch = ScoreBatches([lightness(), lightness(name="again")])({"image": images, "id": list(range(8))})
    assert batch["id"] == list(range(8))
    assert batch["light"][:6].tolist() == batch["again"][:6].tolist() == [10, 20, 30, 40, 50, 50]
    assert np.isnan(batch["light"][6:]).all()
    assert [error is None for error in batch["error"]] == [True] * 6 + [False] * 2


def test_an_array_of_images_is_a_column_too():
    images = np.stack([np.full((4, 4, 3), level, np.uint8) for level in (1, 2)])
    assert ScoreBatches([lightness()])({"image": images})["light"].tolist() == [1, 2]


def test_columns_become_prompts_and_metadata():
    calls = []
    score = ScoreBatches(
        [lightness({"prompts", "metadata"}, calls=calls)], image="png", prompt="text", metadata=["k", "m"]
    )
    score({"png": [encoded(1), encoded(2)], "text": np.array(["a", "b"]), "k": [1, 2], "m": [3, 4]})
    assert calls == [(["a", "b"], [{"k": 1, "m": 3}, {"k": 2, "m": 4}])]


def test_metadata_may_lie_in_one_column_as_tables_or_json_and_what_is_said_comes_as_json():
    calls = []
    score = ScoreBatches([lightness({"metadata"}, calls=calls)], metadata="about", info=True, batch_size=1)
    batch = score({"image": [encoded(1), encoded(2)], "about": [{"k": 1}, '{"k": 2}']})
    assert calls == [(None, [{"k": 1}]), (None, [{"k": 2}])]
    assert [json.loads(said) for said in batch["info"]] == [{"light.shape": [4, 4, 3]}] * 2


def test_a_cache_is_shared_by_workers(tmp_path):
    batch = {"image": [encoded(1), encoded(2)]}
    first = ScoreBatches(["jpeg_compressibility"], cache=tmp_path / "scores.sqlite")(batch)
    again = ScoreBatches(["jpeg_compressibility"], cache=tmp_path / "scores.sqlite")(batch)
    assert first["jpeg_compressibility"].tolist() == again["jpeg_compressibility"].tolist()


@pytest.mark.parametrize(
    ("rewards", "complaint"),
    [
        ([], "want a list of one or more"),
        ("aesthetic", "want a list of one or more"),
        ([lightness(), lightness()], "'light' is given twice"),
        ([lightness({"prompts"})], "light needs prompts: name the column, prompt="),
        ([lightness({"metadata"})], "light needs metadata: name the column, metadata="),
        (["jpeg_compresibility"], "did you mean"),
    ],
)
def test_what_cannot_be_scored_is_refused_before_any_batch(rewards, complaint):
    with pytest.raises(RewardError, match=complaint):
        ScoreBatches(rewards)


@pytest.mark.parametrize(
    ("batch", "complaint"),
    [
        ({"picture": []}, "has no column 'image'; it has picture"),
        ({"image": [encoded(1)], "light": [0]}, "has a column 'light' already"),
        ({"image": [encoded(1)], "error": [0]}, "has a column 'error' already"),
    ],
)
def test_a_batch_of_other_columns_is_refused(batch, complaint):
    with pytest.raises(RewardError, match=complaint):
        ScoreBatches([lightness()])(batch)


def test_what_is_no_prompt_and_no_metadata_is_refused_and_not_scored_as_if_it_were():
    score = ScoreBatches([lightness({"prompts", "metadata"})], prompt="text", metadata="about")
    with pytest.raises(RewardError, match="a prompt is None; want a text for every image"):
        score({"image": [encoded(1)], "text": [None], "about": [{}]})
    for wrong in ("[1]", 5):
        with pytest.raises(RewardError, match=r"metadata 'about' is .*; want a table"):
            score({"image": [encoded(1)], "text": ["a"], "about": [wrong]})
