"""Scores that survive a crash: a journal that grows row by row, and at the end the whole table in its place."""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ddpo_rewards.folders.formats import Row, read_rows, to_json, write_aside, write_rows
from ddpo_rewards.folders.inputs import FolderError, Item


def journal_path(output: Path) -> Path:
    """Return where rows lie until `output` is finished."""
    return output.with_name(output.name + ".partial")


@contextmanager
def journalled(
    output: Path, format: str, columns: Sequence[str], *, kept: Sequence[Row], order: Sequence[Item]
) -> Iterator[Callable[[Row], None]]:
    """Write rows to the journal as they come (`kept` first), and at the end all, by `order`, to `output`.

    Where the block is left otherwise, the journal stays to be read again, and `output` is as it was.
    """
    journal = journal_path(output)
    rows: list[Row] = list(kept)
    head = json.dumps({"columns": list(columns)}) + "\n"
    text = head + "".join(to_json(row) + "\n" for row in rows)
    write_aside(journal, lambda aside: aside.write_text(text, encoding="utf-8", newline=""))
    try:
        with open(journal, "a", encoding="utf-8", newline="") as file:

            def write(row: Row) -> None:
                file.write(to_json(row) + "\n")
                file.flush()
                rows.append(row)

            yield write
    except BaseException:
        if not rows:
            journal.unlink()
        raise
    place = {item.key: position for position, item in enumerate(order)}
    rows.sort(key=lambda row: place.get(row_key(row), -1))
    write_rows(output, format, columns, rows)
    journal.unlink()


def read_kept(output: Path, format: str, columns: Sequence[str]) -> list[dict[str, Any]]:
    """Return the rows of an unfinished or finished `output`; none where there is neither.

    Raises:
        FolderError: they were made with other rewards or weights, or cannot be read.
    """
    journal = journal_path(output)
    if journal.is_file():
        # Not splitlines: a JSON string may hold U+2028 and its like as they are.
        head, *lines = journal.read_text(encoding="utf-8").split("\n")
        rows = [row for line in lines if (row := _parsed(line)) is not None]
        had = (_parsed(head) or {}).get("columns", [])
    elif output.is_file():
        had, rows = read_rows(output, format)
    else:
        return []
    if had and had != list(columns):
        raise FolderError(
            f"{str(output)!r} has the columns {', '.join(had)}, but now they are {', '.join(columns)}; "
            "use the same rewards and weights, or another output"
        )
    odd = next((row for row in rows if set(row) != set(columns)), None)
    if odd is not None:
        raise FolderError(f"{str(output)!r} was changed by hand: {odd!r} has other columns than the rest; mend it")
    return rows


def row_key(row: Row) -> tuple[str, str | None]:
    """What `Item.key` is for a row."""
    return row["image"], row["prompt"] or None


def _parsed(line: str) -> dict[str, Any] | None:
    """Read a line of the journal; None for the one that a crash tore."""
    try:
        value = json.loads(line)
    except json.JSONDecodeError:
        return None
    return value if isinstance(value, dict) else None
