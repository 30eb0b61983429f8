"""Scores that were computed before are not computed again, and never taken for those of something else."""

import json
import sqlite3
import threading
from contextlib import closing

import numpy as np
import pytest
from PIL import Image

from ddpo_rewards import (
    Reward,
    RewardError,
    RewardSpec,
    ScoreCache,
    combine,
    combine_standardised,
    get_reward,
    iter_scores,
)
from ddpo_rewards.cache import content_digest, reward_version, score_key
from ddpo_rewards.folders import plan, score


def noting(calls, name="noting", **options):
    """A reward of the distribution ddpo-rewards that notes what it is called with; the score is the mean."""

    def function(images, prompts, metadata):
        calls.append(len(images))
        means = [float(image.mean()) for image in images]
        return means, {"prompt": list(prompts or [None] * len(images)), "mean": means}

    spec = RewardSpec(name=name, factory="x:x", takes="arrays", distribution="ddpo-rewards")
    return Reward(spec, function, options)


@pytest.fixture
def files(tmp_path):
    paths = [tmp_path / f"{index}.png" for index in range(5)]
    for index, path in enumerate(paths):
        Image.new("RGB", (8, 8), (40 * index, 0, 0)).save(path)
    return paths


@pytest.fixture
def cache(tmp_path):
    with ScoreCache(tmp_path / "scores.sqlite") as opened:
        yield opened


def results(images, reward, cache, **options):
    return [(one.index, one.score, one.info) for one in iter_scores(images, reward, cache=cache, **options)]


def test_a_second_run_asks_for_nothing_and_says_the_same(files, cache, tmp_path):
    calls = []
    plain = results(files, noting([]), None)
    first = results(files, noting(calls), cache, batch_size=2)
    assert first == plain
    assert calls == [2, 2, 1]
    cache.close()
    with ScoreCache(tmp_path / "scores.sqlite") as again:
        assert results(files, noting(calls), again, batch_size=2) == plain
    assert calls == [2, 2, 1]


def test_only_what_is_new_is_scored(files, cache):
    calls = []
    results(files[:2], noting(calls), cache)
    found = results(files, noting(calls), cache)
    assert calls == [2, 3]
    assert [index for index, *_ in found] == [0, 1, 2, 3, 4]
    assert found == results(files, noting([]), None)


def test_the_content_counts_and_not_the_name(files, cache, tmp_path):
    calls = []
    results(files[:1], noting(calls), cache)
    (tmp_path / "copy.png").write_bytes(files[0].read_bytes())
    results([tmp_path / "copy.png"], noting(calls), cache)
    assert calls == [1]
    Image.new("RGB", (8, 8), "white").save(files[0])
    ((_, score_of_white, _),) = results(files[:1], noting(calls), cache)
    assert (calls, score_of_white) == ([1, 1], 255.0)


@pytest.mark.parametrize(
    ("change", "is_new"),
    [
        ({"prompts": ["a cat"]}, False),
        ({"prompts": ["a dog"]}, True),
        ({"prompts": None}, True),
        ({"prompts": ["a cat"], "metadata": [{"k": 1}]}, True),
        ({"prompts": ["a cat"], "reward": {"name": "other"}}, True),
        ({"prompts": ["a cat"], "reward": {"quality": 80}}, True),
    ],
)
def test_whatever_a_score_depends_on_makes_another_key(files, cache, change, is_new):
    calls = []
    results(files[:1], noting(calls), cache, prompts=["a cat"])
    options = {name: value for name, value in change.items() if name != "reward"}
    results(files[:1], noting(calls, **change.get("reward", {})), cache, **options)
    assert len(calls) == 1 + is_new


def test_arrays_are_kept_by_their_pixels(cache):
    calls = []
    arrays = [np.full((4, 6, 3), level, np.uint8) for level in (1, 2, 1)]
    results(arrays, noting(calls), cache, batch_size=3)
    results([array.copy() for array in arrays], noting(calls), cache)
    assert calls == [3]
    assert content_digest(arrays[0]) == content_digest(arrays[2]) != content_digest(arrays[0].reshape(6, 4, 3))


