"""Where scores go: to stdout as they come, or to a file that is whole or absent, with a journal until then."""

import csv
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console

from ddpo_cli.errors import CLIError
from ddpo_cli.files import write_aside
from ddpo_cli.formats import Row, exact_row, read_rows, to_json, used_columns, write_rows
from ddpo_cli.ui.console import say, table

Write = Callable[[Row], None]


@contextmanager
def printed(format: str, columns: Sequence[str]) -> Iterator[Write]:
    """Print rows to stdout: CSV and JSON as they come, a table at the end."""
    match format:
        case "csv":
            writer = csv.DictWriter(sys.stdout, columns, lineterminator="\n")
            writer.writeheader()
            yield lambda row: _flushed(writer.writerow(exact_row(row)))
        case "json":
            yield from _printed_json()
        case _:
            rows: list[Row] = []
            yield rows.append
            Console(highlight=False).print(table(rows, used_columns(columns, rows)))


@contextmanager
def journalled(
    output: Path, format: str, columns: Sequence[str], *, kept: Sequence[Row], order: Sequence[str]
) -> Iterator[Write]:
    """Write rows to `output.partial` as they come (`kept` first), and at the end all, by `order`, to `output`.

    Where the block raises, the journal stays for `--resume` and `output` is as it was.
    """
    journal = journal_path(output)
    rows: list[Row] = list(kept)
    head = json.dumps({"columns": list(columns)}) + "\n"
    journal.parent.mkdir(parents=True, exist_ok=True)
    write_aside(journal, lambda aside: aside.write_text(head + "".join(map(_line, rows)), encoding="utf-8"))
    with open(journal, "a", encoding="utf-8") as file:

        def write(row: Row) -> None:
            file.write(_line(row))
            file.flush()
            rows.append(row)

        with _kept_on_failure(journal, rows):
            yield write
    place = {image: position for position, image in enumerate(order)}
    rows.sort(key=lambda row: place.get(row["image"], -1))
    write_aside(output, lambda aside: write_rows(aside, format, columns, rows))
    journal.unlink()


def read_kept(output: Path, format: str, columns: Sequence[str]) -> list[dict[str, Any]]:
    """Return the rows of an unfinished or finished `output`; none where there is neither.

    Raises:
        CLIError: they were made with other rewards, or cannot be read.
    """
    journal = journal_path(output)
    if journal.is_file():
        head, *lines = journal.read_text(encoding="utf-8").splitlines() or ["{}"]
        rows = [row for line in lines if (row := _parsed(line)) is not None]
        had = (_parsed(head) or {}).get("columns", [])
    elif output.is_file():
        rows = read_rows(output, format)
        had = list(rows[0]) if rows else list(columns)
    else:
        return []
    if list(had) != list(columns):
        raise CLIError(
            f"--resume: {str(output)!r} has the columns {', '.join(had)}, but now they are {', '.join(columns)}; "
            "use the same rewards, or another --output"
        )
    return rows


def journal_path(output: Path) -> Path:
    """Return where rows lie until `output` is finished."""
    return output.with_name(output.name + ".partial")


@contextmanager
def _kept_on_failure(journal: Path, rows: Sequence[Row]) -> Iterator[None]:
    try:
        yield
    except BaseException:
        if rows:
            say(f"{len(rows)} rows are kept in {journal}; the same command with --resume goes on from there.")
        else:
            journal.unlink()
        raise


def _printed_json() -> Iterator[Write]:
    separator = "[\n  "

    def write(row: Row) -> None:
        nonlocal separator
        sys.stdout.write(separator + to_json(row))
        _flushed(None)
        separator = ",\n  "

    try:
        yield write
    finally:
        sys.stdout.write("[]\n" if separator.startswith("[") else "\n]\n")


def _parsed(line: str) -> dict[str, Any] | None:
    """Read a line of the journal; None for the one that a crash tore."""
    try:
        value = json.loads(line)
    except json.JSONDecodeError:
        return None
    return value if isinstance(value, dict) else None


def _line(row: Row) -> str:
    return to_json(row) + "\n"


def _flushed(_: object) -> None:
    sys.stdout.flush()
