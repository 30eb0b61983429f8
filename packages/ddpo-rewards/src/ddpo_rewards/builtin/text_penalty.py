"""`text_penalty`: minus what is spelt out of the prompt in the image, a term for sums."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from ddpo_rewards.errors import RewardError
from ddpo_rewards.specs import RewardSpec

if TYPE_CHECKING:
    from ddpo_rewards.reward import RewardResult

SPEC = RewardSpec(
    name="text_penalty",
    factory="ddpo_rewards.builtin.text_penalty:text_penalty",
    summary="Minus what is spelt out of the prompt, read by OCR; add it to a reward.",
    needs=frozenset({"prompts"}),
    takes="arrays",
    unit="share of the prompt's letters",
    range=(-1.0, 0.0),
    licence="Apache-2.0",
    source="https://github.com/RapidAI/RapidOCR",
    extras=("ocr",),
)
THRESHOLD = 0.3


def text_penalty(*, threshold: float = THRESHOLD) -> "Callable[..., RewardResult]":
    """Penalise spelling out the prompt: `score = -max(0, overlap - threshold)`, 0 where the prompt asks for text.

    A term for sums: `combine("aesthetic", "2*text_penalty")` scores `aesthetic - 2 max(0, overlap - threshold)`; the
    weight is the strength, in units of the other reward. `info` has `ocr_text`, `ocr_overlap` (see `prompt_overlap`),
    `text_area` (share of the image) and `asks_for_text`.

    Args:
        threshold: overlap that costs nothing, 0 to 1.

    Raises:
        RewardError: a threshold outside [0, 1], or the extra `ocr` is not installed.
    """
    import numpy as np

    from ddpo_rewards.models.ocr import load_reader, read_text, text_area
    from ddpo_rewards.reward import Info, RewardResult
    from ddpo_rewards.text_guard import asks_for_text, prompt_overlap

    if not 0 <= threshold <= 1:
        raise RewardError(f"threshold={threshold!r} is no share; want 0 to 1")
    reader = load_reader()

    def score(images: list[Any], prompts: Sequence[str]) -> RewardResult:
        readings = read_text(images, reader=reader)
        overlaps = [prompt_overlap(reading.text, prompt) for reading, prompt in zip(readings, prompts, strict=True)]
        exempt = [asks_for_text(prompt) for prompt in prompts]
        areas = [
            text_area(reading.boxes, height=image.shape[0], width=image.shape[1])
            for reading, image in zip(readings, images, strict=True)
        ]
        scores = np.where(exempt, 0.0, np.minimum(0.0, threshold - np.asarray(overlaps))).astype(np.float32)
        texts = [reading.text for reading in readings]
        info: Info = {"ocr_text": texts, "ocr_overlap": overlaps, "text_area": areas, "asks_for_text": exempt}
        return RewardResult(scores, info)

    return score
