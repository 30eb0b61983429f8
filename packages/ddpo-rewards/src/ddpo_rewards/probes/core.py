"""What a probe is, what it finds and what a report holds."""

from base64 import b64encode
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from html import escape
from io import BytesIO
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from jaxtyping import Float
from PIL import Image

from ddpo_rewards.images import as_arrays
from ddpo_rewards.reward import Metadata, Reward

Scores: TypeAlias = Float[np.ndarray, " images"]
# Scores one batch of pictures; an arm may replace it, to score pictures one by one or in another type.
ScoreBatch: TypeAlias = Callable[[Reward, Sequence[Image.Image], Sequence[str] | None, Metadata | None], Scores]


class Verdict(StrEnum):
    """What a probe says of a reward, from good to bad; `not_applicable` where there was nothing to test."""

    not_applicable = "not_applicable"
    robust = "robust"
    inconclusive = "inconclusive"
    susceptible = "susceptible"


_TILE = 128  # in a notebook: pixels of a picture's width
_MEANING = {
    Verdict.robust: "nothing that was tried raises the score without making the picture better",
    Verdict.inconclusive: "there are too few pictures to tell, or too few prompts; use more",
    Verdict.not_applicable: "there was nothing to test",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class BaseSet:
    """The unchanged pictures, read when they are needed, and what each was meant to show.

    `images` holds what `Reward.__call__` takes: paths, PIL images or uint8 arrays. Metadata go with the prompts.
    """

    images: Sequence[Any]
    prompts: Sequence[str] | None = None
    metadata: Metadata | None = None
    source: str = "pictures of the caller"


@dataclass(frozen=True, kw_only=True, slots=True)
class Arm:
    """One way of changing every picture, and the prompts that the changed pictures are scored with.

    `change(image, index)` returns a new RGB picture, decided by its arguments alone. `prompt_rows` says whose prompt
    each picture is scored with; None is its own. `texts` is what was written into each picture, where something was.
    """

    cell: str
    name: str
    change: Callable[[Image.Image, int], Image.Image]
    prompt_rows: Sequence[int] | None = None
    score: ScoreBatch | None = None
    texts: Sequence[str] | None = None

    @property
    def key(self) -> str:
        """The name of the arm within its suite."""
        return f"{self.cell}/{self.name}"


class Estimate(NamedTuple):
    """A value with the bounds of its confidence interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """One comparison of two arms: the mean change of the score, in the reward's unit and in standard deviations (sd).

    `p` is that of a change of at most `limit` sd, one-sided; `q` is `p` adjusted for all tests of the suite. They are
    None where the comparison has no limit and is not judged.
    """

    cell: str
    arm: str
    compared_with: str
    mean: float
    change: Estimate
    change_sd: Estimate
    limit: float | None
    p: float | None
    q: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """The verdict of one test in words that need no paper; `effect` is what the verdict was made from, in `unit`.

    `finding` says in words what it means for the reward to be susceptible; without it, `reason` does.
    """

    test: str
    question: str
    verdict: Verdict
    reason: str
    effect: Estimate | None = None
    unit: str = "sd"
    finding: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Findings:
    """What one suite found: verdicts, the cells they rest on, and named metrics (an `Estimate`, a number or None)."""

    outcomes: tuple[Outcome, ...]
    cells: tuple[Cell, ...] = ()
    metrics: Mapping[str, Estimate | float | None] = field(default_factory=dict)
    details: Mapping[str, Any] = field(default_factory=dict)  # anything else, as JSON values


@dataclass(frozen=True, kw_only=True, slots=True)
class Trial:
    """What `assess` gets: the base set and, by arm key, one score per picture; `clean` is always there."""

    bases: BaseSet
    clean: Scores
    scores: Mapping[str, Scores]
    draws: int
    seed: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Probe:
    """A suite of tests, as two functions: which pictures to score, and what the scores say.

    `plan(bases, seed)` may be asked again for the contact sheet and has to return the same arms; it raises
    `RewardError` where the base set does not serve.
    """

    plan: Callable[[BaseSet, int], Sequence[Arm]]
    assess: Callable[[Trial], Findings]
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class SuiteReport:
    """One suite of a report: its reference as given, its options, its arms, every score, and its findings."""

    suite: str
    options: Mapping[str, Any]
    arms: tuple[Arm, ...]
    scores: Mapping[str, Scores]
    findings: Findings


@dataclass(frozen=True, kw_only=True, slots=True)
class ProbeReport:
    """Everything that a probing found; the functions of `report` write it to files.

    `clusters` is how many of the pictures count as independent: one per prompt.
    """

    verdict: Verdict
    reward: Mapping[str, Any]
    bases: BaseSet
    base_sha256: str
    clean: Scores
    clusters: int
    suites: tuple[SuiteReport, ...]
    seed: int
    draws: int
    versions: Mapping[str, str]

    def _repr_html_(self) -> str:
        """Show the verdict, the answer of every test, and what was done to the first picture, in a notebook."""
        title = f"{self.reward['id']}: {self.verdict.value.replace('_', ' ')}"
        keys = ("question", "answer", "effect", "verdict")
        left = 'style="text-align:left"'
        lines = ([f"<td {left}>{escape(row[key])}</td>" for key in keys] for row in outcome_rows(self))
        table = "".join(f"<tr>{''.join(line)}</tr>" for line in lines)
        head = "".join(f"<th {left}>{key}</th>" for key in keys)
        return (
            f"<b>{escape(title)}</b><p>{escape(conclusion(self))}</p><table><tr>{head}</tr>{table}</table>"
            f"{''.join(_figures(self))}"
        )


def conclusion(report: ProbeReport) -> str:
    """What the verdict means, in the words of the tests that found it."""
    if report.verdict is not Verdict.susceptible:
        return _MEANING[report.verdict]
    outcomes = [outcome for suite in report.suites for outcome in suite.findings.outcomes]
    guilty = [outcome for outcome in outcomes if outcome.verdict is Verdict.susceptible]
    return "; ".join(dict.fromkeys(outcome.finding or outcome.reason.rstrip(".") for outcome in guilty))


def outcome_rows(report: ProbeReport) -> list[dict[str, Any]]:
    """One row per test: what was asked, the answer in words, and the verdict."""
    return [
        {
            "test": outcome.test,
            "question": outcome.question,
            "answer": outcome.reason,
            "effect": effect_text(outcome),
            "verdict": outcome.verdict.value.replace("_", " "),
        }
        for suite in report.suites
        for outcome in suite.findings.outcomes
    ]


def effect_text(outcome: Outcome) -> str:
    """The effect and its interval, as a person reads it."""
    if outcome.effect is None:
        return ""
    value, low, high = outcome.effect
    if outcome.unit == "share":
        return f"{value:.0%} ({low:.0%} to {high:.0%})"
    return f"{value:+z.2f} {outcome.unit} ({low:+z.2f} to {high:+z.2f})"


def read_images(bases: BaseSet, rows: range) -> list[Image.Image]:
    """Some of the unchanged pictures as RGB images."""
    return [Image.fromarray(array) for array in as_arrays(bases.images[rows.start : rows.stop])]


def together(
    reward: Reward, images: Sequence[Image.Image], prompts: Sequence[str] | None, metadata: Metadata | None
) -> Scores:
    """Score a batch in one call."""
    return reward(list(images), prompts, metadata).scores.astype(np.float64)


def pick(items: Sequence[Any] | None, rows: Sequence[int]) -> list[Any] | None:
    """Those of some rows; None of None."""
    return None if items is None else [items[row] for row in rows]


def worst(verdicts: Sequence[Verdict]) -> Verdict:
    """The verdict on the whole: the worst there is; `not_applicable` only where nothing else was found.

    Example:
        >>> worst([Verdict.robust, Verdict.not_applicable]), worst([])
        (<Verdict.robust: 'robust'>, <Verdict.not_applicable: 'not_applicable'>)
    """
    order = list(Verdict)
    return max(verdicts, key=order.index, default=Verdict.not_applicable)


def _figures(report: ProbeReport) -> Iterator[str]:
    """Show the first picture, and what one arm of every cell made of it, with their scores."""
    (image,) = read_images(report.bases, range(1))
    yield _figure(image, "unchanged", report.clean[0])
    for suite in report.suites:
        seen: set[str] = set()
        for arm in suite.arms:
            if arm.score is None and arm.prompt_rows is None and arm.cell not in seen:
                seen.add(arm.cell)
                yield _figure(arm.change(image, 0), arm.key, suite.scores[arm.key][0])


def _figure(image: Image.Image, name: str, score: float) -> str:
    small, buffer = image.copy(), BytesIO()
    small.thumbnail((2 * _TILE, 2 * _TILE))
    small.save(buffer, "PNG")
    source, text = f"data:image/png;base64,{b64encode(buffer.getvalue()).decode()}", escape(f"{name}: {score:.4g}")
    return (
        f'<figure style="margin:4px;display:inline-block;vertical-align:top"><img src="{source}" alt="{text}" '
        f'style="width:{_TILE}px;image-rendering:pixelated"><figcaption style="max-width:{_TILE}px;font-size:smaller">'
        f"{text}</figcaption></figure>"
    )
