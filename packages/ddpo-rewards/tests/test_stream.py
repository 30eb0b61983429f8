"""`iter_scores`: in order, bounded in memory, whatever the files hold."""

import threading
import time
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from ddpo_rewards import ImageError, Reward, RewardError, RewardSpec, combine, combine_standardised, iter_scores
from ddpo_rewards.compute import map_ahead


def shades(count, size=4):
    """Pictures whose mean tells which one they are: all 0, all 1, all 2, ..."""
    return (np.full((size, size, 3), shade % 256, np.uint8) for shade in range(count))


def mean_reward(calls=None, **attributes):
    """A reward that is the mean of the bytes; it notes how many images each call had."""

    def score(images, prompts, metadata):
        if calls is not None:
            calls.append([image.shape[:2] for image in images])
        return {"scores": [float(image.mean()) for image in images], "words": [*(prompts or [""] * len(images))]}

    for name, value in attributes.items():
        setattr(score, name, value)
    return Reward(RewardSpec(name="mean", factory="none", takes="arrays"), score)


@given(count=st.integers(0, 40), batch_size=st.integers(1, 9), workers=st.integers(1, 3))
def test_results_come_in_order_whatever_the_batches_and_threads(count, batch_size, workers):
    results = list(iter_scores(shades(count), mean_reward(), batch_size=batch_size, workers=workers))
    assert [result.index for result in results] == list(range(count))
    assert [result.score for result in results] == list(range(count))  # the mean of a plain picture is its shade


def test_slow_images_do_not_change_the_order():
    def read(number):
        time.sleep(0.02 if number % 3 == 0 else 0)
        return number

    assert list(map_ahead(read, range(12), ahead=5, workers=4)) == list(range(12))


def test_only_so_many_images_are_drawn_as_two_batches_need():
    drawn = 0

    def pictures():
        nonlocal drawn
        for shade in shades(1000):
            drawn += 1
            yield shade

    stream = iter_scores(pictures(), mean_reward(), batch_size=8)
    for index in range(20):
        assert next(stream).index == index
        assert drawn <= (index // 8 + 2) * 8 + 1  # the batch at hand and the next; one more is drawn to be queued
    stream.close()
    assert drawn < 50


def test_a_bad_file_is_a_result_with_its_error_and_ends_nothing(tmp_path):
    Image.new("RGB", (4, 4), (9, 9, 9)).save(tmp_path / "good.png")
    (tmp_path / "empty.png").touch()
    paths = [tmp_path / name for name in ("good.png", "empty.png", "none.png", "good.png")]
    results = list(iter_scores(paths, mean_reward(), batch_size=2))
    assert [result.score for result in results] == [9.0, None, None, 9.0]
    assert "0 bytes" in str(results[1].error)
    assert "none.png" in str(results[2].error)
    with pytest.raises(ImageError, match="0 bytes"):
        list(iter_scores(paths, mean_reward(), batch_size=2, strict=True))


def test_a_batch_of_bad_files_alone_calls_no_reward():
    calls = []
    assert [result.score for result in iter_scores(["no.png", "nor.png"], mean_reward(calls))] == [None, None]
    assert calls == []


def test_prompts_and_info_stay_with_their_image():
    stream = iter_scores(shades(5), mean_reward(), prompts=(f"shade {i}" for i in range(5)), batch_size=2)
    assert [result.info["words"] for result in stream] == [f"shade {i}" for i in range(5)]


@pytest.mark.parametrize("count", [4, 6])
def test_prompts_of_another_number_are_an_error(count):
    with pytest.raises(RewardError, match=r"end after \d, but \w+ go on; want one per image"):
        list(iter_scores(shades(5), mean_reward(), prompts=["x"] * count))


def test_the_batch_is_as_large_as_what_the_reward_runs_at_once_and_else_as_asked():
    for asked, own, expected in ((None, 7, 7), (None, None, 32), (3, 7, 3)):
        calls = []
        attributes = {} if own is None else {"batch_size": own}
        list(iter_scores(shades(64), mean_reward(calls, **attributes), batch_size=asked))
        assert len(calls[0]) == expected


def test_what_a_reward_prepares_is_made_in_the_reading_threads():
    threads, calls = set(), []

    def prepare(image):
        threads.add(threading.current_thread())
        return image[:2, :2]

    results = list(iter_scores(shades(5), mean_reward(calls, prepare=prepare), batch_size=5))
    assert calls == [[(2, 2)] * 5]
    assert [result.score for result in results] == [0, 1, 2, 3, 4]
    assert threading.main_thread() not in threads


def test_who_stops_early_leaves_no_thread_behind():
    def raises(images, prompts, metadata):
        raise OSError("boom")

    failing = Reward(RewardSpec(name="bad", factory="none", takes="arrays"), raises)
    before = threading.active_count()
    for result in iter_scores(shades(1000), mean_reward(), batch_size=4, workers=3):
        if result.index == 5:
            assert threading.active_count() > before
            break
    assert threading.active_count() == before
    with pytest.raises(RewardError, match="boom"):
        list(iter_scores(shades(1000), failing, batch_size=4))
    assert threading.active_count() == before


def test_a_single_path_is_no_list_of_letters():
    with pytest.raises(RewardError, match=r"pass a list, \[image\]"):
        list(iter_scores("photo.png", mean_reward()))


def test_a_batch_has_one_image_at_least():
    with pytest.raises(RewardError, match="batch_size=0 is not positive"):
        list(iter_scores(shades(3), mean_reward(), batch_size=0))


@pytest.fixture
def many(tmp_path):
    """70 files, whose shade is their number."""
    for shade in range(70):
        Image.new("RGB", (4, 4), (shade,) * 3).save(tmp_path / f"{shade}.png")
    return [str(tmp_path / f"{shade}.png") for shade in range(70)]


def test_a_reward_called_with_many_paths_holds_few_of_them_at_once(many):
    calls, prompts = [], [f"shade {shade}" for shade in range(70)]
    scores, info = mean_reward(calls, batch_size=16)(many, prompts)
    assert [len(call) for call in calls] == [16, 16, 16, 16, 6]
    assert scores.tolist() == list(range(70))
    assert info["words"] == prompts


def test_a_sum_of_rewards_called_with_many_paths_takes_the_larger_batch(many):
    small, large = [], []
    total = combine(
        (1.0, mean_reward(small, batch_size=8)),
        (2.0, replace(mean_reward(large, batch_size=40), spec=RewardSpec(name="large", factory="x:y", takes="arrays"))),
    )
    assert total(many).scores.tolist() == [3.0 * shade for shade in range(70)]
    assert [len(call) for call in large] == [40, 30]


def test_a_reward_that_learns_from_what_it_sees_sees_all_paths_at_once(many):
    scores = combine_standardised(mean_reward(batch_size=8))(many).scores
    # Of 0 to 69 the mean is 34.5 and the variance (70^2 - 1) / 12; of a slice they would be those of the slice.
    std = ((70**2 - 1) / 12) ** 0.5
    assert scores.tolist() == pytest.approx([(shade - 34.5) / std for shade in range(70)], rel=1e-5)


def test_a_bad_file_among_many_paths_is_an_error_that_names_it(many):
    with pytest.raises(ImageError, match="nowhere"):
        mean_reward(batch_size=8)([*many, "nowhere.png"])


def test_an_image_that_is_none_is_named_by_its_place():
    with pytest.raises(RewardError, match="image 3 is an array of float64"):
        list(iter_scores([*shades(3), np.zeros((4, 4, 3))], mean_reward()))
