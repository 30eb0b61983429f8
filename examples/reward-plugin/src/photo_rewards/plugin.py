"""What ddpo sees of this package. Nothing heavy is imported here: `ddpo rewards list` reads this file."""

from collections.abc import Callable

from ddpo_rewards import RewardSpec, hookimpl

REWARDS = (
    RewardSpec(
        name="colourfulness",
        factory="photo_rewards.rewards:colourfulness",
        summary="Colourfulness of a photograph: 0 is grey, 59 quite, 109 extremely colourful.",
        unit="M",
        range=(0.0, float("inf")),
        licence="Apache-2.0",
        source="Hasler and Süsstrunk 2003, Measuring colourfulness in natural images",
    ),
    RewardSpec(
        name="sharpness",
        factory="photo_rewards.rewards:sharpness",
        summary="Sharpness: variance of the Laplacian of the luma.",
        unit="luma squared",
        range=(0.0, float("inf")),
        licence="Apache-2.0",
        source="Pech-Pacheco et al. 2000, Diatom autofocusing in brightfield microscopy",
    ),
)


@hookimpl
def register_rewards(register: Callable[[RewardSpec], None]) -> None:
    """Register both rewards."""
    for spec in REWARDS:
        register(spec)
