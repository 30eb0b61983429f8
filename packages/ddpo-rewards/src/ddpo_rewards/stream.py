"""Scores of more images than fit in memory: read ahead in threads, scored in batches, one result per image in order."""

import os
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import islice, zip_longest
from typing import Any

from ddpo_rewards.cache import Kept, ScoreCache, content_digest, reward_version, score_key
from ddpo_rewards.compute import map_ahead
from ddpo_rewards.errors import ImageError, RewardError
from ddpo_rewards.images import as_array, read_image
from ddpo_rewards.reward import Reward, embed, form_of, has_embeddings, score_embeddings

_END = object()


@dataclass(frozen=True, slots=True)
class Scored:
    """What became of one image: its score and what the reward says beside it, or why its file cannot be read."""

    index: int
    score: float | None
    info: Mapping[str, Any]
    error: ImageError | None


@dataclass(frozen=True, slots=True)
class _Read:
    """An image in the form that each reward wants, or why there is none."""

    index: int
    forms: Sequence[Any]
    prompt: Any
    metadata: Any
    error: ImageError | None = None
    keys: Sequence[bytes | None] = ()
    """One per reward, where there is a cache."""
    kept: Sequence[Kept | None] = ()
    """What the cache has for each reward; nothing is read where it has all."""


def iter_scores(
    images: Iterable[Any],
    reward: Reward,
    *,
    prompts: Iterable[str] | None = None,
    metadata: Iterable[Mapping[str, Any]] | None = None,
    batch_size: int | None = None,
    workers: int | None = None,
    strict: bool = False,
    cache: ScoreCache | None = None,
) -> Iterator[Scored]:
    """Score images one after the other, however many there are; results come in order, as soon as a batch is scored.

    While one batch is scored, threads read the next one, and bring it to the size that the reward looks at where the
    reward has a `prepare`. At most two batches of images lie in memory. Whoever stops early, by `break` or an
    exception, ends the threads.

    Args:
        images: paths, the bytes of files, PIL images or uint8 arrays `[height, width, 3]`; any iterable, drawn as it is
            needed.
        reward: scores them. One that learns from what it sees (`combine_standardised`) learns batch by batch.
        prompts: one per image, where the reward needs them.
        metadata: one mapping per image, where the reward needs them.
        batch_size: images that the reward is called with; by default as many as it runs at once itself, else 32.
        workers: threads that read; by default one per core.
        strict: raise the error of a file that cannot be read, instead of giving it as that image's result.
        cache: has the scores of earlier runs, and keeps those of this one.

    Raises:
        RewardError: as `Reward` does; prompts or metadata of another number than images.

    Example:
        >>> import numpy as np
        >>> from ddpo_rewards import get_reward
        >>> pictures = (np.full((8, 8, 3), shade, np.uint8) for shade in range(100))
        >>> scores = [result.score for result in iter_scores(pictures, get_reward("jpeg_compressibility"))]
        >>> len(scores), max(scores) < 0
        (100, True)
    """
    together = iter_scores_of_each(
        images,
        [reward],
        prompts=prompts,
        metadata=metadata,
        batch_size=batch_size,
        workers=workers,
        strict=strict,
        cache=cache,
    )
    with closing(together):
        for (scored,) in together:
            yield scored


def iter_scores_of_each(
    images: Iterable[Any],
    rewards: Sequence[Reward],
    *,
    prompts: Iterable[str] | None = None,
    metadata: Iterable[Mapping[str, Any]] | None = None,
    batch_size: int | None = None,
    workers: int | None = None,
    strict: bool = False,
    cache: ScoreCache | None = None,
) -> Generator[tuple[Scored, ...], None, None]:
    """Score each image with every one of `rewards`, reading it once; otherwise as `iter_scores`."""
    if isinstance(images, str | os.PathLike | bytes):
        raise RewardError(f"images is a single {type(images).__name__}; pass a list, [image]")
    if batch_size is not None and batch_size < 1:
        raise RewardError(f"batch_size={batch_size!r} is not positive; want 1 or more")
    size = batch_size or max(reward.batch_size for reward in rewards)
    read = partial(
        _read,
        forms=[form_of(reward) for reward in rewards],
        cache=cache,
        versions=[] if cache is None else [reward_version(reward) for reward in rewards],
    )
    ahead = map_ahead(read, _aligned(images, prompts, metadata), ahead=size, workers=workers)
    with closing(ahead):
        while batch := list(islice(ahead, size)):
            failed = next((item.error for item in batch if item.error is not None), None)
            if strict and failed is not None:
                raise failed
            yield from _score_batch(batch, rewards, prompts is not None, metadata is not None, cache)


