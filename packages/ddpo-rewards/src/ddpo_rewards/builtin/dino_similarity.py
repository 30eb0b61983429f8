"""`dino_similarity`: how much an image looks like the reference images in its metadata, by DINOv2."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ddpo_rewards.compute import BatchSize, Device, DType
from ddpo_rewards.errors import RewardError
from ddpo_rewards.models import DINO
from ddpo_rewards.specs import RewardSpec

if TYPE_CHECKING:
    from jaxtyping import Float
    from PIL.Image import Image
    from torch import Tensor

    from ddpo_rewards.models.clip import Tower
    from ddpo_rewards.reward import Metadata, RewardResult

SPEC = RewardSpec(
    name="dino_similarity",
    factory="ddpo_rewards.builtin.dino_similarity:dino_similarity",
    summary="Mean cosine of an image and its metadata's reference images under DINOv2.",
    needs=frozenset({"metadata"}),
    takes="pil",
    unit="cosine",
    range=(-1.0, 1.0),
    licence="Apache-2.0",
    source="Oquab et al. 2023, arXiv:2304.07193; Ruiz et al. 2022, arXiv:2208.12242 (the measure)",
    weights=(DINO,),
)
MODEL = DINO.source.removeprefix("hf://")
_REMEMBERED = 4096  # embeddings of reference files, 3 kB each


@dataclass(frozen=True, eq=False)
class DinoSimilarity:
    """The score function of `dino_similarity`."""

    tower: "Tower"
    at_once: BatchSize
    reads_files = True  # those that metadata name, so a score is not known by the metadata alone
    # Of reference files, by path, size and time: training asks for the same few in every epoch.
    _known: "dict[Any, Tensor]" = field(default_factory=dict)

    @property
    def batch_size(self) -> int:
        """Images that run at once."""
        return self.at_once.most

    @property
    def prepare(self) -> "Callable[..., Any]":
        """What an image may be brought to before it comes here, without a change of its score."""
        return self.tower.prepare

    def __call__(self, images: "Sequence[Image]", *, metadata: "Metadata") -> "RewardResult":
        """Mean cosine of each image with its references."""
        import numpy as np

        from ddpo_rewards.models import clip
        from ddpo_rewards.reward import RewardResult

        wanted = [_references(index, item) for index, item in enumerate(metadata)]
        embeddings = clip.embed_images(self.tower, images, batch_size=self.at_once)
        flat = iter(self._embed([reference for references in wanted for reference in references]))
        similarities = [
            [float(next(flat) @ embedding) for _ in references]
            for references, embedding in zip(wanted, embeddings, strict=True)
        ]
        scores = np.asarray([np.mean(own) for own in similarities], np.float32)
        return RewardResult(scores, {"similarities": similarities})

    def _embed(self, references: Sequence[Any]) -> "list[Float[Tensor, ' dim']]":
        from ddpo_rewards.images import read_image, to_picture
        from ddpo_rewards.models import clip

        keys = [_file_key(reference) or place for place, reference in enumerate(references)]
        new = {key: place for place, key in enumerate(keys) if key not in self._known}
        pictures = [to_picture(read_image(references[place], place)) for place in new.values()]
        embeddings = clip.embed_images(self.tower, pictures, batch_size=self.at_once) if new else ()
        fresh = dict(zip(new, embeddings, strict=True))
        found = [fresh[key] if key in fresh else self._known[key] for key in keys]
        self._known.update({key: embedding for key, embedding in fresh.items() if isinstance(key, tuple)})
        while len(self._known) > _REMEMBERED:
            del self._known[next(iter(self._known))]
        return found


def dino_similarity(
    *,
    model: str = MODEL,
    revision: str | None = None,
    device: Device = None,
    dtype: DType = None,
    batch_size: int | None = None,
) -> DinoSimilarity:
    """Likeness to reference images: `score = mean_r cosine(image, r)` of DINOv2's class tokens.

    Metadata of each image is a mapping with `references`, a path or a list of paths (or of PIL images or arrays).
    `info["similarities"]` has the cosine with each. Both are resized to 256 pixels, and their middle 224 are seen.
    Options as in `pickscore`.

    Raises:
        RewardError: a model that cannot be had or is no DINOv2; and, when called, no references, or unreadable ones.

    Source: Ruiz et al. 2022, section 4.2, whose measure this is with DINO ViT-S/16; here it is DINOv2 ViT-B/14.
    """
    from ddpo_rewards.models import clip
    from ddpo_rewards.models.encoders import load_encoder

    tower = load_encoder(model, kind="dinov2", published=DINO, revision=revision, device=device, dtype=dtype)
    return DinoSimilarity(tower, clip.batch_size_of(tower, batch_size))


def _references(index: int, item: Mapping[str, Any]) -> Sequence[Any]:
    given = item.get("references")
    if isinstance(given, str | os.PathLike):
        return [given]
    if not isinstance(given, list | tuple) or not given:
        raise RewardError(f"metadata {index} has references={_short(given)}; want a path or a list of paths or images")
    return given


def _file_key(reference: Any) -> tuple[str, int, int] | None:
    if not isinstance(reference, str | os.PathLike):
        return None
    try:
        status = os.stat(reference)
    except OSError:
        return None  # reading it says what is wrong
    return os.path.abspath(reference), status.st_size, status.st_mtime_ns


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
