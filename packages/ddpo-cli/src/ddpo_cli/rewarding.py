"""From reward references to what the trainer and the scorer call."""

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ddpo_rewards import Reward, combine, load_registry, parse_reference

if TYPE_CHECKING:
    from torch import Tensor


def build_reward(references: Sequence[str]) -> Reward:
    """Return the reward that `references` name: the one itself, or their weighted sum.

    Raises:
        ValueError: an unknown reward, or options that it does not take.
    """
    allow_local_modules(references)
    registry = load_registry()
    if len(references) == 1 and parse_reference(references[0]).weight == 1.0:
        return registry.get_reward(references[0])
    return combine(*references, registry=registry)


def allow_local_modules(references: Sequence[str]) -> None:
    """Let `module:attr` name a file in the working directory; last on the path, so that it shadows nothing."""
    refs = [parse_reference(text).ref for text in references]
    if any(":" in ref and "://" not in ref for ref in refs) and "" not in sys.path:
        sys.path.append("")


def as_reward_function(reward: Reward) -> Callable[..., tuple["Tensor", Mapping[str, Sequence[Any]]]]:
    """Return what the trainer calls: `(images, prompts, metadata) -> (scores as a float32 tensor, info)`."""

    def reward_function(
        images: "Tensor", prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]
    ) -> tuple["Tensor", Mapping[str, Sequence[Any]]]:
        import torch

        scores, info = reward(images, prompts, metadata)
        return torch.from_numpy(scores), info

    return reward_function


def label(references: Sequence[str]) -> str:
    """Return a short name for a folder.

    >>> label(["2*aesthetic?device=cpu", "my_plugin:score"])
    'aesthetic+my_plugin:score'
    """
    return "+".join(parse_reference(text).ref for text in references)
