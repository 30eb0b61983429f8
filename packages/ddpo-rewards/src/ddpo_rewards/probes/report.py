"""Write what a probing found: for machines, for spreadsheets, and in words."""

import csv
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from ddpo_rewards.errors import RewardError
from ddpo_rewards.probes.core import Cell, Estimate, ProbeReport, SuiteReport, conclusion, outcome_rows
from ddpo_rewards.probes.sheet import contact_sheet

SCHEMA_VERSION = 2
CELL_COLUMNS = (
    "suite", "cell", "arm", "compared_with", "mean", "change", "change_low", "change_high",
    "change_sd", "change_sd_low", "change_sd_high", "limit", "p", "q",
)  # fmt: skip
_DIGITS = 9  # significant; the last ones of a sum depend on the machine
_HOW_TO_READ = """
**sd** is one standard deviation of the scores of the unchanged pictures: a change of +1 sd lifts a picture of middling
score above five sixths of the others. In parentheses stands the 95 % interval (bootstrap-t over {clusters}, {draws}
draws). A verdict is *susceptible* where the effect is surely above the limit (all tests of a suite together have a
chance of 2.5 % of being wrong), *robust* where the interval lies below it, and *inconclusive* in between.
"""


def to_json(report: ProbeReport) -> str:
    """The report without the scores of single pictures; the same bytes for the same seed, pictures and versions."""
    record = {
        "schema_version": SCHEMA_VERSION,
        "verdict": report.verdict,
        "reward": report.reward,
        "pictures": {"count": len(report.clean), "source": report.bases.source, "sha256": report.base_sha256},
        "seed": report.seed,
        "bootstrap": {"draws": report.draws, "confidence": 0.95, "clusters": report.clusters},
        "versions": report.versions,
        "clean_scores": {"mean": report.clean.mean(), "sd": report.clean.std(ddof=1)},
        "suites": {suite.suite: _suite_record(suite) for suite in report.suites},
    }
    return json.dumps(_plain(record), indent=2, ensure_ascii=False) + "\n"


def cell_rows(report: ProbeReport) -> list[dict[str, Any]]:
    """One row per cell, with the columns `CELL_COLUMNS`."""
    return [{"suite": suite.suite, **_cell_row(cell)} for suite in report.suites for cell in suite.findings.cells]


def pair_rows(report: ProbeReport) -> Iterator[dict[str, Any]]:
    """One row per picture and arm: the prompt it was scored with, what was written into it, its score."""
    for row, score in enumerate(report.clean):
        yield _pair(report, "", "", "clean", row, row, None, score)
    for suite in report.suites:
        for arm in suite.arms:
            for row, score in enumerate(suite.scores[arm.key]):
                source = row if arm.prompt_rows is None else arm.prompt_rows[row]
                text = None if arm.texts is None else arm.texts[row]
                yield _pair(report, suite.suite, arm.cell, arm.name, row, source, text, score)


def write_report(report: ProbeReport, folder: str | os.PathLike[str]) -> None:
    """Write probe.json, cells.csv, pairs.jsonl, report.md and contact_sheet.png into a new folder, all or none.

    Raises:
        RewardError: the folder exists and is not empty, or cannot be written.
    """
    target = Path(folder)
    check_folder(target)
    writers: dict[str, Callable[[Path], object]] = {
        "probe.json": lambda path: path.write_text(to_json(report), encoding="utf-8"),
        "cells.csv": lambda path: path.write_text(_csv(report), encoding="utf-8"),
        "pairs.jsonl": lambda path: _write_pairs(report, path),
        "report.md": lambda path: path.write_text(to_markdown(report), encoding="utf-8"),
        "contact_sheet.png": lambda path: contact_sheet(report).save(path),
    }
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-") as aside:
            whole = Path(aside) / target.name
            whole.mkdir()
            for name, write in writers.items():
                write(whole / name)
            if target.exists():
                target.rmdir()
            shutil.move(whole, target)
    except OSError as error:
        raise RewardError(f"{str(target)!r} cannot be written: {error.strerror or error}") from error


def check_folder(folder: Path) -> None:
    """Check that a report can be written there; to be asked before the hour of scoring, too.

    Raises:
        RewardError: it is a file, or holds something.
    """
    if folder.exists() and not folder.is_dir():
        raise RewardError(f"{str(folder)!r} is a file; want a new folder")
    if folder.is_dir() and any(folder.iterdir()):
        raise RewardError(f"{str(folder)!r} exists and is not empty; name a new folder, or remove it first")


def to_markdown(report: ProbeReport) -> str:
    """The verdict, every test with its answer, and what the numbers mean."""
    return "\n".join(_lines(report)) + "\n"


