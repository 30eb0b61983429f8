"""`ddpo score`: files in, scores out, nothing lost."""

import csv
import io
import json
import signal
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
from PIL import Image

JPEG = ("--reward", "jpeg_compressibility")
GREEN = "return [float(image[1].mean()) for image in images]"


@pytest.fixture
def folder(working_directory: Path) -> Path:
    """Four images of growing green, 0/4 to 3/4 of full, in a folder and one below."""
    for index in range(4):
        path = Path("images", "deep" if index == 3 else "", f"{index}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8 + index, 8), (0, 64 * index, 0)).save(path)
    return Path("images")


def rows_of(result) -> list[dict[str, str]]:
    assert result.exit_code == 0, result.output
    return list(csv.DictReader(io.StringIO(result.stdout)))


def test_folders_globs_and_files_are_found_once_and_in_order(ddpo, folder):
    found = [
        row["image"] for row in rows_of(ddpo("score", "images/1.png", "images/*.png", "images", *JPEG, "-f", "csv"))
    ]
    assert found == ["images/1.png", "images/0.png", "images/2.png", "images/deep/3.png"]


def test_scores_are_those_of_the_reward(ddpo, folder, plugin):
    rows = json.loads(ddpo("score", folder, "--reward", plugin(GREEN), "-f", "json").stdout)
    values = [next(value for key, value in row.items() if key.endswith(":score")) for row in rows]
    assert values == pytest.approx([0, 64 / 255, 128 / 255, 192 / 255], abs=1e-6)


def test_several_rewards_are_columns_and_weights_add_a_total(ddpo, folder):
    arguments = (*JPEG, "--reward", "2*jpeg_incompressibility", "-f", "csv")
    for row in rows_of(ddpo("score", folder, *arguments)):
        up, down = float(row["jpeg_incompressibility"]), float(row["jpeg_compressibility"])
        assert down == -up
        assert float(row["total"]) == pytest.approx(up)  # 2 up + down


def test_a_table_is_for_people_and_data_goes_to_stdout_alone(ddpo, folder):
    result = ddpo("score", folder, *JPEG)
    assert "images/0.png" in result.stdout
    assert result.stderr == ""


@pytest.mark.parametrize("ending", ["csv", "json", "parquet"])
def test_every_format_of_file_holds_the_same_rows(ddpo, folder, ending):
    assert ddpo("score", folder, *JPEG, "-o", f"scores.{ending}").exit_code == 0
    path = Path(f"scores.{ending}")
    match ending:
        case "csv":
            rows = list(csv.DictReader(io.StringIO(path.read_text())))
        case "json":
            rows = json.loads(path.read_text())
        case _:
            rows = pyarrow.parquet.read_table(path).to_pylist()
    assert [row["image"] for row in rows] == [f"images/{name}.png" for name in ("0", "1", "2", "deep/3")]
    assert all(float(row["jpeg_compressibility"]) < 0 for row in rows)
    assert not Path(f"scores.{ending}.partial").exists()


def test_unreadable_files_are_reported_at_the_end_and_are_not_fatal(ddpo, folder):
    Path("images/1.png").write_bytes(Path("images/1.png").read_bytes()[:40])
    Path("images/4.png").touch()
    Path("images/5.jpg").write_text("not an image")
    result = ddpo("score", folder, *JPEG, "-f", "csv")
    failed = {row["image"]: row["error"] for row in rows_of(result) if row["error"]}
    assert set(failed) == {"images/1.png", "images/4.png", "images/5.jpg"}
    assert result.stderr.splitlines()[0] == "3 of 6 images could not be read:"
    assert "0 bytes" in failed["images/4.png"]


def test_only_unreadable_files_are_an_error(ddpo):
    Path("a.png").touch()
    result = ddpo("score", "a.png", *JPEG)
    assert result.exit_code == 2
    assert result.stderr.splitlines()[-1] == "Error: no image could be read; nothing was scored"


PROMPTED = "return [float(len(prompt)) for prompt in prompts]"


def prompted(ddpo, folder, plugin, *arguments) -> list[tuple[str, float]]:
    rows = json.loads(ddpo("score", folder, "-r", plugin(PROMPTED), "-f", "json", *arguments).stdout)
    return [(row["prompt"], next(value for key, value in row.items() if key.endswith(":score"))) for row in rows]


def test_one_prompt_serves_all(ddpo, folder, plugin):
    assert prompted(ddpo, folder, plugin, "--prompt", "abc") == [("abc", 3.0)] * 4


@pytest.mark.parametrize("place", ["images/metadata.csv", "prompts.csv"])
def test_prompts_come_from_a_table_beside_the_images_or_from_one_that_is_named(ddpo, folder, plugin, place):
    names = (
        ["0.png", "1.png", "2.png", "deep/3.png"]
        if place.startswith("images")
        else ["0.png", "1.png", "2.png", "3.png"]
    )
    lines = [f"{name},{'x' * index}" for index, name in enumerate(names, 1)]
    Path(place).write_text("\n".join(["file_name,text", *lines]))
    arguments = [] if place.startswith("images/m") else ["--prompts", place]
    assert prompted(ddpo, folder, plugin, *arguments) == [("x" * n, float(n)) for n in (1, 2, 3, 4)]


def test_columns_of_json_lines_can_be_named(ddpo, folder, plugin):
    rows = [{"where": f"images/{name}.png", "said": name} for name in ("0", "1", "2", "deep/3")]
    Path("p.jsonl").write_text("\n".join(map(json.dumps, rows)))
    arguments = ("--prompts", "p.jsonl", "--prompt-column", "said", "--image-column", "where")
    assert [prompt for prompt, _ in prompted(ddpo, folder, plugin, *arguments)] == ["0", "1", "2", "deep/3"]


def test_a_run_that_broke_off_goes_on_where_it_was(ddpo, folder, plugin):
    reference = plugin(f"if len(CALLS) == 3:\n    raise RuntimeError('busy')\n{GREEN}")
    arguments = ("score", folder, "-r", reference, "-o", "scores.csv", "--batch-size", "1")
    broken = ddpo(*arguments)
    assert broken.exit_code == 2
    assert broken.stderr.splitlines()[0].startswith("2 rows are kept in scores.csv.partial;")
    assert "busy" in broken.stderr.splitlines()[-1]
    assert not Path("scores.csv").exists()
    assert len(Path("scores.csv.partial").read_text().splitlines()) == 3
    assert ddpo(*arguments, "--resume").exit_code == 0
    rows = list(csv.DictReader(io.StringIO(Path("scores.csv").read_text())))
    assert [float(row[f"{reference}"]) for row in rows] == pytest.approx([0, 64 / 255, 128 / 255, 192 / 255], abs=1e-6)


@pytest.fixture
def interruptible():
    """A shell's background job is started with SIGINT ignored; the tests may be one."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_keeps_the_rows_that_are_done(ddpo, folder, plugin):
    reference = plugin(f"if len(CALLS) == 3:\n    os.kill(os.getpid(), signal.SIGINT)\n{GREEN}")
    result = ddpo("score", folder, "-r", reference, "-o", "scores.json", "--batch-size", "1")
    assert result.exit_code == 130
    assert "2 rows are kept in scores.json.partial" in result.stderr


@pytest.mark.parametrize("ending", ["csv", "json", "parquet"])
def test_a_finished_file_is_extended_and_what_failed_is_tried_again(ddpo, folder, ending):
    good = Path("images/1.png").read_bytes()
    Path("images/1.png").write_bytes(b"")
    arguments = (*JPEG, "-o", f"scores.{ending}")
    ddpo("score", "images/0.png", "images/1.png", *arguments)
    Path("images/1.png").write_bytes(good)
    assert "Wrote 4 rows" in ddpo("score", folder, *arguments, "--resume").stderr


def test_finished_scores_are_not_written_over(ddpo, folder):
    Path("scores.csv").write_text("mine")
    result = ddpo("score", folder, *JPEG, "-o", "scores.csv")
    assert result.exit_code == 2
    assert Path("scores.csv").read_text() == "mine"


def test_other_rewards_cannot_go_on_with_a_file(ddpo, folder):
    ddpo("score", folder, *JPEG, "-o", "scores.csv")
    before = Path("scores.csv").read_bytes()
    result = ddpo("score", folder, "-r", "jpeg_incompressibility", "-o", "scores.csv", "--resume")
    assert result.exit_code == 2
    assert "use the same rewards" in result.stderr
    assert Path("scores.csv").read_bytes() == before


def test_the_contact_sheet_has_the_best_first(ddpo, folder, plugin):
    assert ddpo("score", folder, "-r", plugin(GREEN), "--sheet", "best.png", "--sheet-size", "1").exit_code == 0
    with Image.open("best.png") as image:
        sheet = np.asarray(image)
    best, worst = (np.argwhere((sheet == colour).all(-1)) for colour in ((0, 192, 0), (0, 0, 0)))
    assert len(best)
    assert best[:, 0].max() < worst[:, 0].min()


def test_what_rewards_say_beside_the_score_is_written_on_request(ddpo, folder):
    rows = json.loads(ddpo("score", folder, *JPEG, "-f", "json", "--info").stdout)
    assert rows[0]["info"]["jpeg_compressibility.kilobytes"] == -rows[0]["jpeg_compressibility"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere.png", *JPEG], "there is no image 'nowhere.png'"),
        (["empty", *JPEG], "there are no images in 'empty'"),
        (["*.gif", *JPEG], "no file matches '*.gif'"),
        (["images", "-r", "jpg"], "reward 'jpg' is not installed"),
        (["images", *JPEG, *JPEG], "is given twice"),
        (["images", *JPEG, "--resume"], "--resume needs the --output"),
        (["images", *JPEG, "-f", "parquet"], "add --output scores.parquet"),
        (["images", *JPEG, "-o", "scores.xls"], "add --format"),
        (["images", *JPEG, "--prompts", "no.csv"], "there is no file 'no.csv'"),
        (["images", *JPEG, "--prompts", "bad.csv"], "none of the columns file_name"),
        (["images", *JPEG, "--prompts", "bad.csv", "--image-column", "colum"], "did you mean 'column'?"),
        (["images", *JPEG, "--prompts", "bad.jsonl"], "is malformed"),
        (["images", *JPEG, "--prompts", "bad.csv", "--prompt", "x"], "give one prompt for all images, or a file"),
    ],
)
def test_a_mistake_is_one_line(ddpo, folder, arguments, message):
    Path("empty").mkdir()
    Path("bad.csv").write_text("column,other\n1,2\n")
    Path("bad.jsonl").write_text("{")
    result = ddpo("score", *arguments)
    assert result.exit_code == 2
    assert result.stderr.startswith("Error: ")
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1
