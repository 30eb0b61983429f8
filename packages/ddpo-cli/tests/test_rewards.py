"""`ddpo rewards list | show | check | verify | new`."""

import csv
import hashlib
import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image


def test_the_list_has_the_built_in_rewards_in_every_format(ddpo):
    assert "jpeg_compressibility" in ddpo("rewards", "list").stdout
    names = {row["name"] for row in json.loads(ddpo("rewards", "list", "-f", "json").stdout)}
    assert {row["name"] for row in csv.DictReader(io.StringIO(ddpo("rewards", "list", "-f", "csv").stdout))} == names
    assert {"jpeg_compressibility", "jpeg_incompressibility"} <= names


def test_the_list_is_in_words_what_the_registry_says(ddpo):
    rows = {row["name"]: row for row in json.loads(ddpo("rewards", "list", "-f", "json").stdout)}
    assert rows["jpeg_compressibility"]["unit"] == "kB"
    assert rows["jpeg_compressibility"]["needs"] == ["images"]


def test_an_extra_is_listed_among_the_needs(ddpo):
    facts = json.loads(ddpo("rewards", "show", "text_penalty", "-f", "json").stdout)[0]
    assert facts["needs"] == ["images", "prompts", "ddpo-rewards[ocr]"]


def test_the_table_is_readable_at_80_columns_and_breaks_no_word(ddpo, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    lines = ddpo("rewards", "list").stdout.splitlines()
    assert lines[0].split() == ["name", "needs", "summary", "distribution"]
    assert max(map(len, lines)) <= 80
    words = {word for row in json.loads(ddpo("rewards", "list", "-f", "json").stdout) for word in _words(row)}
    assert {word for line in lines[1:] for word in line.split()} <= words


def _words(row):
    return " ".join([row["name"], ", ".join(row["needs"]), row["summary"], row["distribution"]]).split()


def install_broken_plugin(folder: Path) -> None:
    """A distribution whose plugin cannot be imported, as pip would leave it on the path."""
    info = folder / "broken_rewards-1.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: broken-rewards\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[ddpo_rewards]\nmine = no_such_module\n")


def test_a_broken_plugin_is_listed_with_its_error_and_breaks_nothing(ddpo, monkeypatch):
    install_broken_plugin(Path("site"))
    monkeypatch.syspath_prepend(str(Path("site").absolute()))
    result = ddpo("rewards", "list")
    assert "jpeg_compressibility" in result.stdout
    assert "broken-rewards:mine does not load: ModuleNotFoundError" in result.stderr
    rows = json.loads(ddpo("rewards", "list", "-f", "json").stdout)
    assert any("no_such_module" in (row["error"] or "") for row in rows)
    assert "broken" not in ddpo("rewards", "list", "--no-plugins").output


def test_show_prints_what_is_known(ddpo):
    facts = json.loads(ddpo("rewards", "show", "jpeg_compressibility", "-f", "json").stdout)[0]
    assert (facts["unit"], facts["range"], facts["licence"]) == ("kB", "-inf to 0", "Apache-2.0")
    assert "arXiv" in ddpo("rewards", "show", "jpeg_compressibility").stdout


def test_show_and_check_suggest_a_name(ddpo):
    for command in ("show", "check"):
        result = ddpo("rewards", command, "jpeg_compresibility")
        assert result.exit_code == 2
        assert "did you mean" in result.stderr


def test_check_passes_a_good_reward_and_says_why_a_bad_one_fails(ddpo, plugin):
    assert ddpo("rewards", "check", plugin("return images.mean((1, 2, 3))")).exit_code == 0
    bad = ddpo("rewards", "check", plugin("return images.mean((1, 2, 3)) - images.mean()"), "-f", "json")
    failed = [row for row in json.loads(bad.stdout) if row["result"] == "failed"]
    assert bad.exit_code == 2
    assert [row["check"] for row in failed] == ["batch invariance"]
    assert "an image alone scores differently" in failed[0]["seen"]


