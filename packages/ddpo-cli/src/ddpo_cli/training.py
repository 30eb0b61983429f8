"""The body of `ddpo train`: start a run, or go on with one."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import typer

from ddpo_cli import setup as setups
from ddpo_cli.artefacts import write_artefact
from ddpo_cli.config import RunConfig
from ddpo_cli.config_file import changed_versions, to_toml
from ddpo_cli.errors import CLIError, process_rank
from ddpo_cli.evaluating import evaluate_fixed, write_grid
from ddpo_cli.interrupts import handled
from ddpo_cli.loop import Training, follow_epochs, run_epochs
from ddpo_cli.model_card import write_model_card
from ddpo_cli.outcome import Outcome, tell
from ddpo_cli.planning import print_plan
from ddpo_cli.rescue import Rescue, load_best, rescuing, save
from ddpo_cli.resolving import differences, nest, read_run_config, resolve, validate
from ddpo_cli.rewarding import label
from ddpo_cli.setup import Setup
from ddpo_cli.ui.console import messages, say
from ddpo_cli.ui.live import View, duration, shown, stopwatch
from ddpo_cli.ui.progress import loading
from ddpo_cli.watching import observer
from ddpo_core import Processes, TrainState, init, load_checkpoint, processes_from_environment
from ddpo_core.runs.compare import change_text, mean_score, write_before_after, write_evaluation
from ddpo_core.runs.folder import (
    CONFIG,
    SAMPLES,
    create_run,
    evaluated_epoch,
    find_checkpoint,
    go_back,
    go_back_to_checkpoint,
    locked,
    refuse_used,
    write_text,
)
from ddpo_core.runs.log import read_metrics
from ddpo_core.runs.model import ModelRecord, write_model_record
from ddpo_core.runs.trackers import Record, tracking

FREE_TO_CHANGE = frozenset(
    {
        "epochs", "device", "gradient_checkpointing", "compile", "sample_every", "checkpoint_every", "keep_last",
        "held_out", "on_hack", "evidence_samples", "watch_text", "tracker", "reward_workers",
    }
)  # fmt: skip


def start_run(flags: Mapping[str, Any], *, preset: str | None, config: Path | None, output: Path | None) -> None:
    """Train in a new run folder."""
    resolved = resolve(config, flags, preset=preset)
    with processes_from_environment() as processes:
        if processes.is_writer and output is not None:
            refuse_used(output)
        setup = _load(resolved, processes)
        state = init(setup.policy, setup.optimizer, seed=resolved.seed)
        if not processes.is_writer:
            _follow(setup, state, processes)
            return
        run = create_run(output, label=label(resolved.reward), config=to_toml(resolved))
        _train(run, setup, state, processes)


def resume_run(target: Path | None, flags: Mapping[str, Any], *, force: bool) -> None:
    """Go on with a run from its last checkpoint, or from the checkpoint given, as if it had never stopped."""
    run, checkpoint = find_checkpoint(target)
    config = _resumed_config(run, flags, force=force)
    with processes_from_environment() as processes:
        setup = _load(config, processes)
        state = load_checkpoint(checkpoint, setup.policy, setup.optimizer)
        if not processes.is_writer:
            _follow(setup, state, processes)
            return
        _prepare(run, config, state)
        say(f"Going on with {run} after epoch {state.epoch}")
        _train(run, setup, state, processes)


def plan_run(
    run: Path | None,
    flags: Mapping[str, Any],
    *,
    preset: str | None,
    config: Path | None,
    resume: bool,
    force: bool,
) -> None:
    """Print what `start_run` or `resume_run` would do with these arguments."""
    if process_rank() != 0:
        return
    if resume:
        print_plan(_resumed_config(find_checkpoint(run)[0], flags, force=force))
    else:
        print_plan(resolve(config, flags, preset=preset))


def _resumed_config(run: Path, flags: Mapping[str, Any], *, force: bool) -> RunConfig:
    stored = read_run_config(run)
    given = nest({key: value for key, value in flags.items() if value is not None and value != []})
    wanted = validate(stored.model_dump(exclude_none=True), given)
    changed = differences(stored, wanted, allowed=FREE_TO_CHANGE)
    if changed and not force:
        raise CLIError(
            f"--resume {run}: the run has other options ({'; '.join(changed)}); "
            "leave them out, add --force to change them, or start a new run"
        )
    return wanted


def _load(config: RunConfig, processes: Processes) -> Setup:
    if not processes.is_writer:
        return setups.load(config)
    with loading(f"Loading {config.model}"):
        return setups.load(config)


def _prepare(run: Path, config: RunConfig, state: TrainState) -> None:
    """Take a run back to `state`, the epochs after which are computed again."""
    if evaluated_epoch(run) == state.epoch >= config.epochs:
        raise CLIError(
            f"{str(run)!r} is finished: {state.epoch} of {config.epochs} epochs; "
            f"for more: ddpo train --resume {run} --epochs {2 * config.epochs}"
        )
    with locked(run):
        for name, (then, now) in changed_versions(run).items():
            say(f"{name} was {then} when the run was started and is {now} now: numbers may differ a little")
        write_text(run / CONFIG, to_toml(config))
        aside = go_back(run, state.epoch)
        if aside:
            say(f"What the run holds of later epochs was moved to {aside}")


def _follow(setup: Setup, state: TrainState, processes: Processes) -> None:
    with handled():
        follow_epochs(setup, state, processes)


def _train(run: Path, setup: Setup, state: TrainState, processes: Processes) -> None:
    """Evaluate, train, evaluate again; say what came of it and print the run's path to stdout."""
    config, view = setup.config, _view(run, setup.config)
    clock = stopwatch()
    with (
        locked(run),
        handled() as interrupts,
        shown(view, messages()),
        rescuing(run, state, setup.policy, interrupts) as rescue,
        tracking(
            run, config.tracker, options=config.model_dump(mode="json"), text=to_toml(config), epoch=state.epoch
        ) as log,
    ):
        training = Training(run, setup, processes, view, interrupts, log, observer(setup, processes))
        outcome = _evaluated(training, rescue)
    say(f"Trained {view.epoch} epochs in {duration(clock())}.")
    tell(run, config, outcome)
    typer.echo(run)


