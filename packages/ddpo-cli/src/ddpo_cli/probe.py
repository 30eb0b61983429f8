"""`ddpo probe`: find out whether a reward can be gamed."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ddpo_cli import completion
from ddpo_cli.errors import INCONCLUSIVE, SUSCEPTIBLE, CLIError
from ddpo_cli.score import ImageColumn, PromptColumn
from ddpo_cli.ui.console import Format, FormatOption, emit, foreign_output, say
from ddpo_cli.ui.progress import counted, loading

if TYPE_CHECKING:
    from ddpo_rewards.folders import Columns
    from ddpo_rewards.probes import BaseSet, ProbeReport


EPILOG = """
[bold]Examples[/bold]

  ddpo probe jpeg_incompressibility            [dim]on drawn pictures[/dim]

  ddpo probe my_plugin:score -o probes/mine    [dim]and a contact sheet[/dim]

  ddpo probe clip_score --images photos/ --prompts captions.csv

  ddpo probe aesthetic --suite stress --num-images 16

  ddpo probe my_plugin:score --suite "typo?height=0.16"

[bold]What it does.[/bold] It changes pictures in ways that make them no better, and
looks whether their scores go up. A reward whose scores do will be gamed
in training: the model learns to write, to make noise or to blank the
picture instead of drawing what was asked for.

[bold]Suites.[/bold] [bold]typo[/bold] writes each picture's prompt into it and compares with
other text of the same ink, so that reading counts and ink does not.
[bold]stress[/bold] tries blank pictures, noise, filters, frames and the like, and
whether the same picture always scores the same. Plugins add their own.
Options are NAME?option=value&... with height, font, max_sigma_lift,
max_win_rate and ocr for typo; max_gain, max_prompt_share and max_drift
for stress.

[bold]Verdicts.[/bold] Effects are counted in sd, the standard deviation of the scores
of the unchanged pictures, with a 95 % interval. [bold]susceptible[/bold]: one is
surely above the limit (0.25 sd), however many were tried. [bold]robust[/bold]: all lie
below. In between is [bold]inconclusive[/bold]: take more pictures; those of one prompt
count as one. [bold]not applicable[/bold]: there was nothing to test, such as a score
that never changes.

[bold]--output[/bold] has report.md to read, contact_sheet.png to look at, probe.json
and cells.csv to compute with, and pairs.jsonl with every single score.

Exit codes: 0 robust, 3 susceptible, 4 inconclusive or nothing to test,
2 bad usage or input.
"""


SHOWN = ("verdict", "question", "answer")


def probe(
    reward: Annotated[
        str,
        typer.Argument(
            metavar="REF",
            help="The reward to test, as for ddpo score: a name, or my_plugin:score.",
            autocompletion=completion.rewards,
        ),
    ],
    *,
    suite: Annotated[
        list[str], typer.Option("--suite", metavar="NAMES", help="What to test it with, by comma or repeated.")
    ] = ["typo,stress"],  # noqa: B006 - typer copies it
    images: Annotated[
        list[str] | None,
        typer.Option(
            "--images",
            "-i",
            metavar="DIR",
            help="Pictures to change: a folder, file or glob; repeat for several.",
            show_default="drawn shapes with captions",
        ),
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="What the pictures show: CSV or JSON Lines with a prompt per image, or a text with one per line.",
            show_default="a metadata.csv or metadata.jsonl beside them",
        ),
    ] = None,
    prompt_column: PromptColumn = None,
    image_column: ImageColumn = None,
    num_images: Annotated[
        int | None,
        typer.Option(
            "--num-images",
            "-n",
            metavar="N",
            min=1,
            help="Use so many pictures: fewer are faster, more are surer.",
            show_default="64 drawn, or all there are",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(metavar="N", min=0, help="Decides every random number.")] = 0,
    batch_size: Annotated[int, typer.Option(metavar="N", min=1, help="Pictures scored at once.")] = 16,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "--out", "-o", metavar="DIR", help="A new folder for the report.", show_default="no files"
        ),
    ] = None,
    format: FormatOption = Format.table,
) -> None:
    """Find out whether a reward can be gamed."""
    from ddpo_cli.setup import build_reward
    from ddpo_rewards import probes
    from ddpo_rewards.folders import Columns

    if output is not None:
        probes.check_folder(output)
    if images:
        bases = _own_pictures(images, prompts, Columns(image_column, prompt_column), num_images)
    elif prompts is not None:
        raise CLIError("--prompts describes pictures of your own; add --images DIR, or leave it out")
    else:
        bases = probes.builtin_set(num_images or 64, seed=seed)
    with foreign_output():
        with loading(f"Loading {reward}"):
            tested = build_reward([reward])
        with counted("probing") as told:
            report = probes.probe(
                tested,
                bases.images,
                bases.prompts,
                bases.metadata,
                suites=tuple(name for names in suite for name in names.split(",") if name),
                source=bases.source,
                seed=seed,
                batch_size=batch_size,
                progress=told,
            )
    if output is not None:
        probes.write_report(report, output)
    _print(report, format)
    _conclude(report, output)
    codes = {probes.Verdict.robust: 0, probes.Verdict.susceptible: SUSCEPTIBLE}
    # A gate that lets through what it could not test is none: not applicable is inconclusive.
    raise typer.Exit(codes.get(report.verdict, INCONCLUSIVE))


def _own_pictures(images: Sequence[str], prompts: Path | None, columns: "Columns", num_images: int | None) -> "BaseSet":
    from ddpo_rewards.folders import describe_images, find_images
    from ddpo_rewards.probes import BaseSet

    items, _ = describe_images(find_images(images), prompts=prompts, columns=columns)
    chosen = items[:num_images]
    bare = [item.path for item in chosen if not item.prompt]
    if bare and len(bare) < len(chosen):
        raise CLIError(f"{len(bare)} of {len(chosen)} pictures have no prompt (such as {bare[0]!r}); give each one")
    return BaseSet(
        images=[item.path for item in chosen],
        prompts=None if bare else [item.prompt or "" for item in chosen],
        metadata=[item.metadata for item in chosen] if any(item.metadata for item in chosen) else None,
        source=f"{len(chosen)} of {len(items)} images" if len(chosen) < len(items) else "images of the user",
    )


def _print(report: "ProbeReport", format: Format) -> None:
    from ddpo_rewards.probes import CELL_COLUMNS, cell_rows, outcome_rows, to_json

    match format:
        case Format.json:
            sys.stdout.write(to_json(report))
        case Format.csv:
            emit(cell_rows(report), format, columns=CELL_COLUMNS)
        case Format.table:
            title = f"Can {report.reward['id']} be gamed? {len(report.clean)} pictures, seed {report.seed}"
            emit(outcome_rows(report), format, columns=SHOWN, title=title)


def _conclude(report: "ProbeReport", output: Path | None) -> None:
    """Say what the verdict is and what to do next; on stderr, since it is no data."""
    from ddpo_rewards.probes import Verdict, conclusion

    word = report.verdict.value.replace("_", " ").capitalize()
    outcomes = [outcome for suite in report.suites for outcome in suite.findings.outcomes]
    guilty = [outcome.test for outcome in outcomes if outcome.verdict is report.verdict]
    named = f" ({', '.join(guilty)})" if report.verdict is Verdict.inconclusive else ""
    say(f"{word}: {conclusion(report)}{named}.")
    say("1 sd is one standard deviation of the scores of the unchanged pictures.")
    if output is not None:
        say(f"Report: {output / 'report.md'}, pictures: {output / 'contact_sheet.png'}")
    else:
        say("Add --output DIR for the pictures, every score, and the intervals.")
