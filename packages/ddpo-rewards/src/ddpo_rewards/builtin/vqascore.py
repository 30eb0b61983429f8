"""`vqascore`: how probable is "Yes" when a vision-language model is asked whether the image shows the prompt?"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ddpo_rewards.compute import Device, DType
from ddpo_rewards.errors import RewardError
from ddpo_rewards.models import CAPTIONER
from ddpo_rewards.specs import RewardSpec

if TYPE_CHECKING:
    import numpy as np

    from ddpo_rewards.models.captioner import Judge
    from ddpo_rewards.reward import RewardResult

SPEC = RewardSpec(
    name="vqascore",
    factory="ddpo_rewards.builtin.vqascore:vqascore",
    summary="How probable a vision-language model's Yes is: does the image show the prompt?",
    needs=frozenset({"prompts"}),
    takes="arrays",
    unit="probability",
    range=(0.0, 1.0),
    licence="Apache-2.0",
    source="Lin et al. 2024, arXiv:2404.01291",
    weights=(CAPTIONER,),
)
MODEL = CAPTIONER.source.removeprefix("hf://")
QUESTION = 'Does this figure show "{prompt}"? Please answer yes or no.'
_FIELD = "{prompt}"


@dataclass(frozen=True, eq=False)
class VqaScore:
    """The score function of `vqascore`."""

    judge: "Judge"
    question: str

    def __call__(self, images: "Sequence[np.ndarray]", prompts: Sequence[str]) -> "RewardResult":
        """The probability of the answer that says yes."""
        from ddpo_rewards.reward import RewardResult

        # Not str.format: a prompt is data, and braces in it are just braces.
        yes, no = self.judge(images, [self.question.replace(_FIELD, prompt) for prompt in prompts]).T
        return RewardResult(yes, {"no": no.tolist()})


def vqascore(
    *,
    model: str = MODEL,
    revision: str | None = None,
    endpoint: str | None = None,
    question: str = QUESTION,
    yes: str = "Yes",
    no: str = "No",
    device: Device = None,
    dtype: DType = None,
    batch_size: int = 16,
    timeout: float = 120.0,
    retries: int = 3,
    concurrency: int = 16,
    judge: "Judge | None" = None,
) -> VqaScore:
    """VQAScore: `score = P(the answer begins with "Yes")`, of the next token after the question, in [0, 1].

    `info["no"]` is P("No"); where both are small, the model answers something else, and another `question` is due.

    Args:
        model: hub id or folder of an image-text model; with `endpoint`, the name the server knows it by.
        revision: commit of the model.
        endpoint: an OpenAI-compatible server that sends log-probabilities, instead of a local model.
        question: what the model is asked; `{prompt}` is the prompt.
        yes: the answer whose probability is the score; one token of the model.
        no: the other one.
        device: a GPU where there is one.
        dtype: of the model: float16 on a GPU, else float32.
        batch_size: images at once; halved when memory runs out.
        timeout: seconds to wait for the endpoint.
        retries: further tries of the endpoint.
        concurrency: requests to the endpoint at once.
        judge: from Python, any function `judge(images, questions) -> [batch, 2]` of both probabilities, instead.

    Raises:
        RewardError: a question without `{prompt}`, an answer that is no token, or a model that cannot be had.

    Source: linzhiqiu/t2v_metrics, models/vqascore_models/clip_t5_model.py (question and answer). Deviations: another
    model than CLIP-FlanT5; the first token of the answer, where the source takes the whole of it with its end.
    """
    options = locals()  # exactly the arguments: nothing else is bound yet
    from ddpo_rewards.models.captioner import judge_of

    if _FIELD not in question:
        raise RewardError(f"question={question!r} has no {_FIELD}, so every prompt would be asked alike")
    return VqaScore(judge or judge_of(options, (yes, no)), question)
