"""The file formats of scores: CSV, JSON, Parquet, and a table for people."""

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from ddpo_cli.errors import CLIError
from ddpo_cli.ui.console import exact, table

FORMATS = ("table", "csv", "json", "parquet")
Row = Mapping[str, Any]


def choose_format(format: str | None, output: Path | None) -> str:
    """Return the format asked for, or the one that the file's ending names, or a table.

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


def write_rows(path: Path, format: str, columns: Sequence[str], rows: Sequence[Row]) -> None:
    """Write all `rows` to `path`."""
    match format:
        case "csv":
            with open(path, "w", encoding="utf-8", newline="") as file:
                writer = csv.DictWriter(file, columns, lineterminator="\n")
                writer.writeheader()
                writer.writerows(map(exact_row, rows))
        case "json":
            path.write_text("[\n  " + ",\n  ".join(map(to_json, rows)) + "\n]\n", encoding="utf-8")
        case "parquet":
            arrow, parquet = _pyarrow()
            cells = {key: [_flat(row.get(key)) for row in rows] for key in columns}
            parquet.write_table(arrow.table(cells), path)
        case _:
            with open(path, "w", encoding="utf-8") as file:
                Console(file=file, width=200).print(table(rows, used_columns(columns, rows)))


def read_rows(path: Path, format: str) -> list[dict[str, Any]]:
    """Read what `write_rows` wrote.

    Raises:
        CLIError: it is a table for people, or was changed by hand into something else.
    """
    try:
        match format:
            case "csv":
                with open(path, encoding="utf-8", newline="") as file:
                    return [{key: _number(value) for key, value in row.items()} for row in csv.DictReader(file)]
            case "json":
                return [dict(row) for row in json.loads(path.read_text(encoding="utf-8"))]
            case "parquet":
                return list(_pyarrow()[1].read_table(path).to_pylist())
    except (ValueError, TypeError, csv.Error) as error:  # pyarrow's own errors are ValueErrors too
        raise CLIError(f"{str(path)!r} cannot be read as {format}: {error}") from None
    raise CLIError(f"{str(path)!r} is a table for people; --resume needs csv, json or parquet")


def used_columns(columns: Sequence[str], rows: Sequence[Row]) -> list[str]:
    """Return the columns that say something."""
    return [key for key in columns if any(row.get(key) is not None for row in rows)]


def to_json(row: Row) -> str:
    """Return a row as one line of JSON."""
    return json.dumps(row, ensure_ascii=False, default=str)


def exact_row(row: Row) -> dict[str, Any]:
    """Return a row as a CSV holds it."""
    return {key: exact(value) for key, value in row.items()}


def _flat(value: Any) -> Any:
    """Bring a cell to what Parquet takes: it wants one type per column, so a table becomes JSON."""
    return exact(value) if isinstance(value, dict) else value


def _number(text: Any) -> Any:
    """Read a cell of a CSV, which knows no types: what reads as a number is one, and an empty cell is nothing."""
    try:
        return float(text) if text else None
    except (ValueError, TypeError):
        return text


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise CLIError("parquet needs pyarrow: pip install 'ddpo-cli[parquet]'") from None
    return pyarrow, pyarrow.parquet
