"""`ddpo rewards list | show | check | verify | compare | bench | serve | new`: look at, check and offer rewards."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ddpo_cli import bench_reward, compare_rewards, completion, serve_reward
from ddpo_cli.errors import BAD_INPUT, CLIError, readable
from ddpo_cli.ui.console import Format, FormatOption, command_group, emit, foreign_output, say, tell

if TYPE_CHECKING:
    from ddpo_rewards import RewardSpec
    from ddpo_rewards.testing import Check

LISTED = ("name", "distribution", "needs", "unit", "range", "licence", "summary")
SHOWN = ("name", "needs", "summary", "distribution")  # what fits a terminal of 80 columns

EPILOG = """
[bold]Examples[/bold]

  ddpo rewards list                    [dim]what is installed[/dim]

  ddpo rewards show aesthetic          [dim]unit, range, licence, weights[/dim]

  ddpo rewards new sharpness           [dim]a plugin package with passing tests[/dim]

  ddpo rewards check my_plugin:score   [dim]does it keep the contract?[/dim]

  ddpo rewards verify aesthetic        [dim]does it score as was published?[/dim]

  ddpo rewards compare aesthetic hps_v2 photos/   [dim]do they agree?[/dim]

  ddpo rewards bench aesthetic         [dim]images per second, memory[/dim]

  ddpo rewards serve vqascore          [dim]for trainers elsewhere[/dim]
