"""Ctrl-C that never tears a file: it stops the work, not the writing; a second one leaves at once."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

from ddpo_cli.errors import INTERRUPTED
from ddpo_cli.ui.console import say

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@dataclass
class Interrupts:
    """Whether the user asked to stop, and whether the work may be broken off just now."""

    asked: bool = False
    breakable: bool = True

    @contextmanager
    def held_back(self) -> Iterator[None]:
        """Let what is written inside finish; a request to stop raises `KeyboardInterrupt` at the end instead."""
        before, self.breakable = self.breakable, False
        try:
            yield
        finally:
            self.breakable = before
        if self.asked and self.breakable:
            raise KeyboardInterrupt


@contextmanager
def handled() -> Iterator[Interrupts]:
    """Handle Ctrl-C and SIGTERM inside the block; the handlers of before come back after it."""
    state = Interrupts()

    def on_signal(number: int, frame: FrameType | None) -> None:
        if state.asked:
            say("Left at once; what was written before is intact.")
            os._exit(INTERRUPTED)
        state.asked = True
        if state.breakable:
            raise KeyboardInterrupt

    before = {number: signal.signal(number, on_signal) for number in SIGNALS}
    try:
        yield state
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
