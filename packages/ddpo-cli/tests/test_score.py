"""`ddpo score`: what the command parses, prints and exits with; what it scores is tested where `folders` is."""

import csv
import io
import json
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from PIL import Image

JPEG = ("--reward", "jpeg_compressibility")
GREEN = "return [float(image[1].mean()) for image in images]"
NOISY = f"print('[loaded]')\nos.system('echo from a program')\n{GREEN}"


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


def test_a_table_is_for_people_and_data_goes_to_stdout_alone(ddpo, folder):
    result = ddpo("score", folder, *JPEG)
    assert "images/0.png" in result.stdout
    assert "error" not in result.stdout  # a column that says nothing is left out
    assert result.stderr == ""


def test_every_format_on_stdout_holds_the_same_rows(ddpo, folder, plugin):
    reference = plugin(GREEN, takes="images")
    printed = {
        format: ddpo("score", folder, "-r", reference, "-f", format).stdout for format in ("csv", "json", "jsonl")
    }
    read = {
        "csv": list(csv.DictReader(io.StringIO(printed["csv"]))),
        "json": json.loads(printed["json"]),
        "jsonl": [json.loads(line) for line in printed["jsonl"].splitlines()],
    }
    for rows in read.values():
        assert [row["image"] for row in rows] == [f"images/{name}.png" for name in ("0", "1", "2", "deep/3")]
        assert [float(row[reference]) for row in rows] == pytest.approx([0, 64 / 255, 128 / 255, 192 / 255], abs=1e-6)
    assert list(read["csv"][0]) == list(read["json"][0]) == list(read["jsonl"][0])


def test_several_rewards_are_columns_and_weights_add_one_that_is_named_by_them(ddpo, folder):
    arguments = (*JPEG, "--reward", "2*jpeg_incompressibility", "-f", "csv")
    for row in rows_of(ddpo("score", folder, *arguments)):
        up, down = float(row["jpeg_incompressibility"]), float(row["jpeg_compressibility"])
        assert down == -up
        assert float(row["jpeg_compressibility + 2*jpeg_incompressibility"]) == pytest.approx(up)  # 2 up + down


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


@pytest.mark.parametrize(
    "arguments",
    [
        ("images", "--prompts", "t.jsonl", "--prompt-column", "said", "--image-column", "where"),
        ("t.jsonl", "--prompt-column", "said", "--image-column", "where"),
        ("images", "--prompts", "lines.txt"),
    ],
)
def test_prompts_come_from_the_files_that_the_options_name(ddpo, folder, plugin, arguments):
    said = {"images/0.png": "a", "images/1.png": "bc", "images/2.png": "def", "images/deep/3.png": "ghij"}
    Path("t.jsonl").write_text("".join(json.dumps({"where": k, "said": v}) + "\n" for k, v in said.items()))
    Path("lines.txt").write_text("\n".join(said.values()))
    reference = plugin(PROMPTED)
    rows = json.loads(ddpo("score", *arguments, "-r", reference, "-f", "json").stdout)
    assert [(row["prompt"], row[reference]) for row in rows] == [("a", 1.0), ("bc", 2.0), ("def", 3.0), ("ghij", 4.0)]


def test_one_prompt_serves_all(ddpo, folder, plugin):
    rows = rows_of(ddpo("score", folder, "-r", plugin(PROMPTED), "--prompt", "abc", "-f", "csv"))
    assert [row["prompt"] for row in rows] == ["abc"] * 4


