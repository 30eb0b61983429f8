"""What a run keeps while the reward rises: references with levels, measured on the initial policy and written down.

prompt_margin            a little below what it is before training
clip_score>=97%          that share of what it is before training
llava_vqa>=0.8           as it stands
negative_kl>=-0.001      as it stands, which is always 0 before training
"""

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path

from torch import Tensor

from ddpo_core.constraints import Gains, Level, Measure, level_below, measure_base, reward_measure
from ddpo_core.errors import DDPOError
from ddpo_core.gaming.measures import FAMILIARITY, MARGIN, initial_view_measure, negative_kl_measure
from ddpo_core.prompts import PromptSet
from ddpo_core.runs.config import INITIAL_VIEW, NEGATIVE_KL, Keep, parse_keep
from ddpo_core.runs.folder import LEVELS, write_text
from ddpo_core.types import Kept, Policy, Progress, RewardFunction

BASE_SAMPLES = 128

_SLACK: Mapping[str, float] = {MARGIN: 0.8, FAMILIARITY: 1.0}
_OTHER_SLACK = 0.25


def make_measures(
    texts: Iterable[str], rewards: Mapping[str, RewardFunction], *, policy: Policy, prompts: PromptSet, batch_size: int
) -> tuple[Measure, ...]:
    """Return what measures the signals that are kept."""
    kept = {parse_keep(text).reference for text in texts}
    return (
        *([initial_view_measure(policy, prompts.prompts, batch_size=batch_size)] if kept & set(INITIAL_VIEW) else []),
        *([negative_kl_measure(policy, batch_size=batch_size)] if NEGATIVE_KL in kept else []),
        *([reward_measure(rewards, batch_size=batch_size)] if rewards else []),
    )


def find_levels(
    run: Path,
    texts: Iterable[str],
    measures: tuple[Measure, ...],
    *,
    policy: Policy,
    prompts: PromptSet,
    num_steps: int,
    batch_size: int,
    progress: Progress | None = None,
) -> dict[str, Level]:
    """Read the levels of a run, or measure the initial policy and write them down.

    Args:
        run: The folder of the run, for its `levels.json`.
        texts: What is kept: references with their levels.
        measures: Of `make_measures`.
        policy: The policy that is trained.
        prompts: One prompt for each of the samples that are measured.
        num_steps: The number of denoising steps.
        batch_size: How many samples are denoised at once.
        progress: Called as `("sampling", done, total)`.

    Raises:
        DDPOError: If a share is wanted of what is not above 0.
    """
    file = run / LEVELS
    wanted = [parse_keep(text) for text in texts]
    levels = _read(file)
    if any(keep.reference not in levels for keep in wanted):
        # Not from 0 on: the samples of the evaluation are never trained on, and nothing is told by them.
        seeds = range(BASE_SAMPLES, BASE_SAMPLES + len(prompts.prompts))
        base = measure_base(
            policy, measures, prompts, num_steps=num_steps, seeds=seeds, batch_size=batch_size, progress=progress
        )
        levels = {**{keep.reference: _level(keep, base[keep.reference]) for keep in wanted}, **levels}
        rows = {name: {**level._asdict(), "ceiling": _finite(level.ceiling)} for name, level in levels.items()}
        write_text(file, json.dumps(rows, indent=1, allow_nan=False))
    return {keep.reference: levels[keep.reference] for keep in wanted}


def out_of_reach(kept: Mapping[str, Kept]) -> dict[str, str]:
    """Say what is held with all that a multiplier has, and still lies below its level: a line by the name of each.

    Example:
        >>> list(out_of_reach({"judge": Kept(1.0, 0.1, 2.0, 20.0), "near": Kept(1.0, 0.1, 2.0, 3.0)}))
        ['judge']
    """
    return {
        name: f"{name} cannot be kept: it is {one.value:.4g}, below its level {one.level:.4g}, although it outweighs "
        f"the reward by {one.multiplier:.0f} to 1; want a lower level (--keep {name}>=...), or a lower learning rate"
        for name, one in sorted(kept.items())
        if one.multiplier >= Gains().limit and one.value < one.level - 2 * one.error
    }


def _level(keep: Keep, base: Tensor) -> Level:
    if keep.reference == NEGATIVE_KL and keep.level is not None:
        return Level(keep.level, unit=-keep.level)  # before training no sample differs from another
    if keep.level is None:
        return level_below(base, _SLACK.get(keep.reference, _OTHER_SLACK))
    mean = base.double().mean().item()
    if keep.is_share and mean <= 0:
        raise DDPOError(
            f"keep: {keep.reference} is {mean:.4g} before training, of which {keep.level:.0%} is no level: want "
            f"{keep.reference}>=NUMBER, or {keep.reference} alone"
        )
    return level_below(base, 0.0)._replace(value=keep.level * (mean if keep.is_share else 1.0), ceiling=math.inf)


def _read(file: Path) -> dict[str, Level]:
    try:
        rows = json.loads(file.read_text(encoding="utf-8"))
        return {
            name: Level(row["value"], row["unit"], math.inf if row["ceiling"] is None else row["ceiling"])
            for name, row in rows.items()
        }
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        raise DDPOError(f"{str(file)!r} is damaged: delete it, and the levels are measured again") from None


def _finite(number: float) -> float | None:
    return number if math.isfinite(number) else None
