"""Which images to score, and what each was meant to show."""

import csv
import glob
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from itertools import chain
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from ddpo_rewards.errors import RewardError

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"})
METADATA_FILES = ("metadata.csv", "metadata.jsonl")
IMAGE_COLUMNS = ("file_name", "image", "path", "file")
PROMPT_COLUMNS = ("prompt", "text", "caption")
_NOTHING: Mapping[str, Any] = MappingProxyType({})  # one for all: there may be millions


class FolderError(RewardError):
    """Images, prompts or a file of scores that cannot be used; the text says what to do."""


class MissingPrompts(FolderError):
    """Rewards need prompts that some images do not have; the text says how to give them."""

    def __str__(self) -> str:
        """Add what to do."""
        return f"{self.what}; give prompt= (one for all), prompts= (a file), or a metadata.jsonl beside the images"

    @property
    def what(self) -> str:
        """Which rewards need prompts, and which images have none."""
        return str(self.args[0])


@dataclass(frozen=True, slots=True)
class Item:
    """One image to score."""

    path: str
    prompt: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=lambda: _NOTHING)

    @property
    def name(self) -> str:
        """The path as text that every file takes: what of it is not UTF-8 is spelt out."""
        return self.path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")

    @property
    def key(self) -> tuple[str, str | None]:
        """What tells a row from others: the same image may be scored with several prompts."""
        return self.name, self.prompt or None


@dataclass(frozen=True, slots=True)
class Columns:
    """Which columns hold the image's path and its prompt; None looks for the usual names."""

    image: str | None = None
    prompt: str | None = None


class Described(NamedTuple):
    """Images with their prompts and metadata, and what a person should know about where they come from."""

    items: list[Item]
    notes: list[str]


def is_picture(path: str | os.PathLike[str]) -> bool:
    """Tell by its ending whether a file is a picture."""
    return os.path.splitext(path)[1].lower() in SUFFIXES


def find_images(patterns: Iterable[str | os.PathLike[str]], *, wanted: Callable[[str], bool] = is_picture) -> list[str]:
    """Expand files, folders (to the bottom) and globs; in order, each file once however it is spelt.

    Args:
        patterns: what to expand.
        wanted: which files of a folder; those that are named or fit a glob are all taken.

    Raises:
        FolderError: a pattern matches nothing.
    """
    every: list[list[str]] = []
    for given in patterns:
        pattern = os.fspath(given)
        every.append(_expand(pattern, wanted))
        if not every[-1]:
            raise FolderError(_nothing(pattern))
    if len(every) == 1:  # nothing in it is there twice, and to find that out takes as much memory as the paths
        return every[0]
    found: dict[str, str] = {}
    for match in chain.from_iterable(every):
        found.setdefault(os.path.abspath(match), match)
    return list(found.values())


def describe_images(
    paths: Sequence[str],
    *,
    prompt: str | None = None,
    prompts: str | os.PathLike[str] | None = None,
    columns: Columns = Columns(),
    needed: bool = True,
) -> Described:
    """Add its prompt and metadata to each image: from one prompt for all, a table, a text, or a file beside the images.

    A table of `prompts` names images by their path, or by as much of its end as is clear: `3.png` is `deep/3.png` where
    there is no other `3.png`. A text has one prompt per line in the order of the images.

    Args:
        paths: the images, from `find_images`.
        prompt: one prompt for all.
        prompts: a `.csv`, `.jsonl` or `.parquet` with a column for the image and one for its prompt, or a `.txt`.
        columns: where the columns have other names than the usual ones.
        needed: whether a reward needs prompts or metadata. A metadata file beside the images may be anybody's: where
            nothing needs it and it names no images, it is left aside with a note.

    Raises:
        FolderError: both a prompt and a file are given, a file is malformed, lacks a column or contradicts itself, or a
            text has too many or too few lines.
    """
    if prompt is not None and prompts is not None:
        raise FolderError("got prompt and prompts; give one prompt for all images, or a file with one for each")
    if prompt is not None:
        return Described([Item(path, _text(prompt, "prompt")) for path in paths], [])
    if prompts is not None:
        file = Path(prompts)
        described = _from_lines(paths, file) if file.suffix == ".txt" else _from_table(paths, file, columns)
        return Described(described, [])
    folders = dict.fromkeys(os.path.dirname(path) for path in paths)
    beside, notes = {}, []
    for folder in folders:
        beside[folder], note = _beside(Path(folder), columns, needed=needed)
        notes += [note] if note else []
    known = ((path, beside[os.path.dirname(path)].get(os.path.abspath(path))) for path in paths)
    return Described([_placed(path, item) for path, item in known], list(dict.fromkeys(notes)))


