"""Score images with the rewards of DDPO and with anybody's plugins.

Names are loaded at first use, so that `import ddpo_rewards` imports neither torch nor numpy.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ddpo_rewards.combining import combine, combine_standardised
    from ddpo_rewards.hookspecs import hookimpl
    from ddpo_rewards.images import ImageError, load_image
    from ddpo_rewards.plugins import PluginFailure
    from ddpo_rewards.references import Reference, parse_reference
    from ddpo_rewards.registry import Registry, get_reward, list_rewards, load_registry
    from ddpo_rewards.scaffold import new_plugin
    from ddpo_rewards.types import (
        ProbeSpec,
        ReferenceScore,
        Reward,
        RewardError,
        RewardResult,
        RewardSpec,
        Weight,
    )

__version__ = "0.1.0"

__all__ = [
    "ImageError",
    "PluginFailure",
    "ProbeSpec",
    "Reference",
    "ReferenceScore",
    "Registry",
    "Reward",
    "RewardError",
    "RewardResult",
    "RewardSpec",
    "Weight",
    "combine",
    "combine_standardised",
    "get_reward",
    "hookimpl",
    "list_rewards",
    "load_image",
    "load_registry",
    "new_plugin",
    "parse_reference",
]

_MODULES = {
    "combining": ("combine", "combine_standardised"),
    "hookspecs": ("hookimpl",),
    "images": ("ImageError", "load_image"),
    "plugins": ("PluginFailure",),
    "references": ("Reference", "parse_reference"),
    "registry": ("Registry", "get_reward", "list_rewards", "load_registry"),
    "scaffold": ("new_plugin",),
    "types": ("ProbeSpec", "ReferenceScore", "Reward", "RewardError", "RewardResult", "RewardSpec", "Weight"),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*globals(), *__all__]
