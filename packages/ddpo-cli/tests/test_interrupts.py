"""Ctrl-C is answered at once, and the terminal is left as it was found."""

import os
import pty
import signal
import subprocess
import sys
import time

import pytest

from ddpo_cli.interrupts import handled

HELD = """
import time
from ddpo_cli.interrupts import handled
from ddpo_cli.ui.console import messages
from ddpo_cli.ui.live import View, shown

with handled() as interrupts, shown(View("t", 1), messages()), interrupts.held_back("epoch 3"):
    print("ready", flush=True)
    time.sleep(60)
"""


def test_ctrl_c_breaks_off_what_may_be_broken_off():
    with handled() as interrupts, pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)
    assert interrupts.asked


def test_ctrl_c_says_at_once_what_is_finished_first_and_stops_after_it():
    told, done = [], []

    def work(interrupts):
        with interrupts.held_back("epoch 3"), interrupts.held_back("the picture"):
            os.kill(os.getpid(), signal.SIGTERM)
            done.append(list(told))
        done.append("never reached")

    with handled(told.append) as interrupts, pytest.raises(KeyboardInterrupt):
        work(interrupts)
    assert done == [["Stopping once the picture is finished; Ctrl-C again leaves at once."]]


def test_what_is_saved_after_ctrl_c_is_not_interrupted_by_it_again():
    saved = []

    def work(interrupts):
        try:
            os.kill(os.getpid(), signal.SIGINT)
        except KeyboardInterrupt as interrupt:
            with interrupts.held_back("the checkpoint"):
                interrupt.add_note("saved")
            saved.append(interrupt)
            raise

    with handled() as interrupts, pytest.raises(KeyboardInterrupt) as stopped:
        work(interrupts)
    assert [stopped.value] == saved


def test_the_handlers_of_before_come_back():
    before = signal.getsignal(signal.SIGINT)
    with handled():
        assert signal.getsignal(signal.SIGINT) is not before
    assert signal.getsignal(signal.SIGINT) is before


def test_a_second_ctrl_c_leaves_at_once_and_gives_the_cursor_back():
    ours, theirs = pty.openpty()
    command = subprocess.Popen([sys.executable, "-c", HELD], stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    seen = read_until(ours, "ready")
    command.send_signal(signal.SIGINT)
    seen += read_until(ours, "Stopping once epoch 3 is finished; Ctrl-C again leaves at once.")
    command.send_signal(signal.SIGINT)
    assert command.wait(10) == 130
    seen += read_until(ours, "what was written before is intact.")
    assert seen.count("\x1b[?25l") == 1
    assert seen.rindex("\x1b[?25h") > seen.rindex("\x1b[?25l")


def read_until(terminal: int, text: str) -> str:
    """What the terminal shows until `text`."""
    seen, limit = "", time.monotonic() + 30
    while text not in seen:
        assert time.monotonic() < limit, seen
        seen += os.read(terminal, 4096).decode()
    return seen
