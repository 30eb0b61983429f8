"""Scores that survive a crash: a journal that grows row by row, and at the end the whole table in its place."""

import json
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from ddpo_rewards.folders.formats import Row, read_rows, to_json, write_aside, write_rows
from ddpo_rewards.folders.inputs import FolderError


class KeptRows(Sequence[Row]):
    """Rows of an earlier run, which lie in memory as lines of JSON: a table of each would take five times as much."""

    def __init__(self, rows: Iterable[Row]) -> None:
        """Keep them."""
        self._lines = [to_json(row).encode() for row in rows]

    def __len__(self) -> int:
        """How many there are."""
        return len(self._lines)

    def __getitem__(self, index: Any) -> Any:
        """A row, or some of them."""
        lines = self._lines[index]
        return [json.loads(line) for line in lines] if isinstance(index, slice) else json.loads(lines)


def journal_path(output: Path) -> Path:
    """Return where rows lie until `output` is finished."""
    return output.with_name(output.name + ".partial")


@contextmanager
def journalled(
    output: Path, format: str, columns: Sequence[str], *, kept: Sequence[Row], place: Callable[[Row], int]
) -> Iterator[Callable[[Row], None]]:
    """Write rows to the journal as they come (`kept` first), and at the end all of them to `output`.

    Rows come in their order; where some are kept, all are brought into it by `place`, those of one place as they came.
    Rows lie in the journal, not in memory. Where the block is left otherwise, the journal stays to be read again, and
    `output` is as it was.
    """
    journal = journal_path(output)
    head = json.dumps({"columns": list(columns)}) + "\n"
    write_aside(journal, lambda aside: _write_lines(aside, chain([head], (to_json(row) + "\n" for row in kept))))
    is_empty = not kept
    try:
        with open(journal, "a", encoding="utf-8", newline="") as file:

            def write(row: Row) -> None:
                nonlocal is_empty
                file.write(to_json(row) + "\n")
                file.flush()
                is_empty = False

            yield write
    except BaseException:
        if is_empty:
            journal.unlink()
        raise
    write_rows(output, format, columns, _in_order(journal, place) if kept else map(json.loads, _lines(journal)))
    journal.unlink()


def read_kept(output: Path, format: str, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Yield the rows of an unfinished or finished `output`; none where there is neither.

    Raises:
        FolderError: they were made with other rewards or weights, or cannot be read.
    """
    journal = journal_path(output)
    rows: Iterator[dict[str, Any]]
    if journal.is_file():
        had = (_parsed(_head(journal)) or {}).get("columns", [])
        rows = (row for line in _lines(journal) if (row := _parsed(line)) is not None)
    elif output.is_file():
        had, finished = read_rows(output, format)
        rows = iter(finished)
    else:
        return
    if had and had != list(columns):
        raise FolderError(
            f"{str(output)!r} has the columns {', '.join(had)}, but now they are {', '.join(columns)}; "
            "use the same rewards and weights, or another output"
        )
    for row in rows:
        if set(row) != set(columns):
            raise FolderError(f"{str(output)!r} was changed by hand: {row!r} has other columns than the rest; mend it")
        yield row


def row_key(row: Row) -> tuple[str, str | None]:
    """What `Item.key` is for a row."""
    return row["image"], row["prompt"] or None


def _write_lines(path: Path, lines: Iterable[str]) -> None:
    with open(path, "w", encoding="utf-8", newline="") as file:
        file.writelines(lines)


def _head(journal: Path) -> bytes:
    with open(journal, "rb") as file:
        return file.readline()


def _lines(journal: Path) -> Iterator[bytes]:
    """The rows of a journal, as bytes: of these only line feeds end a line, not U+2028 and its like."""
    with open(journal, "rb") as file:
        next(file, None)
        yield from file


def _in_order(journal: Path, place: Callable[[Row], int]) -> Iterator[Row]:
    """The rows of a journal by their places, of which memory holds the numbers only."""
    lengths, places = array("q"), array("q")
    for line in _lines(journal):
        lengths.append(len(line))
        places.append(place(json.loads(line)))
    with open(journal, "rb") as file:
        starts = len(file.readline()) + np.cumsum(lengths) - np.asarray(lengths)
        for number in np.argsort(places, kind="stable"):
            file.seek(starts[number])
            yield json.loads(file.readline())


def _parsed(line: bytes) -> dict[str, Any] | None:
    """Read a line of the journal; None for the one that a crash tore."""
    try:
        value = json.loads(line)
    except ValueError:  # no JSON, or half a letter
        return None
    return value if isinstance(value, dict) else None
