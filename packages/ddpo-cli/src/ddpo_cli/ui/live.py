"""What a person sees while a run trains: a live panel on a terminal, a plain line per epoch elsewhere."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event as Signal
from threading import Thread

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from ddpo_cli.ui.console import plain, printable
from ddpo_cli.ui.inline import InlinePicture, Pictures
from ddpo_cli.ui.numbers import duration, percent, sparkline
from ddpo_core.gaming.rule import Verdict
from ddpo_core.runs.events import Drawn, Epoch, Event, Finished, Noted, Saved, Started
from ddpo_core.types import Kept

HEARTBEAT = 60.0
"""Seconds of silence after which a line says what is being done, away from a terminal."""

STYLES = {"ok": "green", "warning": "yellow", "hacked": "bold red"}


@dataclass
class View:
    """What is shown of a run: its events write it, the screen reads it."""

    title: str
    epochs: int
    rewards: list[float] = field(default_factory=list)
    metrics: Mapping[str, float] = field(default_factory=dict)
    kept: Mapping[str, Kept] = field(default_factory=dict)
    epoch: int = 0
    queries: int = 0
    verdict: Verdict | None = None
    picture: Path | None = None
    phase: tuple[str, int, int] = ("starting", 0, 0)
    seconds_per_epoch: float | None = None
    print_line: Callable[[str], None] = print
    """Where a line per epoch goes: nowhere on a terminal."""
    print_news: Callable[[str], None] = print
    show_picture: Callable[[Path, str], None] = lambda path, caption: None
    """Shows a picture where the terminal can."""
    refresh: Callable[[], object] = lambda: None
    """Draws the screen now; away from a terminal there is none."""

    def show_phase(self, name: str, done: int, total: int) -> None:
        """Say what is being done now; this is the `progress` that the trainer calls."""
        is_new, self.phase = name != self.phase[0], (name, done, total)
        if is_new:  # however short it is
            self.refresh()

    def show(self, event: Event) -> None:
        """Say what happened."""
        match event:
            case Started():
                self.epoch, self.queries, self.rewards = event.epoch, event.queries, list(event.rewards)
                if event.epoch:
                    self.print_news(f"Going on with {event.run} after epoch {event.epoch}")
            case Noted():
                self.print_news(event.text)
            case Drawn():
                self.picture = event.picture
                self.show_picture(
                    event.picture, f"epoch {event.epoch}: mean reward {event.reward_mean:.4g} of the fixed prompts"
                )
                if event.epoch == 0:
                    folder = event.picture.parent
                    self.print_line(f"before training: mean reward {event.reward_mean:.4g}, images in {folder}")
            case Epoch():
                self._show_epoch(event)
            case Saved() | Finished():
                pass  # the path of a checkpoint is said when it is needed, what came of the run after the view

    def _show_epoch(self, event: Epoch) -> None:
        before = "ok" if self.verdict is None else self.verdict.status
        self.epoch, self.queries, self.metrics = event.info.epoch, event.info.queries, event.info.metrics
        self.verdict, self.kept = event.verdict, event.info.kept
        self.rewards.append(event.info.metrics["reward_mean"])
        known = self.seconds_per_epoch
        self.seconds_per_epoch = event.seconds if known is None else 0.7 * known + 0.3 * event.seconds
        self.print_line(epoch_line(self))
        if event.verdict.status != before:
            self.print_news(f"epoch {self.epoch}/{self.epochs}  {verdict_text(event.verdict)}")


@contextmanager
def shown(
    view: View, console: Console, *, pictures: Pictures = Pictures.none, heartbeat: float = HEARTBEAT
) -> Iterator[View]:
    """Show `view` while the block runs: live where `console` is a terminal, else one line per epoch.

    Where nobody has seen a line for `heartbeat` seconds, one says what is being done.
    """

    def print_news(line: str) -> None:
        console.print(plain(line), soft_wrap=True)

    def show_picture(path: Path, caption: str) -> None:
        columns, rows = console.width - 2, max(6, min(console.height // 2, 24))
        console.print(InlinePicture(path, pictures, columns, rows), crop=False)
        print_news(caption)

    view.print_news = print_news
    if not console.is_terminal or console.is_dumb_terminal:
        with _beating(view, heartbeat):
            yield view
        return
    view.print_line = lambda line: None
    if pictures is not Pictures.none:
        view.show_picture = show_picture
    with Live(console=console, get_renderable=lambda: panel(view), refresh_per_second=5, transient=False) as live:
        view.refresh = live.refresh
        yield view


@contextmanager
def silent(view: View) -> Iterator[View]:
    """Show nothing of `view` while the block runs."""
    view.print_line = view.print_news = lambda line: None
    yield view


def panel(view: View) -> RenderableType:
    """Return the live panel."""
    facts = Table.grid(padding=(0, 2))
    facts.add_column(style="bold")
    facts.add_column()
    facts.add_row("epoch", _bar(f"{view.epoch}/{view.epochs}", view.epoch, view.epochs, f"time left {time_left(view)}"))
    name, done, total = view.phase
    facts.add_row(plain(name), _bar(f"{done}/{total}" if total else "", done, total, ""))
    facts.add_row("reward", Text.assemble((f"{reward_text(view)}  ", "bold green"), (sparkline(view.rewards), "cyan")))
    facts.add_row("queries", str(view.queries))
    facts.add_row("update", update_text(view.metrics))
    for name, kept in view.kept.items():
        is_held = kept.value >= kept.level
        facts.add_row("kept", plain(f"{name} {kept_text(kept)}", "green" if is_held else "yellow"))
    if view.verdict:
        facts.add_row("gamed?", plain(verdict_text(view.verdict), STYLES[view.verdict.status]))
    if view.picture:
        facts.add_row("images", Text(printable(str(view.picture)), overflow="fold"))
    hint = Text("Ctrl-C writes a checkpoint and leaves; ddpo train --resume goes on", style="dim")
    return Panel(Group(facts, hint), title=plain(view.title, "bold"), title_align="left", border_style="cyan")


def phase_line(view: View) -> str:
    """Return what is being done now as one line.

    >>> phase_line(View("t", 10, epoch=4, phase=("sampling", 8, 64), seconds_per_epoch=20.0))
    'epoch 5/10: sampling 8/64, left 2:00'
    """
    name, done, total = view.phase
    count = f" {done}/{total}" if total else ""
    return f"epoch {min(view.epoch + 1, view.epochs)}/{view.epochs}: {name}{count}, left {time_left(view)}"


def epoch_line(view: View) -> str:
    """One epoch as one line."""
    std = view.metrics.get("reward_std", 0.0)
    pace = f"{view.seconds_per_epoch:.1f} s/epoch" if view.seconds_per_epoch is not None else ""
    parts = [
        f"epoch {view.epoch}/{view.epochs}",
        f"queries {view.queries}",
        f"reward {view.metrics['reward_mean']:.4g} ± {std:.2g}",
        update_text(view.metrics),
        *(f"{name} {kept_text(kept)}" for name, kept in view.kept.items()),
        f"{pace}, left {time_left(view)}",
    ]
    return "  ".join(part for part in parts if part)


def reward_text(view: View) -> str:
    """Return the reward now, and how far it moved since the first epoch.

    >>> view = View("t", 3, rewards=[-2.0, -1.5])
    >>> reward_text(view)
    '-1.5 (+25.0% since epoch 1)'
    """
    if not view.rewards:
        return "…"
    first, last = view.rewards[0], view.rewards[-1]
    return f"{last:.4g}" if len(view.rewards) == 1 else f"{last:.4g} ({percent(first, last)} since epoch 1)"


def update_text(metrics: Mapping[str, float]) -> str:
    """Return the health of the updates: loss, KL, share of clipped ratios, gradient norm."""
    names = {"loss": "loss", "approx_kl": "kl", "clip_fraction": "clipped", "grad_norm": "grad"}
    return "  ".join(f"{short} {metrics[name]:.2g}" for name, short in names.items() if name in metrics)


def kept_text(kept: Kept) -> str:
    """Return how a signal that must not fall stands, and how much it is weighed with.

    >>> kept_text(Kept(0.25, 0.01, 0.2, 0.0))
    '0.25 (level 0.2, multiplier 0)'
    """
    return f"{kept.value:.3g} (level {kept.level:.3g}, multiplier {kept.multiplier:.2g})"


def verdict_text(verdict: Verdict) -> str:
    """Return a verdict as a person reads it.

    >>> from ddpo_core import Verdict
    >>> verdict_text(Verdict("ok", "nothing has left its noise"))
    'ok: nothing has left its noise'
    """
    return f"{verdict.status}: {verdict.reason}"


def time_left(view: View) -> str:
    """How long the remaining epochs will take, as hours, minutes and seconds.

    >>> time_left(View("t", 10, epoch=4, seconds_per_epoch=20.0))
    '2:00'
    """
    if view.seconds_per_epoch is None:
        return "…"
    return duration((view.epochs - view.epoch) * view.seconds_per_epoch)


@contextmanager
def _beating(view: View, seconds: float) -> Iterator[None]:
    """Print every line of `view`, and what is being done where there has been none for so long."""
    ended, news, lines = Signal(), view.print_news, 0

    def told(line: str) -> None:
        nonlocal lines
        lines += 1
        news(line)

    def beat() -> None:
        known = 0
        while not ended.wait(seconds):
            if lines == known:
                told(phase_line(view))
            known = lines

    view.print_line = view.print_news = told
    thread = Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _bar(left: str, done: int, total: int, right: str) -> RenderableType:
    row = Table.grid(padding=(0, 1))
    row.add_column(min_width=9)
    row.add_row(left, ProgressBar(total=max(total, 1), completed=done, width=28), right)
    return row
