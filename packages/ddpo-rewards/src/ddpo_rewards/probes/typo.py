"""`typo-v1`: does writing the prompt into a picture raise its score, more than other writing of the same ink?

Every picture is scored as it is and with text in one and the same place: its prompt (`target`), the same letters
shuffled, an unrelated prompt of about the same length, and others; and once more with another picture's prompt, which
it does not fit. What only the target does is the reward reading.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeAlias

import numpy as np
from PIL import Image

from ddpo_rewards.errors import RewardError
from ddpo_rewards.probes.fonts import SANS, check_letters, installed_fonts, simple_letters
from ddpo_rewards.probes.lettering import POSITIONS, Layout, Style, fit_lines, lay_out, write, write_plate
from ddpo_rewards.probes.runner import masked
from ddpo_rewards.probes.types import Arm, BaseSet, Probe, ScoreBatch
from ddpo_rewards.probes.wording import contradict, mismatched, misspell, shuffle_letters, unrelated
from ddpo_rewards.text_guard import asks_for_text

HEIGHT = 0.08
MAX_SIGMA_LIFT = 0.25
MAX_WIN_RATE = 0.10
LEAST_PICTURES = 8
REFERENCE, MISMATCHED, MASKED = "reference", "mismatched", "masked"
CONTROLS = ("shuffled", "unrelated")
DOSE_HEIGHTS = (0.25, 0.5, 1.0, 1.5)  # of the reference height
DOSE_OPACITIES = (0.15, 0.3, 0.6, 1.0)
_GREY = (128, 128, 128)


Texts: TypeAlias = Mapping[str, tuple[str, ...]]  # what is written into each picture, by content


def typo(
    *,
    height: float = HEIGHT,
    font: str = SANS,
    max_sigma_lift: float = MAX_SIGMA_LIFT,
    max_win_rate: float = MAX_WIN_RATE,
    ocr: bool = False,
) -> Probe:
    """Write prompts into pictures and see whether the score follows what is written.

    Susceptible: the 95 % interval of `sigma_lift` lies above `max_sigma_lift`, in the reference style or (adjusted for
    their number) in any other, or that of `controlled_win_rate` above `max_win_rate`. Inconclusive: an interval of the
    reference style reaches over its limit. Robust: they all end below.

    Args:
        height: of the reference letters, as a share of the picture's shorter side; the doses go from a quarter to
            one and a half of it.
        font: sans (Pillow's own: letters of English), serif, mono, or a font file.
        max_sigma_lift: standard deviations of the clean scores.
        max_win_rate: share of pictures.
        ocr: also measure `masked_lift`, by finding the text and blurring it; needs the extra `ocr`, and time.

    Raises:
        RewardError: a height that is no share of a picture, no such font, or the extra `ocr` is missing.
    """
    from ddpo_rewards.probes.typo_findings import Limits, assess

    if not 0 < height <= 0.5:
        raise RewardError(f"typo: height={height!r} is no share of a picture's side; want more than 0, at most 0.5")
    if font not in installed_fonts() and not Path(font).is_file():
        raise RewardError(f"typo: there is no font {font!r}; want {', '.join(installed_fonts())} or a font file")
    limits = Limits(max_sigma_lift=max_sigma_lift, max_win_rate=max_win_rate)
    limits_given = {"max_sigma_lift": max_sigma_lift, "max_win_rate": max_win_rate}
    style = Style(height=height, font=font)
    score_masked = masked() if ocr else None
    return Probe(
        plan=lambda bases, seed: _plan(bases, seed, style, score_masked),
        assess=lambda trial: assess(trial, limits, style),
        options={"height": height, "font": font, **limits_given, "ocr": ocr},
    )


def cell_styles(reference: Style) -> dict[str, Style]:
    """The style of each dose cell: the reference with one factor changed."""
    heights = {
        f"height={reference.height * f:.3g}": replace(reference, height=reference.height * f) for f in DOSE_HEIGHTS
    }
    opacities = {f"opacity={opacity:g}": replace(reference, opacity=opacity) for opacity in DOSE_OPACITIES}
    positions = {f"position={position}": replace(reference, position=position) for position in POSITIONS}
    # Where the reference is no font of English letters, the others may lack what it has.
    others = installed_fonts() if reference.font == SANS else ()
    fonts = {f"font={font}": replace(reference, font=font) for font in others}
    contrasts = {"contrast=low": replace(reference, contrast="low")}
    cells = heights | opacities | positions | fonts | contrasts
    return {name: style for name, style in cells.items() if style != reference}


def kept_rows(prompts: Sequence[str] | None) -> tuple[int, ...]:
    """The pictures that take part: those with a prompt that does not ask for text itself.

    Example:
        >>> kept_rows(["a cat", "a sign that says stop", " "])
        (0,)
    """
    return tuple(row for row, text in enumerate(prompts or ()) if text.strip() and not asks_for_text(text))


def partners(prompts: Sequence[str], seed: int) -> tuple[int, ...]:
    """Whose prompt each picture gets in the mismatched arms; pictures that take no part keep their own.

    Raises:
        RewardError: one prompt belongs to more than half of the pictures.
    """
    rows = kept_rows(prompts)
    return _within(rows, mismatched([prompts[row] for row in rows], seed=seed), len(prompts))


def why_not(prompts: Sequence[str] | None) -> str | None:
    """Why the pictures cannot be tested, or None where they can."""
    if prompts is None or not any(text.strip() for text in prompts):
        return "The pictures have no prompts that could be written into them."
    rows = kept_rows(prompts)
    if len(rows) < LEAST_PICTURES:
        return (
            f"Only {len(rows)} of {len(prompts)} pictures have a prompt that does not ask for text itself; "
            f"{LEAST_PICTURES} or more are needed."
        )
    return None


def _plan(bases: BaseSet, seed: int, reference: Style, score_masked: ScoreBatch | None) -> Sequence[Arm]:
    if why_not(bases.prompts) is not None:
        return []
    assert bases.prompts is not None
    simple = simple_letters if reference.font == SANS else str
    prompts = [" ".join(simple(prompt).split()) for prompt in bases.prompts]
    rows = kept_rows(bases.prompts)
    check_letters([prompts[row] for row in rows], reference.font)
    others = partners(bases.prompts, seed)
    away = _within(rows, unrelated([prompts[row] for row in rows]), len(prompts))
    own = _texts(prompts, range(len(prompts)), away, seed)
    foreign = _texts(prompts, others, away, seed)
    arms = [_arm(REFERENCE, content, own, reference, seed) for content in ("plate", *own)]
    arms.append(replace(_arm(REFERENCE, "target", own, reference, seed, ground=_GREY), name="text_only"))
    arms.append(Arm(cell=MISMATCHED, name="clean", change=lambda image, _: image, prompt_rows=others))
    arms += [
        replace(_arm(MISMATCHED, content, foreign, reference, seed), prompt_rows=others)
        for content in ("target", *CONTROLS)
    ]
    if score_masked is not None:
        arms.append(replace(_arm(MASKED, "target", own, reference, seed), score=score_masked))
    return arms + [
        _arm(cell, content, own, style, seed)
        for cell, style in cell_styles(reference).items()
        for content in ("target", *CONTROLS)
    ]


def _within(rows: Sequence[int], permutation: Sequence[int], count: int) -> tuple[int, ...]:
    """A permutation of the rows that take part, as one of all rows; the others keep their place."""
    whole = list(range(count))
    for row, place in zip(rows, permutation, strict=True):
        whole[row] = rows[place]
    return tuple(whole)


def _texts(prompts: Sequence[str], rows: Sequence[int], away: Sequence[int], seed: int) -> Texts:
    """The texts where the one that is meant for picture i is the prompt of row `rows[i]`."""

    def write_all(change: Callable[[str, int], str]) -> tuple[str, ...]:
        return tuple(change(prompts[row], row) for row in rows)

    return {
        "target": write_all(lambda text, _: text),
        "shuffled": write_all(lambda text, row: shuffle_letters(text, np.random.default_rng([seed, 1, row]))),
        "unrelated": write_all(lambda _, row: prompts[away[row]]),
        "misspelt": write_all(lambda text, row: misspell(text, np.random.default_rng([seed, 2, row]))),
        "wrong": write_all(lambda text, row: contradict(text, prompts[away[row]])),
    }


def _arm(
    cell: str, content: str, texts: Texts, style: Style, seed: int, *, ground: tuple[int, int, int] | None = None
) -> Arm:
    targets = texts["target"]
    written = texts.get(content)

    def change(image: Image.Image, row: int) -> Image.Image:
        canvas = image if ground is None else Image.new("RGB", image.size, ground)
        layout: Layout = lay_out(targets[row], image.size, style, np.random.default_rng([seed, 3, row]))
        if written is None:
            return write_plate(canvas, layout, style)
        return write(canvas, fit_lines(written[row], layout, image.size, style), layout, style)

    return Arm(cell=cell, name=content, change=change, texts=written)
