"""`vqa_accuracy`: does a vision-language model answer each image's own questions as wanted? `llava_vqa`: does LLaVA?

DDPO-style, not paper-equal: the paper used LLaVA v0 13B, which is not what hubs serve today.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from ddpo_rewards.compute import Device, DType
from ddpo_rewards.errors import RewardError
from ddpo_rewards.models import CAPTIONER, LLAVA
from ddpo_rewards.specs import RewardSpec

if TYPE_CHECKING:
    import numpy as np

    from ddpo_rewards.models.captioner import Captioner
    from ddpo_rewards.reward import Metadata, RewardResult

SPEC = RewardSpec(
    name="vqa_accuracy",
    factory="ddpo_rewards.builtin.vqa_accuracy:vqa_accuracy",
    summary="Share of each image's own questions that a vision-language model answers as wanted.",
    needs=frozenset({"metadata"}),
    takes="arrays",
    unit="share of right answers",
    range=(0.0, 1.0),
    licence="Apache-2.0",
    source="Black et al. 2023, Training Diffusion Models with Reinforcement Learning, arXiv:2305.13301",
    weights=(CAPTIONER,),
)
LLAVA_SPEC = replace(
    SPEC,
    name="llava_vqa",
    factory="ddpo_rewards.builtin.vqa_accuracy:llava_vqa",
    summary="Share of each image's own questions that LLaVA answers as wanted; DDPO-style.",
    licence="Llama-2 (LLaVA)",
    weights=(LLAVA,),
)
MODEL = CAPTIONER.source.removeprefix("hf://")


@dataclass(frozen=True, eq=False)
class AnswerScore:
    """The score function of `vqa_accuracy`."""

    captioner: "Captioner"

    def __call__(self, images: "Sequence[np.ndarray]", *, metadata: "Metadata") -> "RewardResult":
        """Share of each image's questions whose answer holds the wanted one."""
        import numpy as np

        from ddpo_rewards.reward import RewardResult

        wanted = [_questions_and_answers(index, item) for index, item in enumerate(metadata)]
        pairs = [
            (image, question) for image, (questions, _) in zip(images, wanted, strict=True) for question in questions
        ]
        flat = iter(self.captioner([image for image, _ in pairs], [question for _, question in pairs]))
        answers = [[next(flat) for _ in questions] for questions, _ in wanted]
        scores = [_share_right(given, right) for given, (_, right) in zip(answers, wanted, strict=True)]
        empty = [any(not answer.strip() for answer in given) for given in answers]
        return RewardResult(np.asarray(scores, np.float32), {"answers": answers, "empty": empty})


def vqa_accuracy(
    *,
    model: str = MODEL,
    revision: str | None = None,
    endpoint: str | None = None,
    device: Device = None,
    dtype: DType = None,
    batch_size: int = 16,
    max_new_tokens: int = 64,
    timeout: float = 120.0,
    retries: int = 3,
    concurrency: int = 16,
    captioner: "Captioner | None" = None,
) -> AnswerScore:
    """Ask each image its own questions: `score = share of answers that hold the wanted words, whole`, in [0, 1].

    Metadata of each image is a mapping with `questions` and `answers`, lists of strings of one length. Options as in
    `caption_bertscore`. `info["answers"]` holds what was said; an empty answer is wrong, and `info["empty"]` flags it.

    Source: jannerm/ddpo llava_vqa; ddpo-pytorch rewards.py llava_strict_satisfaction. Deviations: upper and lower case
    are the same; words and numbers count whole, where the source finds "one" in "none" and 3 in 13.
    """
    options = locals()  # exactly the arguments: nothing else is bound yet
    from ddpo_rewards.models.captioner import captioner_of

    return AnswerScore(captioner or captioner_of(options))


llava_vqa = partial(vqa_accuracy, model=LLAVA.source.removeprefix("hf://"))


def _questions_and_answers(index: int, item: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    questions, answers = item.get("questions"), item.get("answers")
    for word, value in (("questions", questions), ("answers", answers)):
        if not isinstance(value, list | tuple) or not value or not all(isinstance(t, str) and t.strip() for t in value):
            raise RewardError(f"metadata {index} has {word}={value!r}; want a list of one string or more, none blank")
    if len(questions or ()) != len(answers or ()):
        raise RewardError(f"metadata {index} has {len(questions or ())} questions and {len(answers or ())} answers")
    return list(questions or ()), list(answers or ())


def _share_right(answers: Sequence[str], wanted: Sequence[str]) -> float:
    return sum(map(_holds, answers, wanted)) / len(wanted)


def _holds(answer: str, wanted: str) -> bool:
    """Whether the wanted words stand in an answer, whole: no "one" in "none", no 3 in 13 or 3.5."""
    words = r"\s+".join(map(re.escape, wanted.casefold().split()))
    return re.search(rf"(?<!\w)(?<!\d[.,]){words}(?!\w)(?![.,]\d)", answer.casefold()) is not None
