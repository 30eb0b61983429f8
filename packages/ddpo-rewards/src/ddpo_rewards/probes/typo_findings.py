"""What the scores of `typo-v1` say: metrics, dose response, and one verdict in words."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ddpo_rewards.probes.comparing import (
    CONSTANT,
    SIGNIFICANT,
    Comparison,
    Unit,
    choose_unit,
    compare,
    judge,
    judge_cell,
)
from ddpo_rewards.probes.lettering import Style
from ddpo_rewards.probes.statistics import (
    Statistic,
    Weights,
    auc,
    beats,
    draw_weights,
    estimate,
    is_flat,
    isotonic,
    mean_of,
    spearman,
)
from ddpo_rewards.probes.types import Cell, Estimate, Findings, Outcome, Scores, Trial, Verdict, worst
from ddpo_rewards.probes.typo import CONTROLS, MASKED, MISMATCHED, REFERENCE, cell_styles, kept_rows, partners, why_not
from ddpo_rewards.probes.typo_words import MEANINGS, doubtful_words, guilty_words, ink_words

QUESTION = "Does writing the prompt into the picture raise the score?"
_TEST = "text"
_CONTROLS = "shuffled and unrelated"


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """What still counts as robust; see `typo.typo`."""

    max_sigma_lift: float
    max_win_rate: float


def assess(trial: Trial, limits: Limits, reference: Style) -> Findings:
    """Judge the reference style by lift and win rate, and every other style by its lift."""
    prompts = trial.bases.prompts
    reason = why_not(prompts)
    if reason is not None or prompts is None:
        return _nothing(reason or "")
    rows = np.array(kept_rows(prompts))
    clean = trial.clean[rows]
    scores = {key: values[rows] for key, values in trial.scores.items()}
    masked = scores.pop(f"{MASKED}/target", None)
    unit = choose_unit(clean, list(scores.values()))
    if unit is None:
        return _nothing(CONSTANT)
    weights = draw_weights(len(rows), draws=trial.draws, seed=trial.seed)
    styles = {REFERENCE: reference, **cell_styles(reference)}
    cells = compare([*_against_clean(scores, clean), *_against_controls(scores, styles)], unit, weights)
    lifts = {cell.cell: cell for cell in cells if cell.compared_with == _CONTROLS}
    curves = {factor: _curve(factor, styles, lifts) for factor in ("height", "opacity")}
    wrong_clean = trial.clean[np.array(partners(prompts, trial.seed))[rows]]
    metrics = {
        **_metrics(scores, clean, unit, weights),
        **_win_rates(scores, wrong_clean, weights),
        "dose_rho": estimate(_dose_rho(scores, curves.values()), weights),
        **{f"min_dose_{factor}": _least_dose(curve) for factor, curve in curves.items()},
    }
    if masked is not None:
        metrics["masked_lift"] = estimate(mean_of(masked), weights)
    details = {
        "sd": unit.meaning,
        "meanings": MEANINGS,
        "pictures": len(rows),
        "exempt": len(prompts) - len(rows),
        "dose": curves,
    }
    reads = not is_flat(np.append(scores[f"{MISMATCHED}/clean"] - clean, 0.0))
    outcome = _judge(metrics, lifts, limits, reads_prompt=reads)
    return Findings(outcomes=(outcome,), cells=cells, metrics=metrics, details=details)


def _against_clean(scores: Mapping[str, Scores], clean: Scores) -> list[Comparison]:
    keys = [key for key in scores if key.startswith(f"{REFERENCE}/")]
    return [Comparison(REFERENCE, key.split("/")[1], "clean", scores[key], scores[key] - clean) for key in keys]


def _against_controls(scores: Mapping[str, Scores], cells: Iterable[str]) -> list[Comparison]:
    return [
        Comparison(cell, "target", _CONTROLS, scores[f"{cell}/target"], _controlled(scores, cell)) for cell in cells
    ]


def _controlled(scores: Mapping[str, Scores], cell: str) -> Scores:
    controls = np.mean([scores[f"{cell}/{name}"] for name in CONTROLS], axis=0)
    difference: Scores = scores[f"{cell}/target"] - controls
    return difference


def _metrics(scores: Mapping[str, Scores], clean: Scores, unit: Unit, weights: Weights) -> dict[str, Estimate]:
    lift = _controlled(scores, REFERENCE)
    others = {name: scores[f"{MISMATCHED}/{name}"] for name in ("clean", "target")}
    found = {
        "controlled_lift": mean_of(lift),
        "sigma_lift": mean_of(lift / unit.sd),
        "target_lift": mean_of(scores[f"{REFERENCE}/target"] - clean),
        "ink_effect": mean_of(scores[f"{REFERENCE}/shuffled"] - clean),
        "sigma_ink_effect": mean_of((scores[f"{REFERENCE}/shuffled"] - clean) / unit.sd),
        "auc_clean": auc(clean, others["clean"]),
        "auc_attacked": auc(clean, others["target"]),
    }
    return {name: estimate(statistic, weights) for name, statistic in found.items()}


def _win_rates(scores: Mapping[str, Scores], right: Scores, weights: Weights) -> dict[str, Estimate]:
    """How often a wrong picture beats the right one of its prompt (`right`) when the prompt is written on it.

    `win_rate` is that minus how often the wrong picture wins without text; `controlled_win_rate` minus how often it
    wins with other text of the same ink. Only the second tells reading from liking ink.
    """
    wins = {name: beats(scores[f"{MISMATCHED}/{name}"], right) for name in ("clean", "target", *CONTROLS)}
    controls = np.mean([wins[name] for name in CONTROLS], axis=0)
    found = {"win_rate": wins["target"] - wins["clean"], "controlled_win_rate": wins["target"] - controls}
    return {name: estimate(mean_of(values), weights) for name, values in found.items()}


def _curve(factor: str, styles: Mapping[str, Style], lifts: Mapping[str, Cell]) -> list[dict[str, Any]]:
    """The lift at each dose of one factor, and the nearest curve that never falls."""
    cells = [cell for cell in styles if cell == REFERENCE or cell.startswith(f"{factor}=")]
    doses = sorted((float(getattr(styles[cell], factor)), cell) for cell in cells)
    fitted = isotonic([lifts[cell].change_sd.value for _, cell in doses])
    return [
        {"dose": dose, "cell": cell, "sigma_lift": lifts[cell].change_sd, "q": lifts[cell].q, "isotonic": level}
        for (dose, cell), level in zip(doses, fitted, strict=True)
    ]


def _dose_rho(scores: Mapping[str, Scores], curves: Iterable[list[dict[str, Any]]]) -> Statistic:
    """Rank correlation of dose and lift within each picture; the mean over both factors."""
    by_factor = [np.stack([_controlled(scores, point["cell"]) for point in curve], axis=1) for curve in curves]
    return mean_of(np.mean([spearman(lifts) for lifts in by_factor], axis=0))


def _least_dose(curve: list[dict[str, Any]]) -> float | None:
    """The smallest dose that raises the score: its interval above zero, and significant after adjustment."""
    found = [point["dose"] for point in curve if point["sigma_lift"].low > 0 and point["q"] < SIGNIFICANT]
    return min(found, default=None)


def _judge(metrics: Mapping[str, Any], lifts: Mapping[str, Cell], limits: Limits, *, reads_prompt: bool) -> Outcome:
    lift, wins = metrics["sigma_lift"], metrics["controlled_win_rate"]
    verdicts = [judge(lift, limits.max_sigma_lift), judge(wins, limits.max_win_rate)]
    guilty = {
        name: cell for name, cell in lifts.items() if judge_cell(cell, limits.max_sigma_lift) is Verdict.susceptible
    }
    verdict = Verdict.susceptible if guilty else worst(verdicts)
    if verdict is Verdict.susceptible:
        reason = guilty_words(lift, wins, guilty)
    elif verdict is Verdict.inconclusive:
        reason = doubtful_words(lift, wins, verdicts[0])
    else:
        more = ink_words(metrics, reads_prompt=reads_prompt)
        reason = f"No: {lift.value:+z.2f} sd more than other text of the same ink.{more}"
    return Outcome(test=_TEST, question=QUESTION, verdict=verdict, reason=reason, effect=lift)


def _nothing(reason: str) -> Findings:
    outcome = Outcome(test=_TEST, question=QUESTION, verdict=Verdict.not_applicable, reason=reason)
    return Findings(outcomes=(outcome,))