def test_a_file_that_cannot_be_read_is_no_score_and_not_kept(files, cache, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no image")
    found = list(iter_scores([files[0], tmp_path / "broken.png", tmp_path / "gone.png"], noting([]), cache=cache))
    assert [one.score is None for one in found] == [False, True, True]
    assert "no image that Pillow can read" in str(found[1].error)
    assert "gone.png' cannot be read: No such file" in str(found[2].error)
    with closing(sqlite3.connect(tmp_path / "scores.sqlite")) as connection:
        (count,) = connection.execute("SELECT count(*) FROM scores").fetchone()
    assert count == 1


def test_what_is_no_json_is_scored_every_time(files, cache):
    calls = []

    def function(images, prompts, metadata):
        calls.append(len(images))
        return [1.0] * len(images), {"thing": [object()] * len(images)}

    spec = RewardSpec(name="odd", factory="x:x", takes="arrays", distribution="ddpo-rewards")
    for _ in range(2):
        results(files[:1], Reward(spec, function), cache)
        results(files[:1], Reward(spec, function), cache, metadata=[{"k": object()}])
    assert calls == [1, 1, 1, 1]


def test_only_what_has_a_version_is_kept():
    name, *rest = json.loads(reward_version(get_reward("jpeg_compressibility?quality=80")))
    assert (name, rest[1:]) == ("ddpo-rewards", ["jpeg_compressibility", {"quality": "80"}, []])
    for reward in (
        combine("jpeg_compressibility", "jpeg_incompressibility"),
        combine_standardised("jpeg_compressibility", "jpeg_incompressibility"),
        get_reward("math:sqrt"),
        noting([], captioner=lambda images, questions: []),
        Reward(RewardSpec(name="x", factory="x:x", distribution="nobody-has-this"), len),
    ):
        assert reward_version(reward) is None
    assert score_key(None, b"", None, None) is None


def test_a_reward_that_reads_files_named_in_metadata_is_not_kept():
    class Reads:
        reads_files = True

        def __call__(self, images, prompts, metadata):
            return [0.0] * len(images)

    assert reward_version(Reward(RewardSpec(name="x", factory="x:x", distribution="ddpo-rewards"), Reads())) is None


def test_several_rewards_are_asked_each_for_what_it_lacks(files, cache):
    one, two = [], []
    results(files[:3], noting(one), cache)
    job = plan(list(map(str, files)), [noting(one), noting(two, name="two")])
    rows = list(score(job, cache=cache))
    assert (one, two) == ([3, 2], [5])
    assert [row["noting"] for row in rows] == [row["two"] for row in rows]


def test_threads_and_processes_share_a_file(files, tmp_path):
    path, errors = tmp_path / "shared.sqlite", []

    def work(number):
        try:
            with ScoreCache(path) as own:
                for step in range(20):
                    own.keep([(f"{number}-{step}".encode(), float(step), {})])
                    assert own.find([f"{number}-{step}".encode()])[0].score == step
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    with ScoreCache(path) as whole:
        assert None not in whole.find([f"{number}-{step}".encode() for number in range(4) for step in range(20)])


def test_more_keys_than_a_question_holds_are_found(cache):
    keys = [str(number).encode() for number in range(1200)]
    cache.keep([(key, 0.1, {}) for key in keys])
    assert all(kept.score == 0.1 for kept in cache.find(keys))


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda path: path.write_bytes(b"a text that is no database, and long enough"), "is no cache of scores"),
        (lambda path: path.mkdir(), "is no cache of scores: unable to open"),
        (lambda path: _database(path, "CREATE TABLE mine (x)"), "is another database, with mine"),
        (lambda path: _database(path, "PRAGMA user_version = 7"), "has the schema 7, not 1"),
    ],
)
def test_a_file_that_is_no_cache_is_refused_and_left_alone(tmp_path, make, complaint):
    path = tmp_path / "file"
    make(path)
    before = path.read_bytes() if path.is_file() else None
    with pytest.raises(RewardError, match=complaint):
        ScoreCache(path)
    assert before is None or path.read_bytes() == before


def _database(path, statement):
    connection = sqlite3.connect(path)
    connection.execute(statement)
    connection.close()


def test_a_cache_that_is_only_dropped_closes_its_file(tmp_path):
    cache = ScoreCache(tmp_path / "scores.sqlite")
    connection = cache._connection
    del cache
    with pytest.raises(sqlite3.ProgrammingError, match="closed"):
        connection.execute("SELECT 1")
