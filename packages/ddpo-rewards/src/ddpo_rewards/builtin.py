"""The built-in rewards and probes, registered through the same hooks that plugins use."""

from collections.abc import Callable

from ddpo_rewards import published
from ddpo_rewards.hookspecs import hookimpl
from ddpo_rewards.types import ProbeSpec, RewardSpec

_DDPO = "Black et al. 2023, Training Diffusion Models with Reinforcement Learning, arXiv:2305.13301"

_JPEG = (
    RewardSpec(
        name="jpeg_compressibility",
        factory="ddpo_rewards.jpeg:compressibility",
        summary="Small JPEG files: minus the kilobytes at quality 95.",
        takes="arrays",
        unit="kB",
        range=(float("-inf"), 0.0),
        licence="Apache-2.0",
        source=_DDPO,
    ),
    RewardSpec(
        name="jpeg_incompressibility",
        factory="ddpo_rewards.jpeg:incompressibility",
        summary="Large JPEG files: the kilobytes at quality 95.",
        takes="arrays",
        unit="kB",
        range=(0.0, float("inf")),
        licence="Apache-2.0",
        source=_DDPO,
    ),
)

_CLIP = (
    RewardSpec(
        name="aesthetic",
        factory="ddpo_rewards.aesthetic:aesthetic",
        summary="LAION's aesthetic predictor on CLIP ViT-L/14; mostly 3 to 7.",
        takes="arrays",
        unit="rating, nominally 1 to 10",
        range=(-12.76, 23.23),  # 5.2366 -/+ 17.9956: an affine map of a unit vector
        licence="Apache-2.0 (head), MIT (CLIP)",
        source="https://github.com/christophschuhmann/improved-aesthetic-predictor",
        weights=(published.AESTHETIC_HEAD, published.CLIP_TOWER),
        reference_scores=(published.ASTRONAUT,),
    ),
    RewardSpec(
        name="clip_score",
        factory="ddpo_rewards.aesthetic:clip_score",
        summary="Cosine of image and prompt under CLIP ViT-L/14; mostly 0.1 to 0.35.",
        needs=frozenset({"prompts"}),
        takes="arrays",
        unit="cosine",
        range=(-1.0, 1.0),
        licence="MIT",
        source="Radford et al. 2021, arXiv:2103.00020; Hessel et al. 2021, arXiv:2104.08718",
        weights=(published.CLIP_TOWER,),
    ),
)

_LLAVA = (
    RewardSpec(
        name="llava_bertscore",
        factory="ddpo_rewards.llava:llava_bertscore",
        summary="BERTScore recall of the prompt in LLaVA's caption; DDPO-style.",
        needs=frozenset({"prompts"}),
        takes="arrays",
        unit="BERTScore recall",
        range=(-1.0, 1.0),
        licence="Llama-2 (LLaVA), MIT (DeBERTa)",
        source=_DDPO,
        weights=(published.LLAVA, published.TEXT_ENCODER),
    ),
    RewardSpec(
        name="llava_vqa",
        factory="ddpo_rewards.llava:llava_vqa",
        summary="Share of each image's own questions that LLaVA answers as wanted.",
        needs=frozenset({"metadata"}),
        takes="arrays",
        unit="share of right answers",
        range=(0.0, 1.0),
        licence="Llama-2 (LLaVA)",
        source=_DDPO,
        weights=(published.LLAVA,),
    ),
)

_TEXT = (
    RewardSpec(
        name="text_penalty",
        factory="ddpo_rewards.text_guard:text_penalty",
        summary="Minus what is spelt out of the prompt, read by OCR; add it to a reward.",
        needs=frozenset({"prompts"}),
        takes="arrays",
        unit="share of the prompt's letters",
        range=(-1.0, 0.0),
        licence="Apache-2.0",
        source="https://github.com/RapidAI/RapidOCR",
        extras=("ocr",),
    ),
)

_PROBES = (
    ProbeSpec(
        name="typo",
        factory="ddpo_rewards.probes.typo:typo",
        summary="Does writing the prompt into a picture raise its score? (typo-v1)",
    ),
    ProbeSpec(
        name="stress",
        factory="ddpo_rewards.probes.stress:stress",
        summary="Do noise, blank pictures, filters and accidents raise or move the score?",
    ),
)


@hookimpl
def register_rewards(register: Callable[[RewardSpec], None]) -> None:
    """Register every built-in reward."""
    for spec in (*_JPEG, *_CLIP, *_LLAVA, *_TEXT):
        register(spec)


@hookimpl
def register_probes(register: Callable[[ProbeSpec], None]) -> None:
    """Register every built-in probe."""
    for spec in _PROBES:
        register(spec)
