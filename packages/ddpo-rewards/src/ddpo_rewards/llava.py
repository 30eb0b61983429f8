"""`llava_bertscore` and `llava_vqa`: does a vision-language model see what the prompt asked for?

DDPO-style, not paper-equal: the paper used LLaVA v0 13B, which is not what hubs serve today.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ddpo_rewards.bertscore import Scorer, load_bert_scorer, recall_baseline
from ddpo_rewards.captioners import Captioner, captioner_of
from ddpo_rewards.types import Metadata, RewardError, RewardResult

MODEL = "llava-hf/llava-1.5-7b-hf"
ENCODER = "microsoft/deberta-xlarge-mnli"
QUESTION = "Answer concisely: what is going on in this image?"
REFERENCE = "The image contains {prompt}"
_FIELD = "{prompt}"


@dataclass(frozen=True, eq=False)
class BertScoreOfCaption:
    """The score function of `llava_bertscore`."""

    captioner: Captioner
    scorer: Scorer
    question: str
    reference: str
    baseline: float | None

    def __call__(self, images: Sequence[np.ndarray], prompts: Sequence[str]) -> RewardResult:
        """BERTScore recall of the reference sentence in the caption."""
        captions = self.captioner(images, [self.question] * len(images))
        # Not str.format: a prompt is data, and braces in it are just braces.
        references = [self.reference.replace(_FIELD, prompt) for prompt in prompts]
        precision, recall, f1 = self.scorer(captions, references)
        info: dict[str, list[Any]] = {
            "caption": captions,
            "empty": [not caption.strip() for caption in captions],
            "precision": precision.tolist(),
            "recall": recall.tolist(),
            "f1": f1.tolist(),
        }
        if self.baseline is not None:
            info["rescaled_recall"] = ((recall - self.baseline) / (1 - self.baseline)).tolist()
        return RewardResult(recall, info)


@dataclass(frozen=True, eq=False)
class AnswerScore:
    """The score function of `llava_vqa`."""

    captioner: Captioner

    def __call__(self, images: Sequence[np.ndarray], prompts: object, metadata: Metadata) -> RewardResult:
        """Share of each image's questions whose answer holds the wanted one."""
        wanted = [_questions_and_answers(index, item) for index, item in enumerate(metadata)]
        pairs = [
            (image, question) for image, (questions, _) in zip(images, wanted, strict=True) for question in questions
        ]
        flat = iter(self.captioner([image for image, _ in pairs], [question for _, question in pairs]))
        answers = [[next(flat) for _ in questions] for questions, _ in wanted]
        scores = [_share_right(given, right) for given, (_, right) in zip(answers, wanted, strict=True)]
        empty = [any(not answer.strip() for answer in given) for given in answers]
        return RewardResult(np.asarray(scores, np.float32), {"answers": answers, "empty": empty})


def llava_bertscore(
    *,
    model: str = MODEL,
    revision: str | None = None,
    endpoint: str | None = None,
    question: str = QUESTION,
    reference: str = REFERENCE,
    encoder: str = ENCODER,
    encoder_revision: str | None = None,
    encoder_layer: int | None = None,
    device: str | None = None,
    dtype: str | None = None,
    batch_size: int = 16,
    max_new_tokens: int = 64,
    timeout: float = 120.0,
    retries: int = 3,
    concurrency: int = 16,
    captioner: Captioner | None = None,
) -> BertScoreOfCaption:
    """Caption the image, then BERTScore recall of `The image contains {prompt}` in the caption.

    Raw recall has a high floor (0.517 for unrelated sentences with the default encoder), so `info["rescaled_recall"]`
    is `(recall - floor) / (1 - floor)`. An empty caption scores 0 and is flagged in `info["empty"]`.

    Args:
        model: hub id or folder of an image-text model; with `endpoint`, the name the server knows it by.
        revision: commit of the model; recorded at the first download otherwise.
        endpoint: an OpenAI-compatible server, such as `http://localhost:8000/v1`, instead of a local model.
        question: what the model is asked.
        reference: the sentence to find in the caption; `{prompt}` is the prompt.
        encoder: hub id or folder of the text encoder of BERTScore.
        encoder_revision: commit of the encoder; recorded at the first download otherwise.
        encoder_layer: whose hidden states are compared; by bert-score's table where it knows the encoder.
        device: a GPU where there is one.
        dtype: of the model: float16 on a GPU, else float32.
        batch_size: images at once; halved when memory runs out.
        max_new_tokens: most tokens of a caption.
        timeout: seconds to wait for the endpoint.
        retries: further tries after a 5xx status of the endpoint.
        concurrency: requests to the endpoint at once.
        captioner: from Python, any function `captioner(images, questions) -> answers` instead of all that.

    Raises:
        RewardError: a reference without `{prompt}`, or models that cannot be had.

    Source: Black et al. 2023, section 5.2; ddpo-pytorch rewards.py llava_bertscore. Deviations: another LLaVA; images
    are not compressed to JPEG of quality 80 first.
    """
    options = locals()  # exactly the arguments: nothing else is bound yet
    if _FIELD not in reference:
        raise RewardError(f"reference={reference!r} has no {_FIELD}, so every prompt would score alike")
    scorer = load_bert_scorer(
        encoder, revision=encoder_revision, layer=encoder_layer, device=device, batch_size=batch_size
    )
    return BertScoreOfCaption(
        captioner or captioner_of(options), scorer, question, reference, recall_baseline(encoder, encoder_layer)
    )


def llava_vqa(
    *,
    model: str = MODEL,
    revision: str | None = None,
    endpoint: str | None = None,
    device: str | None = None,
    dtype: str | None = None,
    batch_size: int = 16,
    max_new_tokens: int = 64,
    timeout: float = 120.0,
    retries: int = 3,
    concurrency: int = 16,
    captioner: Captioner | None = None,
) -> AnswerScore:
    """Ask each image its own questions: `score = share of answers that contain the wanted one`, in [0, 1].

    Metadata of each image is a mapping with `questions` and `answers`, lists of strings of one length. Options as in
    `llava_bertscore`. `info["answers"]` holds what was said; an empty answer is wrong, and flagged in `info["empty"]`.

    Source: jannerm/ddpo llava_vqa; ddpo-pytorch rewards.py llava_strict_satisfaction. Deviation: upper and lower case
    are the same.
    """
    options = locals()  # exactly the arguments: nothing else is bound yet
    return AnswerScore(captioner or captioner_of(options))


def _questions_and_answers(index: int, item: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    questions, answers = item.get("questions"), item.get("answers")
    for word, value in (("questions", questions), ("answers", answers)):
        if not isinstance(value, list | tuple) or not value or not all(isinstance(text, str) for text in value):
            raise RewardError(f"metadata {index} has {word}={value!r}; want a list of one string or more")
    if len(questions or ()) != len(answers or ()):
        raise RewardError(f"metadata {index} has {len(questions or ())} questions and {len(answers or ())} answers")
    return list(questions or ()), list(answers or ())


def _share_right(answers: Sequence[str], wanted: Sequence[str]) -> float:
    right = [want.casefold() in answer.casefold() for answer, want in zip(answers, wanted, strict=True)]
    return sum(right) / len(right)
