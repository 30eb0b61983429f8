"""Resolve `pyiqa://NAME` to the metric of that name. pyiqa is imported when one is asked for, not before."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from ddpo_rewards import RewardError, hookimpl

if TYPE_CHECKING:
    from torch import Tensor

SCHEME = "pyiqa://"


@hookimpl
def resolve_reward(ref: str, options: Mapping[str, Any]) -> "Callable[[Tensor], Any] | None":
    """Return the score function of `pyiqa://NAME`, or None where the reference is not of this kind."""
    if not ref.startswith(SCHEME):
        return None
    name = ref.removeprefix(SCHEME)
    try:
        import pyiqa
    except ImportError as error:
        raise RewardError(f"reward {ref!r} needs pyiqa: pip install pyiqa (CC BY-NC-SA 4.0)") from error
    known = pyiqa.list_models("NR")
    if name not in known:
        raise RewardError(f"pyiqa has no metric {name!r} that needs no reference image; it has {', '.join(known)}")
    metric = pyiqa.create_metric(name, **options)
    sign = -1.0 if metric.lower_better else 1.0

    def score(images: "Tensor") -> "tuple[Tensor, dict[str, Tensor]]":
        values = metric(images).flatten()
        return sign * values, {"pyiqa": values}

    return score
