"""A reward, ready to score: check what goes in, call its score function, check what comes out."""

import inspect
import os
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np
from jaxtyping import Float

from ddpo_rewards.compute import map_ahead
from ddpo_rewards.errors import RewardError
from ddpo_rewards.images import (
    as_arrays,
    as_pictures,
    as_tensors,
    as_unit_floats,
    check_tensor,
    count_images,
    is_tensor,
    read_image,
    to_picture,
)
from ddpo_rewards.references import DATA
from ddpo_rewards.specs import RewardSpec

if TYPE_CHECKING:
    from torch import Tensor

Info: TypeAlias = dict[str, list[Any]]
Metadata: TypeAlias = Sequence[Mapping[str, Any]]
# What a `Reward` calls: images in the form its spec takes, prompts and metadata as given. It may return an array,
# `(array, info)` or a dict with "scores"; it may also have methods `differentiable`, `state` and `load_state`, a number
# `batch_size` of images that it runs at once, and `prepare(image)`, which brings an image of that form (an array, where
# it takes tensors) to what it looks at: an image that was prepared scores the same, to the bit; `reads_files`, true
# where metadata name files that it reads; and `tower`, `embed(images)` and `score_embeddings(embeddings, prompts,
# metadata)`, the two halves of the call: rewards with one tower then embed an image once.
ScoreFunction: TypeAlias = Callable[[Any, Sequence[str] | None, Metadata | None], Any]
_BATCH = 32  # images of full size: 100 MB at 1024 x 1024
_NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


class RewardResult(NamedTuple):
    """Scores, float32 `[batch]`, higher is better, and per-sample lists of what else the reward knows."""

    scores: Float[np.ndarray, " batch"]
    info: Info


