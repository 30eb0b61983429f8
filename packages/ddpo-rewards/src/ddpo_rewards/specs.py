"""What a reward is said to be: needs, unit, range, licence, weights. Imports nothing heavy, so listing stays fast."""

import difflib
from collections.abc import Callable
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

from ddpo_rewards.errors import RewardError

ImageForm: TypeAlias = Literal["tensor", "arrays", "pil", "any"]
NEEDS = ("prompts", "metadata")  # what a reward may need beside images


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
    replaced_by: tuple[str, ...] = ()  # options of the reward that put other weights in the place of these
    embedded: str = ""  # what `model=builtin:emoji` puts there: a folder or file of this package
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
    """A known score of a known image: `testing.verify_reference_scores` checks an installation against it."""

    image: str  # https:// address of the image, or drawn:NAME of one that `testing.drawn_image` draws
    sha256: str  # of the image's file, or of the pixels of a drawn one
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
    - `"pil"`: a list of PIL images, 8-bit RGB, sizes may differ; of files they are not copied,
    - `"any"`: such a tensor or such a list of arrays, whatever the caller had.

    Raises:
        RewardError: no name, no factory, or needs, images or a range that make no sense.
    """

    name: str
    factory: str | Callable[..., Any]
    summary: str = ""
    needs: AbstractSet[str] = frozenset()  # of "prompts", "metadata"
    takes: ImageForm = "tensor"
    unit: str = ""
    range: tuple[float, float] | None = None
    licence: str = "unknown"
    source: str = ""
    weights: tuple[Weight, ...] = ()
    extras: tuple[str, ...] = ()
    reference_scores: tuple[ReferenceScore, ...] = ()
    distribution: str = ""  # filled in when registered

    def __post_init__(self) -> None:
        """Check what a typing mistake would otherwise leave without effect."""
        if not self.name:
            raise RewardError("a reward's description has no name; want the one that people call it by")
        if not self.factory:
            raise RewardError(f"reward {self.name!r} has no factory; want 'package.module:attribute' or a callable")
        for need in sorted(set(self.needs) - set(NEEDS)):
            near = difflib.get_close_matches(need, NEEDS, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise RewardError(f"reward {self.name!r} needs {need!r}, which is neither prompts nor metadata{hint}")
        if self.takes not in get_args(ImageForm):
            raise RewardError(f"reward {self.name!r} takes {self.takes!r}; want tensor, arrays, pil or any")
        if self.range is not None and not self.range[0] <= self.range[1]:
            raise RewardError(f"reward {self.name!r} has the range {self.range}; want its lowest and highest score")
        object.__setattr__(self, "needs", frozenset(self.needs))


@dataclass(frozen=True, kw_only=True, slots=True)
class ProbeSpec:
    """An offline test of rewards that a plugin offers; `factory` as in `RewardSpec`."""

    name: str
    factory: str | Callable[..., Any]
    summary: str = ""
    distribution: str = ""
