"""What a reward is: its description, its call and its result. Imports nothing heavy, so listing stays fast."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

ImageForm: TypeAlias = Literal["tensor", "arrays", "any"]
Info: TypeAlias = dict[str, list[Any]]
Metadata: TypeAlias = Sequence[Mapping[str, Any]]
# What a `Reward` calls: images in the form its spec takes, prompts and metadata as given. It may return an array,
# `(array, info)` or a dict with "scores"; it may also have methods `differentiable`, `state` and `load_state`.
ScoreFunction: TypeAlias = Callable[[Any, Sequence[str] | None, Metadata | None], Any]


class RewardError(ValueError):
    """Bad input to a reward, or a reward that broke its contract; the text is one line for a person."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Weight:
    """One file (or, with an empty `filename`, one repository) of weights that a reward downloads on first use.

    `source` is `hf://OWNER/REPO` or an `https://` address. A `sha256` (hexadecimal) or `revision` (commit) of
    `None` is not known to the project: it is recorded at the first download and checked ever after.
    """

    source: str
    filename: str = ""
    revision: str | None = None
    sha256: str | None = None
    size: int | None = None  # bytes
    licence: str = "unknown"

    @property
    def pin(self) -> str:
        """How the bytes are pinned, in words."""
        if self.sha256:
            return f"sha256 {self.sha256}"
        revision = f"revision {self.revision}; " if self.revision else ""
        return f"{revision}recorded at the first download, checked ever after"


@dataclass(frozen=True, kw_only=True, slots=True)
class ReferenceScore:
    """A published score of a known image: whoever installs the reward can check theirs against it."""

    image: str  # address or name of the image
    score: float
    tolerance: float
    source: str
    prompt: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class RewardSpec:
    """A reward's description; `factory` is an import string, so that listing rewards imports none of them.

    `factory` is `"package.module:attribute"` or a callable; called with the reward's options it returns the score
    function `f(images[, prompts[, metadata]])`. `takes` says in which form that function wants its images:

    - `"tensor"`: float32 `[batch, 3, height, width]` in [0, 1] (images of several sizes come in one call per size),
    - `"arrays"`: a list of uint8 arrays `[height, width, 3]`, sizes may differ, torch is not imported,
    - `"any"`: a checked tensor or a list of arrays, whatever the caller had.
    """

    name: str
    factory: str | Callable[..., Any]
    summary: str = ""
    needs: frozenset[str] = frozenset()  # of "prompts", "metadata"
    takes: ImageForm = "tensor"
    unit: str = ""
    range: tuple[float, float] | None = None
    licence: str = "unknown"
    source: str = ""
    weights: tuple[Weight, ...] = ()
    extras: tuple[str, ...] = ()
    reference_scores: tuple[ReferenceScore, ...] = ()
    distribution: str = ""  # filled in when registered


@dataclass(frozen=True, kw_only=True, slots=True)
class ProbeSpec:
    """An offline test of rewards that a plugin offers; `factory` as in `RewardSpec`."""

    name: str
    factory: str | Callable[..., Any]
    summary: str = ""
    distribution: str = ""


class RewardResult(NamedTuple):
    """Scores, float32 `[batch]`, higher is better, and per-sample lists of what else the reward knows."""

    scores: "np.ndarray"
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
            images: float tensor `[batch, 3, height, width]` in [0, 1], uint8 arrays `[height, width, 3]`, PIL images
                or paths; sizes may differ except in a tensor.
            prompts: one string per image, where the reward needs them.
            metadata: one mapping per image, where the reward needs them.

        Raises:
            RewardError: wrong range, shape, count or file; or the reward raised, or returned something else than
                one finite number per image.
        """
        from ddpo_rewards.calling import score

        return score(self, images, prompts, metadata)

    def differentiable(
        self, images: "Tensor", prompts: Sequence[str] | None = None, metadata: Metadata | None = None
    ) -> "Tensor":
        """Score a tensor so that gradients reach it; only some rewards can, and their docs state the deviation."""
        from ddpo_rewards.calling import score_differentiably

        return score_differentiably(self, images, prompts, metadata)

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
