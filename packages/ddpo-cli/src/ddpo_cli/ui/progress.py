"""Progress of what takes a while, on a terminal; elsewhere nothing moves."""

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ddpo_cli.ui.console import messages, plain


@contextmanager
def loading(what: str) -> Iterator[None]:
    """Say that `what` is being done while the block runs."""
    console = messages()
    if not console.is_terminal:
        yield
        return
    with console.status(plain(what)):
        yield


@contextmanager
def uncollected() -> Iterator[None]:
    """Look for no garbage while the block runs.

    Libraries and models are a million objects, none of which is garbage: to look through them again and again, as they
    come, takes a fifth of the time to a first step.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@contextmanager
def counted(what: str) -> Iterator[Callable[[int, int | None], None]]:
    """Show a bar with the time left while the block runs; yields what moves it: `(done, total)`, None if unknown."""
    console = messages()
    if not console.is_terminal:  # a Progress that is disabled ends with an empty line in rich 14.2
        yield lambda done, total: None
        return
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(what, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)
