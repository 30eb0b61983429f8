"""What a shell completes: names of runs, checkpoints, presets, prompt sets and rewards; nothing heavy is imported."""

from collections.abc import Iterable


def runs(incomplete: str) -> list[str]:
    """Return the runs in `runs/`; of others the shell completes the path."""
    from ddpo_core.runs.folder import find_runs

    return _matching(map(str, find_runs()), incomplete)


def checkpoints(incomplete: str) -> list[str]:
    """Return the runs in `runs/`, and the checkpoints of one whose name is there already."""
    from ddpo_core.runs.folder import CHECKPOINTS, find_runs

    inside = [run for run in find_runs() if incomplete.startswith(f"{run}/")]
    saved = [str(path) for run in inside for path in sorted((run / CHECKPOINTS).glob("epoch-*"))]
    return _matching(saved, incomplete) or runs(incomplete)


def models(incomplete: str) -> list[str]:
    """Return the embedded model, runs and checkpoints."""
    from ddpo_core.runs.config import BUILTIN_MODEL

    return [*_matching([BUILTIN_MODEL], incomplete), *checkpoints(incomplete)]


def presets(incomplete: str) -> list[str]:
    """Return the names of the presets."""
    from ddpo_cli.presets import list_presets

    return _matching(list_presets(), incomplete)


def prompt_sets(incomplete: str) -> list[str]:
    """Return the names of the prompt sets."""
    from ddpo_core.prompts import list_prompt_sets

    return _matching(list_prompt_sets(), incomplete)


def rewards(incomplete: str) -> list[str]:
    """Return the names of the installed rewards."""
    from ddpo_rewards import load_registry

    return _matching(load_registry().list_rewards(), incomplete)


def kept(incomplete: str) -> list[str]:
    """Return what a run can keep: what the initial policy sees, installed rewards, or nothing."""
    from ddpo_core.runs.config import INITIAL_VIEW, NEGATIVE_KL

    return [*_matching([*INITIAL_VIEW, f"{NEGATIVE_KL}>=", "none"], incomplete), *rewards(incomplete)]


def _matching(names: Iterable[str], incomplete: str) -> list[str]:
    return [name for name in names if name.startswith(incomplete)]