def list_table(file: Path, columns: Columns) -> list[Item]:
    """Return the images that a table names, in its order, relative to its folder; it may lack a column of prompts.

    Raises:
        FolderError: it cannot be read, is malformed, or names no images.
    """
    items = _items(read_table(file), file, columns, prompts=columns.prompt is not None)
    folder = os.path.dirname(file)
    placed = (Item(os.path.join(folder, item.path), item.prompt, item.metadata) for item in items)
    return list({item.key: item for item in placed}.values())


def read_table(file: Path) -> list[dict[str, Any]]:
    """Return the rows of a CSV, JSON Lines or Parquet file.

    Raises:
        FolderError: it cannot be read, is none of these, or a row has another number of cells than there are columns.
    """
    if file.suffix not in _READERS:
        raise FolderError(f"{str(file)!r}: want a file that ends in .csv, .jsonl, .parquet or (prompts only) .txt")
    try:
        return _READERS[file.suffix](file)
    except FileNotFoundError:
        raise FolderError(f"there is no file {str(file)!r} with prompts; check its path") from None
    except FolderError:
        raise
    except ValueError as error:  # of csv, json, UTF-8 and pyarrow alike
        raise FolderError(f"{str(file)!r} is malformed: {error}") from None


def is_table(pattern: str | os.PathLike[str]) -> bool:
    """Tell whether one of the images is a table that names them."""
    return os.path.splitext(pattern)[1] in _READERS and os.path.isfile(pattern)