@pytest.mark.parametrize("body", ["raise KeyError(1)", "return [1.0]", "return 'x'"])
def test_check_never_tears_on_a_reward_that_breaks_its_contract(ddpo, plugin, body):
    result = ddpo("rewards", "check", plugin(body))
    assert result.exit_code == 2
    assert "Traceback" not in result.output


def test_new_writes_a_package_and_says_where(ddpo):
    result = ddpo("rewards", "new", "sharpness")
    assert result.exit_code == 0, result.output
    assert Path(result.stdout.strip(), "pyproject.toml").is_file()
    again = ddpo("rewards", "new", "sharpness")
    assert again.exit_code == 2


NOISY = """import subprocess
print("I am loaded")
subprocess.run(["echo", "and so am I"], check=True)
return images.mean((1, 2, 3))"""


def test_what_a_plugin_prints_is_no_data(plugin):
    command = [sys.executable, "-m", "ddpo_cli", "rewards", "check", plugin(NOISY), "--format", "json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert {row["result"] for row in json.loads(done.stdout)} == {"passed"}
    assert {"I am loaded", "and so am I"} <= set(done.stderr.splitlines())


def install_published_reward(folder: Path, image: Path, *, score: float) -> None:
    """A distribution with the reward `lightness`, whose score of `image` is said to be published."""
    info = folder / "published_rewards-1.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: published-rewards\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[ddpo_rewards]\nlight = light_plugin\n")
    (folder / "light_plugin.py").write_text(
        "from ddpo_rewards import RewardSpec, hookimpl\n"
        "from ddpo_rewards.specs import ReferenceScore\n\n"
        f"KNOWN = ReferenceScore(image='https://example.org/{image.name}', score={score}, tolerance=0.05,\n"
        f"    sha256='{hashlib.sha256(image.read_bytes()).hexdigest()}', source='a paper')\n\n"
        "@hookimpl\ndef register_rewards(register):\n"
        "    register(RewardSpec(name='lightness', factory=lambda: lambda images: images.mean((1, 2, 3)),\n"
        "        summary='mean', reference_scores=(KNOWN,)))\n"
    )


@pytest.mark.parametrize(("published", "exit_code"), [(0.2, 0), (0.3, 2)])
def test_verify_compares_the_score_of_a_picture_with_the_published_one(ddpo, monkeypatch, published, exit_code):
    Image.new("RGB", (8, 8), (51, 51, 51)).save("grey.png")  # 51 / 255 = 0.2
    install_published_reward(Path("site"), Path("grey.png"), score=published)
    monkeypatch.syspath_prepend(str(Path("site").absolute()))
    monkeypatch.delitem(sys.modules, "light_plugin", raising=False)
    result = ddpo("rewards", "verify", "lightness", "--images", ".", "-f", "json")
    assert result.exit_code == exit_code, result.output
    (row,) = json.loads(result.stdout)
    assert row["check"] == "grey.png"
    assert row["seen"].startswith(f"scores 0.2000, published is {published} +/- 0.05 (a paper)")


def test_verify_says_where_nothing_is_published_before_anything_is_loaded(ddpo):
    result = ddpo("rewards", "verify", "llava_vqa")
    assert result.exit_code == 2
    assert "nobody has published scores of 'llava_vqa'" in result.stderr


def test_a_drawn_picture_is_scored_as_it_was_measured_and_another_quality_is_told_apart(ddpo):
    assert ddpo("rewards", "verify", "jpeg_compressibility").exit_code == 0
    result = ddpo("rewards", "verify", "jpeg_incompressibility?quality=94")
    assert result.exit_code == 2
    assert "disc" in result.stdout


