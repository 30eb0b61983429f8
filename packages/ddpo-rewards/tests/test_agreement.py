"""How far two columns of scores rank alike, and on what they do not."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ddpo_rewards import RewardError
from ddpo_rewards.folders import agreements, disagreements, write_disagreements
from ddpo_rewards.folders.agreement import ranks


def rows_of(*columns, prompts=None, names="abcdef"):
    return [
        {"image": f"{index}.png", "prompt": prompts and prompts[index], **dict(zip(names, scores, strict=False))}
        for index, scores in enumerate(zip(*columns, strict=True))
    ]


def test_a_correlation_is_that_of_the_ranks_by_hand():
    # Squared differences of the ranks: 1, 1, 1, 1, 0; 1 - 6 * 4 / (5 * 24) = 0.8.
    (found,) = agreements(rows_of([1, 2, 3, 4, 5], [20, 10, 40, 30, 500]), ["a", "b"])
    assert found.correlation.value == pytest.approx(0.8)
    assert (found.first, found.second, found.images) == ("a", "b", 5)


def test_ties_share_their_rank():
    # Ranks 1.5, 1.5, 3, 4, 5 and 1 to 5: covariance 9.5 of the products, lengths sqrt(9.5) and sqrt(10).
    (found,) = agreements(rows_of([0, 0, 1, 2, 3], [1, 2, 3, 4, 5]), ["a", "b"])
    assert found.correlation.value == pytest.approx(9.5 / np.sqrt(9.5 * 10))
    assert ranks(np.array([3.0, 1.0, 3.0, 3.0])).tolist() == [3, 1, 3, 3]


@settings(max_examples=15)
@given(st.lists(st.integers(-50, 50), min_size=6, max_size=20, unique=True), st.randoms())
def test_only_the_order_counts(scores, random):
    other = random.sample(scores, len(scores))
    plain, bent = (agreements(rows_of(first, other), ["a", "b"])[0] for first in (scores, [x**3 - 1.0 for x in scores]))
    assert bent == plain
    assert -1 <= plain.correlation.low <= plain.correlation.value <= plain.correlation.high <= 1
    (same,) = agreements(rows_of(scores, scores), ["a", "b"])
    (reverse,) = agreements(rows_of(scores, [-x for x in scores]), ["a", "b"])
    assert same.correlation == pytest.approx((1, 1, 1))
    assert reverse.correlation == pytest.approx((-1, -1, -1))


def test_an_interval_covers_what_there_is_to_find_as_often_as_it_says():
    # Independent noise has the correlation 0; a 95 % interval misses it in one of twenty.
    random = np.random.default_rng(0)
    found = [agreements(rows_of(*random.normal(size=(2, 30))), ["a", "b"])[0].correlation for _ in range(40)]
    assert sum(not one.low <= 0 <= one.high for one in found) <= 6  # the chance of more is 0.3 %


def test_images_of_one_prompt_count_as_one():
    random = np.random.default_rng(1)
    level, other = random.normal(size=(2, 8))
    first, second = np.repeat(level, 10), np.repeat(level + other, 10) + random.normal(size=80) * 0.01
    prompts = [f"prompt {row // 10}" for row in range(80)]
    width = {
        known: np.ptp(agreements(rows_of(first, second, prompts=given), ["a", "b"])[0].correlation[1:])
        for known, given in (("alone", None), ("of prompts", prompts))
    }
    assert width["of prompts"] > 2 * width["alone"]


def test_every_two_are_compared_and_rows_without_a_score_left_out():
    rows = [*rows_of(range(6), range(6), [5, 4, 3, 2, 1, 0]), {"image": "x", "prompt": None, "a": None, "b": 1, "c": 2}]
    found = agreements(rows, ["a", "b", "c"])
    assert [(one.first, one.second, one.correlation.value) for one in found] == [
        ("a", "b", 1.0), ("a", "c", -1.0), ("b", "c", -1.0)
    ]  # fmt: skip
    assert {one.images for one in found} == {6}


@pytest.mark.parametrize(
    ("rows", "columns", "complaint"),
    [
        (rows_of(range(6)), ["a"], "to compare rewards takes two; got a"),
        ([], ["a", "b"], "0 independent images were scored"),
        (rows_of(range(4), range(4)), ["a", "b"], "4 independent images were scored; an interval takes 5"),
        (rows_of(range(6), [7] * 6), ["a", "b"], "b scores every image 7"),
        (rows_of(range(8), range(8), prompts=["x", "y"] * 4), ["a", "b"], "2 independent images"),
    ],
)
def test_what_cannot_be_compared_is_refused(rows, columns, complaint):
    with pytest.raises(RewardError, match=complaint):
        agreements(rows, columns)


def test_the_sheet_shows_what_each_ranks_above_the_other(tmp_path):
    for index in range(5):
        Image.new("RGB", (20, 20), (40 * index, 0, 0)).save(tmp_path / f"{index}.png")
    rows = rows_of([5, 1, 2, 3, 4], [1, 2, 3, 4, 5])
    for row in rows:
        row["image"] = str(tmp_path / row["image"])
    above, below = disagreements(rows, "a", "b", size=2)
    assert [row["image"][-5:] for row in above] == ["0.png"]  # ranks 5 and 1; the others are one lower each
    assert len(below) == 2
    write_disagreements(tmp_path / "sheet.png", rows, ["a", "b"])
    write_disagreements(tmp_path / "none.png", rows, ["a", "a"])
    with Image.open(tmp_path / "sheet.png") as sheet, Image.open(tmp_path / "none.png") as empty:
        assert sheet.height > empty.height + 300  # two rows of pictures
