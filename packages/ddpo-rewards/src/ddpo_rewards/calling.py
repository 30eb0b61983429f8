"""One call of a reward: check what goes in, call, check what comes out."""

import traceback
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from ddpo_rewards import inputs
from ddpo_rewards.types import Metadata, Reward, RewardError, RewardResult, RewardSpec

if TYPE_CHECKING:
    from torch import Tensor


def score(reward: Reward, images: Any, prompts: Sequence[str] | None, metadata: Metadata | None) -> RewardResult:
    """Score images; see `Reward.__call__`."""
    name = reward.spec.name
    if inputs.needs_gradient(images):
        raise RewardError(
            f"reward {name!r} was given images that need gradients; its scores carry none: "
            "pass images.detach(), or call reward.differentiable(images, ...)"
        )
    size = inputs.count(images)
    check_companions(reward.spec, size, prompts, metadata)
    if reward.spec.takes == "tensor":
        return _score_by_size(reward, images, size, prompts, metadata)
    batch = images if reward.spec.takes == "any" and inputs.is_tensor(images) else inputs.as_arrays(images)
    return _call(reward, batch, prompts, metadata, size)


def score_differentiably(
    reward: Reward, images: Any, prompts: Sequence[str] | None, metadata: Metadata | None
) -> "Tensor":
    """Score a tensor with gradients; see `Reward.differentiable`."""
    function = getattr(reward.score_function, "differentiable", None)
    if function is None:
        raise RewardError(f"reward {reward.spec.name!r} has no differentiable path; train with its scores instead")
    if not inputs.is_tensor(images):
        raise RewardError(f"a differentiable score needs a float tensor [batch, 3, height, width], not {type(images)}")
    inputs.check_tensor(images)
    check_companions(reward.spec, inputs.count(images), prompts, metadata)
    scores: Tensor = function(images, prompts, metadata)
    return scores


def check_result(raw: Any, name: str, size: int) -> RewardResult:
    """Turn an array, `(array, info)` or a dict with `"scores"` into a result of `size` finite scores.

    Raises:
        RewardError: naming the reward, what it returned and what was wanted.
    """
    scores, info = _split(raw, name)
    return RewardResult(_finite_scores(scores, name, size), _per_sample_info(info, name, size))


def check_companions(spec: RewardSpec, size: int, prompts: object, metadata: object) -> None:
    """Check that there is one prompt and one metadata mapping per image, where they are given or needed.

    Raises:
        RewardError: missing, of another length, or of another type.
    """
    for word, given, one in (("prompts", prompts, str), ("metadata", metadata, Mapping)):
        if given is None:
            if word in spec.needs:
                raise RewardError(f"reward {spec.name!r} needs {word}: pass one per image ({size})")
            continue
        if isinstance(given, str | Mapping) or not isinstance(given, Sequence):
            raise RewardError(f"{word} is {_short(given)}; want a list with one item per image ({size})")
        if len(given) != size:
            raise RewardError(f"got {len(given)} {word} for {size} images; want one per image")
        wrong = [item for item in given if not isinstance(item, one)]
        if wrong:
            raise RewardError(f"{word} holds {_short(wrong[0])}; want {'strings' if one is str else 'mappings'} only")


def _score_by_size(
    reward: Reward, images: Any, size: int, prompts: Sequence[str] | None, metadata: Metadata | None
) -> RewardResult:
    """Call once per image size and put the answers back in order."""
    groups = inputs.as_tensors(images)
    if len(groups) == 1:
        return _call(reward, groups[0][1], prompts, metadata, size)
    scores = np.empty(size, np.float32)
    info: dict[str, list[Any]] = {}
    for indices, batch in groups:
        part = _call(reward, batch, _pick(prompts, indices), _pick(metadata, indices), len(indices))
        scores[indices] = part.scores
        for key, values in part.info.items():
            column = info.setdefault(key, [None] * size)
            for index, value in zip(indices, values, strict=True):
                column[index] = value
    return RewardResult(scores, info)


def _call(reward: Reward, batch: Any, prompts: Any, metadata: Any, size: int) -> RewardResult:
    try:
        raw = reward.score_function(batch, prompts, metadata)
    except RewardError:
        raise
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        raise RewardError(
            f"reward {reward.spec.name!r} raised {type(error).__name__}: {error} ({where.filename}:{where.lineno})"
        ) from error
    return check_result(raw, reward.spec.name, size)


def _pick(items: Sequence[Any] | None, indices: Sequence[int]) -> list[Any] | None:
    return None if items is None else [items[index] for index in indices]


def _split(raw: Any, name: str) -> tuple[Any, Any]:
    if isinstance(raw, Mapping):
        if "scores" not in raw:
            keys = ", ".join(map(str, raw))
            raise RewardError(f"reward {name!r} returned a dict with {keys or 'nothing'}; want a key 'scores'")
        return raw["scores"], {key: value for key, value in raw.items() if key != "scores"}
    if isinstance(raw, tuple) and len(raw) == 2 and isinstance(raw[1], Mapping):
        return raw[0], raw[1]
    return raw, {}


def _finite_scores(scores: Any, name: str, size: int) -> Float[np.ndarray, " batch"]:
    wanted = f"want {size} finite numbers, one per image"
    values = _to_array(scores)
    if values is None or values.dtype.kind not in "fiub":
        raise RewardError(f"reward {name!r} returned {_short(scores)}; {wanted}")
    if values.shape != (size,):
        raise RewardError(f"reward {name!r} returned scores of shape {list(values.shape)}; {wanted}")
    with np.errstate(over="ignore"):  # what does not fit becomes infinite, and is reported as such
        numbers = values.astype(np.float32)
    bad = np.flatnonzero(~np.isfinite(numbers))
    if len(bad):
        raise RewardError(f"reward {name!r} returned {values[bad[0]]} for image {bad[0]}; {wanted}")
    return numbers


def _to_array(scores: Any) -> np.ndarray | None:
    if isinstance(scores, str | bytes) or scores is None:
        return None
    if inputs.is_tensor(scores):
        return np.asarray(scores.detach().double().cpu().numpy())
    try:
        items = [item.item() if inputs.is_tensor(item) else item for item in scores]
        return np.asarray(items if isinstance(scores, list | tuple) else scores)
    except Exception:  # ragged lists, generators, foreign objects: all are "no array", and reported as such
        return None


def _per_sample_info(info: Mapping[Any, Any], name: str, size: int) -> dict[str, list[Any]]:
    lists = {str(key): _to_list(value) for key, value in info.items()}
    for key, values in lists.items():
        if values is None or len(values) != size:
            raise RewardError(
                f"reward {name!r} returned info[{key!r}] = {_short(info[key])}; want {size} values, one per image"
            )
    return {key: values for key, values in lists.items() if values is not None}


def _to_list(value: Any) -> list[Any] | None:
    if inputs.is_tensor(value):
        value = value.detach().cpu().numpy()
    if isinstance(value, np.ndarray):
        return value.tolist() if value.ndim else None
    return list(value) if isinstance(value, list | tuple) else None


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
