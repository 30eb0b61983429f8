"""Shards of webdataset and tables of bytes, read and scored as they come."""

import io
import json
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from ddpo_rewards import Reward, RewardSpec, iter_scores
from ddpo_rewards.folders import FolderError, plan, read_shards, score

pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")


def encoded(level, format="PNG"):
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), (level,) * 3).save(buffer, format)
    return buffer.getvalue()


def write_tar(path, files):
    with tarfile.open(path, "w") as archive:
        for name, content in files:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return str(path)


def write_parquet(path, as_struct=False, **columns):
    pictures = [encoded(level) for level in (10, 20, 30)]
    images = [{"bytes": content, "path": None} for content in pictures] if as_struct else pictures
    parquet.write_table(pyarrow.table({"image": images, **columns}), path)
    return str(path)


def lightness(needs=(), calls=None):
    def function(images, prompts, metadata):
        if calls is not None:
            calls.append((prompts, metadata))
        return [float(image.mean()) for image in images]

    return Reward(RewardSpec(name="light", factory="x:x", takes="arrays", needs=frozenset(needs)), function)


def facts(samples):
    return [(sample.item.name, sample.item.prompt, dict(sample.item.metadata)) for sample in samples]


def test_files_of_one_name_are_one_sample(tmp_path):
    shard = write_tar(
        tmp_path / "a.tar",
        [
            ("0001.png", encoded(10)),
            ("0001.txt", b"a cat\n"),
            ("deep/0002.JPG", encoded(20, "JPEG")),
            ("deep/0002.json", json.dumps({"caption": "a dog", "seed": 3}).encode()),
            ("0003.txt", b"no picture"),
            ("0004.seg.png", encoded(40)),
            ("0004.webp", encoded(50, "WEBP")),
            ("0005.png", encoded(60)),
        ],
    )
    samples = list(read_shards([shard]))
    assert facts(samples) == [
        (f"{shard}/0001", "a cat", {}),
        (f"{shard}/deep/0002", "a dog", {"caption": "a dog", "seed": 3}),
        (f"{shard}/0004", None, {}),  # .seg.png is no image of its own
        (f"{shard}/0005", None, {}),
    ]
    assert samples[2].image == encoded(50, "WEBP")


@pytest.mark.parametrize("as_struct", [False, True])
def test_a_table_of_bytes_has_a_sample_per_row(tmp_path, as_struct):
    table = write_parquet(tmp_path / "t.parquet", as_struct, text=["a", None, "c"], seed=[1, 2, 3])
    assert facts(read_shards([table])) == [
        (f"{table}/0", "a", {"seed": 1}), (f"{table}/1", None, {"seed": 2}), (f"{table}/2", "c", {"seed": 3})
    ]  # fmt: skip


def test_shards_are_scored_in_order_into_a_table(tmp_path):
    shard = write_tar(tmp_path / "a.tar", [("1.png", encoded(10)), ("2.png", b"broken"), ("3.png", encoded(30))])
    table = write_parquet(tmp_path / "b.parquet")
    job = plan([shard, table], [lightness()], output=tmp_path / "scores.jsonl")
    rows = list(score(job, batch_size=2))
    names = [f"{shard}/{key}" for key in (1, 2, 3)] + [f"{table}/{row}" for row in range(3)]
    assert [row["image"] for row in rows] == names
    assert [row["light"] for row in rows] == [10, None, 30, 10, 20, 30]
    assert "no image that Pillow can read" in rows[1]["error"]
    assert [json.loads(line) for line in (tmp_path / "scores.jsonl").read_text().splitlines()] == rows


def test_what_broke_off_goes_on(tmp_path):
    shard = write_tar(tmp_path / "a.tar", [(f"{index}.png", encoded(index)) for index in range(6)])
    first = score(plan([shard], [lightness()], output=tmp_path / "s.csv"), batch_size=2)
    assert [next(first)["light"] for _ in range(2)] == [0, 1]
    first.close()
    again = list(score(plan([shard], [lightness()], output=tmp_path / "s.csv", resume=True), batch_size=2))
    assert [row["light"] for row in again] == [2, 3, 4, 5]
    assert [line.split(",")[2] for line in (tmp_path / "s.csv").read_text().splitlines()[1:]] == [
        "0.0", "1.0", "2.0", "3.0", "4.0", "5.0"
    ]  # fmt: skip


def test_prompts_and_metadata_reach_a_reward_that_needs_them(tmp_path):
    table = write_parquet(tmp_path / "t.parquet", prompt=["a", "b", "c"], seed=[1, 2, 3])
    calls = []
    list(score(plan(table, [lightness({"prompts", "metadata"}, calls)])))
    assert calls == [(["a", "b", "c"], [{"seed": 1}, {"seed": 2}, {"seed": 3}])]
    calls.clear()
    list(score(plan(table, [lightness((), calls)])))
    assert calls == [(None, None)]


def test_more_samples_than_are_held_at_once(tmp_path):
    """Of a stream of samples few are drawn ahead of what is scored."""
    drawn = 0

    def samples():
        nonlocal drawn
        for index in range(500):
            drawn += 1
            yield encoded(index % 200)

    results = iter_scores(samples(), lightness(), batch_size=4)
    assert next(results).score == 0
    assert drawn <= 16
    results.close()


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (
            lambda folder: write_parquet(folder / "t.parquet", prompt=["a", None, "c"]),
            r"light needs prompts, but '.*/1'",
        ),
        (
            lambda folder: write_tar(folder / "a.tar", [("1.png", encoded(1))]),
            "light needs prompts, but .*a.tar/1' has none",
        ),
        (lambda folder: write_tar(folder / "a.tar", [("1.txt", b"a cat")]), "holds no images"),
        (lambda folder: _damaged(folder / "a.tar", b"no archive"), "cannot be read as a shard"),
        (lambda folder: _damaged(folder / "a.parquet", b"no table"), "cannot be read as parquet"),
        (lambda folder: write_tar(folder / "a.tar", [("1.png", encoded(1)), ("1.json", b"[")]), "cannot be read"),
        (
            lambda folder: write_tar(folder / "a.tar", [("1.png", encoded(1)), ("1.json", b"[]")]),
            "is no table but list",
        ),
        (lambda folder: write_tar(folder / "a.tar", [("1.png", encoded(1)), ("1.txt", b"\xff")]), "cannot be read"),
    ],
)
def test_what_is_wrong_with_a_shard_is_one_clear_line(tmp_path, make, complaint):
    with pytest.raises(FolderError, match=complaint):
        list(score(plan(make(tmp_path), [lightness({"prompts"})])))


def _damaged(path, content):
    path.write_bytes(content)
    return str(path)


def test_shards_are_scored_alone(tmp_path):
    shard = write_tar(tmp_path / "a.tar", [("1.png", encoded(1))])
    (tmp_path / "b.png").write_bytes(encoded(2))
    with pytest.raises(FolderError, match="score them one after the other"):
        plan([shard, tmp_path / "b.png"], [lightness()])
    with pytest.raises(FolderError, match="holds images with their prompts"):
        plan([shard], [lightness()], prompt="a cat")


def test_a_table_that_names_files_is_still_that(tmp_path):
    Path(tmp_path / "x.png").write_bytes(encoded(7))
    parquet.write_table(pyarrow.table({"image": ["x.png"], "prompt": ["a"]}), tmp_path / "t.parquet")
    assert [row["light"] for row in score(plan(tmp_path / "t.parquet", [lightness()]))] == [7]
