"""Add scores to batches of a table, wherever its rows are: a callable for Ray Data's `map_batches`, or `datasets.map`.

It imports neither: a batch is a mapping of columns. Every worker builds its rewards once.

Example:
    >>> import ray  # doctest: +SKIP
    >>> rows = ray.data.read_parquet("images/")  # doctest: +SKIP
    >>> scored = rows.map_batches(  # doctest: +SKIP
    ...     ScoreBatches,
    ...     fn_constructor_args=[["aesthetic"]],
    ...     compute=ray.data.ActorPoolStrategy(size=4),
    ...     num_gpus=1,
    ...     batch_size=256,
    ... )
    >>> scored.write_parquet("scores/")  # doctest: +SKIP
"""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ddpo_rewards.cache import ScoreCache
from ddpo_rewards.errors import RewardError
from ddpo_rewards.registry import load_registry
from ddpo_rewards.reward import Reward
from ddpo_rewards.stream import Scored, iter_scores_of_each

ERROR = "error"
INFO = "info"


class ScoreBatches:
    """Called with a batch, a mapping of columns, it returns the batch with a column of scores per reward, and `error`.

    Rows stay as many and in order. An image that cannot be read has the score NaN, and its reason in `error`.

    Args:
        rewards: references without weights, or rewards.
        image: the column of images: paths, bytes, `{bytes, path}`, uint8 arrays or PIL images.
        prompt: the column of prompts, where a reward needs them.
        metadata: columns that make up the metadata, where a reward needs them; or the name of one column that has it,
            as mappings or as JSON.
        info: add a column `info` with what each reward says beside its score, as JSON.
        batch_size: images that a reward is called with; by default as many as it runs at once itself, else 32.
        cache: a file of scores (see `cache`), which workers of one machine share.
        workers: threads that decode; by default one per core.

    Raises:
        RewardError: no reward, one twice, or one that needs prompts or metadata of which no column is named; when
            called, a column that is not there, a prompt that is no text, metadata that are no table, or that a column
            has the name of a reward.

    Example:
        >>> score = ScoreBatches(["jpeg_compressibility"])
        >>> batch = score({"image": [np.zeros((8, 8, 3), np.uint8), b"no image"], "id": [1, 2]})
        >>> sorted(batch), batch["id"], np.isnan(batch["jpeg_compressibility"]).tolist()
        (['error', 'id', 'image', 'jpeg_compressibility'], [1, 2], [False, True])
    """

    def __init__(
        self,
        rewards: Sequence[str | Reward],
        *,
        image: str = "image",
        prompt: str | None = None,
        metadata: str | Sequence[str] = (),
        info: bool = False,
        batch_size: int | None = None,
        cache: str | os.PathLike[str] | None = None,
        workers: int | None = None,
    ) -> None:
        """Build the rewards, and load their weights."""
        if isinstance(rewards, str) or not rewards:
            raise RewardError(f"rewards is {rewards!r}; want a list of one or more")
        names = [reward.spec.name if isinstance(reward, Reward) else reward for reward in rewards]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise RewardError(f"reward {twice!r} is given twice; give it once")
        registry = load_registry()
        self._rewards = {
            name: reward if isinstance(reward, Reward) else registry.get_reward(reward)
            for name, reward in zip(names, rewards, strict=True)
        }
        self._image, self._prompt = image, prompt
        self._metadata = metadata if isinstance(metadata, str) else tuple(metadata)
        self._info, self._batch_size = info, batch_size
        for word, named in (("prompts", prompt), ("metadata", metadata)):
            needing = [name for name, reward in self._rewards.items() if word in reward.spec.needs]
            if needing and not named:
                raise RewardError(f"{needing[0]} needs {word}: name the column, {word.removesuffix('s')}=...")
        self._cache = None if cache is None else ScoreCache(cache)
        self._workers = workers

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Score a batch."""
        details = [self._metadata] if isinstance(self._metadata, str) else self._metadata
        for name in (self._image, *filter(None, [self._prompt]), *details):
            if name not in batch:
                raise RewardError(f"the batch has no column {name!r}; it has {', '.join(batch)}")
        for name in (*self._rewards, *([INFO] if self._info else []), ERROR):
            if name in batch:
                raise RewardError(f"the batch has a column {name!r} already; rename it")
        rows = list(
            iter_scores_of_each(
                [_image(value) for value in batch[self._image]],
                list(self._rewards.values()),
                prompts=None if self._prompt is None else [_text(value) for value in batch[self._prompt]],
                metadata=list(_details(batch, self._metadata)) if self._metadata else None,
                batch_size=self._batch_size,
                workers=self._workers,
                cache=self._cache,
            )
        )
        columns: dict[str, Any] = {
            name: np.array([np.nan if row[place].score is None else row[place].score for row in rows], np.float64)
            for place, name in enumerate(self._rewards)
        }
        if self._info:
            columns[INFO] = [_said(dict(zip(self._rewards, row, strict=True))) for row in rows]
        errors = [next((str(one.error) for one in row if one.error is not None), None) for row in rows]
        return {**batch, **columns, ERROR: errors}


def _image(value: Any) -> Any:
    """An image as `datasets` stores it is a table with its bytes or its path."""
    if isinstance(value, Mapping):
        return value.get("bytes") or value.get("path") or b""
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise RewardError(f"a prompt is {value!r}; want a text for every image")
    return value


def _details(batch: Mapping[str, Any], names: str | Sequence[str]) -> Iterator[Mapping[str, Any]]:
    """The metadata of every row."""
    if not isinstance(names, str):
        for values in zip(*(batch[name] for name in names), strict=True):
            yield dict(zip(names, values, strict=True))
        return
    for value in batch[names]:
        details = json.loads(value) if isinstance(value, str) else value
        if not isinstance(details, Mapping):
            raise RewardError(f"metadata {names!r} is {value!r}; want a table, or one as JSON")
        yield details


def _said(row: Mapping[str, Scored]) -> str:
    """What rewards say of one image beside its scores; what is no JSON as text."""
    info = {f"{name}.{key}": value for name, one in row.items() for key, value in one.info.items()}
    return json.dumps(info, default=str)
