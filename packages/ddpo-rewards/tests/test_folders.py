"""Scoring folders: which images with which prompts, and a table of scores from which nothing is lost."""

import csv
import io
import json
import os
from itertools import product
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from ddpo_rewards import Reward, RewardError, RewardSpec, folders

JPEG = ["jpeg_compressibility"]
LINE_ENDS = "one\u2028two\x0bthree\x1cfour\x85five"  # `str.splitlines` would end a line at each of these


@pytest.fixture(autouse=True)
def working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def photos():
    """Four images of growing green, 0/4 to 3/4 of full, the last one in a folder below."""
    for index in range(4):
        path = Path("photos", "deep" if index == 3 else "", f"{index}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8 + index, 8), (0, 64 * index, 0)).save(path)
    return "photos"


def green(calls=None, fails_at=None):
    """A reward: the green byte. It notes the prompts and metadata of its calls, and fails at one of them."""

    def score(images, prompts, metadata):
        if calls is not None:
            calls.append((prompts, metadata))
            if len(calls) == fails_at:
                raise OSError("busy")
        return [float(image[0, 0, 1]) for image in images], {"shape": [list(image.shape) for image in images]}

    return Reward(RewardSpec(name="green", factory="none", takes="arrays"), score)


def lengths():
    """A reward that needs prompts: their length."""
    spec = RewardSpec(name="lengths", factory="none", takes="arrays", needs=frozenset({"prompts"}))
    return Reward(spec, lambda images, prompts, metadata: [float(len(prompt)) for prompt in prompts])


def rows_of(images, rewards, **options):
    return list(folders.score(folders.plan(images, rewards, **options)))


def prompts_of(images, **options):
    return [row["prompt"] for row in rows_of(images, [lengths()], **options)]


# Which images


def test_folders_globs_and_files_are_found_once_and_in_order_however_they_are_spelt(photos):
    patterns = ["photos/1.png", "./photos/1.png", "photos/*.png", Path("photos"), os.path.abspath("photos")]
    assert folders.find_images(patterns) == ["photos/1.png", "photos/0.png", "photos/2.png", "photos/deep/3.png"]


@pytest.mark.parametrize(
    ("pattern", "message"),
    [("nowhere.png", "no image 'nowhere.png'"), ("*.gif", "no file matches '\\*.gif'"), ("empty", "no images in 'emp")],
)
def test_a_pattern_without_images_is_an_error(pattern, message):
    Path("empty").mkdir()
    with pytest.raises(folders.FolderError, match=message):
        folders.find_images([pattern])


# Which prompts


@pytest.mark.parametrize(
    ("place", "ending"),
    [("beside", "csv"), ("beside", "jsonl"), *product(("named", "scored"), ("csv", "jsonl", "parquet"))],
)
def test_prompts_come_from_tables_beside_the_images_named_or_scored_themselves(photos, place, ending):
    names = ["0.png", "1.png", "2.png", "deep/3.png"]
    rows = [{"file_name": name, "text": "x" * index, "size": index} for index, name in enumerate(names, 1)]
    file = Path("photos/metadata" if place == "beside" else "photos/table").with_suffix(f".{ending}")
    match ending:
        case "csv":
            with open(file, "w", newline="") as text:
                writer = csv.DictWriter(text, list(rows[0]))
                writer.writeheader()
                writer.writerows(rows)
        case "jsonl":
            file.write_text("\n".join(map(json.dumps, rows)))
        case _:
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    options = {"prompts": file} if place == "named" else {}
    job = folders.plan([file if place == "scored" else photos], [lengths()], **options)
    assert [row["lengths"] for row in folders.score(job)] == [1, 2, 3, 4]
    assert [str(item.metadata["size"]) for item in job.items] == ["1", "2", "3", "4"]


def test_one_prompt_serves_all_and_a_text_has_one_per_line(photos):
    Path("prompts.txt").write_text(f"a\nb\n\tc \n{LINE_ENDS}\n", encoding="utf-8")
    assert prompts_of([photos], prompt="abc") == ["abc"] * 4
    assert prompts_of([photos], prompts="prompts.txt") == ["a", "b", "c", LINE_ENDS]


def test_a_quoted_newline_in_a_csv_stays_a_newline(photos):
    Path("photos/metadata.csv").write_text('file_name,prompt\n0.png,"two\nwords"\n', newline="")
    assert prompts_of(["photos/0.png"]) == ["two\nwords"]


def test_what_splitlines_takes_for_the_end_of_a_line_is_part_of_a_prompt(photos):
    row = json.dumps({"file_name": "0.png", "prompt": LINE_ENDS}, ensure_ascii=False)
    Path("photos/metadata.jsonl").write_text(row + "\n", encoding="utf-8")
    assert prompts_of(["photos/0.png"]) == [LINE_ENDS]


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("metadata.jsonl", '{"file_name": "0.png"\n', r"metadata.jsonl' is malformed: line 1"),
        ("metadata.jsonl", "[1]\n", "line 1 holds \\[1\\]"),
        ("metadata.csv", "file_name,prompt\n0.png,a fox, red\n", "line 2 has 3 cells for 2 columns"),
        ("metadata.csv", "file_name,prompt\n0.png\n", "line 2 has 1 cells for 2 columns"),
        ("metadata.csv", 'file_name,prompt\n0.png,"a fox\n', "malformed"),
        ("metadata.csv", b"file_name,prompt\n0.png,\xff\n", "malformed"),
    ],
)
def test_malformed_metadata_is_an_error_whether_it_is_needed_or_not(photos, file, text, message):
    Path(photos, file).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(folders.FolderError, match=message):
        folders.plan([photos], JPEG)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "x"}, "none of the columns file_name"),
        ({"file_name": None, "prompt": "x"}, "row 1: file_name is None; want the path"),
        ({"file_name": "0.png", "prompt": ["x"]}, r"row 1: prompt is \['x'\]; want a text"),
        ({"file_name": "0.png", "prompt": "\ud800"}, "half a character"),
        ({"file_name": "0.png", "text": "x"}, "has no column 'promt'; did you mean 'prompt'|has no column 'promt'"),
    ],
)
def test_a_row_that_cannot_be_meant_is_an_error(photos, row, message):
    Path("t.jsonl").write_text(json.dumps(row))
    columns = folders.Columns(prompt="promt") if "text" in row else folders.Columns()
    with pytest.raises(folders.FolderError, match=message):
        folders.plan([photos], [lengths()], prompts="t.jsonl", columns=columns)


