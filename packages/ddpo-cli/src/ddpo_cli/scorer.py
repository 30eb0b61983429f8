"""Rewards over a list of images: one row per image, whatever its file holds."""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ddpo_cli.errors import CLIError
from ddpo_cli.inputs import Item
from ddpo_cli.rewarding import allow_local_modules
from ddpo_rewards import ImageError, Reference, Reward, load_image, load_registry, parse_reference

if TYPE_CHECKING:
    from PIL.Image import Image

DECODERS = 4


@dataclass(frozen=True)
class Scorer:
    """The rewards of a job, each with its column and its weight."""

    rewards: Mapping[str, Reward]
    weights: Mapping[str, float]

    @property
    def weighted(self) -> bool:
        """Whether a weighted sum was asked for."""
        return any(weight != 1 for weight in self.weights.values())

    @property
    def needs(self) -> frozenset[str]:
        """What the rewards need beside images."""
        return frozenset().union(*(reward.spec.needs for reward in self.rewards.values()))

    def columns(self, *, info: bool) -> list[str]:
        """Return the columns of the rows."""
        total = ["total"] if self.weighted else []
        return ["image", "prompt", *self.rewards, *total, *(["info"] if info else []), "error"]

    @property
    def ranking(self) -> str:
        """The column that the contact sheet is sorted by."""
        return "total" if self.weighted else next(iter(self.rewards))


def build_scorer(references: Sequence[str]) -> Scorer:
    """Build the rewards of `references`; a column is named as its reward was, without the weight.

    Raises:
        ValueError: an unknown reward, wrong options, or one reward twice.
    """
    allow_local_modules(references)
    registry = load_registry()
    rewards: dict[str, Reward] = {}
    weights: dict[str, float] = {}
    for text in references:
        parsed = parse_reference(text)
        column = str(Reference(parsed.ref, options=parsed.options))
        if column in rewards:
            raise CLIError(f"--reward {column!r} is given twice; give it once")
        rewards[column], weights[column] = registry.get_reward(column), parsed.weight
    return Scorer(rewards, weights)


def score_items(
    items: Sequence[Item], scorer: Scorer, *, batch_size: int, info: bool = False
) -> Iterator[dict[str, Any]]:
    """One row per item, in order; the next batch is decoded while this one is scored."""
    batches = [items[start : start + batch_size] for start in range(0, len(items), batch_size)]
    with ThreadPoolExecutor(DECODERS) as decoders:
        decoding: list[list[Future[Any]]] = []
        for index, batch in enumerate(batches):
            for coming in batches[len(decoding) : index + 2]:
                decoding.append([decoders.submit(_decode, item.path) for item in coming])
            yield from _score_batch(batch, [image.result() for image in decoding[index]], scorer, info=info)
            decoding[index] = []  # the pictures of a batch are let go with it


def _decode(path: str) -> "Image | ImageError":
    try:
        return load_image(path)
    except ImageError as error:
        return error


def _score_batch(
    batch: Sequence[Item], images: Sequence["Image | ImageError"], scorer: Scorer, *, info: bool
) -> Iterator[dict[str, Any]]:
    readable = [index for index, image in enumerate(images) if not isinstance(image, ImageError)]
    given = [batch[index] for index in readable]
    prompts = [item.prompt or "" for item in given]
    metadata = [item.metadata for item in given]
    results = {}
    if readable:
        pictures = [images[index] for index in readable]
        results = {name: reward(pictures, prompts, metadata) for name, reward in scorer.rewards.items()}
    place = {index: position for position, index in enumerate(readable)}
    for index, (item, image) in enumerate(zip(batch, images, strict=True)):
        row: dict[str, Any] = dict.fromkeys(scorer.columns(info=info)) | {"image": item.path, "prompt": item.prompt}
        if isinstance(image, ImageError):
            yield row | {"error": str(image)}
            continue
        # By its shortest decimal, as float32 prints: -2.196 and not -2.196000099182129.
        scores = {name: float(str(result.scores[place[index]])) for name, result in results.items()}
        if scorer.weighted:
            scores["total"] = sum(scorer.weights[name] * score for name, score in scores.items())
        yield row | scores | (_info(results, place[index]) if info else {})


def _info(results: Mapping[str, Any], position: int) -> dict[str, Any]:
    return {
        "info": {
            f"{name}.{key}": values[position] for name, result in results.items() for key, values in result.info.items()
        }
    }
