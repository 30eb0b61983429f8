"""The built-in rewards and probes, registered through the same hooks that plugins use; one file each."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from ddpo_rewards.builtin import (
    aesthetic,
    caption_bertscore,
    clip_score,
    dino_similarity,
    hps_v2,
    jpeg,
    ocr_match,
    pickscore,
    remote,
    siglip_score,
    text_penalty,
    vqa_accuracy,
    vqascore,
)
from ddpo_rewards.plugins import hookimpl
from ddpo_rewards.references import typed_options
from ddpo_rewards.specs import ProbeSpec, RewardSpec

if TYPE_CHECKING:
    from ddpo_rewards.reward import Reward

_REWARDS = (
    jpeg.COMPRESSIBILITY,
    jpeg.INCOMPRESSIBILITY,
    aesthetic.SPEC,
    pickscore.SPEC,
    hps_v2.SPEC,
    clip_score.SPEC,
    siglip_score.SPEC,
    vqascore.SPEC,
    caption_bertscore.SPEC,
    caption_bertscore.LLAVA_SPEC,
    vqa_accuracy.SPEC,
    vqa_accuracy.LLAVA_SPEC,
    ocr_match.SPEC,
    text_penalty.SPEC,
    dino_similarity.SPEC,
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
    for spec in _REWARDS:
        register(spec)


@hookimpl
def resolve_reward(ref: str, options: Mapping[str, Any]) -> "Reward | None":
    """Resolve `http://HOST/...` and `https://HOST/...` to what is served there."""
    if not ref.startswith(remote.SCHEMES):
        return None
    return remote.remote_reward(ref, **typed_options(partial(remote.remote_reward, ref), options, reward=ref))


@hookimpl
def register_probes(register: Callable[[ProbeSpec], None]) -> None:
    """Register every built-in probe."""
    for spec in _PROBES:
        register(spec)
