"""`aesthetic`: the LAION predictor, one affine map of the CLIP ViT-L/14 embedding."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ddpo_rewards.compute import BatchSize, Device, DType
from ddpo_rewards.errors import RewardError
from ddpo_rewards.models import CLIP_TOWER, LLAVA
from ddpo_rewards.specs import ReferenceScore, RewardSpec, Weight
from ddpo_rewards.weights import EMBEDDED, embedded_path, fetch

if TYPE_CHECKING:
    from jaxtyping import Float
    from PIL.Image import Image
    from torch import Tensor

    from ddpo_rewards.models.clip import Tower
    from ddpo_rewards.reward import Metadata, RewardResult

HEAD = Weight(
    source="https://github.com/christophschuhmann/improved-aesthetic-predictor/raw/main/"
    "sac%2Blogos%2Bava1-l14-linearMSE.pth",
    filename="sac+logos+ava1-l14-linearMSE.pth",
    sha256="21dd590f3ccdc646f0d53120778b296013b096a035a2718c9cb0d511bff0f1e0",
    size=3_714_759,
    licence="Apache-2.0",
    replaced_by=("head",),
    embedded="emoji/aesthetic.safetensors",
)
ASTRONAUT = ReferenceScore(
    image="https://github.com/shunk031/simple-aesthetics-predictor/raw/main/assets/"
    "a-photo-of-an-astronaut-riding-a-horse.png",
    sha256="59e7267a6e55a65ce809e4d1eb89a5e7743e24bba43e10a63018ff2ab97f1dd7",
    score=5.7546,
    # Half precision moves a score by 0.003, another resize by up to 0.02, a tower without QuickGELU by 0.6.
    tolerance=0.05,
    source="shunk031/simple-aesthetics-predictor: tests/aesthetics_predictor_v2_test.py",
)
SPEC = RewardSpec(
    name="aesthetic",
    factory="ddpo_rewards.builtin.aesthetic:aesthetic",
    summary="LAION's aesthetic predictor on CLIP ViT-L/14; mostly 3 to 7.",
    takes="pil",
    unit="rating, nominally 1 to 10",
    range=(-12.76, 23.23),  # 5.2366 -/+ 17.9956: an affine map of a unit vector
    licence="Apache-2.0",
    source="https://github.com/christophschuhmann/improved-aesthetic-predictor",
    weights=(HEAD, replace(CLIP_TOWER, embedded=LLAVA.embedded)),
    reference_scores=(ASTRONAUT,),
)
_LAYERS = (0, 2, 4, 6, 7)  # the linear layers of the published head; between them is dropout, and no activation


class AffineHead(NamedTuple):
    """`score = weight @ embedding + bias`, float32; what the published five layers amount to."""

    weight: "Float[Tensor, ' dim']"
    bias: "Float[Tensor, '']"


@dataclass(frozen=True, eq=False)
class AestheticScore:
    """The score function of `aesthetic`."""

    tower: "Tower"
    head: AffineHead
    at_once: BatchSize

    @property
    def batch_size(self) -> int:
        """Images that run at once."""
        return self.at_once.most

    @property
    def prepare(self) -> "Callable[..., Any]":
        """What an image may be brought to before it comes here, without a change of its score."""
        return self.tower.prepare

    def __call__(self, images: "Sequence[Image]") -> "RewardResult":
        """Score images as the published predictor does."""
        return self.score_embeddings(self.embed(images), None, None)

    def embed(self, images: "Sequence[Image]") -> "Float[Tensor, 'batch dim']":
        """What the tower makes of images, once for all rewards that have this tower."""
        from ddpo_rewards.models import clip

        return clip.embed_images(self.tower, images, batch_size=self.at_once)

    def score_embeddings(
        self, embeddings: "Float[Tensor, 'batch dim']", prompts: Sequence[str] | None, metadata: "Metadata | None"
    ) -> "RewardResult":
        """Score what `embed` returned."""
        from ddpo_rewards.reward import RewardResult

        return RewardResult(apply_head(self.head, embeddings).numpy(), {})

    def differentiable(
        self,
        images: "Float[Tensor, 'batch 3 height width']",
        prompts: Sequence[str] | None,
        metadata: "Metadata | None",
        /,
    ) -> "Float[Tensor, ' batch']":
        """Score with gradients; the deviation is that of `clip.embed_differentiably`."""
        from ddpo_rewards.models import clip

        embeddings = clip.embed_differentiably(self.tower, images)
        return apply_head(AffineHead(*(part.to(embeddings.device) for part in self.head)), embeddings)


def aesthetic(
    *,
    device: Device = None,
    dtype: DType = None,
    batch_size: int | None = None,
    head: Path | None = None,
    tower: Path | None = None,
    model: str | None = None,
) -> AestheticScore:
    """LAION's aesthetic predictor (sac+logos+ava1-l14-linearMSE): `score = head(e / ||e||)`, e the CLIP embedding.

    Scores are mostly 3 to 7; "1 to 10" is how people rated, not a bound.

    Args:
        device: such as `cuda:1`; a GPU where there is one.
        dtype: of the tower: float16 on a GPU, else float32. The head is float32 always.
        batch_size: images at once; halved when memory runs out.
        head: a local copy of the published head (.pth or .safetensors).
        tower: a local copy of the CLIP ViT-L/14 checkpoint of OpenAI.
        model: `builtin:emoji` for a stand-in that needs no download, where the published one cannot be had: a head of
            the same shape on the embedded LLaVA's tower. No person rated for it: it was fitted to a formula of
            colourfulness, contrast and centredness on emoji scenes, `scripts/emoji/aesthetic.py`.

    Raises:
        RewardError: weights that cannot be had, or that are not these; another model, or files beside one.

    Source: christophschuhmann/improved-aesthetic-predictor simple_inference.py; ddpo-pytorch aesthetic_scorer.py,
    whose input is divided by 255 twice where it is a float in [0, 1]; here it is not.
    """
    from ddpo_rewards.models import clip
    from ddpo_rewards.models.encoders import load_encoder

    if model is None:
        loaded = load_head(head or fetch(HEAD))
        shared = clip.load_vit_l_14(tower, device=device, dtype=dtype)
    elif model == EMBEDDED and not (head or tower):
        loaded = load_head(embedded_path(HEAD))
        shared = load_encoder(model, kind="llava", published=LLAVA, device=device, dtype=dtype)
    else:
        raise RewardError(f"model={model!r}; want {EMBEDDED} and neither head nor tower, or these two and no model")
    return AestheticScore(shared, loaded, clip.batch_size_of(shared, batch_size))


def load_head(path: Path) -> AffineHead:
    """Read the published head, five linear layers without activations, as the one affine map they are.

    They are multiplied out in float64; scores differ from the layered float32 evaluation by at most 1e-6 or so.

    Raises:
        RewardError: the file cannot be read, or is no such head.
    """
    state = _read_state(path)
    try:
        layers = [(state[f"layers.{i}.weight"].double(), state[f"layers.{i}.bias"].double()) for i in _LAYERS]
        weight, bias = layers[0]
        for matrix, offset in layers[1:]:
            weight, bias = matrix @ weight, matrix @ bias + offset
    except (KeyError, RuntimeError) as error:
        raise RewardError(f"{path} is no aesthetic head: want linear layers {_LAYERS}, got {list(state)}") from error
    return AffineHead(weight[0].float(), bias[0].float())


def apply_head(head: AffineHead, embeddings: "Float[Tensor, 'batch dim']") -> "Float[Tensor, ' batch']":
    """`weight @ embedding + bias` in float32.

    Example:
        >>> import torch
        >>> apply_head(AffineHead(torch.tensor([2.0, 0.0]), torch.tensor(1.0)), torch.tensor([[0.5, 9.0]]))
        tensor([2.])
    """
    return embeddings.float() @ head.weight + head.bias


def _read_state(path: Path) -> "dict[str, Tensor]":
    import torch

    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        # Saved on a GPU: without map_location it cannot be read where there is none.
        state: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise RewardError(f"there is no file {str(path)!r}") from error
    # torch's reader meets arbitrary bytes with IndexError, EOFError, UnpicklingError, RuntimeError and more.
    except Exception as error:
        why = " ".join(str(error).split())[:200]
        raise RewardError(f"{path} cannot be read as weights: {type(error).__name__}: {why}") from error
    if not isinstance(state, dict):
        raise RewardError(f"{path} holds a {type(state).__name__}; want a dict of tensors")
    return state