def test_a_table_that_says_two_things_of_one_image_is_an_error_and_scored_itself_has_two_rows(photos):
    Path("t.csv").write_text("file_name,prompt\nphotos/0.png,a\nphotos/0.png,bc\nphotos/0.png,a\n")
    with pytest.raises(folders.FolderError, match=r"names 'photos/0\.png' twice"):
        folders.plan([photos], [lengths()], prompts="t.csv")
    assert [row["lengths"] for row in rows_of(["t.csv"], [lengths()])] == [1, 2]


def test_a_table_may_name_images_by_as_much_of_their_path_as_is_clear(photos):
    Path("t.csv").write_text("file_name,prompt\n0.png,zero\n1.png,one\n2.png,two\ndeep/3.png,three\n")
    assert prompts_of([photos], prompts="t.csv") == ["zero", "one", "two", "three"]


def test_a_name_that_fits_two_images_is_an_error_and_another_folder_does_not_fit(photos):
    Image.new("RGB", (4, 4)).save("photos/deep/0.png")
    Path("t.csv").write_text("file_name,prompt\n0.png,zero\n")
    with pytest.raises(folders.FolderError, match=r"'0\.png' fits 2 images"):
        folders.plan(["photos/0.png", "photos/deep/0.png"], [lengths()], prompts="t.csv")
    Path("t.csv").write_text("file_name,prompt\nother/0.png,zero\n")
    with pytest.raises(folders.MissingPrompts, match="1 of 1 images have none"):
        folders.plan(["photos/0.png"], [lengths()], prompts="t.csv")


@pytest.mark.parametrize("given", ["nothing", "some", "blank"])
def test_missing_prompts_are_an_error_that_says_how_to_give_them(photos, given):
    if given != "nothing":
        Path("photos/metadata.csv").write_text("file_name,prompt\n0.png,a\n1.png,b\n2.png,\ndeep/3.png,d\n")
    images = {"nothing": [photos], "some": [photos], "blank": ["photos/2.png"]}[given]
    with pytest.raises(folders.MissingPrompts, match=r"needs prompts, but \d of \d .*give prompt= \(one for all"):
        folders.plan(images, [lengths()])