"""

app = command_group(help="Look at the installed rewards, check and compare them, or start a plugin.", epilog=EPILOG)


@app.command("list")
@readable
def list_rewards(
    format: FormatOption = Format.table,
    no_plugins: Annotated[bool, typer.Option("--no-plugins", help="Only the built-in rewards.")] = False,
) -> None:
    """List the installed rewards; a plugin that does not load is listed with its error."""
    from ddpo_rewards import load_registry

    with foreign_output():
        registry = load_registry(disabled=["*"] if no_plugins else [])
        listed = registry.list_rewards()
    rows: list[dict[str, Any]] = [_summary(name, spec) for name, spec in listed.items()]
    if format is Format.table:
        emit(rows, format, columns=SHOWN)
        for failure in registry.failures:
            say(f"Plugin {failure.plugin} does not load: {failure.error}")
        return
    rows += [{"name": None, "distribution": failure.plugin, "error": failure.error} for failure in registry.failures]
    emit([{**row, "error": row.get("error")} for row in rows], format, columns=(*LISTED, "error"))


@app.command("show")
@readable
def show(
    reward: Annotated[
        str, typer.Argument(metavar="REF", help="A reward from the list.", autocompletion=completion.rewards)
    ],
    format: FormatOption = Format.table,
) -> None:
    """Print what is known about a reward: unit, range, licence, source, weights, reference scores."""
    with foreign_output():
        facts = _facts(_spec(reward))
    if format is not Format.table:
        emit([facts], format, columns=tuple(facts))
        return
    rows = [
        {"fact": key.replace("_", " "), "value": value} for key, value in facts.items() if value not in (None, "", [])
    ]
    emit(rows, format, columns=("fact", "value"))


@app.command("check")
@readable
def check(
    reward: Annotated[
        str, typer.Argument(metavar="REF", help="A reward, e.g. my_plugin:score.", autocompletion=completion.rewards)
    ],
    format: FormatOption = Format.table,
) -> None:
    """Check that a reward keeps the contract: length, finite, order, batches, determinism. Exit code 2 if not."""
    from ddpo_cli.setup import build_reward
    from ddpo_rewards.testing import check_reward

    with foreign_output():
        checks = check_reward(build_reward([reward]))
    _conclude(checks, format, bad=f"{reward!r} breaks the contract", good=f"{reward!r} keeps the contract.")


@app.command("verify")
@readable
def verify(
    reward: Annotated[
        str | None,
        typer.Argument(
            metavar="[REF]",
            help="A reward with known scores: ddpo rewards show.",
            show_default="all, but for those whose weights were never downloaded",
            autocompletion=completion.rewards,
        ),
    ] = None,
    images: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Where the scored images lie, by their file names.", show_default="they are downloaded"
        ),
    ] = None,
    format: FormatOption = Format.table,
) -> None:
    """Score the images whose scores are known, and compare: are these the right weights? Exit code 2 if not."""
    from ddpo_cli.setup import build_reward
    from ddpo_rewards.testing import verify_reference_scores

    if reward is None:
        _verify_all(images, format)
        return
    with foreign_output():
        if not _spec(reward).reference_scores:
            raise CLIError(f"nobody has published scores of {reward!r}; `ddpo rewards show` lists those of a reward")
        checks = verify_reference_scores(build_reward([reward]), folder=images)
    _conclude(checks, format, bad=f"{reward!r} scores otherwise", good=f"{reward!r} scores as published.")


app.command("compare", epilog=compare_rewards.EPILOG)(readable(compare_rewards.compare))
app.command("bench", epilog=bench_reward.EPILOG)(readable(bench_reward.bench))
app.command("serve", epilog=serve_reward.EPILOG)(readable(serve_reward.serve))


@app.command("new")
@readable
def new(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The reward's name, e.g. sharpness.")],
    directory: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", help="Where the package's folder is made.")
    ] = Path("."),
) -> None:
    """Write a plugin package with a reward of your own, its entry point and its passing tests."""
    from ddpo_rewards import new_plugin

    path = new_plugin(name, directory)
    say(f"Wrote {path}. Now:\n  pip install -e {path}\n  pytest {path}\n  ddpo rewards list")
    tell(str(path))


def _verify_all(images: Path | None, format: Format) -> None:
    """Verify every reward whose scores are known and whose weights are here; say of the others why not."""
    from ddpo_rewards import RewardError, load_registry
    from ddpo_rewards.testing import Check, verify_reference_scores
    from ddpo_rewards.weights import is_recorded

    rows: list[dict[str, Any]] = []
    with foreign_output():
        registry = load_registry()
        for name, spec in registry.list_rewards().items():
            if not spec.reference_scores:
                why = "nobody has published scores"
            elif not all(map(is_recorded, spec.weights)):
                why = f"its weights are not here; `ddpo rewards verify {name}` downloads them"
            else:
                try:
                    checks = verify_reference_scores(registry.get_reward(name), folder=images)
                except RewardError as error:  # one that cannot be built leaves the others to be looked at
                    checks = (Check("loading", False, str(error)),)
                rows += [{"reward": name, **row} for row in _rows(checks)]
                continue
            rows.append({"reward": name, "check": None, "result": "unknown", "seen": why})
    emit(rows, format, columns=("reward", "check", "result", "seen"))
    failed = [row["reward"] for row in rows if row["result"] == "failed"]
    if failed:
        say(f"Error: rewards that score otherwise: {', '.join(failed)}")
        raise typer.Exit(BAD_INPUT)


def _rows(checks: "Sequence[Check]") -> list[dict[str, Any]]:
    return [{"check": one.name, "result": "passed" if one.passed else "failed", "seen": one.message} for one in checks]


def _conclude(checks: "Sequence[Check]", format: Format, *, bad: str, good: str) -> None:
    """Print what was checked and what came of it; exit code 2 where something failed."""
    emit(_rows(checks), format, columns=("check", "result", "seen"))
    failed = [one.name for one in checks if not one.passed]
    if failed:
        say(f"Error: reward {bad}: {', '.join(failed)}")
        raise typer.Exit(BAD_INPUT)
    say(f"Reward {good}")


def _spec(reference: str) -> "RewardSpec":
    from ddpo_rewards import load_registry, parse_reference

    parsed = parse_reference(reference)
    if ":" not in parsed.ref:
        return load_registry().find_spec(parsed.ref)  # describing a registered reward builds nothing
    from ddpo_cli.setup import build_reward

    return build_reward([reference]).spec


def _summary(name: str, spec: "RewardSpec") -> dict[str, Any]:
    facts = _facts(spec)
    return {"name": name, **{key: facts[key] for key in LISTED[1:]}}


def _facts(spec: "RewardSpec") -> dict[str, Any]:
    return {
        "name": spec.name,
        "summary": spec.summary,
        "distribution": spec.distribution,
        "factory": spec.factory if isinstance(spec.factory, str) else repr(spec.factory),
        "needs": [*sorted({"images", *spec.needs}), *(f"{spec.distribution}[{extra}]" for extra in spec.extras)],
        "unit": spec.unit,
        "range": _range(spec.range),
        "licence": spec.licence,
        "source": spec.source,
        "extras": list(spec.extras),
        "weights": [_weight(weight) for weight in spec.weights],
        "reference_scores": [
            f"{known.image}: {known.score:g} ± {known.tolerance:g} ({known.source})" for known in spec.reference_scores
        ],
    }


def _range(bounds: tuple[float, float] | None) -> str:
    return "" if bounds is None else f"{bounds[0]:g} to {bounds[1]:g}"


def _weight(weight: Any) -> str:
    from ddpo_rewards.weights import describe_pin

    size = f", {weight.size / 1e6:.1f} MB" if weight.size else ""
    embedded = "; none with model=builtin:emoji" if weight.embedded else ""
    return f"{weight.source}/{weight.filename} ({describe_pin(weight)}, {weight.licence}{size}{embedded})"
