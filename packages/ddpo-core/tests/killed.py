"""Train, be killed somewhere, go on, for every place there is; prints what came of each as a JSON list.

A process of its own, which `test_killed.py` starts: every run that is killed is a fork, so that torch is imported once.
The third epoch is the one that is killed: at a batch of sampling, a micro-batch of training, or a file operation.
"""

import json
import os
import signal
import sys
import tempfile
from itertools import count, islice
from pathlib import Path

import torch

from ddpo_core import (
    FitConfig,
    adamw,
    ddpo_is,
    fit,
    init,
    latest_checkpoint,
    load_checkpoint,
    per_prompt,
    prune_checkpoints,
    save_checkpoint,
    toy,
)

EPOCHS, KILLED_IN = 4, 3
CONFIG = FitConfig(num_steps=3, samples_per_epoch=8, updates_per_epoch=2, sample_batch_size=4)


def train(run, happens=lambda phase, epoch: None):
    """Go on to the last epoch from the newest checkpoint, if there is one; keeps the two newest."""
    policy, optimizer, epoch = toy.policy(), adamw(1e-2), 0
    saved = latest_checkpoint(run)
    state = init(policy, optimizer, seed=0) if saved is None else load_checkpoint(saved, policy, optimizer)
    epochs = fit(
        state,
        policy=policy,
        optimizer=optimizer,
        reward_fn=toy.reward,
        prompts=["left", "right"],
        objective=ddpo_is(advantages=per_prompt(min_count=4)),
        config=CONFIG,
        progress=lambda phase, done, total: happens(phase, epoch + 1),
    )
    missing = EPOCHS - state.epoch
    for state, info in islice(epochs, missing):
        epoch = info.epoch
        happens("writing", epoch)
        save_checkpoint(run, state, policy)
        prune_checkpoints(run, keep_last=2)
        happens("written", epoch)
    return state


def train_until_killed(run, phase, place):
    """Train, and kill this process at the event `place` of a phase in the epoch to be killed."""
    seen, writing = count(), []

    def happens(now, epoch):
        writing[:] = [now == "writing" and epoch == KILLED_IN]
        if now == phase and epoch == KILLED_IN and now != "writing" and next(seen) == place:
            os.kill(os.getpid(), signal.SIGKILL)

    def file_event(event, arguments):
        touches_files = event == "open" or event.startswith(("os.", "shutil."))
        if writing == [True] and touches_files and event != "os.kill" and next(seen) == place:
            os.kill(os.getpid(), signal.SIGKILL)

    if phase == "writing":
        sys.addaudithook(file_event)
    train(run, happens)


def is_killed(run, phase, place):
    """Train in a fork; whether it was killed before it was through."""
    child = os.fork()
    if child == 0:
        train_until_killed(run, phase, place)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


def is_same(first, second):
    """Whether two states are equal bit for bit."""
    pairs = ((first.params, second.params), (first.opt_state, second.opt_state))
    tensors = all(torch.equal(ours[name], theirs[name]) for ours, theirs in pairs for name in ours)
    return tensors and (first.objective_state, first.epoch, first.queries) == (
        second.objective_state,
        second.epoch,
        second.queries,
    )


def main():
    results = []
    with tempfile.TemporaryDirectory() as folder:
        whole = train(Path(folder) / "whole")
        for phase in ("sampling", "training", "writing"):
            for place in count():
                run = Path(folder) / f"{phase}-{place}"
                if not is_killed(run, phase, place):
                    break
                found = int(latest_checkpoint(run).name[-6:])
                same = is_same(train(run), whole)
                left = sorted(path.name for path in (run / "checkpoints").iterdir() if not path.name.startswith("."))
                results.append({"phase": phase, "place": place, "found": found, "same": same, "left": left})
    print(json.dumps(results))


if __name__ == "__main__":
    main()
