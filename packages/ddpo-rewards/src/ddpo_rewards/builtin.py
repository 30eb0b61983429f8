"""The built-in rewards, registered through the same hook that plugins use."""

from collections.abc import Callable

from ddpo_rewards.hookspecs import hookimpl
from ddpo_rewards.types import RewardSpec

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


@hookimpl
def register_rewards(register: Callable[[RewardSpec], None]) -> None:
    """Register every built-in reward."""
    for spec in _JPEG:
        register(spec)
