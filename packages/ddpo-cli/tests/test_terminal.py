"""A whole `ddpo train` on a real terminal: it moves, it hides nothing for good, and only our own escapes reach it."""

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path

ESCAPES = re.compile(r"\x1b(?:\[([0-9;?]*)([@-~])|(.))")
HOSTILE = "a fox \x1b]0;owned\x07\x1b[5m\x9b5m"
SCORE = "def score(images, *, template=''):\n    print('\\x1b]0;owned\\x07')\n    return images.mean((1, 2, 3))\n"


def on_a_terminal(*arguments: str, rows: int = 50, columns: int = 120) -> tuple[int, str, str]:
    """Run `ddpo` with a terminal for stderr; returns its exit code, its stdout, and what the terminal was sent."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES", "NO_COLOR")}
    command = subprocess.Popen(
        [sys.executable, "-m", "ddpo_cli", *arguments],
        stdin=theirs,
        stdout=subprocess.PIPE,
        stderr=theirs,
        env={**environment, "TERM": "xterm-256color", "OMP_NUM_THREADS": "1"},
    )
    os.close(theirs)
    sent = b""
    while True:
        try:
            part = os.read(ours, 65536)
        except OSError:  # Linux: the other end was closed
            break
        if not part:
            break
        sent += part
    os.close(ours)
    data, _ = command.communicate(timeout=60)
    return command.returncode, data.decode(), sent.decode()


def test_a_run_on_a_terminal_shows_progress_and_leaves_the_terminal_as_it_was(quick):
    Path("bracketed.py").write_text(SCORE)
    Path("prompts.txt").write_text(f"{HOSTILE}\na whale\n")
    reward = "bracketed:score?template=[/INST] :fox:"
    options = ("--reward", reward, "--prompts", "file:prompts.txt", "--output", "run")
    code, data, sent = on_a_terminal(*quick, *options)
    assert code == 0, sent
    assert data == "run\n"
    words = ESCAPES.sub("", sent)
    for fact in ("Loading", "sampling", "training", "evaluating", "2/2", "time left", reward, "Trained 2 epochs in"):
        assert fact in words
    assert sent.count("\x1b[?25l") == sent.count("\x1b[?25h") > 0
    assert sent.rindex("\x1b[?25h") > sent.rindex("\x1b[?25l")
    # Colours, up, erase a line or what is below, the cursor; nothing that moves elsewhere, blinks or sets a title.
    finals = {final or other for _, final, other in ESCAPES.findall(sent)}
    assert finals <= {"m", "A", "K", "J", "h", "l"}, finals
    assert not any("5" in codes.split(";") and final == "m" for codes, final, _ in colours(sent))
    assert "\x07" not in sent
    assert "\x9b" not in sent


def colours(sent: str) -> list[tuple[str, str, str]]:
    """The escapes that set a colour of the palette hold a 5 of their own: leave them out."""
    return [found for found in ESCAPES.findall(sent) if not found[0].startswith(("38;5", "48;5"))]
