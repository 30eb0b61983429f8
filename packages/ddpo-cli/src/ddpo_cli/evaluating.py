"""The same prompts and seeds every time: grids along the way, and the change from before to after."""

import json
from pathlib import Path
from statistics import fmean

from ddpo_cli.files import write_text
from ddpo_cli.grids import before_after, grid, save_png, to_pil
from ddpo_cli.runs import SAMPLES, sample_path
from ddpo_cli.setup import Setup
from ddpo_cli.ui.live import View, percent
from ddpo_core import Evaluation, Params, PromptSet, evaluate

EVALUATION = "evaluation.json"
BEFORE_AFTER = "before-after.png"
SHOWN_PAIRS = 16


def fixed_prompts(prompts: PromptSet, count: int) -> PromptSet:
    """`count` prompts, spread evenly over a longer set, repeated in turn from a shorter one.

    >>> fixed_prompts(PromptSet(("a", "b", "c", "d"), ({}, {}, {}, {})), 2).prompts
    ('a', 'c')
    """
    size = len(prompts.prompts)
    chosen = [index * size // count if count < size else index % size for index in range(count)]
    return PromptSet(tuple(prompts.prompts[i] for i in chosen), tuple(prompts.metadata[i] for i in chosen))


def evaluate_fixed(setup: Setup, params: Params, view: View, *, count: int) -> Evaluation:
    """Sample and score the first `count` images of the fixed set."""
    whole = fixed_prompts(setup.prompts, setup.config.eval_samples)
    count = min(count, len(whole.prompts))
    view.show_phase("evaluating", 0, count)
    return evaluate(
        setup.policy,
        params,
        setup.eval_reward_fn,
        PromptSet(whole.prompts[:count], whole.metadata[:count]),
        num_steps=setup.config.fit.num_steps,
        seeds=range(count),
        batch_size=setup.config.fit.sample_batch_size,
        progress=lambda _, done, total: view.show_phase("evaluating", done, total),
    )


def mean(evaluation: Evaluation) -> float:
    """Return the mean score."""
    return float(evaluation.scores.mean())


def held_out_means(evaluation: Evaluation, setup: Setup) -> dict[str, float]:
    """Return the mean of each reward that is never optimised."""
    return {name: fmean(map(float, evaluation.info[name])) for name in setup.config.held_out}


def write_grid(run: Path, epoch: int, evaluation: Evaluation, view: View, *, count: int) -> Path:
    """Write the first `count` images with prompt and score below, and show where."""
    path = sample_path(run, epoch)
    save_png(grid(to_pil(evaluation.images[:count]), captions(evaluation)[:count]), path)
    view.picture = path
    return path


def captions(evaluation: Evaluation) -> list[str]:
    """Prompt and score of each image."""
    scores = evaluation.scores.tolist()
    return [f"{prompt}  {score:.4g}" for prompt, score in zip(evaluation.prompts.prompts, scores, strict=True)]


def write_comparison(run: Path, before: Evaluation, after: Evaluation, *, epoch: int) -> str:
    """Write before-after.png; returns the change in words."""
    change = percent(mean(before), mean(after))
    sheet = before_after(
        to_pil(before.images[:SHOWN_PAIRS]),
        to_pil(after.images[:SHOWN_PAIRS]),
        captions=(captions(before), captions(after)),
        titles=(f"before: reward {mean(before):.4g}", f"after {epoch} epochs: reward {mean(after):.4g} ({change})"),
    )
    save_png(sheet, run / SAMPLES / BEFORE_AFTER)
    return f"{mean(before):.4g} -> {mean(after):.4g} ({change})"


def write_record(run: Path, before: Evaluation, after: Evaluation, *, epoch: int) -> None:
    """Write evaluation.json, which says that the run is finished."""
    scores = {"before": before.scores.tolist(), "after": after.scores.tolist()}
    record = {
        "epoch": epoch,
        "prompts": after.prompts.prompts,
        "seeds": after.seeds,
        "scores": scores,
        "mean": {"before": mean(before), "after": mean(after)},
    }
    write_text(run / EVALUATION, json.dumps(record, indent=2) + "\n")


def is_evaluated(run: Path, epoch: int) -> bool:
    """Tell whether `run` was evaluated after `epoch` epochs: the last thing that a run does."""
    try:
        return bool(json.loads((run / EVALUATION).read_text(encoding="utf-8"))["epoch"] == epoch)
    except (OSError, ValueError, KeyError, TypeError):
        return False
