"""`hps_v2`: Human Preference Score v2.1, the cosine of image and prompt under a finetuned CLIP ViT-H/14."""

from pathlib import Path

from ddpo_rewards.builtin.clip_score import ClipScore
from ddpo_rewards.compute import Device, DType
from ddpo_rewards.errors import RewardError
from ddpo_rewards.models import HPS
from ddpo_rewards.specs import RewardSpec
from ddpo_rewards.weights import fetch

SPEC = RewardSpec(
    name="hps_v2",
    factory="ddpo_rewards.builtin.hps_v2:hps_v2",
    summary="Human Preference Score v2.1: what people prefer; mostly 20 to 33.",
    needs=frozenset({"prompts"}),
    takes="pil",
    unit="cosine in percent",
    range=(-100.0, 100.0),
    licence="Apache-2.0",
    source="Wu et al. 2023, arXiv:2306.09341",
    weights=(HPS,),
)
ARCHITECTURE = "ViT-H-14"
_PERCENT = 100.0


def hps_v2(
    *,
    device: Device = None,
    dtype: DType = None,
    batch_size: int | None = None,
    tower: Path | None = None,
    architecture: str = ARCHITECTURE,
) -> ClipScore:
    """Human Preference Score v2.1: `score = 100 cosine(image, prompt)`, mostly 20 to 33, as its benchmark lists it.

    Images are laid whole on a black square, so nothing is cropped. `info["prompt_cut_off"]` flags prompts beyond 77
    tokens.

    Args:
        device: such as `cuda:1`; a GPU where there is one.
        dtype: float16 on a GPU, else float32.
        batch_size: images at once; halved when memory runs out.
        tower: a local copy of HPS_v2.1_compressed.pt, or of another version's checkpoint.
        architecture: open_clip's name of the model that the checkpoint belongs to.

    Raises:
        RewardError: weights that cannot be had, or that do not fit.

    Source: tgxs002/HPSv2 hpsv2/img_score.py, whose function returns the cosine; its tables list a hundred times that.
    Deviation: there the tensor is resized, with or without antialiasing as the installed torchvision has it by default;
    here Pillow resizes the image, always antialiased.
    """
    from ddpo_rewards.models import clip

    if tower is not None and not tower.is_file():
        raise RewardError(f"there is no checkpoint {str(tower)!r}")
    loaded = clip.load_tower(
        architecture, tower or fetch(HPS), device=device, dtype=dtype, activation="GELU", fit=clip.resize_and_pad
    )
    return ClipScore(loaded, clip.batch_size_of(loaded, batch_size), _PERCENT)