def _suite_record(suite: SuiteReport) -> dict[str, Any]:
    findings = suite.findings
    return {
        "options": suite.options,
        "tests": [
            {"test": one.test, "verdict": one.verdict, "question": one.question, "reason": one.reason,
             "effect": one.effect, "unit": one.unit}
            for one in findings.outcomes
        ],
        "metrics": findings.metrics,
        "details": findings.details,
        "cells": [_cell_row(cell) for cell in findings.cells],
    }  # fmt: skip


def _cell_row(cell: Cell) -> dict[str, Any]:
    row: dict[str, Any] = {
        "cell": cell.cell, "arm": cell.arm, "compared_with": cell.compared_with, "mean": cell.mean
    }  # fmt: skip
    for name, found in (("change", cell.change), ("change_sd", cell.change_sd)):
        row |= {name: found.value, f"{name}_low": found.low, f"{name}_high": found.high}
    return {**row, "limit": cell.limit, "p": cell.p, "q": cell.q}


def _pair(
    report: ProbeReport, suite: str, cell: str, arm: str, row: int, source: int, text: str | None, score: float
) -> dict[str, Any]:
    image, prompts = report.bases.images[row], report.bases.prompts
    return {
        "suite": suite,
        "cell": cell,
        "arm": arm,
        "image": os.fspath(image) if isinstance(image, str | os.PathLike) else row,
        "prompt": None if prompts is None else prompts[source],
        "text": text,
        "score": float(str(np.float32(score))),  # by its shortest decimal: 2.2 and not 2.200000047683716
    }


def _write_pairs(report: ProbeReport, path: Path) -> None:
    with path.open("w", encoding="utf-8") as file:
        for row in pair_rows(report):
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def _csv(report: ProbeReport) -> str:
    text = StringIO()
    writer = csv.DictWriter(text, CELL_COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(_plain(row) for row in cell_rows(report))
    return text.getvalue()


def _plain(value: Any) -> Any:
    """JSON values: estimates as mappings, floats without the digits that depend on the machine."""
    if isinstance(value, Estimate):
        return _plain(value._asdict())
    if isinstance(value, dict):
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    return float(f"{value:.{_DIGITS}g}") if isinstance(value, float) else value


def _lines(report: ProbeReport) -> Iterator[str]:
    yield f"# Can `{report.reward['id']}` be gamed?"
    yield ""
    yield f"**{report.verdict.value.replace('_', ' ').capitalize()}**: {conclusion(report)}."
    yield f"{_clusters(report).capitalize()} ({report.bases.source}), seed {report.seed}."
    yield ""
    rows = outcome_rows(report)
    yield from _table([[row["question"], row["answer"], row["effect"], row["verdict"]] for row in rows],
                      ("question", "answer", "effect", "verdict"))  # fmt: skip
    yield _HOW_TO_READ.format(draws=report.draws, clusters=_clusters(report))
    for suite in report.suites:
        yield from _suite(suite)
    yield "## What was tested"
    yield ""
    facts = {**report.reward, "pictures sha256": report.base_sha256, **report.versions}
    yield from _table([[key, _text(value)] for key, value in facts.items() if value], ("", ""))


def _clusters(report: ProbeReport) -> str:
    pictures = len(report.clean)
    return (
        f"{pictures} pictures" if report.clusters == pictures else f"{pictures} pictures of {report.clusters} prompts"
    )


def _suite(suite: SuiteReport) -> Iterator[str]:
    meanings = suite.findings.details.get("meanings", {})
    if suite.findings.metrics and meanings:
        yield f"## Numbers of `{suite.suite}`"
        yield ""
        found = suite.findings.metrics
        rows = [[f"`{name}`", _text(value), meanings.get(name, "")] for name, value in found.items()]
        yield from _table(rows, ("metric", "value", "meaning"))
        yield ""
    for factor, curve in suite.findings.details.get("dose", {}).items():
        yield f"Lift by {factor} of the text:"
        yield ""
        rows = [[f"{point['dose']:.3g}", _text(point["sigma_lift"]), f"{point['q']:.4f}"] for point in curve]
        yield from _table(rows, (factor, "lift (sd)", "q"))
        yield ""


def _table(rows: Sequence[Sequence[str]], head: Sequence[str]) -> Iterator[str]:
    yield f"| {' | '.join(head)} |"
    yield f"|{'---|' * len(head)}"
    for row in rows:
        yield f"| {' | '.join(cell.replace('|', '/') for cell in row)} |"


def _text(value: Any) -> str:
    match value:
        case None:
            return "none"
        case Estimate():
            return f"{value.value:.3g} ({value.low:.3g} to {value.high:.3g})"
        case float():
            return f"{value:.3g}"
        case Mapping():
            return ", ".join(f"{key}={part}" for key, part in value.items())
        case list() | tuple():
            return "; ".join(_text(part) for part in value)
        case _:
            return str(value)
