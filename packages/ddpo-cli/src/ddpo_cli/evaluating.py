"""The fixed prompts of a run, drawn while it trains: grids along the way, and the change from before to after."""

from pathlib import Path
from statistics import fmean

from ddpo_cli.setup import Setup
from ddpo_cli.ui.live import View
from ddpo_core import Evaluation, Params, PromptSet, evaluate
from ddpo_core.runs.compare import captions, fixed_prompts
from ddpo_core.runs.folder import sample_path
from ddpo_core.runs.pictures import grid, save_png, to_pil


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


def held_out_means(evaluation: Evaluation, setup: Setup) -> dict[str, float]:
    """Return the mean of each reward that is never optimised."""
    return {name: fmean(map(float, evaluation.info[name])) for name in setup.config.held_out}


def write_grid(run: Path, epoch: int, evaluation: Evaluation, view: View, *, count: int) -> Path:
    """Write the first `count` images with prompt and score below, and show where."""
    path = sample_path(run, epoch)
    save_png(grid(to_pil(evaluation.images[:count]), captions(evaluation)[:count]), path)
    view.picture = path
    return path
