"""`ddpo report`: a run, or several side by side, as one page that needs no network."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ddpo_cli import completion
from ddpo_cli.errors import CLIError
from ddpo_cli.ui.console import say, tell

if TYPE_CHECKING:
    from ddpo_core.runs.view import View

EPILOG = """
[bold]Examples[/bold]

  ddpo report                     [dim]the last run, as RUN/report.html[/dim]

  ddpo report runs/0001-llava_bertscore --watch     [dim]while it is trained[/dim]

  ddpo report runs/0001-* runs/0002-* -o both.html       [dim]on one axis of queries[/dim]

  ddpo report RUN --probe probes/mine    [dim]with what ddpo probe -o found of its reward[/dim]

The page is one file and loads nothing: send it, or keep it. It has the reward
with its interval, what was held out and what was kept, every monitor, the same
prompts and seeds over the epochs with ways to compare two of them, samples
sorted by score, and the configuration. Every run writes it when it ends.

The path of the page is printed to stdout.
"""


def report(
    runs: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="RUN...",
            help="A run, or several to compare.",
            show_default="the last run in runs/",
            autocompletion=completion.runs,
        ),
    ] = None,
    *,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="HTML",
            help="The page.",
            show_default="RUN/report.html, of several runs report.html",
        ),
    ] = None,
    probe: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="DIR",
            help="A report of [bold]ddpo probe[/bold] to show as well; repeat for several. Those in a run are found.",
            show_default=False,
        ),
    ] = None,
    watch: Annotated[
        bool, typer.Option("--watch", help="Write the page again whenever a run has moved on, until all have ended.")
    ] = False,
    every: Annotated[float, typer.Option(metavar="SECONDS", min=0.1, help="With --watch: how often to look.")] = 5.0,
) -> None:
    """Show a run, or several side by side, as one page that needs no network."""
    from ddpo_core.runs.folder import REPORT, find_run, write_text
    from ddpo_core.runs.report import render_report
    from ddpo_core.runs.run import open_run
    from ddpo_core.runs.view import PROBE, read_view

    folders = [find_run(run) for run in runs] if runs else [find_run(None)]
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise CLIError("a run is named twice; name each once")
    for place in probe or ():
        if not (place.is_file() or (place / PROBE).is_file()):
            raise CLIError(f"--probe {str(place)!r} has no {PROBE}; want the folder that ddpo probe --output wrote")
    path = output or (folders[0] / REPORT if len(folders) == 1 else Path(REPORT))
    if path.is_dir():
        raise CLIError(f"--output {str(path)!r} is a folder; want the name of a file, such as {path / REPORT}")
    path.parent.mkdir(parents=True, exist_ok=True)

    def read() -> "list[View]":
        return [
            read_view(open_run(folder), probes=() if place else probe or ()) for place, folder in enumerate(folders)
        ]

    known, views = _stamp(folders), read()  # in this order: what is written in between is seen next time
    try:
        write_text(path, render_report(views, live=watch and _goes_on(views)))
        tell(str(path))
        while watch and _goes_on(views):
            time.sleep(every)
            seen = _stamp(folders)
            if seen != known:
                known, views = seen, read()
                write_text(path, render_report(views, live=_goes_on(views)))
                say(", ".join(f"{view.name}: epoch {(view.epochs or [0])[-1]} of {view.wanted}" for view in views))
    except KeyboardInterrupt:
        write_text(path, render_report(views))  # which no longer reads itself again
        raise


def _goes_on(views: "Sequence[View]") -> bool:
    """Whether there is something to wait for; one that was interrupted may be resumed."""
    return any(view.status in ("training", "interrupted") for view in views)


def _stamp(runs: Sequence[Path]) -> list[tuple[str, int]]:
    """What changes when there is something new to show: which files there are, and when they were written."""
    patterns = ("[!.]*.json*", "samples/[!.]*.png", "*/probe.json")
    return sorted((str(path), path.stat().st_mtime_ns) for run in runs for part in patterns for path in run.glob(part))
