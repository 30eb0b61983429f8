"""Shards of webdataset and tables of bytes, read and scored as they come."""

import io
import json
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from ddpo_rewards import Reward, RewardSpec, iter_scores
from ddpo_rewards.folders import Columns, FolderError, plan, read_images, read_shards, score

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


@pytest.fixture
def mixed(tmp_path):
    """A folder of loose pictures and shards, and of files that are neither."""
    folder = tmp_path / "mixed"
    (folder / "deep").mkdir(parents=True)
    for name, level in (("a.png", 1), ("deep/z.png", 2)):
        (folder / name).write_bytes(encoded(level))
    write_tar(folder / "deep" / "s.tar", [("x/1.png", encoded(3)), ("x/2.png", b"broken"), ("x/3.png", encoded(5))])
    write_parquet(folder / "t.parquet")
    write_tar(folder / "code.tar", [("setup.py", b"no image")])
    parquet.write_table(pyarrow.table({"image": ["a.png"], "light": [1.0]}), folder / "scores.parquet")
    (folder / "notes.txt").write_text("neither")
    return folder


def test_a_folder_has_loose_pictures_and_shards_at_any_depth(mixed):
    expected = [("a.png", 1), ("deep/z.png", 2), ("deep/s.tar/x/1", 3), ("deep/s.tar/x/2", None), ("deep/s.tar/x/3", 5),
                ("t.parquet/0", 10), ("t.parquet/1", 20), ("t.parquet/2", 30)]  # fmt: skip
    for given in ([mixed], [mixed / "*.png", mixed / "deep" / "s.tar", mixed]):
        rows = list(score(plan(given, [lightness()]), batch_size=3))
        assert [(str(Path(row["image"]).relative_to(mixed)), row["light"]) for row in rows] == expected


def test_what_a_folder_holds_is_scored_from_python_without_a_table(mixed):
    images = (sample.image for sample in read_images([mixed]))
    assert [one.score for one in iter_scores(images, lightness())] == [1, 2, 3, None, 5, 10, 20, 30]


def test_a_mixed_folder_goes_on_where_it_broke_off_and_its_table_is_in_order(mixed, tmp_path):
    for stop in (1, 4, 7):
        output = tmp_path / f"{stop}.jsonl"
        first = score(plan([mixed], [lightness()], output=output), batch_size=1)
        assert len([next(first) for _ in range(stop)]) == stop
        first.close()
        rest = list(score(plan([mixed], [lightness()], output=output, resume=True), batch_size=1))
        assert len(rest) == 8 - stop + (stop >= 4)  # what could not be read is tried again
        table = [json.loads(line) for line in output.read_text().splitlines()]
        assert sorted(map(json.dumps, table)) == sorted(map(json.dumps, score(plan([mixed], [lightness()]))))
        names = [str(Path(row["image"]).relative_to(mixed)) for row in table]
        assert [name.partition("/x/")[0] for name in names] == [
            "a.png", "deep/z.png", *["deep/s.tar"] * 3, "t.parquet/0", "t.parquet/1", "t.parquet/2"
        ]  # fmt: skip


def test_prompts_of_loose_pictures_lie_beside_them_and_those_of_shards_within(tmp_path):
    (tmp_path / "a.png").write_bytes(encoded(1))
    (tmp_path / "metadata.csv").write_text("file_name,prompt\na.png,one\n")
    write_tar(tmp_path / "s.tar", [("1.png", encoded(2)), ("1.txt", b"two")])
    calls = []
    assert [row["prompt"] for row in score(plan([tmp_path], [lightness({"prompts"}, calls)]))] == ["one", "two"]
    assert calls == [(["one", "two"], None)]
    (tmp_path / "metadata.csv").unlink()
    with pytest.raises(FolderError, match="light needs prompts, but 1 of 1 images have none"):
        plan([tmp_path], [lightness({"prompts"})])


def test_prompts_are_given_to_shards_by_nothing_else(mixed):
    with pytest.raises(FolderError, match="holds images with their prompts"):
        plan([mixed], [lightness()], prompt="a cat")


def test_a_column_of_bytes_may_have_any_name_that_is_given(tmp_path):
    parquet.write_table(pyarrow.table({"png": [encoded(4)], "light": [1]}), tmp_path / "t.parquet")
    for given in (tmp_path, tmp_path / "t.parquet"):
        assert [row["light"] for row in score(plan(given, [lightness()], columns=Columns(image="png")))] == [4]
    with pytest.raises(FolderError, match="no images in"):
        plan(tmp_path, [lightness()])


def test_a_table_that_names_files_is_still_that(tmp_path):
    Path(tmp_path / "x.png").write_bytes(encoded(7))
    parquet.write_table(pyarrow.table({"image": ["x.png"], "prompt": ["a"]}), tmp_path / "t.parquet")
    assert [row["light"] for row in score(plan(tmp_path / "t.parquet", [lightness()]))] == [7]
