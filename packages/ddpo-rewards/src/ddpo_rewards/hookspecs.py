"""The hooks of the plugin group `ddpo_rewards`; the built-in rewards come through the same ones."""

from collections.abc import Callable, Mapping
from typing import Any

import pluggy

from ddpo_rewards.types import ProbeSpec, Reward, RewardSpec

PROJECT = "ddpo_rewards"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec
def register_rewards(register: Callable[[RewardSpec], None]) -> None:
    """Call `register(RewardSpec(...))` once per reward; import nothing heavy here, name the factory as a string."""


@hookspec
def register_probes(register: Callable[[ProbeSpec], None]) -> None:
    """Call `register(ProbeSpec(...))` once per probe."""


@hookspec(firstresult=True)
def resolve_reward(ref: str, options: Mapping[str, Any]) -> Reward | Callable[..., Any] | None:
    """Turn a `scheme://...` reference into a reward or a score function, or return None where it is not yours."""
