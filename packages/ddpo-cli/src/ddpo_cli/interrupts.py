"""Ctrl-C that never tears a file: it stops the work, not the writing; a second one leaves at once."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import FrameType
from typing import NoReturn

from ddpo_cli.errors import INTERRUPTED
from ddpo_cli.ui.console import say

SIGNALS = (signal.SIGINT, signal.SIGTERM)
SHOW_CURSOR = b"\x1b[?25h\n"


@dataclass
class Interrupts:
    """Whether the user asked to stop, and what may not be broken off just now."""

    asked: bool = False
    pending: bool = False
    """Asked while the work was held back, and not granted yet."""
    held_for: str | None = None
    """None where the work may be broken off."""

    @contextmanager
    def held_back(self, what: str = "what is being written") -> Iterator[None]:
        """Let `what` be finished inside; a request to stop raises `KeyboardInterrupt` at the end instead."""
        before, self.held_for = self.held_for, what
        try:
            yield
        finally:
            self.held_for = before
        if self.pending and self.held_for is None:
            self.pending = False
            raise KeyboardInterrupt


@contextmanager
def handled(tell: Callable[[str], None] = say) -> Iterator[Interrupts]:
    """Handle Ctrl-C and SIGTERM inside the block; the handlers of before come back after it.

    The first raises `KeyboardInterrupt`, or, where the work is held back, lets `tell` say at once what is waited for.
    The second leaves.
    """
    state = Interrupts()

    def on_signal(number: int, frame: FrameType | None) -> None:
        if state.asked:
            _leave()
        state.asked = True
        if state.held_for is None:
            raise KeyboardInterrupt
        state.pending = True
        with suppress(RuntimeError):  # the signal came in the middle of a write to the same stream
            tell(f"Stopping once {state.held_for} is finished; Ctrl-C again leaves at once.")

    before = {number: signal.signal(number, on_signal) for number in SIGNALS}
    try:
        yield state
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _leave() -> NoReturn:
    """End the process, from inside a signal handler: past every stream, whose lock might be held."""
    with suppress(OSError):
        if os.isatty(2):
            os.write(2, SHOW_CURSOR)  # the live view has hidden it
        os.write(2, b"Left at once; what was written before is intact.\n")
    os._exit(INTERRUPTED)
