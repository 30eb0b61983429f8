"""What a person sees: nothing that others wrote acts on the terminal, and a run at one glance."""

import csv
import gc
import io
import json
import re
import sys
from contextlib import suppress
from dataclasses import replace
from functools import cache
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from ddpo_cli.ui.console import Format, emit, printable, say, tell
from ddpo_cli.ui.live import View, epoch_line, panel, shown
from ddpo_cli.ui.numbers import sparkline
from ddpo_cli.ui.progress import uncollected
from ddpo_core import (
    EpochInfo,
    FitConfig,
    Kept,
    Observation,
    TrainState,
    Verdict,
    adamw,
    ddpo_is,
    fit,
    init,
    toy,
)
from ddpo_core.runs.defaults import run_config
from ddpo_core.runs.events import Drawn, Epoch, Noted, Started

METRICS = {"reward_mean": -1.5, "reward_std": 0.25, "loss": 0.5, "approx_kl": 1e-6, "clip_fraction": 0.1}


@cache
def toy_epoch() -> tuple[TrainState, EpochInfo]:
    """One epoch of the toy policy."""
    policy, optimizer = toy.policy(), adamw(3e-3)
    config = FitConfig(num_steps=2, samples_per_epoch=4, updates_per_epoch=1)
    parts = {"policy": policy, "optimizer": optimizer, "reward_fn": toy.reward, "prompts": ["left", "right"]}
    return next(fit(init(policy, optimizer, seed=0), **parts, objective=ddpo_is(), config=config))


def epoch(number: int, *, reward: float = -1.5, status: str = "ok", reason: str = "as before") -> Epoch:
    state, info = toy_epoch()
    info = replace(info, epoch=number, queries=64 * number, metrics=METRICS | {"reward_mean": reward})
    return Epoch(state, info, Observation(number, reward, {}, {}), Verdict(status, reason), {}, seconds=5.0)


def view_after_two_epochs() -> View:
    view = View("ddpo train", 10, print_line=lambda _: None)
    view.show(Started(Path("runs/0001-x"), run_config({}), epoch=0, queries=0, rewards=()))
    view.show(Drawn(0, -2.0, Path("runs/0001-x/samples/epoch-0000.png")))
    view.show(epoch(1, reward=-2.0))
    view.show(epoch(2))
    view.show_phase("sampling", 3, 8)
    return view


def test_the_panel_has_everything_one_wants_to_know():
    console = Console(file=io.StringIO(), width=120)
    console.print(panel(view_after_two_epochs()))
    text = console.file.getvalue()
    for fact in ("2/10", "time left 0:40", "128", "-1.5", "+25.0%", "▁█", "3/8", "samples/epoch-0000.png", "Ctrl-C"):
        assert fact in text


def test_the_panel_can_be_drawn_before_anything_happened():
    Console(file=io.StringIO()).print(panel(View("t", 1)))


def test_an_epoch_is_one_line():
    line = epoch_line(view_after_two_epochs())
    assert line.startswith("epoch 2/10  queries 128  reward -1.5 ± 0.25  loss 0.5  kl 1e-06  clipped 0.1")
    assert line.endswith("5.0 s/epoch, left 0:40")


def test_what_is_kept_is_shown_with_its_level_and_its_multiplier():
    view = view_after_two_epochs()
    view.kept = {"prompt_margin": Kept(0.25, 0.01, 0.2, 1.5)}
    console = Console(file=io.StringIO(), width=120)
    console.print(panel(view))
    for text in (console.file.getvalue(), epoch_line(view)):
        assert "prompt_margin 0.25 (level 0.2, multiplier 1.5)" in text


def test_without_a_terminal_every_epoch_prints_one_plain_line():
    console = Console(file=io.StringIO(), width=40)
    with shown(View("t", 2), console) as view:
        view.show_phase("sampling", 1, 2)
        view.show(epoch(1))
    assert len(console.file.getvalue().splitlines()) == 1


def test_on_a_terminal_the_panel_is_live():
    console = Console(file=io.StringIO(), width=100, force_terminal=True)
    with shown(View("the title", 2), console) as view:
        view.show(epoch(1))
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
    view = View(f"train {HOSTILE}", 2)
    view.show_phase("[/]", 1, 2)
    view.picture = Path("[/r]\x1b[2J/a.png")
    console = Console(file=io.StringIO(), width=160)
    console.print(panel(view))
    assert f"train {SHOWN}" in console.file.getvalue()
    assert r"[/r]\x1b[2J/a.png" in console.file.getvalue()
    assert "\x1b" not in console.file.getvalue()


def test_a_line_of_an_epoch_is_no_markup():
    console = Console(file=io.StringIO(), width=40)
    with shown(View("t", 2), console) as view:
        view.print_line(HOSTILE)
    assert console.file.getvalue() == f"{SHOWN}\n"


def test_news_are_told_on_a_terminal_too_and_a_verdict_only_where_it_changes():
    console = Console(file=io.StringIO(), width=100, force_terminal=True)
    with shown(View("t", 9), console) as view:
        for event in (
            epoch(1),
            epoch(2, status="hacked", reason="it fell"),
            epoch(3, status="hacked"),
            Noted("a note"),
        ):
            view.show(event)
    sent = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", console.file.getvalue())
    lines = [line.strip() for line in sent.splitlines()]
    assert [line for line in lines if line.endswith(("hacked: it fell", "a note"))] == [
        "epoch 2/9  hacked: it fell",
        "a note",
    ]


def test_a_run_that_goes_on_shows_what_is_behind_it():
    told = []
    view = View("t", 9, print_line=told.append, print_news=told.append)
    view.show(Started(Path("run"), run_config({}), epoch=2, queries=8, rewards=(-2.0, -1.0)))
    assert (told, view.epoch, view.queries, view.rewards) == (["Going on with run after epoch 2"], 2, 8, [-2.0, -1.0])


def test_garbage_is_collected_again_after_loading_also_where_it_failed():
    with suppress(ValueError), uncollected():
        assert not gc.isenabled()
        raise ValueError
    assert gc.isenabled()
    gc.disable()
    try:
        with uncollected():
            pass
        assert not gc.isenabled()  # whoever has switched it off has the last word
    finally:
        gc.enable()
