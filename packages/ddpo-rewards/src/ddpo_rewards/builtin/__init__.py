"""The built-in rewards and probes, registered through the same hooks that plugins use; one file each."""

from collections.abc import Callable

from ddpo_rewards.builtin import aesthetic, clip_score, jpeg, llava_bertscore, llava_vqa, text_penalty
from ddpo_rewards.plugins import hookimpl
from ddpo_rewards.specs import ProbeSpec, RewardSpec

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
    register(jpeg.COMPRESSIBILITY)
    register(jpeg.INCOMPRESSIBILITY)
    register(aesthetic.SPEC)
    register(clip_score.SPEC)
    register(llava_bertscore.SPEC)
    register(llava_vqa.SPEC)
    register(text_penalty.SPEC)


@hookimpl
def register_probes(register: Callable[[ProbeSpec], None]) -> None:
    """Register every built-in probe."""
    for spec in _PROBES:
        register(spec)
