"""What came of a run, for the person who started it."""

from pathlib import Path
from typing import NamedTuple

from ddpo_cli.artefacts import artefact_path
from ddpo_cli.config import RunConfig
from ddpo_cli.history import best_epoch
from ddpo_cli.ui.console import say
from ddpo_core import Verdict
from ddpo_core.checkpoint import checkpoint_path, latest_checkpoint
from ddpo_core.runs.folder import BEFORE_AFTER, SAMPLES


class Outcome(NamedTuple):
    """What came of a run: the change of the reward in words, its last epoch, and the verdict that ended it early."""

    change: str
    epoch: int
    halted: Verdict | None


def tell(run: Path, config: RunConfig, outcome: Outcome) -> None:
    """Say what came of a run, where things are, and how to go on."""
    if outcome.halted:
        say(f"Ended early, since the reward is being gamed: {outcome.halted.reason}")
        say(f"The model is that of epoch {outcome.epoch}, the best by what is not optimised.")
    say(f"Mean reward on {config.eval_samples} fixed prompts and seeds: {outcome.change}")
    best = best_epoch(run)
    if best is not None:
        say(f"Best by what is not optimised: {checkpoint_path(run, best)}")
    say(f"Before and after:    {run / SAMPLES / BEFORE_AFTER}")
    say(f"For diffusers:       {artefact_path(run, config)}")
    say(f"Draw samples:        ddpo sample {_drawable(run, outcome)}")
    say(f"Base and finetuned:  ddpo eval {run}")
    more = "--on-hack warn" if outcome.halted else f"--epochs {2 * config.epochs}"
    say(f"Train on:            ddpo train --resume {run} {more}")


def _drawable(run: Path, outcome: Outcome) -> Path:
    """Return the run where its last checkpoint is its model, else the checkpoint that is."""
    path = checkpoint_path(run, outcome.epoch)
    return run if latest_checkpoint(run) == path else path
