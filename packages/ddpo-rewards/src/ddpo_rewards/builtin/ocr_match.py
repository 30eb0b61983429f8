"""`ocr_match`: does the image spell what the prompt quotes?"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from ddpo_rewards.errors import RewardError
from ddpo_rewards.specs import RewardSpec

if TYPE_CHECKING:
    from ddpo_rewards.reward import RewardResult

SPEC = RewardSpec(
    name="ocr_match",
    factory="ddpo_rewards.builtin.ocr_match:ocr_match",
    summary="How well the image spells what the prompt quotes, read by OCR.",
    needs=frozenset({"prompts"}),
    takes="arrays",
    unit="share of the quoted letters",
    range=(0.0, 1.0),
    licence="Apache-2.0",
    source="https://github.com/RapidAI/RapidOCR",
    extras=("ocr",),
)


def ocr_match() -> "Callable[..., RewardResult]":
    """Reward written text: `score = mean over the prompt's quotes of their spelling in what is read`, in [0, 1].

    What stands in quotation marks is wanted: `a sign that says "open late"`. See `text_guard.spelling` for what a wrong
    letter costs; case, blanks and punctuation cost nothing. It looks at nothing else, so add it to a reward of the
    picture, which would otherwise go blank for the letters' sake. `info` has `ocr_text`, `quoted` and `spelling` (one
    per quote).

    Raises:
        RewardError: the extra `ocr` is not installed; and, when called, a prompt that quotes nothing.
    """
    import numpy as np

    from ddpo_rewards.models.ocr import load_reader, read_text
    from ddpo_rewards.reward import Info, RewardResult
    from ddpo_rewards.text_guard import quoted_texts, spelling

    reader = load_reader()

    def score(images: list[Any], prompts: Sequence[str]) -> RewardResult:
        quotes = [quoted_texts(prompt) for prompt in prompts]
        for index, (prompt, own) in enumerate(zip(prompts, quotes, strict=True)):
            if not own:
                raise RewardError(f'prompt {index}, {prompt!r}, quotes no text; want one like: a sign that says "open"')
        texts = [reading.text for reading in read_text(images, reader=reader)]
        spellings = [[spelling(text, quote) for quote in own] for text, own in zip(texts, quotes, strict=True)]
        scores = np.asarray([np.mean(own) for own in spellings], np.float32)
        info: Info = {"ocr_text": texts, "quoted": quotes, "spelling": spellings}
        return RewardResult(scores, info)

    return score
