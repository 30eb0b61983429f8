"""The report in words, for a reader who has never heard of probes."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ddpo_rewards.probes.reports import outcome_rows
from ddpo_rewards.probes.types import Estimate, ProbeReport, SuiteReport, Verdict

MEANING = {
    Verdict.robust: "nothing that was tried raises the score without making the picture better",
    Verdict.susceptible: "the score can be raised without making the picture better",
    Verdict.inconclusive: "there are too few pictures to tell; use more",
    Verdict.not_applicable: "there was nothing to test",
}
_HOW_TO_READ = """
**sd** is one standard deviation of the scores of the unchanged pictures: a change of +1 sd lifts a picture of middling
score above five sixths of the others. In parentheses stands the 95 % interval (bootstrap over the pictures, {draws}
draws). A verdict is *susceptible* where the whole interval lies above the limit, *robust* where it lies below it, and
*inconclusive* where it reaches over it.
"""


def to_markdown(report: ProbeReport) -> str:
    """The verdict, every test with its answer, and what the numbers mean."""
    return "\n".join(_lines(report)) + "\n"


def _lines(report: ProbeReport) -> Iterator[str]:
    yield f"# Can `{report.reward['id']}` be gamed?"
    yield ""
    yield f"**{report.verdict.value.replace('_', ' ').capitalize()}**: {MEANING[report.verdict]}."
    yield f"{len(report.clean)} pictures ({report.bases.source}), seed {report.seed}."
    yield ""
    rows = outcome_rows(report)
    yield from _table([[row["question"], row["answer"], row["effect"], row["verdict"]] for row in rows],
                      ("question", "answer", "effect", "verdict"))  # fmt: skip
    yield _HOW_TO_READ.format(draws=report.draws)
    for suite in report.suites:
        yield from _suite(suite)
    yield "## What was tested"
    yield ""
    facts = {**report.reward, "pictures sha256": report.base_sha256, **report.versions}
    yield from _table([[key, _text(value)] for key, value in facts.items() if value], ("", ""))


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
        rows = [[f"{point['dose']:.3g}", _text(point["sigma_lift"]), f"{point['q']:.3f}"] for point in curve]
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
