"""`pickscore`: which image of a prompt people would pick, by a CLIP ViT-H/14 that was finetuned on their choices."""

from typing import TYPE_CHECKING

from ddpo_rewards.builtin.clip_score import ClipScore
from ddpo_rewards.compute import Device, DType
from ddpo_rewards.models import PICKSCORE
from ddpo_rewards.specs import RewardSpec

if TYPE_CHECKING:
    from torch import Tensor

    from ddpo_rewards.reward import Info

SPEC = RewardSpec(
    name="pickscore",
    factory="ddpo_rewards.builtin.pickscore:pickscore",
    summary="PickScore: what people would pick of a prompt's images; mostly 17 to 24.",
    needs=frozenset({"prompts"}),
    takes="pil",
    unit="logit",
    range=(-100.0, 100.0),  # CLIP's training keeps the scale of its logits at 100 or below
    licence="none stated on its model card",
    source="Kirstain et al. 2023, arXiv:2305.01569",
    weights=(PICKSCORE,),
)
MODEL = PICKSCORE.source.removeprefix("hf://")


def pickscore(
    *,
    model: str = MODEL,
    revision: str | None = None,
    device: Device = None,
    dtype: DType = None,
    batch_size: int | None = None,
) -> ClipScore:
    """PickScore: `score = exp(logit_scale) * cosine(image, prompt)`, mostly 17 to 24.

    Differences count: among images of one prompt, `softmax(scores)` is the probability of being picked.
    `info["cosine"]` is the cosine, `info["prompt_cut_off"]` flags prompts beyond 77 tokens.

    Args:
        model: hub id or folder of a CLIP model of transformers.
        revision: commit of the model.
        device: such as `cuda:1`; a GPU where there is one.
        dtype: float16 on a GPU, else float32.
        batch_size: images at once; halved when memory runs out.

    Raises:
        RewardError: a model that cannot be had, or that is no CLIP.

    Source: the model card of yuvalkirstain/PickScore_v1. Its example takes the processor of the model that was
    finetuned, CLIP-ViT-H-14-laion2B; here it is that of the model's own folder.
    """
    from ddpo_rewards.models import clip
    from ddpo_rewards.models.encoders import load_encoder

    def describe(cosines: "Tensor") -> "Info":
        return {"cosine": cosines.tolist()}

    tower = load_encoder(model, kind="clip", published=PICKSCORE, revision=revision, device=device, dtype=dtype)
    scale = float(tower.model.network.logit_scale.float().exp())
    return ClipScore(tower, clip.batch_size_of(tower, batch_size), scale, describe)
