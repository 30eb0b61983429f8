"""`siglip_score`: the cosine of image and prompt under SigLIP 2."""

from typing import TYPE_CHECKING

from ddpo_rewards.builtin.clip_score import ClipScore
from ddpo_rewards.compute import Device, DType
from ddpo_rewards.models import SIGLIP
from ddpo_rewards.specs import RewardSpec

if TYPE_CHECKING:
    from torch import Tensor

    from ddpo_rewards.reward import Info

SPEC = RewardSpec(
    name="siglip_score",
    factory="ddpo_rewards.builtin.siglip_score:siglip_score",
    summary="Cosine of image and prompt under SigLIP 2.",
    needs=frozenset({"prompts"}),
    takes="pil",
    unit="cosine",
    range=(-1.0, 1.0),
    licence="Apache-2.0",
    source="Tschannen et al. 2025, arXiv:2502.14786",
    weights=(SIGLIP,),
)
MODEL = SIGLIP.source.removeprefix("hf://")


def siglip_score(
    *,
    model: str = MODEL,
    revision: str | None = None,
    device: Device = None,
    dtype: DType = None,
    batch_size: int | None = None,
) -> ClipScore:
    """Cosine of image and prompt under SigLIP 2 (or a SigLIP of fixed resolution); options as in `pickscore`.

    `info["probability"]` is what the model was trained for, `sigmoid(exp(logit_scale) * cosine + logit_bias)`: that the
    text belongs to the image, whatever other texts there are. It is near 0 or 1, so the cosine is the better reward.
    Texts are read in lower case, as in training; `info["prompt_cut_off"]` flags those beyond 64 tokens.

    Raises:
        RewardError: a model that cannot be had, or that is no SigLIP.

    Source: Zhai et al. 2023, arXiv:2303.15343 (the loss); google-research/big_vision, whose text length is 64.
    """
    from ddpo_rewards.models import clip
    from ddpo_rewards.models.encoders import load_encoder

    tower = load_encoder(model, kind="siglip", published=SIGLIP, revision=revision, device=device, dtype=dtype)
    scale = float(tower.model.network.logit_scale.float().exp())
    bias = float(tower.model.network.logit_bias.float())

    def describe(cosines: "Tensor") -> "Info":
        return {"probability": (scale * cosines + bias).sigmoid().tolist()}

    return ClipScore(tower, clip.batch_size_of(tower, batch_size), describe=describe)
