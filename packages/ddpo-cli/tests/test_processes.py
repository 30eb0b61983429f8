"""What only a process of its own can show: signals that end it, and output that is only ours."""

import os
import subprocess
import sys
from pathlib import Path

# What epoch 1 writes waits at a pipe that nobody reads, and Ctrl-C is pressed there; after that somebody does.
WAITS = """
import os
import signal
import sys
import threading
import time

CALLS = []


def score(images, prompts):
    CALLS.append(1)
    if len(CALLS) == 2:
        os.mkfifo("run/samples.jsonl")
        threading.Thread(target=press, daemon=True).start()
    return images.mean((1, 2, 3))


def press():
    main = threading.main_thread().ident
    while "append_samples" not in functions(sys._current_frames()[main]):
        time.sleep(0.05)
    time.sleep(0.5)
    for _ in range({times}):
        signal.pthread_kill(main, signal.SIGINT)
        time.sleep(0.5)
    open("run/samples.jsonl").read()


def functions(frame):
    while frame is not None:
        yield frame.f_code.co_name
        frame = frame.f_back
"""
STOPPING = "Stopping once epoch 1 is finished; Ctrl-C again leaves at once."


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "COLUMNS": "200", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "ddpo_cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600)


def test_ctrl_c_while_an_epoch_is_written_is_answered_at_once_and_stops_after_it(quick):
    Path("waits.py").write_text(WAITS.replace("{times}", "1"))
    done = run(*quick, "--reward", "waits:score", "--output", "run")
    assert done.returncode == 130, done.stderr
    said = done.stderr.splitlines()
    assert STOPPING in said
    assert said[-1] == (
        "Interrupted: epoch 1 is saved in run/checkpoints/epoch-000001. Go on with: ddpo train --resume run"
    )
    assert len(Path("run/metrics.jsonl").read_text().splitlines()) == 1


def test_a_second_ctrl_c_leaves_at_once(quick):
    Path("waits.py").write_text(WAITS.replace("{times}", "2"))
    done = run(*quick, "--reward", "waits:score", "--output", "run")
    assert done.returncode == 130, done.stderr
    assert done.stderr.splitlines()[-2:] == [STOPPING, "Left at once; what was written before is intact."]
    assert Path("run/samples/epoch-0000.png").exists()


def test_libraries_say_nothing_of_their_own(quick):
    done = run(*quick, "--output", "run")
    assert done.returncode == 0
    assert done.stdout == "run\n"
    ours = (
        "before training",
        "epoch ",
        "Trained",
        "Mean reward",
        "Best by",
        "Report",
        "Before and after",
        "For diffusers",
        "Draw",
        "Base and",
        "Train on",
    )
    assert [line for line in done.stderr.splitlines() if not line.startswith(ours)] == []


def test_a_pipe_that_closes_early_is_no_error():
    script = f"'{sys.executable}' -m ddpo_cli rewards list --format json | head -c 1"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "[", "")
