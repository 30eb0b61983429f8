"""The bodies of `ddpo rewards list | show | check | new`."""

from pathlib import Path
from typing import Any

import typer

from ddpo_cli.errors import BAD_INPUT
from ddpo_cli.ui.console import Format, emit, say
from ddpo_rewards import RewardSpec, load_registry, parse_reference
from ddpo_rewards.weights import describe_pin

LISTED = ("name", "distribution", "needs", "unit", "range", "licence", "summary")
SHOWN = ("name", "needs", "summary", "distribution")  # what fits a terminal of 80 columns


def list_installed(format: Format, *, no_plugins: bool) -> None:
    """Print the installed rewards; plugins that do not load are named on stderr (and in JSON and CSV too)."""
    registry = load_registry(disabled=["*"] if no_plugins else [])
    rows: list[dict[str, Any]] = [_summary(name, spec) for name, spec in registry.list_rewards().items()]
    if format is Format.table:
        emit(rows, format, columns=SHOWN)
        for failure in registry.failures:
            say(f"Plugin {failure.plugin} does not load: {failure.error}")
        return
    rows += [{"name": None, "distribution": failure.plugin, "error": failure.error} for failure in registry.failures]
    emit([{**row, "error": row.get("error")} for row in rows], format, columns=(*LISTED, "error"))


def show(reference: str, format: Format) -> None:
    """Print everything known about one reward."""
    facts = _facts(_spec(reference))
    if format is not Format.table:
        emit([facts], format, columns=tuple(facts))
        return
    rows = [
        {"fact": key.replace("_", " "), "value": value} for key, value in facts.items() if value not in (None, "", [])
    ]
    emit(rows, format, columns=("fact", "value"))


def check(reference: str, format: Format) -> None:
    """Run the conformance test on one reward; leave with 2 where it fails."""
    from ddpo_cli.rewarding import build_reward
    from ddpo_rewards.testing import check_reward

    checks = check_reward(build_reward([reference]))
    rows = [{"check": one.name, "result": "passed" if one.passed else "failed", "seen": one.message} for one in checks]
    emit(rows, format, columns=("check", "result", "seen"))
    failed = [one.name for one in checks if not one.passed]
    if failed:
        say(f"Error: reward {reference!r} breaks the contract: {', '.join(failed)}")
        raise typer.Exit(BAD_INPUT)
    say(f"Reward {reference!r} keeps the contract.")


def new(name: str, folder: Path) -> None:
    """Write a plugin package and say what to do with it."""
    from ddpo_rewards import new_plugin

    path = new_plugin(name, folder)
    say(f"Wrote {path}. Now:\n  pip install -e {path}\n  pytest {path}\n  ddpo rewards list")
    typer.echo(path)


def _spec(reference: str) -> RewardSpec:
    parsed = parse_reference(reference)
    if ":" not in parsed.ref:
        return load_registry().find_spec(parsed.ref)  # describing a registered reward builds nothing
    from ddpo_cli.rewarding import build_reward

    return build_reward([reference]).spec


def _summary(name: str, spec: RewardSpec) -> dict[str, Any]:
    facts = _facts(spec)
    return {"name": name, **{key: facts[key] for key in LISTED[1:]}}


def _facts(spec: RewardSpec) -> dict[str, Any]:
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
    size = f", {weight.size / 1e6:.1f} MB" if weight.size else ""
    return f"{weight.source}/{weight.filename} ({describe_pin(weight)}, {weight.licence}{size})"
