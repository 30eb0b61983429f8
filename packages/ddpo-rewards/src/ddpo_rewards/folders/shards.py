"""Images that lie many in one file: shards of webdataset (`.tar`), tables of `.parquet` with the images' bytes.

They are read one after the other, as they come, so there may be more than any memory or disk listing holds.
"""

import json
import os
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from functools import cache, partial
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from ddpo_rewards.folders.inputs import (
    IMAGE_COLUMNS,
    PROMPT_COLUMNS,
    SUFFIXES,
    Columns,
    FolderError,
    Item,
    did_you_mean,
    find_images,
    is_picture,
    pyarrow,
)

_ROWS = 64  # of a table in memory at once
_IMAGE_SUFFIXES = frozenset(suffix.removeprefix(".") for suffix in SUFFIXES)
_TEXT_SUFFIXES = ("txt", "caption")


class Sample(NamedTuple):
    """One image and what is known of it.

    Of a shard, its item has the path `SHARD/KEY`, the prompt and the metadata, and `image` is the bytes of its file; of
    a file of its own, both have the path.
    """

    item: Item
    image: str | bytes


def is_shard(
    path: str | os.PathLike[str],
    columns: Columns = Columns(),  # noqa: B008 - it is frozen
) -> bool:
    """Whether a file holds images: a `.tar`, or a `.parquet` whose column of images has bytes.

    Raises:
        FolderError: a `.parquet` that cannot be read.
    """
    file = Path(path)
    if file.suffix == ".tar":
        return True
    return file.suffix == ".parquet" and file.is_file() and _bytes_column(file, columns) is not None


def read_images(
    patterns: Iterable[str | os.PathLike[str]],
    *,
    columns: Columns = Columns(),  # noqa: B008 - it is frozen
) -> Iterator[Sample]:
    """All images of files, folders (to the bottom) and globs, as `iter_scores` takes them: paths, then those of shards.

    Raises:
        FolderError: as `find_images_and_shards` and `read_shards` do.

    Example:
        >>> from ddpo_rewards import get_reward, iter_scores
        >>> images = (sample.image for sample in read_images(["photos", "shards"]))
        >>> scores = iter_scores(images, get_reward("jpeg_compressibility"))
    """
    files, shards = find_images_and_shards(patterns, columns=columns)
    yield from (Sample(Item(file), file) for file in files)
    yield from read_shards(shards, columns=columns)


def read_shards(
    shards: Iterable[str | os.PathLike[str]],
    *,
    columns: Columns = Columns(),  # noqa: B008 - it is frozen
) -> Iterator[Sample]:
    """Read samples as they come, shard by shard; at most 64 images of a table lie in memory.

    Of a `.tar`, files of one name up to its first dot are one sample: an image, a prompt (`.txt`, or `prompt`, `text`
    or `caption` in its `.json`), and what the `.json` says as metadata; a sample without an image is left out. Of a
    `.parquet`, each row is one: a column of bytes (or of `{bytes, path}`, as `datasets` writes it), one of prompts, and
    further ones as metadata.

    Args:
        shards: files.
        columns: of tables, where they have unusual names.

    Raises:
        FolderError: a shard that is none, or that is damaged; the samples before are out by then.
    """
    for shard in shards:
        file = Path(shard)
        yield from _read_tar(file) if file.suffix == ".tar" else _read_parquet(file, columns)


def find_images_and_shards(
    patterns: Iterable[str | os.PathLike[str]],
    *,
    columns: Columns = Columns(),  # noqa: B008 - it is frozen
) -> tuple[list[str], list[str]]:
    """Expand files, folders (to the bottom) and globs, as `find_images` does; then the shards among what was found.

    Raises:
        FolderError: a pattern matches nothing, or a `.parquet` cannot be read.
    """
    holds_images = cache(partial(is_shard, columns=columns))
    found = find_images(patterns, wanted=lambda file: is_picture(file) or holds_images(file))
    shards = [str(Path(file)) for file in found if holds_images(file)]  # as images of theirs are named
    return [file for file in found if not holds_images(file)], shards


def _read_tar(file: Path) -> Iterator[Sample]:
    try:
        with tarfile.open(file) as archive:
            group: dict[str, bytes] = {}
            key = ""
            for member in archive:
                if not member.isfile():
                    continue
                path = PurePosixPath(member.name)
                stem, _, extension = path.name.partition(".")
                own = str(path.with_name(stem)) if stem else ""
                if own != key:
                    yield from _sample(file, key, group)
                    key, group = own, {}
                content = archive.extractfile(member)
                if own and content is not None:
                    group[extension.lower()] = content.read()
            yield from _sample(file, key, group)
    except (tarfile.TarError, OSError, EOFError) as error:
        raise FolderError(f"{str(file)!r} cannot be read as a shard: {error}") from error


def _sample(file: Path, key: str, group: Mapping[str, bytes]) -> Iterator[Sample]:
    image = next((content for extension, content in group.items() if extension in _IMAGE_SUFFIXES), None)
    if image is None:
        return
    name = f"{file}/{key}"
    try:
        described = json.loads(group.get("json", b"{}"))
        text = next((group[suffix].decode().strip() for suffix in _TEXT_SUFFIXES if suffix in group), None)
    except ValueError as error:
        raise FolderError(f"{name!r} has a text or JSON that cannot be read: {error}") from error
    if not isinstance(described, dict):
        raise FolderError(f"{name!r} has a JSON that is no table but {type(described).__name__}")
    named = next((described[column] for column in PROMPT_COLUMNS if isinstance(described.get(column), str)), None)
    yield Sample(Item(name, text or named or None, described), image)


def _read_parquet(file: Path, columns: Columns) -> Iterator[Sample]:
    image = _bytes_column(file, columns)
    if image is None:
        raise FolderError(f"{str(file)!r} has no column of images' bytes; want one of {', '.join(IMAGE_COLUMNS)}")
    _, parquet = pyarrow()
    with parquet.ParquetFile(file) as table:
        names = table.schema_arrow.names
        asked = (columns.prompt,) if columns.prompt is not None else PROMPT_COLUMNS
        prompt = next((name for name in asked if name in names), None)
        if columns.prompt is not None and prompt is None:
            hint = did_you_mean(columns.prompt, names)
            raise FolderError(f"{str(file)!r} has no column {columns.prompt!r}{hint}; it has {', '.join(names)}")
        number = 0
        for batch in table.iter_batches(batch_size=_ROWS):
            for row in batch.to_pylist():
                content = row.pop(image)
                encoded = content["bytes"] if isinstance(content, dict) else content
                text = None if prompt is None else row.pop(prompt)
                yield Sample(Item(f"{file}/{number}", text or None, row), encoded or b"")
                number += 1


def _bytes_column(file: Path, columns: Columns) -> str | None:
    """The column of encoded images, which are bytes or the `{bytes, path}` of `datasets`."""
    arrow, parquet = pyarrow()
    try:
        schema = parquet.read_schema(file)
    except (OSError, ValueError) as error:  # pyarrow's own errors are ValueErrors too
        raise FolderError(f"{str(file)!r} cannot be read as parquet: {error}") from error
    for name in (columns.image,) if columns.image is not None else IMAGE_COLUMNS:
        if name not in schema.names:
            continue
        kind = schema.field(name).type
        if arrow.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
            kind = kind.field("bytes").type
        if arrow.types.is_binary(kind) or arrow.types.is_large_binary(kind):
            return name
    return None
