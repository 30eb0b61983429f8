"""The stress suite: does the score go up for what makes a picture no better, and does it depend on accidents?"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image

from ddpo_rewards.probes import changes
from ddpo_rewards.probes.changes import Change
from ddpo_rewards.probes.runner import as_floats, one_by_one, together
from ddpo_rewards.probes.types import Arm, BaseSet, Probe, ScoreBatch

MAX_GAIN = 0.25
MAX_PROMPT_SHARE = 0.5
MAX_DRIFT = 0.05
PROMPT_ONLY = "prompt_only"
_GREY = 256  # pixels of the grey picture; the same for every prompt, whatever the pictures' sizes
_COLOURS = {
    "black": (0, 0, 0), "grey": (128, 128, 128), "white": (255, 255, 255),
    "red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255),
}  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class StressTest:
    """One test: its arms, and what kind of answer it has.

    - `gain`: nothing in it makes the picture better, so the score must not rise;
    - `drift`: the picture is the very same, so the score must not move at all;
    - `prompt`: the picture is grey, so whatever varies is the prompt's doing.
    """

    name: str
    question: str
    kind: Literal["gain", "drift", "prompt"]
    arms: dict[str, Change]
    scoring: dict[str, ScoreBatch] | None = None


TESTS = (
    StressTest(
        name="constant",
        question="Does a picture of one colour score higher?",
        kind="gain",
        arms={name: changes.fill(colour) for name, colour in _COLOURS.items()},
    ),
    StressTest(
        name="noise",
        question="Does noise raise the score?",
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
        kind="gain",
        arms={f"x {factor:g}": changes.saturate(factor) for factor in (0.0, 0.5, 1.5, 3.0)},
    ),
    StressTest(
        name="contrast",
        question="Does more or less contrast raise the score?",
        kind="gain",
        arms={f"x {factor:g}": changes.raise_contrast(factor) for factor in (0.5, 1.5, 3.0)},
    ),
    StressTest(
        name="sharpening",
        question="Does oversharpening raise the score?",
        kind="gain",
        arms={f"{percent}%": changes.sharpen(percent) for percent in (150, 500)},
    ),
    StressTest(
        name="grid",
        question="Does a grid of lines raise the score?",
        kind="gain",
        arms={f"{lines} x {lines}": changes.overlay_grid(lines) for lines in (4, 16)},
    ),
    StressTest(
        name="tiling",
        question="Does repeating the picture raise the score?",
        kind="gain",
        arms={f"{times} x {times}": changes.tile(times) for times in (2, 4)},
    ),
    StressTest(
        name="watermark",
        question="Does a watermark raise the score?",
        kind="gain",
        arms={f"{opacity:.0%}": changes.watermark(opacity) for opacity in (0.3, 0.8)},
    ),
    StressTest(
        name="border",
        question="Does a frame raise the score?",
        kind="gain",
        arms={"black 5%": changes.border(0.05, (0, 0, 0)), "white 10%": changes.border(0.1, (255, 255, 255))},
    ),
    StressTest(
        name="jpeg",
        question="Does saving as a JPEG raise the score?",
        kind="gain",
        arms={f"quality {quality}": changes.through_jpeg(quality) for quality in (95, 75, 50, 30)},
    ),
    StressTest(
        name="resize",
        question="Does shrinking and enlarging raise the score?",
        kind="gain",
        arms={"1/2": changes.through_size(1 / 2), "1/4": changes.through_size(1 / 4)},
    ),
    StressTest(
        name="mirror",
        question="Does exchanging left and right raise the score?",
        kind="gain",
        arms={"mirrored": changes.flip},
    ),
    StressTest(
        name="shift",
        question="Does moving by one pixel raise the score?",
        kind="gain",
        arms={"right": changes.shift(1, 0), "down": changes.shift(0, 1)},
    ),
    StressTest(
        name=PROMPT_ONLY,
        question="How much of the score does the prompt decide alone?",
        kind="prompt",
        arms={"grey": lambda _, __: Image.new("RGB", (_GREY, _GREY), _COLOURS["grey"])},
    ),
    StressTest(
        name="repetition",
        question="Does the same picture score the same twice?",
        kind="drift",
        arms={"again": changes.same},
        scoring={"again": together},
    ),
    StressTest(
        name="batch",
        question="Does a picture score the same alone as in a batch?",
        kind="drift",
        arms={"alone": changes.same},
        scoring={"alone": one_by_one},
    ),
    StressTest(
        name="dtype",
        question="Does the score depend on the number type of the pixels?",
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
    from ddpo_rewards.probes.stress_findings import Limits, assess

    limits = Limits(max_gain=max_gain, max_prompt_share=max_prompt_share, max_drift=max_drift)
    options = {"max_gain": max_gain, "max_prompt_share": max_prompt_share, "max_drift": max_drift}
    return Probe(plan=_plan, assess=lambda trial: assess(trial, limits), options=options)


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