def _aligned(images: Iterable[Any], prompts: Iterable[str] | None, metadata: Iterable[Any] | None) -> Iterator[Any]:
    """Number the images and put prompt and metadata to each."""
    given = {"images": images, "prompts": prompts, "metadata": metadata}
    columns = {name: values for name, values in given.items() if values is not None}
    for index, values in enumerate(zip_longest(*columns.values(), fillvalue=_END)):
        row = dict(zip(columns, values, strict=True))
        ended = [name for name, value in row.items() if value is _END]
        if ended:
            going = next(name for name in row if name not in ended)
            raise RewardError(f"{' and '.join(ended)} end after {index}, but {going} go on; want one per image")
        yield index, row["images"], row.get("prompts"), row.get("metadata")


def _read(
    row: tuple[int, Any, str | None, Any],
    forms: Sequence[Callable[[Any], Any]],
    cache: ScoreCache | None,
    versions: Sequence[str | None],
) -> _Read:
    """Read one image, and bring it to each form once, for all rewards that share it; unless all scores are kept."""
    index, image, prompt, metadata = row
    keys: list[bytes | None] = []
    kept: list[Kept | None] = []
    try:
        if cache is not None:
            digest = _digest(image, index)
            keys = [score_key(version, digest, prompt, metadata) for version in versions]
            kept = cache.find(keys)
            if None not in kept:
                return _Read(index, (), prompt, metadata, None, keys, kept)
        read = read_image(image, index)
    except ImageError as error:
        return _Read(index, (), prompt, metadata, error)
    made = {form: form(read) for form in dict.fromkeys(forms)}
    return _Read(index, [made[form] for form in forms], prompt, metadata, None, keys, kept)


def _digest(image: Any, index: int) -> bytes:
    if not isinstance(image, str | os.PathLike | bytes):
        return content_digest(as_array(image, index))
    try:
        return content_digest(image)
    except OSError as error:
        raise ImageError(f"{os.fspath(image)!r} cannot be read: {error.strerror}") from error


def _score_batch(
    batch: Sequence[_Read], rewards: Sequence[Reward], with_prompts: bool, with_metadata: bool, cache: ScoreCache | None
) -> Iterator[tuple[Scored, ...]]:
    readable = [item for item in batch if item.error is None]
    embedded: dict[int, dict[int, Any]] = {}
    scores = [
        _score_missing(readable, place, reward, with_prompts, with_metadata, embedded)
        for place, reward in enumerate(rewards)
    ]
    if cache is not None:
        cache.keep(
            (item.keys[place], *own[item.index])
            for place, own in enumerate(scores)
            for item in readable
            if item.kept[place] is None
        )
    for item in batch:
        if item.error is not None:
            yield tuple(Scored(item.index, None, {}, item.error) for _ in rewards)
        else:
            yield tuple(Scored(item.index, *own[item.index], None) for own in scores)


def _score_missing(
    readable: Sequence[_Read],
    place: int,
    reward: Reward,
    with_prompts: bool,
    with_metadata: bool,
    embedded: dict[int, dict[int, Any]],
) -> dict[int, Kept]:
    """The scores of a batch by one reward, by index: those that are kept, and the others by asking it.

    `embedded` has what towers made of images before, by tower and index, and takes what this reward's makes.
    """
    known = {item.index: kept for item in readable if item.kept and (kept := item.kept[place]) is not None}
    missing = [item for item in readable if item.index not in known]
    if missing:
        prompts = [item.prompt for item in missing] if with_prompts else None
        metadata = [item.metadata for item in missing] if with_metadata else None
        if has_embeddings(reward):
            seen = embedded.setdefault(id(reward.score_function.tower), {})  # type: ignore[attr-defined]
            new = [item for item in missing if item.index not in seen]
            if new:
                made = embed(reward, [item.forms[place] for item in new])
                seen.update(zip((item.index for item in new), made, strict=True))
            rows = [seen[item.index] for item in missing]
            scores, info = score_embeddings(reward, _stack(rows), prompts, metadata)
        else:
            scores, info = reward([item.forms[place] for item in missing], prompts, metadata)
        for position, item in enumerate(missing):
            own = {key: values[position] for key, values in info.items()}
            known[item.index] = Kept(float(scores[position]), own)
    return known


def _stack(rows: Sequence[Any]) -> Any:
    import torch

    return torch.stack(list(rows))
