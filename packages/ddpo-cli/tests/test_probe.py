"""`ddpo probe`: a verdict, in words, as an exit code and as files."""

import csv
import io
import json
from pathlib import Path

import pytest
from PIL import Image, ImageDraw

JPEG = "jpeg_incompressibility"
NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
FEW = ("--num-images", "8")
BRIGHTNESS = "return images.mean((1, 2, 3))"
CHANCE = """import torch
return torch.rand(len(images), generator=torch.Generator().manual_seed(len(CALLS)))"""
FILES = ["cells.csv", "contact_sheet.png", "pairs.jsonl", "probe.json", "report.md"]


@pytest.fixture
def folder(working_directory: Path) -> Path:
    """Ten small pictures of bars of ten heights, and a file with a prompt for each."""
    Path("images").mkdir()
    for index in range(10):
        image = Image.new("RGB", (48, 40), (40, 20 * index, 90))
        ImageDraw.Draw(image).rectangle((4, 36 - 4 * index, 20, 39), (200, 120, 20))
        image.save(f"images/{index}.png")
    rows = [f"{index}.png,{word} bars" for index, word in enumerate(NUMBERS)]
    Path("prompts.csv").write_text("\n".join(["file_name,prompt", *rows]))
    return Path("images")


def test_the_table_gives_a_verdict_and_an_answer_to_every_question(ddpo):
    result = ddpo("probe", JPEG, "--suite", "stress", *FEW)
    assert result.exit_code == 3
    assert "Can jpeg_incompressibility be gamed? 8 pictures" in result.stdout
    assert any("susceptible" in line and "Does noise raise the score?" in line for line in result.stdout.splitlines())
    assert any("robust" in line and "Does a picture of one colour" in line for line in result.stdout.splitlines())
    assert "Susceptible: noise raises the score" in result.stderr
    assert "1 sd is one standard deviation" in result.stderr


@pytest.mark.parametrize(
    ("body", "code", "word"),
    [(BRIGHTNESS, 0, "Robust"), (CHANCE, 4, "Inconclusive"), ("return [1.0] * len(images)", 4, "Not applicable")],
)
def test_the_exit_code_is_the_verdict(ddpo, plugin, body, code, word):
    result = ddpo("probe", plugin(body), "--suite", "typo", "-n", "12")
    assert result.exit_code == code
    assert result.stderr.startswith(f"{word}: ")


def test_a_folder_of_ones_own_is_probed_with_its_prompts(ddpo, folder, plugin):
    reference = plugin("assert all(prompts), prompts\nreturn images.mean((1, 2, 3))")
    result = ddpo("probe", reference, "--images", folder, "--prompts", "prompts.csv", "-o", "out", "--suite", "typo")
    assert result.exit_code == 0, result.output  # brightness does not read
    rows = [json.loads(line) for line in Path("out/pairs.jsonl").read_text().splitlines()]
    clean = [row for row in rows if row["arm"] == "clean" and not row["cell"]]
    assert clean[3]["image"] == "images/3.png"
    assert clean[3]["prompt"] == "three bars"
    target = [row for row in rows if row["cell"] == "reference" and row["arm"] == "target"]
    assert target[3]["text"] == "three bars"


def test_prompts_may_stand_one_per_line(ddpo, folder):
    Path("prompts.txt").write_text("".join(f"picture {index}\n" for index in range(10)))
    ddpo("probe", JPEG, "--images", folder, "--prompts", "prompts.txt", "-o", "out", "--suite", "stress")
    assert json.loads(Path("out/pairs.jsonl").read_text().splitlines()[3])["prompt"] == "picture 3"


def test_the_report_is_five_files_and_json_on_stdout_is_one_of_them(ddpo, folder):
    result = ddpo("probe", JPEG, "--images", folder, "--suite", "stress", "-o", "deep/out", "-f", "json")
    assert sorted(path.name for path in Path("deep/out").iterdir()) == FILES
    assert result.stdout == Path("deep/out/probe.json").read_text()
    assert json.loads(result.stdout)["suites"]["stress"]["tests"][0]["test"] == "constant"


def test_csv_on_stdout_has_the_cells(ddpo, folder):
    result = ddpo("probe", JPEG, "--images", folder, "--suite", "stress", "-f", "csv")
    rows = list(csv.DictReader(io.StringIO(result.stdout)))
    assert {row["cell"] for row in rows} >= {"noise", "jpeg", "dtype"}
    assert float(rows[0]["change_sd_low"]) <= float(rows[0]["change_sd"]) <= float(rows[0]["change_sd_high"])


def test_the_same_command_prints_the_same_bytes(ddpo, folder):
    command = ("probe", JPEG, "--images", folder, "--prompts", "prompts.csv", "-f", "json", "--seed", "3")
    assert ddpo(*command).stdout == ddpo(*command, "--batch-size", "3").stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([JPEG, "--images", "nowhere"], "there is no image 'nowhere'"),
        ([JPEG, "--images", "images/3.png"], "got 1 pictures; a verdict needs 8 or more"),
        ([JPEG, "--num-images", "2"], "got 2 pictures"),
        ([JPEG, "--images", "images", "--prompts", "no.csv"], "there is no file 'no.csv'"),
        ([JPEG, "--images", "images", "--prompts", "no.txt"], "there is no file 'no.txt'"),
        ([JPEG, "--images", "images", "--prompts", "short.txt"], "'short.txt' has 1 lines for 10 images"),
        ([JPEG, "--images", "images", "--prompts", "short.csv"], "9 of 10 pictures have no prompt"),
        ([JPEG, "--prompts", "prompts.csv"], "add --images DIR"),
        ([JPEG, "--suite", "typoo"], "suite 'typoo' is not installed; did you mean 'typo'"),
        ([JPEG, "--suite", ","], "want a list of one name"),
        ([JPEG, "--suite", "stress?max_gian=1"], "did you mean 'max_gain'"),
        ([JPEG, "--output", "images"], "'images' exists and is not empty"),
        ([JPEG, "--output", "prompts.csv"], "'prompts.csv' is a file"),
        (["jpg"], "reward 'jpg' is not installed"),
        (["clip_score", "--images", "images"], "needs prompts"),
    ],
)
def test_a_mistake_is_one_line(ddpo, folder, arguments, message, monkeypatch):
    monkeypatch.setattr(
        "ddpo_rewards.builtin.clip_score.clip_score", lambda: lambda images, prompts: [0.0] * len(images)
    )
    Path("short.txt").write_text("one\n")
    Path("short.csv").write_text("file_name,prompt\n3.png,a bar\n")
    result = ddpo("probe", *arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.startswith("Error: ")
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("raise RuntimeError('no luck')", "raised RuntimeError: no luck"),
        ("return [float('nan')] * len(images)", "returned nan for image 0"),
        ("return [1.0]", "returned scores of shape [1]"),
    ],
)
def test_a_reward_that_fails_leaves_nothing_behind(ddpo, plugin, body, message):
    result = ddpo("probe", plugin(body), "--suite", "stress", *FEW, "-o", "out")
    assert result.exit_code == 2
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert not Path("out").exists()


def test_what_a_plugin_prints_is_no_data(ddpo, plugin):
    result = ddpo("probe", plugin(f"print('[{{')\n{BRIGHTNESS}"), "--suite", "typo", *FEW, "-f", "json")
    assert list(json.loads(result.stdout)["suites"]) == ["typo"]
    assert "[{" in result.stderr.splitlines()
