"""The body of `ddpo probe`."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import typer

from ddpo_cli.errors import INCONCLUSIVE, SUSCEPTIBLE, CLIError
from ddpo_cli.inputs import Columns, describe_images, find_images
from ddpo_cli.rewarding import build_reward
from ddpo_cli.ui.console import Format, emit, messages, say
from ddpo_rewards.probes import (
    CELL_COLUMNS,
    MEANING,
    BaseSet,
    ProbeReport,
    Verdict,
    builtin_set,
    cell_rows,
    check_folder,
    outcome_rows,
    probe,
    to_json,
    write_report,
)

SHOWN = ("verdict", "question", "answer")
_CODES = {
    Verdict.robust: 0,
    Verdict.susceptible: SUSCEPTIBLE,
    Verdict.inconclusive: INCONCLUSIVE,
    Verdict.not_applicable: INCONCLUSIVE,  # a gate that lets through what it could not test is none
}


@dataclass(frozen=True)
class Order:
    """What `ddpo probe` was asked to test, with which pictures."""

    reward: str
    suites: tuple[str, ...]
    images: tuple[str, ...] = ()
    prompts: Path | None = None
    columns: Columns = field(default_factory=Columns)
    num_images: int | None = None
    seed: int = 0
    batch_size: int = 16
    output: Path | None = None


def run_probe(order: Order, format: Format) -> None:
    """Probe a reward, print what was found, write the report, and leave with the code of the verdict."""
    if order.output is not None:
        check_folder(order.output)
    bases = _bases(order)
    with messages().status(f"Loading {order.reward}"):
        reward = build_reward([order.reward])
    with _progress() as told:
        report = probe(
            reward,
            bases.images,
            bases.prompts,
            bases.metadata,
            suites=order.suites,
            source=bases.source,
            seed=order.seed,
            batch_size=order.batch_size,
            progress=told,
        )
    if order.output is not None:
        write_report(report, order.output)
    _print(report, format)
    _conclude(report, order.output)
    raise typer.Exit(_CODES[report.verdict])


def _bases(order: Order) -> BaseSet:
    if not order.images:
        if order.prompts is not None:
            raise CLIError("--prompts describes pictures of your own; add --images DIR, or leave it out")
        return builtin_set(order.num_images or 64, seed=order.seed)
    paths = find_images(order.images)
    items = describe_images(paths, prompts=order.prompts, prompt=None, columns=order.columns, needed=True)
    chosen = items[: order.num_images]
    bare = [item.path for item in chosen if not item.prompt]
    if bare and len(bare) < len(chosen):
        raise CLIError(f"{len(bare)} of {len(chosen)} pictures have no prompt (such as {bare[0]!r}); give each one")
    return BaseSet(
        images=[item.path for item in chosen],
        prompts=None if bare else [item.prompt or "" for item in chosen],
        metadata=[item.metadata for item in chosen] if any(item.metadata for item in chosen) else None,
        source=f"{len(chosen)} of {len(items)} images" if len(chosen) < len(items) else "images of the user",
    )


@contextmanager
def _progress() -> Iterator[Callable[[int, int], None]]:
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    console = messages()
    columns = (TextColumn("probing"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("probing", total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


def _print(report: ProbeReport, format: Format) -> None:
    match format:
        case Format.json:
            sys.stdout.write(to_json(report))
        case Format.csv:
            emit(cell_rows(report), format, columns=CELL_COLUMNS)
        case Format.table:
            title = f"Can {report.reward['id']} be gamed? {len(report.clean)} pictures, seed {report.seed}"
            emit(outcome_rows(report), format, columns=SHOWN, title=title)


def _conclude(report: ProbeReport, output: Path | None) -> None:
    """Say what the verdict is and what to do next; on stderr, since it is no data."""
    word = report.verdict.value.replace("_", " ").capitalize()
    outcomes = [outcome for suite in report.suites for outcome in suite.findings.outcomes]
    guilty = [outcome.test for outcome in outcomes if outcome.verdict is report.verdict]
    named = f" ({', '.join(guilty)})" if report.verdict in (Verdict.susceptible, Verdict.inconclusive) else ""
    say(f"{word}: {MEANING[report.verdict]}{named}.")
    say("1 sd is one standard deviation of the scores of the unchanged pictures.")
    if output is not None:
        say(f"Report: {output / 'report.md'}, pictures: {output / 'contact_sheet.png'}")
    else:
        say("Add --output DIR for the pictures, every score, and the intervals.")
