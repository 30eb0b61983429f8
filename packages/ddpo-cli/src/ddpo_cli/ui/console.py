"""Where text goes: data to stdout, everything else to stderr; and what of it a terminal may not see."""

import csv
import io
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, redirect_stdout
from enum import StrEnum
from typing import Annotated, Any, TextIO

import typer
from rich.console import Console, JustifyMethod
from rich.table import Table
from rich.text import Text


class Format(StrEnum):
    """How a command prints what it lists."""

    table = "table"
    json = "json"
    csv = "csv"


FormatOption = Annotated[Format, typer.Option("--format", "-f", metavar="FORMAT", help="table, json or csv.")]


def command_group(*, help: str, epilog: str) -> typer.Typer:
    """Make a command that has commands, such as `ddpo runs`: its help is marked up, its errors are ours to show."""
    return typer.Typer(
        help=help, epilog=epilog, no_args_is_help=True, rich_markup_mode="rich", pretty_exceptions_enable=False
    )


Row = Mapping[str, Any]

# C0, DEL and C1 but tab and newline; and what reorders a line, so that it reads otherwise than it is.
_CONTROL_CODES = (*range(9), *range(11, 32), *range(127, 160), *range(0x202A, 0x202F), *range(0x2066, 0x206A))
_SPELT_OUT = {code: f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}" for code in _CONTROL_CODES}
_IN_JSON = {code: f"\\u{code:04x}" for code in _CONTROL_CODES}


def printable(text: str) -> str:
    r"""Return `text` with every control code but tab and newline spelt out, so that a terminal only shows it.

    What others wrote (a prompt, a file name, a plugin's error) may hold sequences that colour, move or retitle.

    >>> printable("a \x1b[31mred\x1b[0m fox")
    'a \\x1b[31mred\\x1b[0m fox'
    """
    return text.translate(_SPELT_OUT)


def plain(text: str, style: str = "") -> Text:
    """Return `text` for a table, a title or a panel: printable, and never read as markup."""
    return Text(printable(text), style=style)


def say(text: str) -> None:
    """Write one line to stderr."""
    typer.echo(printable(text), err=True)


def tell(text: str, *, file: TextIO | None = None) -> None:
    """Write one line of data to stdout, or to `file`: to the letter, but for what a terminal may not see."""
    file = file or sys.stdout
    file.write(f"{printable(text) if file.isatty() else text}\n")
    file.flush()


def messages() -> Console:
    """Return the console for progress and messages."""
    return Console(stderr=True, highlight=False, markup=False, emoji=False)


@contextmanager
def foreign_output() -> Iterator[TextIO]:
    """Send to stderr what the code of others prints inside the block; yields where data goes: stdout as it was.

    A plugin's `print`, or that of a program that it starts, may not end up among scores.
    """
    before = sys.stdout
    before.flush()
    with ExitStack() as stack:
        data: TextIO = before
        if _is_process_stdout(before):
            kept = os.dup(1)
            data = stack.enter_context(open(kept, "w", encoding=before.encoding, newline=""))
            os.dup2(2, 1)
            stack.callback(os.dup2, kept, 1)
        stack.enter_context(redirect_stdout(sys.stderr))
        yield data


def emit(rows: Sequence[Row], format: Format, *, columns: Sequence[str], title: str = "") -> None:
    """Print `rows` to stdout as a table, a JSON array, or CSV with a header."""
    match format:
        case Format.json:
            tell(to_json([dict(row) for row in rows], indent=2))
        case Format.csv:
            for line in (columns, *([exact(row.get(key)) for key in columns] for row in rows)):
                tell(csv_line(line))
        case Format.table:
            Console(highlight=False, emoji=False).print(table(rows, columns, title=title))


def csv_line(values: Sequence[Any]) -> str:
    r"""Return one line of a CSV, without its end; a carriage return is quoted, so that it ends no line.

    >>> csv_line([1.5, "a fox", "two\rlines"])
    '1.5,a fox,"two\rlines"'
    """
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\r\n").writerow(values)
    return text.getvalue().removesuffix("\r\n")


def to_json(value: Any, *, indent: int | None = None) -> str:
    r"""Return `value` as JSON that a terminal may see: what it would act on is escaped.

    >>> to_json("\x1b[31m \x9b31m fox")
    '"\\u001b[31m \\u009b31m fox"'
    """
    return json.dumps(value, indent=indent, ensure_ascii=False, default=str).translate(_IN_JSON)


def table(rows: Sequence[Row], columns: Sequence[str], *, title: str = "") -> Table:
    """Return a rich table; numbers stand on the right, and nothing in it is read as markup."""
    numeric = {key for key in columns if any(isinstance(row.get(key), int | float) for row in rows)}
    view = Table(
        title=plain(title) if title else None, title_justify="left", header_style="bold", box=None, pad_edge=False
    )
    for index, key in enumerate(columns):
        justify: JustifyMethod = "right" if key in numeric else "left"
        view.add_column(plain(key), justify=justify, overflow="fold", no_wrap=index == 0)
    for row in rows:
        view.add_row(*(plain(cell(row.get(key))) for key in columns))
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


def _is_process_stdout(stream: TextIO) -> bool:
    """Tell whether `stream` writes to the file descriptor that programs started by this process print to."""
    try:
        return stream.fileno() == 1
    except (OSError, ValueError):  # a stream in memory, or none at all
        return False
