"""What each way of holding a reward back costs and saves: its gain against what an independent judge recognises.

    uv run --group pretrain python benchmarks/pareto/held_out.py runs/pareto    # the second classifier, once
    python benchmarks/pareto/pareto.py runs/pareto [--jobs 2] [--seeds 3]

Trains six rewards that say nothing of the prompt on the embedded model, each in every way of `WAYS`, and evaluates 256
fixed prompts and seeds after every tenth epoch; then prints tables for docs/gaming.md and draws its figure. Gains are
in units of the reward's spread between pictures before training. The judge is never part of what is optimised or kept.
Finished runs are not run again, nor those in `curves.jsonl` beside this file, to which what comes is added: all 126 of
three seeds take two cores a day. Delete it to measure anew.
"""

import argparse
import json
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import islice, pairwise, product
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, NamedTuple

sys.path += [str(Path(__file__).parents[1]), str(Path(__file__).parents[1] / "gaming")]
from rewards import animal_of
from side_by_side import run_side_by_side

if TYPE_CHECKING:
    from ddpo_core import Constraints
    from ddpo_core.runs import Parts, RunConfig

REWARDS = ("jpeg_compressibility", "jpeg_incompressibility", "redness", "brightness", "roughness", "symmetry")
WAYS: Mapping[str, Mapping[str, Any]] = {
    "plain": {"keep": "none"},
    "weighted sum": {"keep": "none"},
    "KL, fixed weight": {"keep": "none", "objective": {"kl_weight": 0.1}},
    "KL, adaptive weight": {"keep": "negative_kl>=-0.004"},
    "constraint: initial policy": {},
    "constraint: initial policy, lower level": {},
    "constraint: held-out reward": {"keep": "held_out"},
}
SUM_WEIGHT = 1.0
"""Of each signal in the weighted sum, in units of its spread: what multipliers are once they have settled."""
LOWER = 0.8
"""How much further `prompt_margin` may fall where its level is lower, in units of its spread: by 1.6 instead of 0.8."""
SCALES = (0.25, 0.5, 0.75)
SAMPLES, FIRST_SEED, EVERY = 256, 10_000, 10
NEAR = 0.05
"""How far below the base's the judge's share may lie."""
CURVE = "curve.json"
MEASURED = Path(__file__).with_name("curves.jsonl")
FIGURE = Path(__file__).parents[2] / "docs" / "images" / "pareto.png"


class Run(NamedTuple):
    """One run."""

    reward: str
    way: str
    seed: int

    @property
    def name(self) -> str:
        """The name of its folder."""
        return f"{self.reward}-{self.way}-{self.seed}".replace(": ", "-").replace(", ", "-").replace(" ", "-")


def main() -> None:
    """Train what is missing, or one run alone; print the tables, draw the figure."""
    options = _parse()
    if options.only:
        _train(next(run for run in _runs(options) if run.name == options.only), options)
        return
    known = _read(options)
    missing = [] if options.draw else [run.name for run in _runs(options) if run not in known]
    failed = run_side_by_side(__file__, options.results, missing, "--seeds", str(options.seeds), jobs=options.jobs)
    known = _read(options)
    MEASURED.write_text("".join(json.dumps(known[run]) + "\n" for run in sorted(known)), encoding="utf-8")
    curves = _with_scaled([known[run] for run in _runs(options) if run in known])
    print(_tables(curves))
    _draw(curves, options.figure)
    raise SystemExit(1 if failed else 0)


def _runs(options: argparse.Namespace) -> list[Run]:
    return [Run(*run) for seed in range(options.seeds) for run in product(options.rewards, WAYS, (seed,))]