@pytest.mark.parametrize("arguments", [(), ("--prompt", "")])
def test_missing_prompts_are_an_error_that_names_the_options(ddpo, folder, arguments):
    result = ddpo("score", folder, "-r", "clip_score", *arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr == (
        "Error: clip_score needs prompts, but 4 of 4 images have none (such as 'images/0.png'); "
        "give --prompt TEXT, --prompts FILE, or a metadata.jsonl beside the images\n"
    )


def test_a_function_that_takes_prompts_is_not_scored_without_them(ddpo, folder, plugin):
    result = ddpo("score", folder, "-r", plugin(PROMPTED))
    assert result.exit_code == 2
    assert "needs prompts, but 4 of 4 images have none" in result.stderr


def test_what_is_left_aside_is_said(ddpo, folder):
    Path("images/metadata.csv").write_text("camera,lens\nx,y\n")
    result = ddpo("score", folder, *JPEG, "-f", "csv")
    assert len(rows_of(result)) == 4
    assert result.stderr.startswith("images/metadata.csv is left aside")


@pytest.mark.parametrize("format", ["csv", "json", "jsonl"])
def test_what_a_plugin_prints_is_not_among_the_scores(folder, plugin, format):
    reference = plugin(NOISY, takes="images")
    command = [sys.executable, "-m", "ddpo_cli", "score", str(folder), "-r", reference, "-f", format]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "[loaded]" in done.stderr
    assert "from a program" in done.stderr
    match format:
        case "csv":
            rows = list(csv.DictReader(io.StringIO(done.stdout)))
        case "json":
            rows = json.loads(done.stdout)
        case _:
            rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(rows) == 4


def test_no_control_code_of_a_name_or_a_prompt_reaches_the_terminal(ddpo, folder):
    escape = "\x1b]0;owned\x07"
    Path("images/1.png").rename(f"images/{escape}.png")
    Path(f"images/empty{escape}.png").touch()
    for format in ("table", "json", "jsonl"):
        result = ddpo("score", folder, *JPEG, "--prompt", f"a {escape} fox", "-f", format)
        assert result.exit_code == 0
        assert "owned" in result.stdout
        assert "owned" in result.stderr
        assert "\x1b" not in result.output
        assert "\x07" not in result.output


def test_a_run_that_broke_off_goes_on_where_it_was(ddpo, folder, plugin):
    reference = plugin(f"if len(CALLS) == 3:\n    raise RuntimeError('busy')\n{GREEN}", takes="images")
    arguments = ("score", folder, "-r", reference, "-o", "scores.csv", "--batch-size", "1")
    broken = ddpo(*arguments)
    assert broken.exit_code == 2
    assert broken.stderr.splitlines()[0].startswith("2 rows are kept in scores.csv.partial;")
    assert "busy" in broken.stderr.splitlines()[-1]
    assert not Path("scores.csv").exists()
    assert len(Path("scores.csv.partial").read_text().splitlines()) == 3
    again = ddpo(*arguments, "--resume")
    assert again.exit_code == 0
    assert again.stderr == "Wrote 4 rows to scores.csv\n"
    rows = list(csv.DictReader(io.StringIO(Path("scores.csv").read_text())))
    assert [float(row[f"{reference}"]) for row in rows] == pytest.approx([0, 64 / 255, 128 / 255, 192 / 255], abs=1e-6)


@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_keeps_the_rows_that_are_done(ddpo, folder, plugin):
    reference = plugin(f"if len(CALLS) == 3:\n    os.kill(os.getpid(), signal.SIGINT)\n{GREEN}", takes="images")
    result = ddpo("score", folder, "-r", reference, "-o", "scores.json", "--batch-size", "1")
    assert result.exit_code == 130
    assert "2 rows are kept in scores.json.partial" in result.stderr


def test_json_on_stdout_is_whole_even_where_scoring_fails(ddpo, folder, plugin):
    reference = plugin(f"if len(CALLS) == 3:\n    raise RuntimeError('busy')\n{GREEN}", takes="images")
    result = ddpo("score", folder, "-r", reference, "-f", "json", "--batch-size", "1")
    assert result.exit_code == 2
    assert [row["image"] for row in json.loads(result.stdout)] == ["images/0.png", "images/1.png"]


def test_finished_scores_are_not_written_over(ddpo, folder):
    Path("scores.csv").write_text("mine")
    result = ddpo("score", folder, *JPEG, "-o", "scores.csv")
    assert result.exit_code == 2
    assert Path("scores.csv").read_text() == "mine"


def test_the_contact_sheet_is_written_and_named(ddpo, folder, plugin):
    result = ddpo("score", folder, "-r", plugin(GREEN, takes="images"), "--sheet", "best.png", "--sheet-size", "1")
    assert result.exit_code == 0
    assert result.stderr == "Contact sheet: best.png\n"
    with Image.open("best.png") as image:
        assert (0, 192, 0) in {colour for _, colour in image.getcolors(1 << 24)}


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
        (["images", *JPEG, "--ray-workers", "2"], "--ray-workers is for --ray"),
        (["images", *JPEG, "-f", "parquet"], "add --output scores.parquet"),
        (["images", *JPEG, "-o", "scores.xls"], "choose an ending or a format among csv"),
        (["images", *JPEG, "-o", "scores.txt", "-f", "table"], "no file is written as 'table'"),
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


def test_only_what_is_needed_is_imported(folder):
    code = (
        "import sys; from ddpo_cli.app import app\n"
        f"sys.argv = ['ddpo', 'score', {str(folder)!r}, '-r', 'jpeg_compressibility', '-f', 'csv']\n"
        "try: app()\nexcept SystemExit as end: assert not end.code\n"
        "heavy = {'torch', 'open_clip', 'transformers', 'bert_score', 'diffusers', 'matplotlib', 'pyarrow'}\n"
        "print(sorted(heavy & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert len(list(csv.DictReader(io.StringIO(done.stdout)))) == 4
    assert done.stderr == "[]\n"


def test_a_cache_has_the_scores_of_the_run_before_and_says_what_it_cannot_keep(ddpo, folder, plugin):
    arguments = ("score", "images", "-r", "jpeg_compressibility", "--cache", "scores.sqlite", "-f", "json")
    first = ddpo(*arguments)
    assert first.exit_code == 0, first.output
    with closing(sqlite3.connect("scores.sqlite")) as kept:
        kept.execute("UPDATE scores SET score = -1")  # what comes out the second time was not computed
        kept.commit()
    again = json.loads(ddpo(*arguments).stdout)
    assert {row["jpeg_compressibility"] for row in again} == {-1.0}
    unkept = ddpo("score", "images", "-r", plugin(GREEN, takes="images"), "--cache", "other.sqlite")
    assert unkept.exit_code == 0, unkept.output
    assert "No cache for plugin_" in unkept.stderr
    refused = ddpo("score", "images", "-r", "jpeg_compressibility", "--cache", "images")
    assert refused.exit_code == 2
    assert "is no cache of scores" in refused.stderr


def test_without_ray_it_is_said_in_a_line_how_to_get_it(ddpo, folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    result = ddpo("score", folder, *JPEG, "--ray", "--output", "scores.csv")
    assert result.exit_code == 2
    assert result.stderr.splitlines()[-1].endswith("pip install 'ddpo-rewards[ray]'")
    assert not list(Path().glob("scores*"))
