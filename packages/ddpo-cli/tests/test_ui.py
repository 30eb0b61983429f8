"""What is shown while a run trains."""

import io
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

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