def _train(run: Run, options: argparse.Namespace) -> None:
    import torch
    from runs import record

    from ddpo_core import fit, init, scale_lora
    from ddpo_core.diffusion.models import choose_dtype
    from ddpo_core.emoji.judge import load_judge
    from ddpo_core.runs import load_parts, run_config
    from ddpo_rewards import get_reward

    reward = get_reward(run.reward if run.reward.startswith("jpeg") else f"rewards:{run.reward}")
    config = run_config({"reward": run.reward, "seed": run.seed, "device": "cpu", **WAYS[run.way]})
    parts = load_parts(config)
    look = partial(_look, parts, reward, config)
    epochs = fit(
        init(parts.policy, parts.optimizer, seed=run.seed),
        policy=parts.policy,
        optimizer=parts.optimizer,
        reward_fn=reward,
        prompts=parts.prompts,
        objective=parts.objective,
        config=config.fit,
        constraints=_constraints(run.way, config, parts, options.results),
    )
    folder, judge = options.results / run.name, load_judge()
    shutil.rmtree(folder, ignore_errors=True)
    curve = [{"epoch": 0, **look(parts.policy.params)}]
    for state, info in islice(epochs, config.epochs):
        record(folder, info, judge)
        if info.epoch % EVERY == 0 or info.epoch == config.epochs:
            kept = {name: [float(f"{number:.4g}") for number in signal] for name, signal in info.kept.items()}
            curve.append({"epoch": info.epoch, **look(state.params), "kept": kept})
    scaled = SCALES if run.way == "plain" else ()
    less = [{"scale": scale, **look(scale_lora(state.params, scale))} for scale in scaled]
    dtype = str(choose_dtype(None, torch.device("cpu"))).removeprefix("torch.")
    described = {**run._asdict(), "dtype": dtype, "curve": curve, "scaled": less}
    (options.results / f"{run.name}-{CURVE}").write_text(json.dumps(described), encoding="utf-8")


def _look(parts: "Parts", reward: Callable, config: "RunConfig", params: Mapping[str, Any]) -> dict[str, float]:
    """Evaluate params on the fixed prompts and seeds, with a judge that nothing was trained or kept by."""
    from ddpo_core import evaluate
    from ddpo_core.emoji.judge import load_judge, recognised_share
    from ddpo_core.runs.compare import fixed_prompts

    prompts = fixed_prompts(parts.prompts, SAMPLES)
    seeds = range(FIRST_SEED, FIRST_SEED + SAMPLES)
    found = evaluate(parts.policy, params, reward, prompts, num_steps=config.fit.num_steps, seeds=seeds, batch_size=32)
    scores = found.scores.double()
    animals = [animal_of(prompt) for prompt in prompts.prompts]
    judge = recognised_share(load_judge(), found.images, animals)
    seen = {"reward": scores.mean().item(), "spread": scores.std().item(), "judge": judge}
    return {name: float(f"{value:.6g}") for name, value in seen.items()}


def _constraints(way: str, config: "RunConfig", parts: "Parts", results: Path) -> "Constraints | None":
    """Keep what the way keeps, at the levels that `ddpo train` gives it."""
    from held_out import recognition

    from ddpo_core import Constraints, Gains
    from ddpo_core.gaming.measures import MARGIN
    from ddpo_core.runs.compare import fixed_prompts
    from ddpo_core.runs.config import INITIAL_VIEW
    from ddpo_core.runs.levels import BASE_SAMPLES, find_levels, make_measures

    texts = INITIAL_VIEW if way == "weighted sum" else config.keep
    if not texts:
        return None
    second = {"held_out": lambda images, prompts, metadata: (recognition(results, images, prompts), {})}
    rewards = second if "held_out" in texts else {}
    size = config.fit.sample_batch_size
    measures = make_measures(texts, rewards, policy=parts.policy, prompts=parts.prompts, batch_size=size)
    aside = results / "levels" / way.replace(" ", "-")
    aside.mkdir(parents=True, exist_ok=True)
    levels = find_levels(
        aside,
        texts,
        measures,
        policy=parts.policy,
        prompts=fixed_prompts(parts.prompts, BASE_SAMPLES),
        num_steps=config.fit.num_steps,
        batch_size=size,
    )
    if way.endswith("lower level"):
        margin = levels[MARGIN]
        levels[MARGIN] = margin._replace(value=margin.value - LOWER * margin.unit)
    if way != "weighted sum":
        return Constraints(measures, levels)
    # A level that is out of reach, and a limit: the multiplier is the limit in every epoch.
    unreachable = {name: level._replace(value=level.ceiling + 1e6 * level.unit) for name, level in levels.items()}
    return Constraints(measures, unreachable, Gains()._replace(limit=SUM_WEIGHT))


def _read(options: argparse.Namespace) -> dict[Run, dict]:
    """Read what was measured before and what lies in the results."""
    measured = MEASURED.read_text(encoding="utf-8").splitlines() if MEASURED.is_file() else []
    found = [*measured, *(file.read_text(encoding="utf-8") for file in options.results.glob(f"*-{CURVE}"))]
    return {Run(each["reward"], each["way"], each["seed"]): each for each in map(json.loads, found)}


def _with_scaled(curves: Sequence[dict]) -> list[dict]:
    """Add what sampling with less of a plain run's LoRA gives, as a way of its own."""
    less = [
        {**run, "way": "plain, LoRA scaled at sampling", "curve": [run["curve"][0], *run["scaled"]]}
        for run in curves
        if run["scaled"]
    ]
    return [*curves, *less]


