"""What the scores of the stress suite say, in words."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ddpo_rewards.probes.comparing import CONSTANT, Comparison, Unit, choose_unit, compare, judge, judge_cell
from ddpo_rewards.probes.statistics import Weights, draw_weights, estimate, is_flat, share_explained
from ddpo_rewards.probes.stress import TESTS, StressTest
from ddpo_rewards.probes.types import Cell, Estimate, Findings, Outcome, Trial, Verdict, worst

_WORTH_MENTIONING = 0.25  # sd by which a useless change lowers the score


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """What still counts as robust; see `stress.stress`."""

    max_gain: float
    max_prompt_share: float
    max_drift: float


def assess(trial: Trial, limits: Limits) -> Findings:
    """Judge each test by its worst arm."""
    unit = choose_unit(trial.clean, list(trial.scores.values()))
    if unit is None:
        nothing = [_nothing(test, CONSTANT) for test in TESTS]
        return Findings(outcomes=tuple(nothing))
    weights = draw_weights(len(trial.clean), draws=trial.draws, seed=trial.seed)
    cells = compare([one for test in TESTS for one in _comparisons(test, trial)], unit, weights)
    outcomes = [
        _prompt_outcome(test, trial, weights, limits)
        if test.kind == "prompt"
        else _outcome(test, [cell for cell in cells if cell.cell == test.name], limits)
        for test in TESTS
    ]
    shares = {outcome.test: outcome.effect for outcome in outcomes if outcome.unit == "share"}
    return Findings(outcomes=tuple(outcomes), cells=cells, metrics=shares, details=_details(unit))


def _details(unit: Unit) -> dict[str, str]:
    return {"sd": unit.meaning}


def _comparisons(test: StressTest, trial: Trial) -> list[Comparison]:
    """Scores against those of the unchanged pictures; where nothing may move, by how much they moved either way."""
    if test.kind == "prompt":
        return []
    return [
        Comparison(test.name, name, "clean", scores, np.abs(moved) if test.kind == "drift" else moved)
        for name in test.arms
        for scores in [trial.scores[f"{test.name}/{name}"]]
        for moved in [scores - trial.clean]
    ]


def _outcome(test: StressTest, cells: Sequence[Cell], limits: Limits) -> Outcome:
    if test.kind == "gain":
        verdicts = [judge_cell(cell, limits.max_gain) for cell in cells]
    else:  # an absolute change is never below zero, so its p-value says nothing
        verdicts = [judge(cell.change_sd, limits.max_drift) for cell in cells]
    verdict = worst(verdicts)
    guilty = [cell for cell, own in zip(cells, verdicts, strict=True) if own is verdict]
    top = max(guilty, key=lambda cell: cell.change_sd.value)
    words = _gain_words(top, cells, verdict) if test.kind == "gain" else _drift_words(top, verdict)
    return Outcome(test=test.name, question=test.question, verdict=verdict, reason=words, effect=top.change_sd)


def _gain_words(top: Cell, cells: Sequence[Cell], verdict: Verdict) -> str:
    moved = f"{top.change_sd.value:+z.2f} sd ({top.arm})"
    if verdict is Verdict.susceptible:
        return f"Yes: {moved}."
    if verdict is Verdict.inconclusive:
        low, high = top.change_sd.low, top.change_sd.high
        return f"Perhaps: {moved}, somewhere from {low:+z.2f} to {high:+z.2f}; use more pictures."
    lowest = min(cells, key=lambda cell: cell.change_sd.value)
    if lowest.change_sd.high < -_WORTH_MENTIONING:
        return f"No; it lowers it, by up to {-lowest.change_sd.value:.2f} sd ({lowest.arm})."
    return f"No: {moved} at most."


def _drift_words(top: Cell, verdict: Verdict) -> str:
    moved = f"{top.change_sd.value:.3f} sd on average ({top.arm})"
    if verdict is Verdict.robust:
        return "The score stays the same." if top.change_sd.value == 0 else f"The score stays: it moves {moved}."
    return f"The score moves {moved}" + ("." if verdict is Verdict.susceptible else "; use more pictures.")


def _prompt_outcome(test: StressTest, trial: Trial, weights: Weights, limits: Limits) -> Outcome:
    grey = trial.scores.get(f"{test.name}/grey")
    if grey is None:
        return _nothing(test, "The pictures have no prompts.")
    if is_flat(trial.clean):
        return _nothing(test, "The unchanged pictures all score the same.")
    if is_flat(grey):
        none = Estimate(0.0, 0.0, 0.0)
        return _prompt_found(test, none, "Nothing: a grey picture scores the same for every prompt.", Verdict.robust)
    share = estimate(share_explained(grey, trial.clean), weights)
    verdict = judge(share, limits.max_prompt_share)
    words = f"{share.value:.0%} of the variance"
    if verdict is Verdict.susceptible:
        words += ": compare scores within a prompt only"
    return _prompt_found(test, share, f"{words}.", verdict)


def _prompt_found(test: StressTest, share: Estimate, reason: str, verdict: Verdict) -> Outcome:
    return Outcome(test=test.name, question=test.question, verdict=verdict, reason=reason, effect=share, unit="share")


def _nothing(test: StressTest, reason: str) -> Outcome:
    return Outcome(test=test.name, question=test.question, verdict=Verdict.not_applicable, reason=reason)
