"""`ddpo runs list | show | compare | rm`: look at the runs that there are, and delete those that nobody needs."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ddpo_cli import completion
from ddpo_cli.errors import CLIError, readable
from ddpo_cli.ui.console import Format, FormatOption, command_group, emit, say, tell
from ddpo_cli.ui.numbers import duration, moved, size, sparkline

if TYPE_CHECKING:
    from ddpo_core.runs.run import Run

LISTED = ("run", "status", "epochs", "reward", "gamed?")  # what fits a terminal of 80 columns

EPILOG = """
[bold]Examples[/bold]

  ddpo runs list                       [dim]the runs in runs/, the newest at the end[/dim]

  ddpo runs list /mnt/experiments --format json

  ddpo runs show                       [dim]the last run: what it is, how it went, where things are[/dim]

  ddpo runs compare runs/0001-llava_bertscore runs/0002-llava_bertscore

  ddpo runs rm runs/0001-llava_bertscore
"""

app = command_group(help="Look at runs, compare them, and delete those that nobody needs.", epilog=EPILOG)


@app.command("list")
@readable
def list_runs(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Where the runs lie.")] = Path("runs"),
    format: FormatOption = Format.table,
) -> None:
    """List the runs in a folder, the newest at the end, with the mean reward of their first and last epoch."""
    from ddpo_core.runs.folder import RUNS, is_run
    from ddpo_core.runs.run import list_runs

    if is_run(folder):
        raise CLIError(f"{str(folder)!r} is a run, and no folder of runs; want: ddpo runs show {folder}")
    if folder.exists() and not folder.is_dir():
        raise CLIError(f"{str(folder)!r} is a file; want a folder of runs")
    found = list_runs(folder)
    if not found:
        say(f"There is no run in {str(folder)!r}; `ddpo train` makes one in 'runs'.")
    rows = [run.summary() for run in found]
    if format is Format.table and rows:
        short = [_in_short(row) for row in rows]
        if folder != RUNS:  # a long path before every name would leave no room for the rest
            tell(f"{folder}:")
            short = [{**row, "run": Path(row["run"]).name} for row in short]
        emit(short, format, columns=LISTED)
    elif format is not Format.table:
        emit(rows, format, columns=tuple(rows[0]) if rows else ())
    torn = sum(bool(run.complaints) for run in found)
    if torn:
        say(f"{torn} of them cannot be read whole; `ddpo runs show RUN` says why.")


@app.command("show")
@readable
def show(
    run: Annotated[
        Path | None,
        typer.Argument(
            metavar="RUN", help="A run.", show_default="the last run in runs/", autocompletion=completion.runs
        ),
    ] = None,
    format: FormatOption = Format.table,
) -> None:
    """Show what a run is, how it went, and where things are."""
    from ddpo_core.runs.run import open_run

    opened = open_run(run)
    if format is Format.table:
        emit([{"fact": name, "value": value} for name, value in _facts(opened)], format, columns=("fact", "value"))
    else:
        whole = {**opened.summary(), "checkpoints": list(opened.checkpoints), "bytes": _bytes_of(opened.folder)}
        whole |= {"options": _options(opened), "versions": dict(opened.versions), "complaints": opened.complaints}
        emit([whole], format, columns=tuple(whole))
    if format is not Format.json:
        for complaint in opened.complaints:
            say(complaint)


@app.command("compare")
@readable
def compare(
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="RUN RUN...", help="Two runs or more.", autocompletion=completion.runs),
    ],
    format: FormatOption = Format.table,
) -> None:
    """Compare runs: what came of them, the options that differ, and the change on the same prompts and seeds."""
    from ddpo_core.runs.run import open_run, option_differences

    if len(runs) < 2:
        raise CLIError(f"got the run {str(runs[0])!r} alone; name another to compare it with")
    opened = [open_run(run) for run in runs]
    names = [str(run.folder) for run in opened]
    if len(set(names)) < len(names):
        raise CLIError("a run is named twice; name each once")
    results = [dict(_results(run)) for run in opened]
    parts: dict[str, Mapping[str, Sequence[Any]]] = {
        "results": {name: [row[name] for row in results] for name in results[0]},
        "options that differ": option_differences(opened),
        f"reward on the same prompts and seeds, against {names[0]}": dict(_changes(opened)),
    }
    rows = [
        {"part": part, "what": what, **dict(zip(names, values, strict=True))}
        for part, table in parts.items()
        for what, values in table.items()
    ]
    if format is not Format.table:
        emit(rows, format, columns=("part", "what", *names))
        return
    for part in parts:
        shown = [{**row, **{name: _as_text(row[name]) for name in names}} for row in rows if row["part"] == part]
        if shown:
            tell(f"{part}:")  # as a title of the table it would be folded to the table's width
            emit(shown, format, columns=("what", *names))
            tell("")


@app.command("rm")
@readable
def remove(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="The runs to delete.", autocompletion=completion.runs)
    ],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Delete runs, after asking: never what is no run, holds something else, or is being trained."""
    from ddpo_core.runs.folder import refuse_removal, remove_run
    from ddpo_core.runs.run import open_run

    for run in runs:
        refuse_removal(run)
    if not yes:
        for opened in map(open_run, runs):
            say(f"{opened.folder}: {opened.status}, {opened.epoch} epochs, {size(_bytes_of(opened.folder))}")
        if not sys.stdin.isatty():
            raise CLIError("nobody is there to be asked; add --yes to delete it")
        many = f"these {len(runs)}" if len(runs) > 1 else "this"
        if not typer.confirm(f"Delete {many} for good?", err=True):
            say("Nothing is deleted.")
            return
    for run in runs:
        remove_run(run)
        tell(str(run))