def _gain(run: dict, point: dict) -> float:
    base = run["curve"][0]
    return (point["reward"] - base["reward"]) / base["spread"]


def _best_near(run: dict) -> float:
    """The largest gain of a run while the judge is near the base; straight lines between points, 0 for the base."""
    near = run["curve"][0]["judge"] - NEAR
    points = [(_gain(run, point), point["judge"] - near) for point in run["curve"]]
    best = max(gain for gain, above in points if above >= 0)
    for (gain, above), (after, below) in pairwise(points):
        if above >= 0 > below:
            best = max(best, gain + (after - gain) * above / (above - below))
    return best


def _tables(curves: Sequence[dict]) -> str:
    ways = list(dict.fromkeys(run["way"] for run in curves))
    lines = ["Best gain with the judge within five points of the base, in spreads; mean over seeds:", ""]
    lines += [f"| reward | {' | '.join(ways)} |", "|---" * (1 + len(ways)) + "|"]
    rewards = [reward for reward in REWARDS if any(run["reward"] == reward for run in curves)]
    for reward in rewards:
        cells = [[_best_near(run) for run in curves if run["way"] == way and run["reward"] == reward] for way in ways]
        lines.append(f"| {reward} | {' | '.join(f'{fmean(cell):.2f}' if cell else '' for cell in cells)} |")
    lines += ["", "The last epoch: gain in spreads, and the judge's change in points:", ""]
    lines += [f"| reward | {' | '.join(ways)} |", "|---" * (1 + len(ways)) + "|"]
    for reward in rewards:
        cells = []
        for way in ways:
            ends = [(run, run["curve"][-1]) for run in curves if run["way"] == way and run["reward"] == reward]
            gain = fmean([_gain(run, end) for run, end in ends] or [0.0])
            points = fmean([100 * (end["judge"] - run["curve"][0]["judge"]) for run, end in ends] or [0.0])
            cells.append(f"{gain:.2f} at {points:+.0f}" if ends else "")
        lines.append(f"| {reward} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _draw(curves: Sequence[dict], file: Path) -> None:
    """One panel per reward that was measured: gain against judge, a line per way and seed, a dot for the last epoch."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    ways = list(dict.fromkeys(run["way"] for run in curves))
    rewards = [reward for reward in REWARDS if any(run["reward"] == reward for run in curves)]
    rows, columns = -(-len(rewards) // 3), min(3, len(rewards))
    figure, panels = pyplot.subplots(
        rows, columns, figsize=(max(12, 4 * columns), 3.2 * rows + 1), sharey=True, squeeze=False
    )
    for panel in panels.flat[len(rewards) :]:
        panel.axis("off")
    for panel, reward in zip(panels.flat, rewards, strict=False):
        for run in (run for run in curves if run["reward"] == reward):
            colour = f"C{ways.index(run['way'])}"
            gains = [_gain(run, point) for point in run["curve"]]
            shares = [100 * point["judge"] for point in run["curve"]]
            panel.plot(gains, shares, "-", color=colour, alpha=0.7, label=run["way"])
            panel.plot(gains[-1:], shares[-1:], "o", color=colour)
        bases = [100 * run["curve"][0]["judge"] for run in curves if run["reward"] == reward]
        panel.axhline(fmean(bases) - 100 * NEAR, color="grey", linestyle=":", linewidth=1)
        panel.set(title=reward, xlabel="gain of the reward, in spreads")
    for panel in panels[:, 0]:
        panel.set_ylabel("recognised by the judge, %")
    found = dict(
        pair for panel in panels.flat for pair in zip(*reversed(panel.get_legend_handles_labels()), strict=True)
    )
    figure.legend(found.values(), found.keys(), loc="lower center", ncols=4, fontsize=9)
    figure.tight_layout(rect=(0, 0.6 / figure.get_figheight(), 1, 1))  # 0.6 inches for the legend
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=100)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, help="where the runs lie; given again, what is missing is trained")
    parser.add_argument("--jobs", type=int, default=1, help="runs side by side, one thread each")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rewards", nargs="+", choices=REWARDS, default=REWARDS)
    parser.add_argument("--figure", type=Path, default=FIGURE)
    parser.add_argument("--draw", action="store_true", help="train nothing: tables and figure of what there is")
    parser.add_argument("--only", help="train this run, in this process")
    return parser.parse_args()


if __name__ == "__main__":
    main()
