"""Which images to score, and what each was meant to show."""

import csv
import glob
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ddpo_cli.errors import CLIError, did_you_mean

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"})
METADATA_FILES = ("metadata.csv", "metadata.jsonl")
IMAGE_COLUMNS = ("file_name", "image", "path", "file")
PROMPT_COLUMNS = ("prompt", "text", "caption")


@dataclass(frozen=True)
class Item:
    """One image to score."""

    path: str
    prompt: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Columns:
    """Which columns hold the image's path and its prompt; None looks for the usual names."""

    image: str | None = None
    prompt: str | None = None


def find_images(patterns: Sequence[str]) -> list[str]:
    """Expand files, folders (to the bottom) and globs; in order, each file once.

    Raises:
        CLIError: a pattern matches nothing.
    """
    found: dict[str, None] = {}
    for pattern in patterns:
        matches = list(_expand(pattern))
        if not matches:
            raise CLIError(_nothing(pattern))
        found |= dict.fromkeys(matches)
    return list(found)


def describe_images(
    paths: Sequence[str], *, prompts: Path | None, prompt: str | None, columns: Columns, needed: bool
) -> list[Item]:
    """Add its prompt and metadata to each image: from one prompt for all, a table, a text, or a file beside the images.

    Metadata beside the images may be anybody's: where the rewards do not need it, what does not fit is left aside.

    Raises:
        CLIError: both a prompt and a table are given, a table lacks a column, or a text has too many or too few lines.
    """
    if prompt is not None and prompts is not None:
        raise CLIError("got --prompt and --prompts; give one prompt for all images, or a file with one for each")
    if prompt is not None:
        return [Item(path, prompt) for path in paths]
    if prompts is not None:
        return _from_lines(paths, prompts) if prompts.suffix == ".txt" else _from_table(paths, prompts, columns)
    folders = {Path(path).parent for path in paths}
    beside = {folder: _beside(folder, columns, needed=needed) for folder in folders}
    return [_placed(path, beside[Path(path).parent].get(_key(Path(path)))) for path in paths]


def read_rows(file: Path) -> list[dict[str, Any]]:
    """Return the rows of a CSV or JSON Lines file.

    Raises:
        CLIError: it cannot be read, or is neither.
    """
    try:
        text = file.read_text(encoding="utf-8-sig")
        if file.suffix == ".csv":
            rows: list[Any] = list(csv.DictReader(text.splitlines(), strict=True))
        elif file.suffix in {".jsonl", ".ndjson"}:
            rows = [json.loads(line) for line in text.splitlines() if line.strip()]
        else:
            raise CLIError(f"prompts {str(file)!r}: want a file that ends in .csv, .jsonl or .txt")
    except FileNotFoundError:
        raise CLIError(f"there is no file {str(file)!r} with prompts; check --prompts") from None
    except (csv.Error, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CLIError(f"prompts {str(file)!r} is malformed: {error}") from None
    wrong = next((row for row in rows if not isinstance(row, dict)), None)
    if wrong is not None:
        raise CLIError(f"prompts {str(file)!r} holds {wrong!r}; want one object per line")
    return rows


def _expand(pattern: str) -> Iterator[str]:
    path = Path(pattern)
    if path.is_dir():
        yield from sorted(str(file) for file in path.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
    elif path.exists():
        yield str(path)
    else:
        yield from sorted(match for match in glob.glob(pattern, recursive=True) if Path(match).is_file())


def _nothing(pattern: str) -> str:
    if Path(pattern).is_dir():
        return f"there are no images in {pattern!r}; want files that end in {', '.join(sorted(SUFFIXES))}"
    if glob.has_magic(pattern):
        return f"no file matches {pattern!r}; check the pattern (quote it so that the shell leaves it alone)"
    return f"there is no image {pattern!r}; check the path"


def _from_lines(paths: Sequence[str], file: Path) -> list[Item]:
    """One prompt per line, in the order of the images."""
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError:
        raise CLIError(f"there is no file {str(file)!r} with prompts; check --prompts") from None
    if len(lines) != len(paths):
        raise CLIError(f"{str(file)!r} has {len(lines)} lines for {len(paths)} images; want one prompt per image")
    return [Item(path, line.strip()) for path, line in zip(paths, lines, strict=True)]


def _from_table(paths: Sequence[str], file: Path, columns: Columns) -> list[Item]:
    rows = read_rows(file)
    known = _items(rows, file, columns)
    by_place = {_key(file.parent / name): item for name, item in known.items()} | {
        _key(Path(name)): item for name, item in known.items()
    }
    by_name = _unique_names(known)
    return [_placed(path, by_place.get(_key(Path(path))) or by_name.get(Path(path).name)) for path in paths]


def _beside(folder: Path, columns: Columns, *, needed: bool) -> dict[Path, Item]:
    """Return what a metadata file in `folder`, or in the one above it, says about images."""
    files = [place / name for place in (folder, folder.parent) for name in METADATA_FILES]
    file = next((file for file in files if file.is_file()), None)
    if file is None:
        return {}
    try:
        known = _items(read_rows(file), file, columns)
    except CLIError:
        if needed or columns != Columns():
            raise
        return {}
    return {_key(file.parent / image): item for image, item in known.items()}


def _items(rows: Iterable[Mapping[str, Any]], file: Path, columns: Columns) -> dict[str, Item]:
    listed = list(rows)
    keys = list(dict.fromkeys(key for row in listed for key in row if key is not None))
    image = _column(columns.image, IMAGE_COLUMNS, keys, file, "--image-column")
    prompt = _column(columns.prompt, PROMPT_COLUMNS, keys, file, "--prompt-column")
    return {
        str(row[image]): Item(
            str(row[image]),
            None if row.get(prompt) is None else str(row[prompt]),
            {key: value for key, value in row.items() if key not in (image, prompt, None)},
        )
        for row in listed
        if row.get(image)
    }


def _column(named: str | None, usual: Sequence[str], keys: list[str], file: Path, option: str) -> str:
    if named is not None and named not in keys:
        raise CLIError(f"{str(file)!r} has no column {named!r}{did_you_mean(named, keys)}; it has {', '.join(keys)}")
    found = named or next((name for name in usual if name in keys), None)
    if found is None:
        raise CLIError(
            f"{str(file)!r} has none of the columns {', '.join(usual)}, but {', '.join(keys) or 'no rows'}; "
            f"name it with {option}"
        )
    return found


def _unique_names(known: Mapping[str, Item]) -> dict[str, Item]:
    """Items by bare file name, where that is clear."""
    names = [Path(path).name for path in known]
    return {Path(path).name: item for path, item in known.items() if names.count(Path(path).name) == 1}


def _placed(path: str, item: Item | None) -> Item:
    return Item(path, item.prompt, item.metadata) if item else Item(path)


def _key(path: Path) -> Path:
    return path.absolute()