def did_you_mean(name: str, choices: Sequence[str]) -> str:
    """Return a suggestion to append to a message, or nothing."""
    close = get_close_matches(name, choices, n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def pyarrow() -> tuple[Any, Any]:
    """Import `pyarrow` and `pyarrow.parquet`.

    Raises:
        FolderError: it is not installed.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise FolderError("parquet needs pyarrow: pip install 'ddpo-rewards[parquet]'") from None
    return pyarrow, pyarrow.parquet


def _expand(pattern: str, wanted: Callable[[str], bool]) -> list[str]:
    if os.path.isdir(pattern):
        files = (os.path.join(place, name) for place, _, names in os.walk(pattern) for name in names)
        return sorted(file for file in files if os.path.isfile(file) and wanted(file))
    if os.path.exists(pattern):
        return [pattern]
    return sorted(match for match in set(glob.iglob(pattern, recursive=True)) if os.path.isfile(match))


def _nothing(pattern: str) -> str:
    if os.path.isdir(pattern):
        return f"there are no images in {pattern!r}; want files that end in {', '.join(sorted(SUFFIXES))}"
    if glob.has_magic(pattern):
        return f"no file matches {pattern!r}; check the pattern (quote it so that the shell leaves it alone)"
    return f"there is no image {pattern!r}; check the path"


def _from_lines(paths: Sequence[str], file: Path) -> list[Item]:
    """One prompt per line, in the order of the images. Only line feeds end a line: prompts may hold U+2028."""
    try:
        with open(file, encoding="utf-8-sig") as text:
            lines = [line.strip() for line in text]
    except FileNotFoundError:
        raise FolderError(f"there is no file {str(file)!r} with prompts; check its path") from None
    except UnicodeDecodeError as error:
        raise FolderError(f"{str(file)!r} is malformed: {error}") from None
    if len(lines) != len(paths):
        raise FolderError(f"{str(file)!r} has {len(lines)} lines for {len(paths)} images; want one prompt per image")
    return [Item(path, line) for path, line in zip(paths, lines, strict=True)]


def _from_table(paths: Sequence[str], file: Path, columns: Columns) -> list[Item]:
    rows = _by_path(_items(read_table(file), file, columns, prompts=True), file)
    folder = os.path.abspath(file.parent)
    exact = {os.path.abspath(os.path.join(folder, name)): item for name, item in rows.items()}
    exact |= {os.path.abspath(name): item for name, item in rows.items()}
    ends = {os.path.normpath(name): item for name, item in rows.items() if not os.path.isabs(name)}
    taken: Counter[str] = Counter()
    items = []
    for path in paths:
        item = exact.get(os.path.abspath(path))
        if item is None and (item := _by_end(path, ends)) is not None:
            taken[item.path] += 1
        items.append(_placed(path, item))
    unclear = next((name for name, count in taken.items() if count > 1), None)
    if unclear is not None:
        raise FolderError(f"{str(file)!r}: {unclear!r} fits {taken[unclear]} images; name each by more of its path")
    return items


def _by_end(path: str, ends: Mapping[str, Item]) -> Item | None:
    """The row that names `path` by the longest part of its end."""
    parts = os.path.normpath(path).split(os.sep)
    return next((ends[end] for i in range(len(parts)) if (end := os.sep.join(parts[i:])) in ends), None)


def _beside(folder: Path, columns: Columns, *, needed: bool) -> tuple[dict[str, Item], str | None]:
    """What a metadata file in `folder`, or in the one above it, says about images, by absolute path; and a note."""
    files = [place / name for place in (folder, folder.parent) for name in METADATA_FILES]
    file = next((file for file in files if file.is_file()), None)
    if file is None:
        return {}, None
    rows = read_table(file)
    try:
        known = _by_path(_items(rows, file, columns, prompts=columns.prompt is not None), file)
    except FolderError as error:
        if needed or columns != Columns():
            raise
        return {}, f"{file} is left aside, since no reward needs it: {error}"
    return {os.path.abspath(file.parent / path): item for path, item in known.items()}, None


def _items(rows: Sequence[Mapping[str, Any]], file: Path, columns: Columns, *, prompts: bool) -> list[Item]:
    """Every row as an item, its path as it stands there; `prompts` says that there must be a column of prompts."""
    keys = list(dict.fromkeys(key for row in rows for key in row))
    image = _column(columns.image, IMAGE_COLUMNS, keys, file, "image")
    prompt = _column(columns.prompt, PROMPT_COLUMNS, keys, file, "prompt") if prompts else None
    prompt = prompt or next((name for name in PROMPT_COLUMNS if name in keys), None)
    items = []
    for number, row in enumerate(rows, 1):
        where = f"{str(file)!r}, row {number}"
        if not isinstance(row.get(image), str) or not row[image]:
            raise FolderError(f"{where}: {image} is {row.get(image)!r}; want the path of an image")
        said = None if prompt is None or row.get(prompt) is None else _text(row[prompt], f"{where}: {prompt}")
        metadata = {key: value for key, value in row.items() if key not in (image, prompt)}
        items.append(Item(row[image], said, metadata))
    return items


def _by_path(items: Iterable[Item], file: Path) -> dict[str, Item]:
    known: dict[str, Item] = {}
    for item in items:
        if known.setdefault(item.path, item) != item:
            raise FolderError(
                f"{str(file)!r} names {item.path!r} twice and says different things; want one row per image, or score "
                "the table itself, which may hold an image several times"
            )
    return known


def _column(named: str | None, usual: Sequence[str], keys: list[str], file: Path, what: str) -> str:
    if named is not None and named not in keys:
        raise FolderError(f"{str(file)!r} has no column {named!r}{did_you_mean(named, keys)}; it has {', '.join(keys)}")
    found = named or next((name for name in usual if name in keys), None)
    if found is None:
        raise FolderError(
            f"{str(file)!r} has none of the columns {', '.join(usual)}, but {', '.join(keys) or 'no rows'}; "
            f"say which one holds the {what}"
        )
    return found


def _text(value: Any, where: str) -> str:
    """Bring a prompt to text: a JSON number is one as it is written, anything else is none."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise FolderError(f"{where} is {value!r}; want a text")
    text = str(value)
    if any("\ud800" <= letter <= "\udfff" for letter in text):
        raise FolderError(f"{where} is {text!r}, which holds half a character; mend its encoding")
    return text


def _placed(path: str, item: Item | None) -> Item:
    return Item(path, item.prompt, item.metadata) if item else Item(path)


def _read_csv(file: Path) -> list[dict[str, Any]]:
    with open(file, encoding="utf-8-sig", newline="") as text:
        reader = csv.DictReader(text, strict=True)
        rows = []
        try:
            for row in reader:
                if None in row or None in row.values():
                    cells = sum(value is not None for key, value in row.items() if key) + len(row.get(None, ()))
                    wanted = len(reader.fieldnames or ())
                    raise FolderError(
                        f"{str(file)!r} is malformed: line {reader.line_num} has {cells} cells for {wanted} columns; "
                        "put a text with commas in quotes"
                    )
                rows.append(row)
        except csv.Error as error:
            raise ValueError(f"line {reader.line_num}: {error}") from None
    return rows


def _read_json_lines(file: Path) -> list[dict[str, Any]]:
    """Only line feeds end a line: a JSON string may hold U+2028 and its like as they are."""
    rows = []
    with open(file, encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"line {number}: {error}") from None
            if not isinstance(row, dict):
                raise ValueError(f"line {number} holds {row!r}; want one object per line")
            rows.append(row)
    return rows


def _read_parquet(file: Path) -> list[dict[str, Any]]:
    return list(pyarrow()[1].read_table(file).to_pylist())


_READERS: dict[str, Callable[[Path], list[dict[str, Any]]]] = {
    ".csv": _read_csv,
    ".jsonl": _read_json_lines,
    ".ndjson": _read_json_lines,
    ".parquet": _read_parquet,
}