@dataclass(frozen=True, slots=True)
class Reward:
    """A reward ready to score: checks what goes in, calls its score function, checks what comes out.

    Example:
        >>> from ddpo_rewards import get_reward
        >>> import numpy as np
        >>> reward = get_reward("jpeg_compressibility")
        >>> scores, info = reward([np.zeros((64, 64, 3), np.uint8)])
        >>> scores.shape, bool(scores[0] < 0), sorted(info)
        ((1,), True, ['kilobytes', 'kilobytes_per_megapixel'])
    """

    spec: RewardSpec
    score_function: ScoreFunction
    options: Mapping[str, Any] = field(default_factory=dict)

    def __call__(
        self, images: Any, prompts: Sequence[str] | None = None, metadata: Metadata | None = None
    ) -> RewardResult:
        """Score images; the scores come as a float32 numpy array `[batch]` in the order of the images.

        Args:
            images: tensor `[batch, 3, height, width]`, float in [0, 1] or uint8; uint8 arrays `[height, width, 3]`,
                PIL images, paths or the bytes of files; sizes may differ except in a tensor. Of many paths few lie
                in memory at once.
            prompts: one string per image, where the reward needs them.
            metadata: one mapping per image, where the reward needs them.

        Raises:
            RewardError: wrong range, shape, count or file; or the reward raised, or returned something else than
                one finite number per image.
        """
        name = self.spec.name
        if is_tensor(images) and images.requires_grad:
            raise RewardError(
                f"reward {name!r} was given images that need gradients; its scores carry none: "
                "pass images.detach(), or call reward.differentiable(images, ...)"
            )
        size = count_images(images)
        check_companions(self.spec, size, prompts, metadata)
        if size > self.batch_size and not is_tensor(images) and all(map(_is_path, images)) and not self.state():
            return _score_in_slices(self, images, prompts, metadata)
        if self.spec.takes == "tensor":
            return _score_by_size(self, images, size, prompts, metadata)
        if self.spec.takes == "any" and is_tensor(images):
            return _call(self, as_unit_floats(images), prompts, metadata, size)
        batch = as_pictures(images) if self.spec.takes == "pil" else as_arrays(images)
        return _call(self, batch, prompts, metadata, size)

    def differentiable(
        self, images: "Tensor", prompts: Sequence[str] | None = None, metadata: Metadata | None = None
    ) -> "Tensor":
        """Score a tensor so that gradients reach it; only some rewards can, and their docs state the deviation."""
        function = getattr(self.score_function, "differentiable", None)
        if function is None:
            raise RewardError(f"reward {self.spec.name!r} has no differentiable path; train with its scores instead")
        if not is_tensor(images) or not images.is_floating_point():
            got = images.dtype if is_tensor(images) else type(images).__name__
            raise RewardError(f"a differentiable score needs a float tensor [batch, 3, height, width], not {got}")
        check_tensor(images)
        check_companions(self.spec, count_images(images), prompts, metadata)
        scores: Tensor = function(images, prompts, metadata)
        if not is_tensor(scores) or scores.shape != (len(images),):
            shape = getattr(scores, "shape", type(scores).__name__)
            raise RewardError(f"reward {self.spec.name!r} returned {shape}; want a tensor of {len(images)} scores")
        return scores

    @property
    def batch_size(self) -> int:
        """As many images as the score function says it runs at once, else 32."""
        own = getattr(self.score_function, "batch_size", None)
        return own if isinstance(own, int) and own > 0 else _BATCH

    def state(self) -> dict[str, Any]:
        """What the reward has learnt from the images it saw, as JSON values: `{}` for nearly every reward."""
        read = getattr(self.score_function, "state", None)
        return dict(read()) if callable(read) else {}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state()` of an earlier process, so that a resumed run scores as if never interrupted."""
        write = getattr(self.score_function, "load_state", None)
        if callable(write):
            write(state)
        elif state:
            raise RewardError(f"reward {self.spec.name!r} keeps no state but was given {sorted(state)}")


def adapt(function: Any, reward: str) -> ScoreFunction:
    """Inspect a callable once and return it behind the one call that `Reward` makes.

    Raises:
        RewardError: not callable, or of a signature other than `f(images[, prompts[, metadata]])`.

    Example:
        >>> def score(prompts, images): return [len(prompt) for prompt in prompts]
        >>> adapt(score, "toy")(None, ["a", "bcd"], None)
        [1, 3]
    """
    if not callable(function):
        raise RewardError(f"reward {reward!r} is {function!r}; want a function of images[, prompts[, metadata]]")
    return _Adapted(function, _arguments(function, reward)[0])


def needed_data(function: Any, reward: str) -> frozenset[str]:
    """What a callable cannot be called without, of `prompts` and `metadata`: its arguments that have no default.

    Example:
        >>> def score(images, prompts, metadata=None): return [0.0] * len(images)
        >>> needed_data(score, "toy")
        frozenset({'prompts'})
    """
    return frozenset(_arguments(function, reward)[1])


def has_embeddings(reward: Reward) -> bool:
    """Whether a reward scores what a tower makes of images, which rewards with one tower can share."""
    return all(hasattr(reward.score_function, name) for name in ("tower", "embed", "score_embeddings"))


def form_of(reward: Reward) -> Callable[[Any], Any]:
    """What brings an image that `images.read_image` read to the form in which the reward is best given it, ahead.

    Rewards with the same form have the same function here: an image needs to be brought to it once.
    """
    form = to_picture if reward.spec.takes == "pil" else np.asarray
    prepare: Callable[[Any], Any] | None = getattr(reward.score_function, "prepare", None)
    return form if prepare is None else _Prepared(prepare, form)


def embed(reward: Reward, images: Sequence[Any]) -> Any:
    """What the reward's tower makes of images in the form that `form_of` gives them, one row each."""
    return _guarded(reward, reward.score_function.embed, images)  # type: ignore[attr-defined]


def score_embeddings(
    reward: Reward, embeddings: Any, prompts: Sequence[str] | None, metadata: Metadata | None
) -> RewardResult:
    """Score what `embed` returned, for those images or some of them; checked as a call is."""
    size = len(embeddings)
    check_companions(reward.spec, size, prompts, metadata)
    raw = _guarded(reward, reward.score_function.score_embeddings, embeddings, prompts, metadata)  # type: ignore[attr-defined]
    return check_result(raw, reward.spec.name, size)


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


@dataclass(frozen=True, slots=True)
class _Prepared:
    """A reward's `prepare` on what was read; equal where that is the same."""

    prepare: Callable[[Any], Any]
    form: Callable[[Any], Any]

    def __call__(self, image: Any) -> Any:
        return self.prepare(self.form(image))


class _Adapted:
    """A callable behind the three-argument call; whatever else it offers (`state`, `differentiable`) shows through."""

    def __init__(self, function: Callable[..., Any], names: Sequence[str]) -> None:
        self._function, self._names = function, names

    def __call__(self, images: Any, prompts: Any, metadata: Any, /) -> Any:
        data = {"images": images, "prompts": prompts, "metadata": metadata}
        if set(self._names) <= set(DATA):
            # By name: among rewards in the wild the order (images, prompts) and its reverse both exist.
            return self._function(**{name: data[name] for name in self._names})
        return self._function(*[data[name] for name in DATA[: len(self._names)]])

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._function, name)


def _arguments(function: Callable[..., Any], reward: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The arguments to give (real names where they are known, `*name` where they go by position), and those needed."""
    # torch's Module.__call__ takes (*args, **kwargs) whatever `forward` takes; yet it is what runs the hooks.
    torch = sys.modules.get("torch")
    is_module = torch is not None and isinstance(function, torch.nn.Module)
    try:
        parameters = inspect.signature(function.forward if is_module else function).parameters.values()  # type: ignore[attr-defined]
    except (ValueError, TypeError):
        return ("*images",), ()
    by_name = tuple(p.name for p in parameters if p.name in DATA and p.kind in _NAMED)
    positional = [parameter for parameter in parameters if parameter.kind in _POSITIONAL]
    required = [p.name for p in positional if p.default is inspect.Parameter.empty]
    if "images" in by_name and set(required) <= set(by_name):
        without_default = [p.name for p in parameters if p.name in by_name and p.default is inspect.Parameter.empty]
        return by_name, tuple(name for name in without_default if name != "images")
    if any(parameter.kind is inspect.Parameter.VAR_POSITIONAL for parameter in parameters):
        return tuple(f"*{name}" for name in DATA), ()
    got = ", ".join(p.name for p in positional)
    if "images" in [p.name for p in positional[1:]]:  # f(texts, images): what comes first can only be guessed
        raise RewardError(f"reward {reward!r} takes ({got}); name its parameters images, prompts and metadata")
    if not positional or len(required) > len(DATA):
        hint = "" if positional else "; a factory is named with (): module:make()"
        raise RewardError(f"reward {reward!r} takes ({got}); want a function of images[, prompts[, metadata]]{hint}")
    given = max(1, len(required))
    return tuple(f"*{name}" for name in DATA[:given]), DATA[1:given]


def _is_path(image: Any) -> bool:
    return isinstance(image, str | os.PathLike | bytes)


def _score_in_slices(
    reward: Reward, paths: Sequence[Any], prompts: Sequence[str] | None, metadata: Metadata | None
) -> RewardResult:
    """Read the next slice of the files while one is scored, and join the answers."""
    size, form = reward.batch_size, form_of(reward)

    def read(numbered: tuple[int, Any]) -> Any:
        return form(read_image(numbered[1], numbered[0]))

    scores = np.empty(len(paths), np.float32)
    info: Info = {}
    with closing(map_ahead(read, enumerate(paths), ahead=size)) as images:
        for start in range(0, len(paths), size):
            indices = range(start, min(start + size, len(paths)))
            part = reward(list(islice(images, size)), _pick(prompts, indices), _pick(metadata, indices))
            _place(part, indices, scores, info)
    return RewardResult(scores, info)


def _score_by_size(
    reward: Reward, images: Any, size: int, prompts: Sequence[str] | None, metadata: Metadata | None
) -> RewardResult:
    """Call once per image size and put the answers back in order."""
    groups = as_tensors(images)
    if len(groups) == 1:
        return _call(reward, groups[0][1], prompts, metadata, size)
    scores = np.empty(size, np.float32)
    info: dict[str, list[Any]] = {}
    for indices, batch in groups:
        part = _call(reward, batch, _pick(prompts, indices), _pick(metadata, indices), len(indices))
        _place(part, indices, scores, info)
    return RewardResult(scores, info)


def _place(part: RewardResult, indices: Sequence[int], scores: np.ndarray, info: Info) -> None:
    """Put the answers for some of the images where they belong; what only some parts say is None for the others."""
    scores[indices] = part.scores
    for key, values in part.info.items():
        column = info.setdefault(key, [None] * len(scores))
        for index, value in zip(indices, values, strict=True):
            column[index] = value


def _call(reward: Reward, batch: Any, prompts: Any, metadata: Any, size: int) -> RewardResult:
    return check_result(_guarded(reward, reward.score_function, batch, prompts, metadata), reward.spec.name, size)


def _guarded(reward: Reward, function: Callable[..., Any], *given: Any) -> Any:
    """Call a part of a reward, without autograd; whatever it raises names the reward and the place."""
    torch = sys.modules.get("torch")
    try:
        with nullcontext() if torch is None else torch.no_grad():
            return function(*given)
    except RewardError:
        raise
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        raise RewardError(
            f"reward {reward.spec.name!r} raised {type(error).__name__}: {' '.join(str(error).split())} "
            f"({where.filename}:{where.lineno})"
        ) from error


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
    if is_tensor(scores):
        return np.asarray(scores.detach().double().cpu().numpy())
    try:
        items = [item.item() if is_tensor(item) else item for item in scores]
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
    if is_tensor(value):
        value = value.detach().cpu().numpy()
    if isinstance(value, np.ndarray):
        return value.tolist() if value.ndim else None
    return list(value) if isinstance(value, list | tuple) else None


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
