"""The files that scores are written to and read from: CSV, JSON, JSON Lines and Parquet."""

import csv
import io
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, TypeAlias

from ddpo_rewards.folders.inputs import FolderError, pyarrow

FILE_FORMATS = ("csv", "json", "jsonl", "parquet")
TEXT_COLUMNS = frozenset({"image", "prompt", "error"})
Row: TypeAlias = Mapping[str, Any]
_TEXTS = TEXT_COLUMNS | {"info"}
_ROWS = 65_536  # of a parquet file in memory at once


def file_format(output: Path, format: str | None = None) -> str:
    """Return the format asked for, or the one that the file's ending names.

    Raises:
        FolderError: it is none of `FILE_FORMATS`, or needs what is not installed.

    Example:
        >>> file_format(Path("scores.csv")), file_format(Path("scores.txt"), "jsonl")
        ('csv', 'jsonl')
    """
    chosen = format or output.suffix.removeprefix(".")
    if chosen not in FILE_FORMATS:
        raise FolderError(
            f"output {str(output)!r}: no file is written as {chosen!r}; choose an ending or a format among "
            f"{', '.join(FILE_FORMATS)}"
        )
    if chosen == "parquet":
        pyarrow()
    return chosen


def write_rows(path: Path, format: str, columns: Sequence[str], rows: Iterable[Row]) -> None:
    """Write all `rows` to `path`, whole or not at all, however many there are."""

    def write(aside: Path) -> None:
        if format == "parquet":
            _write_parquet(aside, columns, rows)
            return
        with open(aside, "w", encoding="utf-8", newline="") as file:
            match format:
                case "csv":
                    file.write(to_csv(columns))
                    file.writelines(to_csv([row.get(key) for key in columns]) for row in rows)
                case "json":
                    file.write("[")
                    file.writelines(f"{',' if number else ''}\n  {to_json(row)}" for number, row in enumerate(rows))
                    file.write("\n]\n")
                case _:
                    file.writelines(to_json(row) + "\n" for row in rows)

    write_aside(path, write)


def read_rows(path: Path, format: str) -> tuple[list[str], list[dict[str, Any]]]:
    """Read the columns and rows that `write_rows` wrote; a JSON file without rows has no columns.

    Raises:
        FolderError: it was changed by hand into something else.
    """
    try:
        match format:
            case "csv":
                with open(path, encoding="utf-8", newline="") as file:
                    reader = csv.DictReader(file, strict=True)
                    rows = [{key: _typed(key, value) for key, value in row.items()} for row in reader]
                    return list(reader.fieldnames or ()), rows
            case "json":
                rows = [dict(row) for row in json.loads(path.read_text(encoding="utf-8"))]
            case "jsonl":
                # Not splitlines: a JSON string may hold U+2028 and its like as they are.
                lines = path.read_text(encoding="utf-8").split("\n")
                rows = [dict(json.loads(line)) for line in lines if line]
            case _:
                table = pyarrow()[1].read_table(path)
                return list(table.column_names), list(table.to_pylist())
    except (ValueError, TypeError, csv.Error) as error:  # pyarrow's own errors are ValueErrors too
        raise FolderError(f"{str(path)!r} cannot be read as {format}: {error}") from None
    return list(rows[0]) if rows else [], rows


def to_json(row: Row) -> str:
    """Return a row as one line of JSON."""
    return _json(dict(row))


def to_csv(cells: Sequence[Any]) -> str:
    r"""Return one line of CSV: numbers keep every digit, tables and lists become JSON, None is empty.

    Example:
        >>> to_csv(["a, b", 0.1, None, {"k": [1]}])
        '"a, b",0.1,,"{""k"": [1]}"\n'
    """
    values = [_json(cell) if isinstance(cell, dict | list | tuple) else cell for cell in cells]
    line = io.StringIO(newline="")
    # What ends a line is quoted: a carriage return in a text has to be, and Python before 3.13 forgets it otherwise.
    csv.writer(line, lineterminator="\r\n").writerow(values)
    return line.getvalue().removesuffix("\r\n") + "\n"


def write_aside(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a file beside `path`, then rename it to `path`; on failure `path` is as it was."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}.aside")
    try:
        write(aside)
        with open(aside, "rb") as written:
            os.fsync(written.fileno())
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def _write_parquet(path: Path, columns: Sequence[str], rows: Iterable[Row]) -> None:
    """In groups of rows; one type per column, so a table becomes JSON."""
    arrow, parquet = pyarrow()
    schema = arrow.schema([(name, arrow.string() if name in _TEXTS else arrow.float64()) for name in columns])
    with parquet.ParquetWriter(path, schema) as file:
        remaining = iter(rows)
        while group := list(islice(remaining, _ROWS)):
            cells = {key: [_json(value) if isinstance(value := row.get(key), dict) else value for row in group]
                     for key in columns}  # fmt: skip
            file.write_table(arrow.table(cells, schema))


def _json(value: Any) -> str:
    """One line; what is no JSON is written as text, and half a character by its escape."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _typed(column: str, text: Any) -> Any:
    """Read a cell of a CSV, which knows no types: names, prompts and errors are text even where they look otherwise."""
    if not text:
        return None
    if column in TEXT_COLUMNS:
        return text
    return json.loads(text) if column == "info" else float(text)