def _in_short(row: Mapping[str, Any]) -> dict[str, str]:
    """One row of the list."""
    first, last = row["reward_first"], row["reward_last"]
    return {
        "run": row["run"],
        "status": row["status"],
        "epochs": f"{row['epoch']}/{row['epochs'] or '?'}",
        "reward": "" if first is None else f"{first:.3g} → {last:.3g}",
        "gamed?": row["verdict"] or "",
    }


def _facts(run: "Run") -> Iterator[tuple[str, str]]:
    """What a person wants to know of a run, in order; what is not known is left out."""
    from ddpo_core.runs.folder import LORA, MODEL, SAMPLES

    row, rewards, folder = run.summary(), run.rewards, run.folder
    yield "run", str(folder)
    yield "status", run.status
    if run.config is not None:
        yield "reward", " + ".join(run.config.reward)
        yield "model", run.config.model
        yield "prompts", run.config.prompts
        chosen = {name: value for name, value in _options(run).items() if name not in ("reward", "model", "prompts")}
        yield "options", ", ".join(f"{name}={_as_text(value)}" for name, value in chosen.items()) or "the defaults"
    yield "epochs", f"{run.epoch} of {row['epochs'] or '?'}, {row['queries']} queries, {duration(row['seconds'])}"
    if rewards:
        yield "reward per epoch", f"{moved(rewards[0], rewards[-1])}  {sparkline(rewards)}"
    if row["after"] is not None:
        yield "fixed prompts", moved(row["before"], row["after"])
    for name, kept in (run.rows[-1].get("kept") or {}).items() if run.rows else ():
        yield f"kept: {name}", f"{kept['value']:.3g} (level {kept['level']:.3g}, multiplier {kept['multiplier']:.2g})"
    if row["verdict"]:
        yield "gamed?", f"{row['verdict']}: {row['reason']}"
    if run.model.best is not None:
        yield "best epoch", f"{run.model.best}, by what is not optimised"
    yield "checkpoints", f"of the epochs {', '.join(map(str, run.checkpoints))}" if run.checkpoints else "none"
    for what, name in (("for diffusers", LORA), ("for diffusers", MODEL), ("pictures", SAMPLES)):
        if (folder / name).is_dir():
            yield what, str(folder / name)
    yield "written", f"{run.written.astimezone():%Y-%m-%d %H:%M}, {size(_bytes_of(folder))}"


def _results(run: "Run") -> Iterator[tuple[str, Any]]:
    row = run.summary()
    yield "status", run.status
    yield "epochs", row["epoch"]
    yield "queries", row["queries"]
    yield "minutes", round(row["seconds"] / 60, 2)
    yield "reward, first epoch", row["reward_first"]
    yield "reward, last epoch", row["reward_last"]
    yield "fixed prompts before", row["before"]
    yield "fixed prompts after", row["after"]
    yield "verdict", row["verdict"]


def _changes(runs: Sequence["Run"]) -> Iterator[tuple[str, list[Any]]]:
    """The mean reward of every run's model less that of the first's, with its interval, where they can be compared."""
    from ddpo_core.runs.run import change_between

    found = [change_between(runs[0], run) for run in runs[1:]]
    if any(comparison is not None for comparison in found):
        for what, name in (("change", "mean"), ("at least (95 %)", "low"), ("at most (95 %)", "high")):
            yield what, [None, *(comparison and getattr(comparison.change, name) for comparison in found)]
        yield "images that score higher", [None, *(comparison and comparison.improved for comparison in found)]


def _options(run: "Run") -> dict[str, Any]:
    """What was chosen otherwise than by default, flat."""
    from ddpo_core.runs.config import flat_options
    from ddpo_core.runs.defaults import beyond_defaults

    return {} if run.config is None else flat_options(beyond_defaults(run.config))


def _as_text(value: Any) -> str:
    match value:
        case None:
            return ""
        case bool():
            return "yes" if value else "no"
        case float():
            return f"{value:.4g}"
        case list() | tuple():
            return ", ".join(map(str, value))
        case _:
            return str(value)


def _bytes_of(folder: Path) -> int:
    return sum(path.lstat().st_size for path in folder.rglob("*"))