def _evaluated(training: Training, rescue: Rescue) -> Outcome:
    run, setup, view, config = training.run, training.setup, training.view, training.setup.config
    before = evaluate_fixed(setup, setup.policy.params, view, count=config.eval_samples)
    with training.interrupts.held_back():
        picture = write_grid(run, 0, before, view, count=config.grid_samples)
        view.print_line(f"before training: mean reward {mean_score(before):.4g}, images in {run / SAMPLES}")
        if rescue.state.epoch == 0:
            training.log(Record(0, {"samples_reward_mean": mean_score(before)}, pictures={"samples": picture}))
    halted = run_epochs(training, rescue)
    with training.interrupts.held_back():
        save(run, rescue, keep_last=config.keep_last)
        chosen = load_best(run, rescue, setup) if halted else rescue.state
        if halted and config.on_hack == "rollback":
            go_back_to_checkpoint(run, chosen.epoch)
        write_artefact(run, config, chosen.params)
    after = evaluate_fixed(setup, chosen.params, view, count=config.eval_samples)
    with training.interrupts.held_back():
        epoch = chosen.epoch
        picture = write_grid(run, epoch, after, view, count=config.grid_samples)
        training.log(Record(epoch, {"samples_reward_mean": mean_score(after)}, pictures={"samples": picture}))
        write_before_after(run, before, after, epoch=epoch)
        write_model_card(run, config, before, after, epoch=epoch)
        write_model_record(run, ModelRecord(epoch))
        write_evaluation(run, before, after, epoch=epoch)
        return Outcome(change_text(mean_score(before), mean_score(after)), epoch, halted)


def _view(run: Path, config: RunConfig) -> View:
    rows = read_metrics(run)
    return View(
        run,
        f"ddpo train · {config.model} · {' + '.join(config.reward)}",
        config.epochs,
        rewards=[row["reward_mean"] for row in rows],
        epoch=rows[-1]["epoch"] if rows else 0,
        queries=rows[-1]["queries"] if rows else 0,
    )
