"""What a person sees: nothing that others wrote acts on the terminal, and a run at one glance."""

import csv
import io
import json
import sys
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from ddpo_cli.ui.console import Format, emit, printable, say, tell
from ddpo_cli.ui.live import View, epoch_line, panel, shown, sparkline

METRICS = {"reward_mean": -1.5, "reward_std": 0.25, "loss": 0.5, "approx_kl": 1e-6, "clip_fraction": 0.1}


def view_after_two_epochs() -> View:
    view = View(Path("runs/0001-x"), "ddpo train", 10, print_line=lambda _: None)
    view.show_epoch(1, 64, METRICS | {"reward_mean": -2.0}, seconds=5.0)
    view.show_epoch(2, 128, METRICS, seconds=5.0)
    view.show_phase("sampling", 3, 8)
    view.picture = Path("runs/0001-x/samples/epoch-0000.png")
    return view


def test_the_panel_has_everything_one_wants_to_know():
    console = Console(file=io.StringIO(), width=120)
    console.print(panel(view_after_two_epochs()))
    text = console.file.getvalue()
    for fact in ("2/10", "time left 0:40", "128", "-1.5", "+25.0%", "▁█", "3/8", "samples/epoch-0000.png", "Ctrl-C"):
        assert fact in text


def test_the_panel_can_be_drawn_before_anything_happened():
    Console(file=io.StringIO()).print(panel(View(Path("r"), "t", 1)))


def test_an_epoch_is_one_line():
    line = epoch_line(view_after_two_epochs())
    assert line.startswith("epoch 2/10  queries 128  reward -1.5 ± 0.25  loss 0.5  kl 1e-06  clipped 0.1")
    assert line.endswith("5.0 s/epoch, left 0:40")


def test_without_a_terminal_every_epoch_prints_one_plain_line():
    console = Console(file=io.StringIO(), width=40)
    with shown(View(Path("r"), "t", 2), console) as view:
        view.show_phase("sampling", 1, 2)
        view.show_epoch(1, 4, METRICS, seconds=1.0)
    assert len(console.file.getvalue().splitlines()) == 1


def test_on_a_terminal_the_panel_is_live():
    console = Console(file=io.StringIO(), width=100, force_terminal=True)
    with shown(View(Path("r"), "the title", 2), console) as view:
        view.show_epoch(1, 4, METRICS, seconds=1.0)
    assert "the title" in console.file.getvalue()


@given(st.lists(st.floats(-1e6, 1e6)), st.integers(1, 50))
def test_a_trend_never_grows_wider_than_asked(values, width):
    assert len(sparkline(values, width=width)) == min(len(values), width)


HOSTILE = "[/INST] [bold]x[/bold] :fox: \x1b[31m\x9b1m\x07\r\x7f \u202eleft"
SHOWN = r"[/INST] [bold]x[/bold] :fox: \x1b[31m\x9b1m\x07\x0d\x7f \u202eleft"


@given(st.text())
def test_nothing_printable_acts_on_a_terminal_and_what_was_printable_stays(text):
    shown = printable(text)
    assert not any(ord(letter) < 32 and letter not in "\t\n" for letter in shown)
    assert not any(127 <= ord(letter) < 160 for letter in shown)
    assert printable(shown) == shown


def test_what_others_wrote_is_said_to_the_letter_and_spelt_out(capsys):
    say(HOSTILE)
    assert capsys.readouterr().err == f"{SHOWN}\n"


def test_titles_and_cells_are_no_markup_and_hold_no_control_codes(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    emit([{"name": HOSTILE}], Format.table, columns=["name"], title=HOSTILE)
    title, _, row = capsys.readouterr().out.splitlines()
    assert (title.strip(), row.strip()) == (SHOWN, SHOWN)


def test_json_and_csv_hold_what_others_wrote_to_the_letter(capsys):
    emit([{"name": HOSTILE}], Format.json, columns=["name"])
    text = capsys.readouterr().out
    assert json.loads(text) == [{"name": HOSTILE}]
    assert "\x9b" not in text
    emit([{"name": HOSTILE}], Format.csv, columns=["name"])
    assert list(csv.DictReader(io.StringIO(capsys.readouterr().out, newline=""))) == [{"name": HOSTILE}]


def test_a_terminal_gets_no_control_codes_with_data_either(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    for stream, wanted in ((io.StringIO(), HOSTILE), (Terminal(), SHOWN)):
        monkeypatch.setattr(sys, "stdout", stream)
        tell(HOSTILE)
        assert stream.getvalue() == f"{wanted}\n"


def test_the_view_of_a_run_shows_names_of_others_to_the_letter():
    view = View(Path("[/r]\x1b[2J"), f"train {HOSTILE}", 2)
    view.show_phase("[/]", 1, 2)
    view.picture = Path("[/r]\x1b[2J/a.png")
    console = Console(file=io.StringIO(), width=160)
    console.print(panel(view))
    assert f"train {SHOWN}" in console.file.getvalue()
    assert r"[/r]\x1b[2J/a.png" in console.file.getvalue()
    assert "\x1b" not in console.file.getvalue()


def test_a_line_of_an_epoch_is_no_markup():
    console = Console(file=io.StringIO(), width=40)
    with shown(View(Path("r"), "t", 2), console) as view:
        view.print_line(HOSTILE)
    assert console.file.getvalue() == f"{SHOWN}\n"
