"""`caption_bertscore`: does a vision-language model's caption say what the prompt says? `llava_bertscore`: with LLaVA.

DDPO-style, not paper-equal: the paper used LLaVA v0 13B, which is not what hubs serve today.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from ddpo_rewards.compute import Device, DType
from ddpo_rewards.errors import RewardError
from ddpo_rewards.models import CAPTIONER, LLAVA, TEXT_ENCODER
from ddpo_rewards.specs import RewardSpec
from ddpo_rewards.weights import EMBEDDED

if TYPE_CHECKING:
    import numpy as np

    from ddpo_rewards.models.bertscore import Scorer
    from ddpo_rewards.models.captioner import Captioner
    from ddpo_rewards.reward import RewardResult

SPEC = RewardSpec(
    name="caption_bertscore",
    factory="ddpo_rewards.builtin.caption_bertscore:caption_bertscore",
    summary="BERTScore recall of the prompt in a vision-language model's caption.",
    needs=frozenset({"prompts"}),
    takes="arrays",
    unit="BERTScore recall",
    range=(-1.0, 1.0),
    licence="Apache-2.0 (Qwen3-VL), MIT (DeBERTa)",
    source="Black et al. 2023, Training Diffusion Models with Reinforcement Learning, arXiv:2305.13301",
    weights=(CAPTIONER, TEXT_ENCODER),
)
LLAVA_SPEC = replace(
    SPEC,
    name="llava_bertscore",
    factory="ddpo_rewards.builtin.caption_bertscore:llava_bertscore",
    summary="BERTScore recall of the prompt in LLaVA's caption; DDPO-style.",
    licence="Llama-2 (LLaVA), MIT (DeBERTa)",
    weights=(LLAVA, TEXT_ENCODER),
)
MODEL = CAPTIONER.source.removeprefix("hf://")
ENCODER = TEXT_ENCODER.source.removeprefix("hf://")
QUESTION = "Answer concisely: what is going on in this image?"
REFERENCE = "The image contains {prompt}"
_FIELD = "{prompt}"


@dataclass(frozen=True, eq=False)
class BertScoreOfCaption:
    """The score function of `caption_bertscore`."""

    captioner: "Captioner"
    scorer: "Scorer"
    question: str
    reference: str
    baseline: float | None

    def __call__(self, images: "Sequence[np.ndarray]", prompts: Sequence[str]) -> "RewardResult":
        """BERTScore recall of the reference sentence in the caption."""
        from ddpo_rewards.reward import RewardResult

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


def caption_bertscore(
    *,
    model: str = MODEL,
    revision: str | None = None,
    endpoint: str | None = None,
    question: str = QUESTION,
    reference: str = REFERENCE,
    encoder: str | None = None,
    encoder_revision: str | None = None,
    encoder_layer: int | None = None,
    device: Device = None,
    dtype: DType = None,
    batch_size: int = 16,
    max_new_tokens: int = 64,
    timeout: float = 120.0,
    retries: int = 3,
    concurrency: int = 16,
    captioner: "Captioner | None" = None,
) -> BertScoreOfCaption:
    """Caption the image, then BERTScore recall of `The image contains {prompt}` in the caption.

    Raw recall has a high floor (0.517 for unrelated sentences with the default encoder), so `info["rescaled_recall"]`
    is `(recall - floor) / (1 - floor)`. An empty caption scores 0 and is flagged in `info["empty"]`.

    Args:
        model: hub id or folder of an image-text model, or `builtin:emoji`, a LLaVA of 4 million parameters that knows
            emoji scenes and needs no download; with `endpoint`, the name the server knows it by.
        revision: commit of the model; the published one's is known, another's is recorded at the first download.
        endpoint: an OpenAI-compatible server, such as `http://localhost:8000/v1`, instead of a local model.
        question: what the model is asked.
        reference: the sentence to find in the caption; `{prompt}` is the prompt.
        encoder: hub id or folder of the text encoder of BERTScore; DeBERTa-xlarge-MNLI where none is given, and with
            `model=builtin:emoji` the one that belongs to it.
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
    from ddpo_rewards.models.bertscore import load_bert_scorer, recall_baseline
    from ddpo_rewards.models.captioner import captioner_of

    if _FIELD not in reference:
        raise RewardError(f"reference={reference!r} has no {_FIELD}, so every prompt would score alike")
    caption = captioner or captioner_of(options)  # first: of two that cannot be had, the one that was named is told of
    compared = encoder or (EMBEDDED if model == EMBEDDED else ENCODER)
    scorer = load_bert_scorer(
        compared, revision=encoder_revision, layer=encoder_layer, device=device, batch_size=batch_size
    )
    return BertScoreOfCaption(caption, scorer, question, reference, recall_baseline(compared, encoder_layer))


llava_bertscore = partial(caption_bertscore, model=LLAVA.source.removeprefix("hf://"))