@pytest.mark.parametrize(("published", "exit_code"), [(0.2, 0), (0.3, 2)])
def test_verify_without_a_reward_looks_at_all_and_says_what_it_cannot(ddpo, monkeypatch, published, exit_code):
    monkeypatch.setenv("DDPO_REWARDS_CACHE", "empty")
    Image.new("RGB", (8, 8), (51, 51, 51)).save("grey.png")
    install_published_reward(Path("site"), Path("grey.png"), score=published)
    monkeypatch.syspath_prepend(str(Path("site").absolute()))
    monkeypatch.delitem(sys.modules, "light_plugin", raising=False)
    result = ddpo("rewards", "verify", "--images", ".", "-f", "json")
    assert result.exit_code == exit_code, result.output
    rows = {row["reward"]: row for row in json.loads(result.stdout)}
    assert rows["lightness"]["result"] == ("failed" if exit_code else "passed")
    assert rows["jpeg_compressibility"]["result"] == "passed"
    assert rows["pickscore"]["seen"] == "nobody has published scores"
    assert rows["aesthetic"]["result"] == "unknown"
    assert "`ddpo rewards verify aesthetic` downloads them" in rows["aesthetic"]["seen"]


def draw_photos(folder: Path, count: int = 8) -> None:
    """Squares of noise that grow, on white: the larger the noise, the larger the file, and the darker the picture."""
    folder.mkdir()
    for index in range(count):
        image = Image.new("RGB", (48, 48), "white")
        image.paste(Image.effect_noise((4 * index + 8, 4 * index + 8), 90).convert("RGB"), (2, 2))
        image.save(folder / f"{index}.png")


def test_compare_tells_how_far_rewards_agree(ddpo, plugin):
    draw_photos(Path("photos"))
    light = plugin("return images.mean((1, 2, 3))")
    rewards = ("jpeg_incompressibility", "jpeg_compressibility", light)
    options = ("--prompt", "squares")  # which the plugin asks for
    result = ddpo("rewards", "compare", *rewards, "photos", *options, "--sheet", "sheet.png", "-f", "json")
    assert result.exit_code == 0, result.output
    rows = json.loads(result.stdout)
    assert [(row["first"], row["second"]) for row in rows] == [
        (rewards[0], rewards[1]), (rewards[0], light), (rewards[1], light)
    ]  # fmt: skip
    assert [row["rank correlation"] for row in rows] == [-1.0, -1.0, 1.0]
    assert {row["images"] for row in rows} == {8}
    with Image.open("sheet.png") as sheet:
        assert sheet.width > 900
    assert "rank correlation" in ddpo("rewards", "compare", *rewards, "photos", *options).stdout


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["jpeg_compressibility", "photos"], "want two rewards or more, then the images"),
        (["jpeg_compressibility", "jpeg_incompressibility", "none"], "none"),
        (["jpeg_compressibility", "jpeg_compressibility", "photos"], "is given twice"),
        (["jpeg_compressibility", "clip_score", "photos"], "clip_score needs prompts"),
        (["jpeg_compressibility", "jpeg_incompressibility", "photos"], "3 independent images"),
    ],
)
def test_compare_says_what_it_wants(ddpo, arguments, complaint):
    draw_photos(Path("photos"), 3)
    result = ddpo("rewards", "compare", *arguments)
    assert result.exit_code == 2
    assert complaint in result.stderr
    assert "Traceback" not in result.output


def test_serve_listens_to_others_only_with_a_token(ddpo, monkeypatch):
    monkeypatch.delenv("DDPO_SERVE_TOKEN", raising=False)
    result = ddpo("rewards", "serve", "jpeg_compressibility", "--host", "0.0.0.0")
    assert result.exit_code == 2
    assert "set DDPO_SERVE_TOKEN to a secret first" in result.stderr
    assert "Serving" not in result.stderr


def test_bench_measures_images_per_second_and_memory(ddpo):
    arguments = ("jpeg_compressibility", "--size", "32", "--seconds", "0", "--batch-size", "4")
    (facts,) = json.loads(ddpo("rewards", "bench", *arguments, "-f", "json").stdout)
    assert (facts["images"], facts["batch_size"], facts["size"]) == (8, 4, 32)
    assert facts["images_per_second"] > 0
    assert "images per second" in ddpo("rewards", "bench", *arguments).stdout
    assert ddpo("rewards", "bench", "none").exit_code == 2
