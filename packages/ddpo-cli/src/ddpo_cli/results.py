"""Where scores go: to stdout as they come, or to a file that is whole or absent, with a journal until then."""

import csv
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console

from ddpo_cli.console import exact, table
from ddpo_cli.errors import CLIError, say
from ddpo_cli.files import write_aside

FORMATS = ("table", "csv", "json", "parquet")
Row = Mapping[str, Any]
Write = Callable[[Row], None]


def choose_format(format: str | None, output: Path | None) -> str:
    """The format asked for, or the one that the file's ending names, or a table.

    >>> choose_format(None, Path("scores.csv")), choose_format(None, None)
    ('csv', 'table')

    Raises:
        CLIError: the ending names none, or parquet is wanted but not possible.
    """
    ending = output.suffix.removeprefix(".") if output else ""
    chosen = format or (ending if output else "table")
    if chosen not in FORMATS:
        raise CLIError(f"--output {str(output)!r}: cannot tell the format; add --format {'|'.join(FORMATS)}")
    if chosen == "parquet":
        if output is None:
            raise CLIError("--format parquet needs a file; add --output scores.parquet")
        _pyarrow()
    return chosen


@contextmanager
def printed(format: str, columns: Sequence[str]) -> Iterator[Write]:
    """Print rows to stdout: CSV and JSON as they come, a table at the end."""
    match format:
        case "csv":
            writer = csv.DictWriter(sys.stdout, columns, lineterminator="\n")
            writer.writeheader()
            yield lambda row: _flushed(writer.writerow(_exact(row)))
        case "json":
            yield from _printed_json()
        case _:
            rows: list[Row] = []
            yield rows.append
            Console(highlight=False).print(table(rows, _used(columns, rows)))


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
    write_aside(output, lambda aside: _write_whole(aside, format, columns, rows))
    journal.unlink()


def read_kept(output: Path, format: str, columns: Sequence[str]) -> list[dict[str, Any]]:
    """The rows of an unfinished or finished `output`; none where there is neither.

    Raises:
        CLIError: they were made with other rewards, or cannot be read.
    """
    journal = journal_path(output)
    if journal.is_file():
        head, *lines = journal.read_text(encoding="utf-8").splitlines() or ["{}"]
        rows = [row for line in lines if (row := _parsed(line)) is not None]
        had = (_parsed(head) or {}).get("columns", [])
    elif output.is_file():
        rows = _read_whole(output, format)
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
    """Where rows lie until `output` is finished."""
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
        sys.stdout.write(separator + json.dumps(row, ensure_ascii=False))
        _flushed(None)
        separator = ",\n  "

    try:
        yield write
    finally:
        sys.stdout.write("[]\n" if separator.startswith("[") else "\n]\n")


def _write_whole(path: Path, format: str, columns: Sequence[str], rows: Sequence[Row]) -> None:
    match format:
        case "csv":
            with open(path, "w", encoding="utf-8", newline="") as file:
                writer = csv.DictWriter(file, columns, lineterminator="\n")
                writer.writeheader()
                writer.writerows(map(_exact, rows))
        case "json":
            path.write_text("[\n  " + ",\n  ".join(map(_json, rows)) + "\n]\n", encoding="utf-8")
        case "parquet":
            arrow, parquet = _pyarrow()
            cells = {key: [_flat(row.get(key)) for row in rows] for key in columns}
            parquet.write_table(arrow.table(cells), path)
        case _:
            with open(path, "w", encoding="utf-8") as file:
                Console(file=file, width=200).print(table(rows, _used(columns, rows)))


def _read_whole(path: Path, format: str) -> list[dict[str, Any]]:
    match format:
        case "csv":
            with open(path, encoding="utf-8", newline="") as file:
                return [{key: _number(value) for key, value in row.items()} for row in csv.DictReader(file)]
        case "json":
            return list(json.loads(path.read_text(encoding="utf-8")))
        case "parquet":
            return list(_pyarrow()[1].read_table(path).to_pylist())
        case _:
            raise CLIError(f"{str(path)!r} is a table for people; --resume needs csv, json or parquet")


def _used(columns: Sequence[str], rows: Sequence[Row]) -> list[str]:
    """The columns that say something."""
    return [key for key in columns if any(row.get(key) is not None for row in rows)]


def _flat(value: Any) -> Any:
    """Parquet wants one type per column, so a table becomes JSON."""
    return exact(value) if isinstance(value, dict) else value


def _number(text: str) -> Any:
    """CSV knows no types: what reads as a number is one, and an empty cell is nothing."""
    try:
        return float(text) if text else None
    except ValueError:
        return text


def _parsed(line: str) -> dict[str, Any] | None:
    """A line of the journal; None for the one that a crash tore."""
    try:
        value = json.loads(line)
    except json.JSONDecodeError:
        return None
    return value if isinstance(value, dict) else None


def _json(row: Row) -> str:
    return json.dumps(row, ensure_ascii=False, default=str)


def _line(row: Row) -> str:
    return _json(row) + "\n"


def _exact(row: Row) -> dict[str, Any]:
    return {key: exact(value) for key, value in row.items()}


def _flushed(_: object) -> None:
    sys.stdout.flush()


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise CLIError("parquet needs pyarrow: pip install 'ddpo-cli[parquet]'") from None
    return pyarrow, pyarrow.parquet
