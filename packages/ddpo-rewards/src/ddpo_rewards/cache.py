"""Scores that are not computed twice: one SQLite file, by what the image holds and by the version of the reward.

A score is kept under the sha256 of the reward's version, the content of the image (the bytes of its file, or its
pixels), its prompt and its metadata. The version of a reward is its distribution with that one's version, its name, its
options and the pins of its weights: a plugin that scores otherwise has to raise its version. What has no version is not
kept: functions named by `module:attribute`, sums, rewards that learn or read files that metadata name (`reads_files`),
and those whose weights an option replaces or that ask a server. Devices and precisions are told apart where options
choose them; otherwise scores differ by rounding.
"""

import hashlib
import json
import os
import sqlite3
import threading
import weakref
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as distribution_version
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np

from ddpo_rewards.errors import RewardError
from ddpo_rewards.reward import Reward
from ddpo_rewards.weights import describe_pin

_SCHEMA = 1
_WAIT = 60.0  # seconds for another process to finish writing
_AT_ONCE = 500  # keys in a question; SQLite takes 999 at least
_TABLE = "scores (key BLOB PRIMARY KEY, score REAL NOT NULL, info TEXT NOT NULL)"
_PLAIN = (str, int, float, Path, type(None))  # types of options that say themselves what they are


class Kept(NamedTuple):
    """A score that was computed before, and what the reward said beside it."""

    score: float
    info: Mapping[str, Any]


class ScoreCache:
    """A file of scores, for any number of threads and processes; made where there is none.

    Raises:
        RewardError: a file that is something else, or that cannot be written.

    Example:
        >>> with ScoreCache(":memory:") as cache:
        ...     cache.keep([(b"key", 0.5, {"caption": "a fox"})])
        ...     cache.find([b"key", b"other", None])
        [Kept(score=0.5, info={'caption': 'a fox'}), None, None]
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Open the file, or make it."""
        self._path, self._lock = os.fspath(path), threading.Lock()
        try:
            self._connection = sqlite3.connect(self._path, timeout=_WAIT, check_same_thread=False)
        except sqlite3.Error as error:
            raise RewardError(f"{self._path!r} is no cache of scores: {error}; choose another file") from error
        # Whoever only drops it (the worker of an engine that has no end of its own) leaves no open file behind.
        weakref.finalize(self, self._connection.close)
        try:
            self._prepare()
        except sqlite3.Error as error:
            self.close()
            raise RewardError(f"{self._path!r} is no cache of scores: {error}; choose another file") from error
        except RewardError:
            self.close()
            raise

    def __enter__(self) -> "ScoreCache":
        """Close it when the block is left."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close it; what was kept stays."""
        self.close()

    def close(self) -> None:
        """Close the file; what was kept stays."""
        with self._lock:
            self._connection.close()

    def find(self, keys: Sequence[bytes | None]) -> list[Kept | None]:
        """What is kept under each key; None where nothing is, or where there is no key."""
        wanted = [key for key in dict.fromkeys(keys) if key is not None]
        found: dict[bytes, Kept] = {}
        for start in range(0, len(wanted), _AT_ONCE):
            some = wanted[start : start + _AT_ONCE]
            question = f"SELECT key, score, info FROM scores WHERE key IN ({','.join('?' * len(some))})"
            with self._lock:
                rows = self._connection.execute(question, some).fetchall()
            found |= {key: Kept(score, json.loads(info)) for key, score, info in rows}
        return [None if key is None else found.get(key) for key in keys]

    def keep(self, scores: Iterable[tuple[bytes | None, float, Mapping[str, Any]]]) -> None:
        """Keep scores under their keys, all or none; those without a key, or whose info is no JSON, are left out."""
        rows = []
        for key, score, info in scores:
            with suppress(TypeError, ValueError):
                if key is not None:
                    rows.append((key, float(score), json.dumps(dict(info), allow_nan=False)))
        try:
            with self._lock, self._connection:
                self._connection.executemany("INSERT OR REPLACE INTO scores VALUES (?, ?, ?)", rows)
        except sqlite3.Error as error:
            raise RewardError(f"the cache {self._path!r} cannot be written: {error}") from error

    def _prepare(self) -> None:
        (schema,) = self._connection.execute("PRAGMA user_version").fetchone()
        if schema not in (0, _SCHEMA):
            raise RewardError(f"{self._path!r} has the schema {schema}, not {_SCHEMA}; choose another file")
        tables = {name for (name,) in self._connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        if schema == 0 and tables - {"scores"}:  # another process may be making it in this moment
            raise RewardError(f"{self._path!r} is another database, with {', '.join(tables)}; choose another file")
        self._connection.execute("PRAGMA journal_mode = WAL")  # readers do not wait for whoever writes
        self._connection.execute(f"CREATE TABLE IF NOT EXISTS {_TABLE} WITHOUT ROWID")
        self._connection.execute(f"PRAGMA user_version = {_SCHEMA}")


def reward_version(reward: Reward) -> str | None:
    """What a kept score depends on beside the image, prompt and metadata; None where that is not known.

    Example:
        >>> from ddpo_rewards import get_reward
        >>> reward_version(get_reward("jpeg_compressibility?quality=80"))
        '["ddpo-rewards", "0.1.0", "jpeg_compressibility", {"quality": "80"}, []]'
    """
    spec = reward.spec
    replaced = {option for weight in spec.weights for option in weight.replaced_by}
    if not spec.distribution or replaced & {name for name, value in reward.options.items() if value is not None}:
        return None
    function = reward.score_function
    if callable(getattr(function, "state", None)) or getattr(function, "reads_files", False):
        return None
    if not all(isinstance(value, _PLAIN) for value in reward.options.values()):
        return None
    try:
        installed = distribution_version(spec.distribution)
    except PackageNotFoundError:
        return None
    options = {name: str(value) for name, value in sorted(reward.options.items())}
    pins = [describe_pin(weight) for weight in spec.weights]
    return json.dumps([spec.distribution, installed, spec.name, options, pins])


def content_digest(image: Any) -> bytes:
    """The sha256 of the bytes of an image's file, or of the size and pixels of a uint8 array `[height, width, 3]`.

    Raises:
        OSError: a file that cannot be read.
    """
    if isinstance(image, bytes):
        return hashlib.sha256(image).digest()
    if isinstance(image, str | os.PathLike):
        with Path(image).open("rb") as file:
            return hashlib.file_digest(file, "sha256").digest()
    pixels = np.ascontiguousarray(image)
    return hashlib.sha256(repr(pixels.shape).encode() + pixels.tobytes()).digest()


def score_key(
    version: str | None, content: bytes, prompt: str | None, metadata: Mapping[str, Any] | None
) -> bytes | None:
    """The key of a score; None where the reward has no version, or where the metadata is no JSON."""
    if version is None:
        return None
    try:
        text = json.dumps([version, content.hex(), prompt, metadata], sort_keys=True)
    except (TypeError, ValueError):
        return None
    return hashlib.sha256(text.encode()).digest()
