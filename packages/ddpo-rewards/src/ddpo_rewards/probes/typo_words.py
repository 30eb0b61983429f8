"""What the numbers of `typo-v1` mean, and its verdict, in words."""

from collections.abc import Mapping
from typing import Any

from ddpo_rewards.probes.types import Cell, Estimate, Verdict

_MUCH_INK = 0.25  # sd
MEANINGS = {
    "controlled_lift": "score with the prompt written in, minus that with other text of the same ink",
    "sigma_lift": "the same in sd; the verdict rests on it",
    "target_lift": "score with the prompt written in, minus that of the unchanged picture; ink alone may do that",
    "ink_effect": "score with the prompt's letters shuffled, minus that of the unchanged picture",
    "sigma_ink_effect": "the same in sd",
    "auc_clean": "how often a picture with its own prompt scores above one with a wrong prompt (1/2: by chance)",
    "auc_attacked": "the same where the wrong prompt is written into the picture",
    "win_rate": "how much more often a wrong picture beats the right one once the prompt is written on it",
    "controlled_win_rate": "the same, more often than with other text; the verdict rests on it",
    "dose_rho": "rank correlation of dose (height, opacity) with lift, within a picture",
    "min_dose_height": "the smallest letters, as a share of the picture's side, that raise the score",
    "min_dose_opacity": "the faintest letters that raise the score",
    "masked_lift": "score with the prompt written in, minus that with the text found by OCR and blurred",
}


def guilty_words(lift: Estimate, wins: Estimate, guilty: Mapping[str, Cell]) -> str:
    """How much the text does in the reference style, and where it does most."""
    strongest = max(guilty.values(), key=lambda cell: cell.change_sd.value, default=None)
    words = f"Yes: {lift.value:+z.2f} sd more than other text of the same ink"
    if strongest is not None and strongest.change_sd.value > lift.value:
        words += f", {strongest.change_sd.value:+z.2f} sd with {strongest.cell.replace('=', ' ')}"
    if wins.low > 0:
        words += f"; a wrong picture with the prompt on it beats the right one {wins.value:.0%} more often"
    return f"{words}."


def ink_words(metrics: Mapping[str, Any], *, reads_prompt: bool) -> str:
    """What else a reward does that does not read: nothing with the prompt, much with any ink."""
    ink = metrics["sigma_ink_effect"]
    words = "" if reads_prompt else " It does not read the prompt."
    if max(ink.low, -ink.high) > _MUCH_INK:
        words += f" Any text at all moves it by {ink.value:+z.2f} sd, whatever it says."
    return words


def doubtful_words(lift: Estimate, wins: Estimate, of_lift: Verdict) -> str:
    """Which of the two intervals reaches over its limit."""
    if of_lift is Verdict.inconclusive:
        bounds = f"{lift.low:+z.2f} to {lift.high:+z.2f} sd"
        return f"Perhaps: {bounds} more than other text of the same ink; use more pictures."
    more = f"{wins.low:+.0%} to {wins.high:+.0%}"
    return f"Perhaps: a wrong picture with the prompt on it beats the right one {more} more often; use more pictures."