def test_a_registered_reward_that_lacks_prompts_is_refused_before_its_weights_are_loaded(photos):
    with pytest.raises(folders.MissingPrompts, match=r"clip_score\?tower=nowhere\.pt needs prompts"):
        folders.plan([photos], ["clip_score?tower=nowhere.pt"])
    with pytest.raises(RewardError, match=r"nowhere\.pt"):  # what building it would have said
        folders.plan([photos], ["clip_score?tower=nowhere.pt"], prompt="x")


def test_missing_metadata_is_an_error_where_a_reward_needs_it(photos):
    with pytest.raises(folders.FolderError, match="llava_vqa needs metadata, but 4 of 4"):
        folders.plan([photos], ["llava_vqa"], prompt="x")


def test_rewards_that_need_no_prompts_get_all_or_none(photos):
    Path("photos/metadata.csv").write_text("file_name,prompt,n\n0.png,a,1\n1.png,b,2\n")
    calls = []
    job = folders.plan([photos], [green(calls)])
    assert "2 of 4 images have no prompt" in job.notes[0]
    assert [row["prompt"] for row in folders.score(job)] == ["a", "b", None, None]
    assert calls == [(None, [{"n": "1"}, {"n": "2"}, {}, {}])]
    rows_of(["photos/0.png", "photos/1.png"], [green(calls)])
    assert calls[-1][0] == ["a", "b"]


def test_a_metadata_file_of_somebody_else_is_left_aside_with_a_note_where_nothing_needs_it(photos):
    Path("photos/metadata.csv").write_text("camera,lens\nx,y\n")
    job = folders.plan([photos], [green()])
    assert job.notes[0].startswith("photos/metadata.csv is left aside, since no reward needs it")
    with pytest.raises(folders.FolderError, match="none of the columns file_name"):
        folders.plan([photos], [lengths()])


def test_a_hundred_thousand_captions_find_their_images():
    count = 100_000  # in time that grows with the square of their number, hours
    paths = [f"photos/{index // 1000}/{index}.png" for index in range(count)]
    Path("t.csv").write_text("file_name,prompt\n" + "".join(f"{index}.png,p{index}\n" for index in range(count)))
    items, _ = folders.describe_images(paths, prompts="t.csv")
    assert (items[0].prompt, items[-1].prompt) == ("p0", f"p{count - 1}")


# Rows


def test_rows_have_every_reward_and_a_sum_that_is_named_by_its_weights(photos):
    job = folders.plan([photos], ["2*jpeg_incompressibility", "jpeg_compressibility"], info=True)
    total = "2*jpeg_incompressibility + jpeg_compressibility"
    assert job.columns == ["image", "prompt", "jpeg_incompressibility", "jpeg_compressibility", total, "info", "error"]
    for row in folders.score(job):
        assert row["jpeg_compressibility"] == -row["jpeg_incompressibility"]
        assert row[total] == pytest.approx(row["jpeg_incompressibility"])  # 2 s - s
        assert row["info"]["jpeg_incompressibility.kilobytes"] == row["jpeg_incompressibility"]
    assert folders.plan([photos], ["3*jpeg_compressibility"]).total == "3*jpeg_compressibility"
    assert folders.plan([photos], JPEG).total is None


def test_scores_are_written_as_float32_prints(photos):
    tenth = Reward(RewardSpec(name="t", factory="none", takes="arrays"), lambda images, prompts, metadata: [0.1] * 4)
    assert [row["t"] for row in rows_of([photos], [tenth])] == [0.1] * 4  # and not 0.10000000149011612


def test_an_image_that_cannot_be_read_has_a_row_with_the_reason(photos):
    Path("photos/1.png").write_bytes(Path("photos/1.png").read_bytes()[:40])
    rows = rows_of([photos], [green()])
    assert [row["green"] for row in rows] == [0, None, 128, 192]
    assert "photos/1.png" in rows[1]["error"]


def test_a_name_that_is_no_utf_8_has_a_row_that_can_be_written(photos):
    os.rename(b"photos/1.png", b"photos/\xff.png")
    rows = rows_of([photos], [green()], output="scores.csv")
    assert [row["image"] for row in rows if row["error"]] == ["photos/\\xff.png"]
    assert len(rows_of([photos], [green()], output="scores.csv", resume=True)) == 1  # tried again, and not doubled
    assert len(list(csv.DictReader(io.StringIO(Path("scores.csv").read_text())))) == 4


