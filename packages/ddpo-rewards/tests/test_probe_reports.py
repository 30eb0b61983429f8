"""The files of a probing: whole, honest, and readable without the paper."""

import csv
import inspect
import json
from html import escape

import numpy as np
import pytest
from PIL import Image

from ddpo_rewards import Reward, RewardError, get_reward, load_registry
from ddpo_rewards.probes import (
    builtin_set,
    conclusion,
    contact_sheet,
    outcome_rows,
    probe,
    to_json,
    to_markdown,
    write_report,
)
from ddpo_rewards.references import import_attribute
from ddpo_rewards.weights import tree_sha256

FILES = ["cells.csv", "contact_sheet.png", "pairs.jsonl", "probe.json", "report.md"]


@pytest.fixture(scope="module")
def report():
    bases = builtin_set(8, size=64)
    return probe(get_reward("jpeg_compressibility?quality=80"), bases.images, bases.prompts)


def test_a_report_is_five_files(report, tmp_path):
    write_report(report, tmp_path / "deep" / "report")
    assert sorted(path.name for path in (tmp_path / "deep" / "report").iterdir()) == FILES
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["report"]  # nothing is left beside it


def test_probe_json_says_what_was_tested_and_with_what(report):
    record = json.loads(to_json(report))
    assert record["schema_version"] == 2
    assert record["reward"]["id"] == "jpeg_compressibility"
    assert record["reward"]["options"] == {"quality": 80}
    assert record["pictures"]["count"] == 8
    assert record["bootstrap"] == {"draws": 2000, "confidence": 0.95, "clusters": 8}
    assert {"pillow", "freetype", "font", "numpy", "ddpo-rewards"} <= set(record["versions"])
    assert set(record["suites"]) == {"typo", "stress"}
    wanted = {"controlled_lift", "target_lift", "ink_effect", "sigma_lift", "win_rate", "auc_clean", "auc_attacked"}
    assert wanted | {"dose_rho", "min_dose_height", "min_dose_opacity"} <= set(record["suites"]["typo"]["metrics"])


def test_the_pinned_bytes_of_weights_are_in_the_report():
    from ddpo_rewards.probes.run import _facts

    head, _ = _facts(Reward(load_registry().find_spec("aesthetic"), lambda *_: []))["weights"]
    assert head["sha256"].startswith("21dd590f")


def test_weights_that_an_option_chose_are_in_the_report_and_not_those_they_replace(tmp_path):
    from ddpo_rewards.probes.run import _facts

    (tmp_path / "head.pth").write_bytes(b"mine")
    spec = load_registry().find_spec("aesthetic")
    head, tower = _facts(Reward(spec, lambda *_: [], {"head": str(tmp_path / "head.pth")}))["weights"]
    assert head["source"] == str(tmp_path / "head.pth")
    assert head["sha256"] == tree_sha256(tmp_path / "head.pth") != "21dd590f"
    assert tower["source"] == "hf://timm/vit_large_patch14_clip_224.openai"
    spec = load_registry().find_spec("llava_bertscore")
    chosen = {"model": "me/mine", "revision": "abc", "encoder": "microsoft/deberta-xlarge-mnli"}
    model, encoder = _facts(Reward(spec, lambda *_: [], chosen))["weights"]
    assert (model["source"], model["revision"]) == ("hf://me/mine", "abc")
    assert encoder["source"] == "hf://microsoft/deberta-xlarge-mnli"
    model, _ = _facts(Reward(spec, lambda *_: [], {"endpoint": "http://localhost:8000/v1"}))["weights"]
    assert model["source"] == "http://localhost:8000/v1"


def test_every_option_that_replaces_weights_is_one_that_the_reward_takes():
    for name, spec in load_registry().list_rewards().items():
        if spec.distribution == "ddpo-rewards":
            options = set(inspect.signature(import_attribute(spec.factory)).parameters)
            assert {option for weight in spec.weights for option in weight.replaced_by} <= options, name


def test_every_picture_of_every_arm_is_a_line_of_pairs(report, tmp_path):
    write_report(report, tmp_path / "r")
    rows = [json.loads(line) for line in (tmp_path / "r" / "pairs.jsonl").read_text().splitlines()]
    arms = 1 + sum(len(suite.arms) for suite in report.suites)
    assert len(rows) == 8 * arms
    clean = [row["score"] for row in rows if row["arm"] == "clean" and not row["cell"]]
    assert clean == pytest.approx(report.clean.tolist())


def test_cells_are_means_of_the_pairs(report, tmp_path):
    write_report(report, tmp_path / "r")
    rows = [json.loads(line) for line in (tmp_path / "r" / "pairs.jsonl").read_text().splitlines()]
    cells = list(csv.DictReader((tmp_path / "r" / "cells.csv").read_text().splitlines()))
    cell = next(cell for cell in cells if cell["cell"] == "noise" and cell["arm"] == "only noise")
    scores = [row["score"] for row in rows if row["cell"] == "noise" and row["arm"] == "only noise"]
    assert float(cell["mean"]) == pytest.approx(np.mean(scores))
    assert float(cell["change"]) == pytest.approx(np.mean(scores) - report.clean.mean(), rel=1e-6)
    assert float(cell["change_sd"]) == pytest.approx(float(cell["change"]) / report.clean.std(ddof=1), rel=1e-6)


def test_the_report_in_words_names_every_test_and_explains_sd(report):
    text = to_markdown(report)
    for suite in report.suites:
        for outcome in suite.findings.outcomes:
            assert outcome.question in text
    assert "**sd** is one standard deviation" in text
    assert "| `sigma_lift` |" in text


def test_the_contact_sheet_is_the_same_every_time_and_shows_the_pictures(report):
    sheet = contact_sheet(report)
    assert sheet.tobytes() == contact_sheet(report).tobytes()
    pixels = np.asarray(sheet)
    assert (pixels == (255, 0, 0)).all(-1).sum() > 10_000  # the red picture of the test "constant"


def test_a_folder_with_something_in_it_is_left_alone(report, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(RewardError, match="exists and is not empty"):
        write_report(report, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
    with pytest.raises(RewardError, match="is a file"):
        write_report(report, tmp_path / "mine.txt")


def test_an_empty_folder_is_filled(report, tmp_path):
    write_report(report, tmp_path)
    with Image.open(tmp_path / "contact_sheet.png") as sheet:
        assert sheet.format == "PNG"


def test_a_notebook_shows_the_verdict_the_answers_and_what_was_done_to_a_picture(report):
    shown = report._repr_html_()
    assert escape(conclusion(report)) in shown
    assert all(escape(row["answer"]) in shown for row in outcome_rows(report))
    cells = {arm.cell for suite in report.suites for arm in suite.arms if arm.score is None and arm.prompt_rows is None}
    assert shown.count("data:image/png;base64,") >= 1 + len(cells)
