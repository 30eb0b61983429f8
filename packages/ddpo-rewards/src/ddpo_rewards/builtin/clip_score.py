"""`clip_score`: the cosine of image and prompt under CLIP ViT-L/14."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddpo_rewards.compute import BatchSize, Device, DType
from ddpo_rewards.models import CLIP_TOWER
from ddpo_rewards.specs import RewardSpec

if TYPE_CHECKING:
    from jaxtyping import Float
    from PIL.Image import Image
    from torch import Tensor

    from ddpo_rewards.models.clip import Tower
    from ddpo_rewards.reward import Info, Metadata, RewardResult

SPEC = RewardSpec(
    name="clip_score",
    factory="ddpo_rewards.builtin.clip_score:clip_score",
    summary="Cosine of image and prompt under CLIP ViT-L/14; mostly 0.1 to 0.35.",
    needs=frozenset({"prompts"}),
    takes="pil",
    unit="cosine",
    range=(-1.0, 1.0),
    licence="Apache-2.0",
    source="Radford et al. 2021, arXiv:2103.00020; Hessel et al. 2021, arXiv:2104.08718",
    weights=(CLIP_TOWER,),
)
_CLIPSCORE_SCALE = 2.5


@dataclass(frozen=True, eq=False)
class ClipScore:
    """The score function of `clip_score` and its relatives: `scale * cosine` of image and prompt in a tower."""

    tower: "Tower"
    at_once: BatchSize
    scale: float = 1.0
    describe: "Callable[[Tensor], Info] | None" = None  # what `info` says of the cosines

    @property
    def batch_size(self) -> int:
        """Images that run at once."""
        return self.at_once.most

    @property
    def prepare(self) -> "Callable[..., Any]":
        """What an image may be brought to before it comes here, without a change of its score."""
        return self.tower.prepare

    def __call__(self, images: "Sequence[Image]", prompts: Sequence[str]) -> "RewardResult":
        """Cosine of each image with its prompt, times the scale."""
        return self.score_embeddings(self.embed(images), prompts, None)

    def embed(self, images: "Sequence[Image]") -> "Float[Tensor, 'batch dim']":
        """What the tower makes of images, once for all rewards that have this tower."""
        from ddpo_rewards.models import clip

        return clip.embed_images(self.tower, images, batch_size=self.at_once)

    def score_embeddings(
        self, embeddings: "Float[Tensor, 'batch dim']", prompts: Sequence[str], metadata: "Metadata | None"
    ) -> "RewardResult":
        """Score what `embed` returned."""
        from ddpo_rewards.models import clip
        from ddpo_rewards.reward import RewardResult

        unique = list(dict.fromkeys(prompts))
        texts = clip.embed_texts(self.tower, unique, batch_size=self.at_once)
        rows = [unique.index(prompt) for prompt in prompts]
        cosines = (embeddings * texts[rows]).sum(-1)
        cut_off = {prompt: self.tower.is_cut_off(prompt) for prompt in unique}
        info = self.describe(cosines) if self.describe else {}
        info["prompt_cut_off"] = [cut_off[prompt] for prompt in prompts]
        return RewardResult((self.scale * cosines).numpy(), info)

    def differentiable(
        self, images: "Float[Tensor, 'batch 3 height width']", prompts: Sequence[str], metadata: "Metadata | None", /
    ) -> "Float[Tensor, ' batch']":
        """Score with gradients; the deviation is that of `clip.embed_differentiably`."""
        from ddpo_rewards.models import clip

        texts = clip.embed_texts(self.tower, prompts, batch_size=self.at_once)
        embeddings = clip.embed_differentiably(self.tower, images)
        return self.scale * (embeddings * texts.to(embeddings.device)).sum(-1)


def clip_score(
    *, device: Device = None, dtype: DType = None, batch_size: int | None = None, tower: Path | None = None
) -> ClipScore:
    """Cosine of image and prompt under CLIP ViT-L/14; options as in `aesthetic`.

    The score is the plain cosine, mostly 0.1 to 0.35; `info["clipscore"]` is Hessel et al.'s `2.5 max(cosine, 0)`,
    which libraries mix up with it. `info["prompt_cut_off"]` flags prompts beyond CLIP's 77 tokens.
    """
    from ddpo_rewards.models import clip

    shared = clip.load_vit_l_14(tower, device=device, dtype=dtype)
    return ClipScore(shared, clip.batch_size_of(shared, batch_size), describe=clipscore)


def clipscore(cosines: "Tensor") -> "Info":
    """Hessel et al.'s `2.5 max(cosine, 0)`, for `info`."""
    return {"clipscore": (_CLIPSCORE_SCALE * cosines.clamp(min=0)).tolist()}