@pytest.mark.parametrize(
    ("rewards", "message"),
    [([], "no reward"), ([*JPEG, *JPEG], "is given twice"), (["jpg"], "not installed"), (["0.5*green*x"], "weight")],
)
def test_rewards_that_cannot_be_are_an_error(photos, rewards, message):
    with pytest.raises(RewardError, match=message):
        folders.plan([photos], rewards)


# The table of scores


@pytest.mark.parametrize("ending", folders.FILE_FORMATS)
def test_every_format_holds_the_same_rows(photos, ending):
    rows = rows_of([photos], [green()], output=f"out/scores.{ending}", prompt='a, "fox"', info=True)
    path = Path(f"out/scores.{ending}")
    match ending:
        case "csv":
            read = [dict(row) for row in csv.DictReader(io.StringIO(path.read_text()))]
        case "json":
            read = json.loads(path.read_text())
        case "jsonl":
            read = [json.loads(line) for line in path.read_text().splitlines()]
        case _:
            read = pyarrow.parquet.read_table(path).to_pylist()
    assert [row["image"] for row in read] == [f"photos/{name}.png" for name in ("0", "1", "2", "deep/3")]
    assert [float(row["green"]) for row in read] == [row["green"] for row in rows] == [0, 64, 128, 192]
    assert {row["prompt"] for row in read} == {'a, "fox"'}
    info = [json.loads(row["info"]) if isinstance(row["info"], str) else row["info"] for row in read]
    assert info == [{"green.shape": [8, 8 + index, 3]} for index in range(4)]
    assert os.listdir("out") == [path.name]


@pytest.mark.parametrize("ending", folders.FILE_FORMATS)
@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(prompt=st.one_of(st.sampled_from(["7", "7.0", "nan", "", " ", "1e5", "a\rb", "a\r\nb", LINE_ENDS, "=1", "'"]),
                        st.text(st.characters(codec="utf-8"), max_size=8)))  # fmt: skip
def test_resuming_a_finished_table_scores_nothing_again_whatever_the_prompt(tmp_path, ending, prompt):
    Image.new("RGB", (4, 4)).save("a.png")
    Path(f"scores.{ending}").unlink(missing_ok=True)
    rows_of(["a.png"], [green()], prompt=prompt, output=f"scores.{ending}", info=True)
    before = Path(f"scores.{ending}").read_bytes()
    calls = []
    assert rows_of(["a.png"], [green(calls)], prompt=prompt, output=f"scores.{ending}", info=True, resume=True) == []
    assert calls == []
    assert ending == "parquet" or Path(f"scores.{ending}").read_bytes() == before


@pytest.mark.parametrize("prompt", ["a fox", LINE_ENDS, "7"])
def test_a_job_that_broke_off_goes_on_where_it_was(photos, prompt):
    options = {"prompt": prompt, "output": "scores.csv"}
    with pytest.raises(RewardError, match="busy"):
        for _ in folders.score(folders.plan([photos], [green([], fails_at=3)], **options), batch_size=1):
            pass
    assert not Path("scores.csv").exists()
    with open("scores.csv.partial", "a") as journal:
        journal.write('{"image": "photos/2.png", "gre')  # torn by a crash
    rest = rows_of([photos], [green()], resume=True, **options)
    assert [row["image"] for row in rest] == ["photos/2.png", "photos/deep/3.png"]
    table = list(csv.DictReader(io.StringIO(Path("scores.csv").read_text())))
    assert [float(row["green"]) for row in table] == [0, 64, 128, 192]
    assert not Path("scores.csv.partial").exists()


def test_who_stops_early_keeps_the_rows_that_were_given(photos):
    job = folders.plan([photos], [green()], output="scores.csv")
    rows = folders.score(job, batch_size=1)
    next(rows)
    rows.close()
    assert len(Path("scores.csv.partial").read_text().splitlines()) == 2  # the columns and one row


def test_a_job_that_fails_before_its_first_row_leaves_nothing(photos):
    with pytest.raises(RewardError, match="busy"):
        rows_of([photos], [green([], fails_at=1)], output="scores.csv")
    assert os.listdir(".") == ["photos"]


