"""Where text goes: data to stdout, everything else to stderr; and what of it a terminal may not see."""

import csv
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from typing import Any

import typer
from rich.console import Console, JustifyMethod
from rich.table import Table
from rich.text import Text


class Format(StrEnum):
    """How a command prints what it lists."""

    table = "table"
    json = "json"
    csv = "csv"


Row = Mapping[str, Any]

# C0, DEL and C1 but tab and newline; and what reorders a line, so that it reads otherwise than it is.
_CONTROL_CODES = (*range(9), *range(11, 32), *range(127, 160), *range(0x202A, 0x202F), *range(0x2066, 0x206A))
_SPELT_OUT = {code: f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}" for code in _CONTROL_CODES}


def printable(text: str) -> str:
    r"""Return `text` with every control code but tab and newline spelt out, so that a terminal only shows it.

    What others wrote (a prompt, a file name, a plugin's error) may hold sequences that colour, move or retitle.

    >>> printable("a \x1b[31mred\x1b[0m fox")
    'a \\x1b[31mred\\x1b[0m fox'
    """
    return text.translate(_SPELT_OUT)


def say(text: str) -> None:
    """Write one line to stderr."""
    typer.echo(printable(text), err=True)


def messages() -> Console:
    """Return the console for progress and messages."""
    return Console(stderr=True, highlight=False, markup=False, emoji=False)


def emit(rows: Sequence[Row], format: Format, *, columns: Sequence[str], title: str | None = None) -> None:
    """Print `rows` to stdout as a table, a JSON array, or CSV with a header."""
    match format:
        case Format.json:
            json.dump([dict(row) for row in rows], sys.stdout, indent=2, ensure_ascii=False, default=str)
            sys.stdout.write("\n")
        case Format.csv:
            write_csv(rows, columns)
        case Format.table:
            Console(highlight=False).print(table(rows, columns, title=title))


def write_csv(rows: Iterable[Row], columns: Sequence[str]) -> None:
    """Print `rows` to stdout as CSV with a header."""
    writer = csv.DictWriter(sys.stdout, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: exact(value) for key, value in row.items()} for row in rows)


def table(rows: Sequence[Row], columns: Sequence[str], *, title: str | None = None) -> Table:
    """Return a rich table; numbers stand on the right, and no cell is read as markup."""
    numeric = {key for key in columns if any(isinstance(row.get(key), int | float) for row in rows)}
    view = Table(title=title, title_justify="left", header_style="bold", box=None, pad_edge=False)
    for index, key in enumerate(columns):
        justify: JustifyMethod = "right" if key in numeric else "left"
        view.add_column(key, justify=justify, overflow="fold", no_wrap=index == 0)
    for row in rows:
        view.add_row(*(Text(cell(row.get(key))) for key in columns))
    return view


def exact(value: Any) -> Any:
    """One value for a CSV: numbers keep every digit, lists become text, tables become JSON."""
    if isinstance(value, dict):
        return json.dumps(value, ensure_ascii=False, default=str)
    return value if isinstance(value, float) else cell(value)


def cell(value: Any) -> str:
    """One value as text.

    >>> cell(None), cell(0.123456789), cell(["a", "b"]), cell(3)
    ('', '0.123457', 'a, b', '3')
    """
    match value:
        case None:
            return ""
        case float():
            return f"{value:.6g}"
        case list() | tuple() | set() | frozenset():
            return ", ".join(str(part) for part in value)
        case _:
            return str(value)
