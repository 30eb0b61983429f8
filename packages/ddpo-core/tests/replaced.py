"""Replace a checkpoint and be disturbed at every operation on files; prints what came of each as a JSON list.

A process of its own, which `test_checkpoint.py` starts: every disturbed one is a fork, so that torch is imported once.
The states are told apart by their seeds: 1 is replaced by 2, which is disturbed, and that by 9.
"""

import json
import os
import shutil
import signal
import sys
import tempfile
from itertools import count
from pathlib import Path

from ddpo_core import CheckpointError, adamw, init, latest_checkpoint, load_checkpoint, save_checkpoint, toy

POLICY, OPTIMIZER, EPOCH = toy.policy(), adamw(1e-2), 2


def save(run, seed):
    """Save a state of the epoch that is replaced, told apart by its seed."""
    state = init(POLICY, OPTIMIZER, seed=seed)
    save_checkpoint(run, type(state)(**{**vars(state), "epoch": EPOCH}), POLICY)


def found(run):
    """The seed of the checkpoint that a resumed run would go on from."""
    return load_checkpoint(latest_checkpoint(run), POLICY, OPTIMIZER).seed


def disturb(run, seed, how, place):
    """Save in a fork that is killed, or whose operations on files fail, from a place on; whether it got there."""
    child = os.fork()
    if child == 0:
        seen = count()

        def file_event(event, arguments):
            if event == "os.kill" or not (event == "open" or event.startswith(("os.", "shutil."))):
                return
            now = next(seen)
            if how == "killed" and now == place:
                os.kill(os.getpid(), signal.SIGKILL)
            if (how == "fails once" and now == place) or (how == "fails on" and now >= place):
                raise OSError(5, "Input/output error")

        sys.addaudithook(file_event)
        try:
            save(run, seed)
        except CheckpointError:
            os._exit(0)
        os._exit(0 if next(seen) > place else 2)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, 2, -signal.SIGKILL), code
    return code != 2


def outcome(run, how, possible):
    """What is found after a disturbance, and after the next one is saved."""
    now = found(run)
    save(run, 9)
    left = sorted(path.name for path in (run / "checkpoints").iterdir())
    return {"how": how, "found": now, "possible": possible, "next": found(run), "left": left}


def main():
    results = []
    with tempfile.TemporaryDirectory() as folder:
        for how in ("killed", "fails once", "fails on"):
            for place in count():
                run = Path(folder) / f"{how}-{place}"
                save(run, 1)
                if not disturb(run, 2, how, place):
                    break
                if not (run / "checkpoints" / f"epoch-{EPOCH:06d}").exists():
                    for again in count():
                        twice = shutil.copytree(run, run.with_name(f"{run.name}-{again}"))
                        if not disturb(twice, 3, "killed", again):
                            break
                        results.append(outcome(twice, "killed twice", [1, 2, 3]))
                results.append(outcome(run, how, [1, 2]))
    print(json.dumps(results))


if __name__ == "__main__":
    main()