@pytest.mark.parametrize("ending", folders.FILE_FORMATS)
def test_a_finished_table_is_extended_and_what_failed_is_tried_again(photos, ending):
    good = Path("photos/1.png").read_bytes()
    Path("photos/1.png").write_bytes(b"")
    rows_of(["photos/0.png", "photos/1.png"], JPEG, output=f"scores.{ending}")
    Path("photos/1.png").write_bytes(good)
    job = folders.plan([photos], JPEG, output=f"scores.{ending}", resume=True)
    assert [item.path for item in job.missing] == ["photos/1.png", "photos/2.png", "photos/deep/3.png"]
    assert [row["image"] for row in job.kept] == ["photos/0.png"]
    assert len(list(folders.score(job))) == 3


def test_finished_scores_are_not_written_over(photos):
    Path("scores.csv").write_text("mine")
    with pytest.raises(folders.FolderError, match=r"'scores\.csv' exists; resume it"):
        folders.plan([photos], JPEG, output="scores.csv")
    with pytest.raises(folders.FolderError, match=r"has the columns mine, but now"):
        folders.plan([photos], JPEG, output="scores.csv", resume=True)
    assert Path("scores.csv").read_text() == "mine"


@pytest.mark.parametrize("others", [["jpeg_incompressibility"], ["2*jpeg_compressibility"]])
def test_other_rewards_and_weights_cannot_go_on_with_a_table(photos, others):
    rows_of([photos], JPEG, output="scores.csv")
    before = Path("scores.csv").read_bytes()
    with pytest.raises(folders.FolderError, match="use the same rewards and weights"):
        folders.plan([photos], others, output="scores.csv", resume=True)
    with pytest.raises(folders.FolderError, match="use the same rewards"):  # before any weights are looked for
        folders.plan([photos], ["aesthetic?tower=nowhere.pt"], output="scores.csv", resume=True)
    assert Path("scores.csv").read_bytes() == before


def test_other_weights_of_the_same_rewards_cannot_go_on_with_a_table(photos):
    rows_of([photos], ["2*jpeg_incompressibility", *JPEG], output="scores.csv")
    with pytest.raises(folders.FolderError, match="use the same rewards and weights"):
        folders.plan([photos], ["3*jpeg_incompressibility", *JPEG], output="scores.csv", resume=True)


def test_a_table_that_was_changed_by_hand_cannot_go_on(photos):
    rows_of([photos], JPEG, output="scores.jsonl")
    with open("scores.jsonl", "a") as file:
        file.write('{"image": "mine.png"}\n')
    with pytest.raises(folders.FolderError, match="was changed by hand"):
        folders.plan([photos], JPEG, output="scores.jsonl", resume=True)


def test_a_single_folder_and_a_single_reward_need_no_list(photos):
    assert [row["green"] for row in rows_of(Path(photos), green())] == [0, 64, 128, 192]
    assert len(rows_of(photos, "jpeg_compressibility")) == 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"output": "scores.xls"}, "no file is written as 'xls'"),
        ({"output": "scores"}, "no file is written as ''"),
        ({"resume": True}, "nothing to resume"),
        ({"prompt": "x", "prompts": "t.csv"}, "give one prompt for all images, or a file"),
        ({"prompts": "no.csv"}, "there is no file 'no.csv'"),
        ({"prompts": "no.doc"}, "want a file that ends in"),
    ],
)
def test_options_that_cannot_be_are_an_error(photos, options, message):
    with pytest.raises(folders.FolderError, match=message):
        folders.plan([photos], JPEG, **options)


# The sheet


def test_the_sheet_has_the_best_first(photos):
    rows = rows_of([photos], [green()])
    sheet = np.asarray(folders.best_and_worst(rows, "green", size=1))
    best, worst, middle = (np.argwhere((sheet == (0, shade, 0)).all(-1)) for shade in (192, 0, 64))
    assert len(best)
    assert best[:, 0].max() < worst[:, 0].min()
    assert np.ptp(best[:, 1]) == 159, "a small image fills its tile of 160 pixels"
    assert len(middle) == 0
    folders.write_sheet(Path("sheets/best.png"), rows, "green", size=1)
    with Image.open("sheets/best.png") as written:
        assert (np.asarray(written) == sheet).all()
    everything = np.asarray(folders.best_and_worst(rows, "green", size=2))
    assert all(len(np.argwhere((everything == (0, shade, 0)).all(-1))) for shade in (192, 128, 64))
