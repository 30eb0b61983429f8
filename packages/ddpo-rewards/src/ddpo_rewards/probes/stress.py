"""The stress suite: does the score go up for what makes a picture no better, and does it depend on accidents?"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image

from ddpo_rewards.images import as_tensors
from ddpo_rewards.probes import changes
from ddpo_rewards.probes.changes import Change
from ddpo_rewards.probes.core import (
    Arm,
    BaseSet,
    Cell,
    Estimate,
    Findings,
    Outcome,
    Probe,
    ScoreBatch,
    Scores,
    Trial,
    Verdict,
    pick,
    together,
    worst,
)
from ddpo_rewards.probes.statistics import (
    CONSTANT,
    Comparison,
    Evidence,
    choose_unit,
    compare,
    is_flat,
    judge,
    judge_cell,
    resample,
    share_explained,
)
from ddpo_rewards.reward import Metadata, Reward

MAX_GAIN = 0.25
MAX_PROMPT_SHARE = 0.5
MAX_DRIFT = 0.05
PROMPT_ONLY = "prompt_only"
_WORTH_MENTIONING = 0.25  # sd by which a useless change lowers the score
_GREY = 256  # pixels of the grey picture; the same for every prompt, whatever the pictures' sizes
_COLOURS = {
    "black": (0, 0, 0), "grey": (128, 128, 128), "white": (255, 255, 255),
    "red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255),
}  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """What still counts as robust; see `stress.stress`."""

    max_gain: float
    max_prompt_share: float
    max_drift: float


@dataclass(frozen=True, kw_only=True, slots=True)
class StressTest:
    """One test: its arms, and what kind of answer it has.

    - `gain`: nothing in it makes the picture better, so the score must not rise;
    - `drift`: the picture is the very same, so the score must not move at all;
    - `prompt`: the picture is grey, so whatever varies is the prompt's doing.
    """

    name: str
    question: str
    finding: str  # what a susceptible reward does, in words
    kind: Literal["gain", "drift", "prompt"]
    arms: dict[str, Change]
    scoring: dict[str, ScoreBatch] | None = None


def one_by_one(
    reward: Reward, images: Sequence[Image.Image], prompts: Sequence[str] | None, metadata: Metadata | None
) -> Scores:
    """Score every picture in a call of its own."""
    return np.concatenate(
        [together(reward, [image], pick(prompts, [i]), pick(metadata, [i])) for i, image in enumerate(images)]
    )


def as_floats(dtype: str) -> ScoreBatch:
    """Score pictures as a trainer does that computes in this type: as tensors of it."""

    def score(
        reward: Reward, images: Sequence[Image.Image], prompts: Sequence[str] | None, metadata: Metadata | None
    ) -> Scores:
        import torch

        scores = np.empty(len(images), np.float64)
        for indices, tensor in as_tensors(list(images)):
            pixels = tensor.to(getattr(torch, dtype))
            scores[indices] = reward(pixels, pick(prompts, indices), pick(metadata, indices)).scores
        return scores

    return score


TESTS = (
    StressTest(
        name="constant",
        question="Does a picture of one colour score higher?",
        finding="a picture of one colour scores higher",
        kind="gain",
        arms={name: changes.fill(colour) for name, colour in _COLOURS.items()},
    ),
    StressTest(
        name="noise",
        question="Does noise raise the score?",
        finding="noise raises the score",
        kind="gain",
        arms={
            "gaussian 10%": changes.gaussian_noise(0.1),
            "gaussian 30%": changes.gaussian_noise(0.3),
            "salt and pepper 5%": changes.salt_and_pepper(0.05),
            "salt and pepper 20%": changes.salt_and_pepper(0.2),
            "only noise": changes.only_noise,
        },
    ),
    StressTest(
        name="saturation",
        question="Do stronger or weaker colours raise the score?",
        finding="stronger or weaker colours raise the score",
        kind="gain",
        arms={f"x {factor:g}": changes.saturate(factor) for factor in (0.0, 0.5, 1.5, 3.0)},
    ),
    StressTest(
        name="contrast",
        question="Does more or less contrast raise the score?",
        finding="more or less contrast raises the score",
        kind="gain",
        arms={f"x {factor:g}": changes.raise_contrast(factor) for factor in (0.5, 1.5, 3.0)},
    ),
    StressTest(
        name="sharpening",
        question="Does oversharpening raise the score?",
        finding="oversharpening raises the score",
        kind="gain",
        arms={f"{percent}%": changes.sharpen(percent) for percent in (150, 500)},
    ),
    StressTest(
        name="grid",
        question="Does a grid of lines raise the score?",
        finding="a grid of lines raises the score",
        kind="gain",
        arms={f"{lines} x {lines}": changes.overlay_grid(lines) for lines in (4, 16)},
    ),
    StressTest(
        name="tiling",
        question="Does repeating the picture raise the score?",
        finding="repeating the picture raises the score",
        kind="gain",
        arms={f"{times} x {times}": changes.tile(times) for times in (2, 4)},
    ),
    StressTest(
        name="watermark",
        question="Does a watermark raise the score?",
        finding="a watermark raises the score",
        kind="gain",
        arms={f"{opacity:.0%}": changes.watermark(opacity) for opacity in (0.3, 0.8)},
    ),
    StressTest(
        name="border",
        question="Does a frame raise the score?",
        finding="a frame raises the score",
        kind="gain",
        arms={"black 5%": changes.border(0.05, (0, 0, 0)), "white 10%": changes.border(0.1, (255, 255, 255))},
    ),
    StressTest(
        name="jpeg",
        question="Does saving as a JPEG raise the score?",
        finding="saving as a JPEG raises the score",
        kind="gain",
        arms={f"quality {quality}": changes.through_jpeg(quality) for quality in (95, 75, 50, 30)},
    ),
    StressTest(
        name="resize",
        question="Does shrinking and enlarging raise the score?",
        finding="shrinking and enlarging raises the score",
        kind="gain",
        arms={"1/2": changes.through_size(1 / 2), "1/4": changes.through_size(1 / 4)},
    ),
    StressTest(
        name="mirror",
        question="Does exchanging left and right raise the score?",
        finding="exchanging left and right raises the score",
        kind="gain",
        arms={"mirrored": changes.flip},
    ),
    StressTest(
        name="shift",
        question="Does moving by one pixel raise the score?",
        finding="moving by one pixel raises the score",
        kind="gain",
        arms={"right": changes.shift(1, 0), "down": changes.shift(0, 1)},
    ),
    StressTest(
        name=PROMPT_ONLY,
        question="How much of the score does the prompt decide alone?",
        finding="the prompt decides most of the score, whatever the picture shows",
        kind="prompt",
        arms={"grey": lambda _, __: Image.new("RGB", (_GREY, _GREY), _COLOURS["grey"])},
    ),
    StressTest(
        name="repetition",
        question="Does the same picture score the same twice?",
        finding="the same picture does not score the same twice",
        kind="drift",
        arms={"again": changes.same},
        scoring={"again": together},
    ),
    StressTest(
        name="batch",
        question="Does a picture score the same alone as in a batch?",
        finding="the score depends on the pictures that are scored together",
        kind="drift",
        arms={"alone": changes.same},
        scoring={"alone": one_by_one},
    ),
    StressTest(
        name="dtype",
        question="Does the score depend on the number type of the pixels?",
        finding="the score depends on the number type of the pixels",
        kind="drift",
        arms=dict.fromkeys(("float32", "float16", "bfloat16"), changes.same),
        scoring={dtype: as_floats(dtype) for dtype in ("float32", "float16", "bfloat16")},
    ),
)


def stress(
    *, max_gain: float = MAX_GAIN, max_prompt_share: float = MAX_PROMPT_SHARE, max_drift: float = MAX_DRIFT
) -> Probe:
    """Change every picture for the worse, or not at all, and see whether its score goes up or moves.

    Args:
        max_gain: standard deviations that a useless change may raise the mean score by.
        max_prompt_share: share of the scores' variance that the prompt alone may explain, 0 to 1.
        max_drift: standard deviations that the score of the same picture may move by, on average.
    """
    limits = Limits(max_gain=max_gain, max_prompt_share=max_prompt_share, max_drift=max_drift)
    options = {"max_gain": max_gain, "max_prompt_share": max_prompt_share, "max_drift": max_drift}
    return Probe(plan=_plan, assess=lambda trial: assess(trial, limits), options=options)


def assess(trial: Trial, limits: Limits) -> Findings:
    """Judge each test by its worst arm."""
    unit = choose_unit(trial.clean, list(trial.scores.values()))
    if unit is None:
        nothing = [_nothing(test, CONSTANT) for test in TESTS]
        return Findings(outcomes=tuple(nothing))
    resampling = resample(trial.bases.prompts, len(trial.clean), draws=trial.draws, seed=trial.seed)
    comparisons = [one for test in TESTS for one in _comparisons(test, trial, limits)]
    grey = trial.scores.get(f"{PROMPT_ONLY}/grey")
    no_share = _why_no_share(grey, trial.clean)
    shares = {} if grey is None or no_share else {PROMPT_ONLY: share_explained(grey, trial.clean)}
    others = {name: (share, limits.max_prompt_share) for name, share in shares.items()}
    cells, found = compare(comparisons, unit, resampling, others)
    outcomes = [
        (no_share or _prompt_outcome(test, found[PROMPT_ONLY]))
        if test.kind == "prompt"
        else _outcome(test, [cell for cell in cells if cell.cell == test.name])
        for test in TESTS
    ]
    metrics = {outcome.test: outcome.effect for outcome in outcomes if outcome.unit == "share"}
    return Findings(outcomes=tuple(outcomes), cells=cells, metrics=metrics, details={"sd": unit.meaning})


def _plan(bases: BaseSet, seed: int) -> Sequence[Arm]:
    tests = [test for test in TESTS if bases.prompts is not None or test.name != PROMPT_ONLY]
    return [
        Arm(
            cell=test.name,
            name=name,
            change=_with_generator(change, (seed, number, place)),
            score=(test.scoring or {}).get(name),
        )
        for number, test in enumerate(tests)
        for place, (name, change) in enumerate(test.arms.items())
    ]


def _with_generator(change: Change, key: tuple[int, ...]) -> Callable[[Image.Image, int], Image.Image]:
    """Random numbers of an arm and a picture alone: neither batch size nor order decides them."""
    return lambda image, row: change(image, np.random.default_rng([*key, row]))


def _comparisons(test: StressTest, trial: Trial, limits: Limits) -> list[Comparison]:
    """Scores against those of the unchanged pictures; where nothing may move, by how much they moved either way."""
    if test.kind == "prompt":
        return []
    limit = limits.max_drift if test.kind == "drift" else limits.max_gain
    return [
        Comparison(test.name, name, "clean", scores, np.abs(moved) if test.kind == "drift" else moved, limit)
        for name in test.arms
        for scores in [trial.scores[f"{test.name}/{name}"]]
        for moved in [scores - trial.clean]
    ]


def _outcome(test: StressTest, cells: Sequence[Cell]) -> Outcome:
    verdicts = [judge_cell(cell) for cell in cells]
    verdict = worst(verdicts)
    top = max(
        (cell for cell, own in zip(cells, verdicts, strict=True) if own is verdict),
        key=lambda cell: cell.change_sd.value,
    )
    words = _gain_words(top, cells, verdict) if test.kind == "gain" else _drift_words(top, verdict)
    return Outcome(
        test=test.name,
        question=test.question,
        verdict=verdict,
        reason=words,
        effect=top.change_sd,
        finding=test.finding,
    )


def _gain_words(top: Cell, cells: Sequence[Cell], verdict: Verdict) -> str:
    moved = f"{top.change_sd.value:+z.2f} sd ({top.arm})"
    if verdict is Verdict.susceptible:
        return f"Yes: {moved}."
    if verdict is Verdict.inconclusive:
        low, high = top.change_sd.low, top.change_sd.high
        return f"Perhaps: {moved}, somewhere from {low:+z.2f} to {high:+z.2f}; take more pictures and prompts."
    lowest = min(cells, key=lambda cell: cell.change_sd.value)
    if lowest.change_sd.high < -_WORTH_MENTIONING:
        return f"No; it lowers it, by up to {-lowest.change_sd.value:.2f} sd ({lowest.arm})."
    return f"No: {moved} at most."


def _drift_words(top: Cell, verdict: Verdict) -> str:
    moved = f"{top.change_sd.value:.3f} sd on average ({top.arm})"
    if verdict is Verdict.robust:
        return "The score stays the same." if top.change_sd.value == 0 else f"The score stays: it moves {moved}."
    return f"The score moves {moved}" + ("." if verdict is Verdict.susceptible else "; take more pictures and prompts.")


def _why_no_share(grey: Scores | None, clean: Scores) -> Outcome | None:
    """The outcome of the test of prompts where there is nothing to divide."""
    test = next(test for test in TESTS if test.name == PROMPT_ONLY)
    if grey is None:
        return _nothing(test, "The pictures have no prompts.")
    if is_flat(clean):
        return _nothing(test, "The unchanged pictures all score the same.")
    if is_flat(grey):
        reason = "Nothing: a grey picture scores the same for every prompt."
        return Outcome(
            test=test.name,
            question=test.question,
            verdict=Verdict.robust,
            reason=reason,
            effect=Estimate(0.0, 0.0, 0.0),
            unit="share",
            finding=test.finding,
        )
    return None


def _prompt_outcome(test: StressTest, tested: Evidence) -> Outcome:
    share = Estimate(*(float(bound) for bound in np.clip(tested.effect, 0.0, 1.0)))
    verdict = judge(share, tested.limit, tested.q)
    words = f"{share.value:.0%} of the variance"
    if verdict is Verdict.susceptible:
        words += ": compare scores within a prompt only"
    return Outcome(
        test=test.name,
        question=test.question,
        verdict=verdict,
        reason=f"{words}.",
        effect=share,
        unit="share",
        finding=test.finding,
    )


def _nothing(test: StressTest, reason: str) -> Outcome:
    return Outcome(test=test.name, question=test.question, verdict=Verdict.not_applicable, reason=reason)
