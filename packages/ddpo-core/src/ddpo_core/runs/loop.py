"""Training a run: one generator of events, from the folder to the model card.

    for event in train(config, reward_fn):
        if isinstance(event, Epoch):
            print(event.info.epoch, event.info.metrics["reward_mean"], event.verdict.status)

The caller's `for` loop shows, stops and logs. Whatever ends the loop, an exception, Ctrl-C or `break`, the last whole
epoch is saved first; `resume` goes on from there as if it had never stopped.
"""

import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, replace
from functools import partial
from hashlib import sha256
from itertools import islice
from os import PathLike
from pathlib import Path
from statistics import fmean
from typing import Any, TypeAlias

import torch

from ddpo_core.checkpoint import checkpoint_path, list_checkpoints, load_checkpoint
from ddpo_core.constraints import Constraints, Level, Measure
from ddpo_core.diffusion.export import save_lora
from ddpo_core.diffusion.models import choose_dtype
from ddpo_core.diffusion.network import LORA_FILE
from ddpo_core.distributed import SINGLE, Processes
from ddpo_core.errors import DDPOError
from ddpo_core.evaluation import Evaluation, evaluate
from ddpo_core.gaming.monitors import (
    Monitor,
    diversity_monitor,
    every,
    image_monitor,
    initial_view_monitor,
    kl_monitor,
    observe,
    remember,
)
from ddpo_core.gaming.rule import Observation, Verdict, assess
from ddpo_core.prompts import PromptSet
from ddpo_core.runs.compare import (
    fixed_prompts,
    load_base,
    mean_score,
    save_base,
    save_samples,
    scores_of,
    with_others,
    write_before_after,
    write_scores,
    write_series,
)
from ddpo_core.runs.config import RunConfig, changed_versions, label, read_run_config, references, to_toml
from ddpo_core.runs.costs import contention
from ddpo_core.runs.events import Drawn, Epoch, Event, Finished, Noted, Saved, Started
from ddpo_core.runs.export import artefact_path, write_artefact, write_model_card
from ddpo_core.runs.folder import (
    CONFIG,
    START,
    ModelRecord,
    create_run,
    evaluated_epoch,
    extremes_path,
    find_checkpoint,
    go_back,
    go_back_to_checkpoint,
    locked,
    sample_path,
    write_model_record,
    write_text,
)
from ddpo_core.runs.levels import BASE_SAMPLES, find_levels, make_measures, out_of_reach
from ddpo_core.runs.log import (
    METRICS,
    append_metrics,
    append_samples,
    as_observation,
    as_row,
    decimals,
    plain,
    read_lines,
    read_metrics,
)
from ddpo_core.runs.model import best_epoch, judged_epoch
from ddpo_core.runs.parts import Parts, load_parts, model_params
from ddpo_core.runs.pictures import save_extremes
from ddpo_core.runs.report import leave_report
from ddpo_core.runs.rescue import Keeper, attach_rescue, load_reward_states
from ddpo_core.runs.trackers import Log, Record, check_trackers, scalars, tracking
from ddpo_core.training import fit, init
from ddpo_core.types import EpochInfo, Params, Progress, RewardFunction, TrainState

Hold: TypeAlias = Callable[[str], AbstractContextManager[Any]]
"""What is entered while files are written, with what they are in words: the command line holds Ctrl-C back there."""

KL_SAMPLES = 2
_DECIDE_THE_BASE = {
    "model", "variant", "revision", "reward", "prompts", "guidance_scale", "negative_prompt", "eta", "height", "width",
    "dtype",
}  # fmt: skip
_NO_LOCKS = "these files know no locks: see that no other process writes to this run"


def train(
    config: RunConfig,
    reward_fn: RewardFunction,
    *,
    output: str | PathLike[str] | None = None,
    held_out: Mapping[str, RewardFunction] | None = None,
    kept: Mapping[str, RewardFunction] | None = None,
    monitors: Sequence[Monitor] = (),
    parts: Parts | None = None,
    progress: Progress | None = None,
    processes: Processes = SINGLE,
    hold: Hold = nullcontext,
) -> Iterator[Event]:
    """Train in a new folder.

    Args:
        config: What decides the run. Its `reward` and `held_out` only name what is scored with.
        reward_fn: `(images, prompts, metadata) -> (scores, info)`. Where it has methods `state` and `load_state`, what
            it has learnt is saved with the checkpoints.
        output: The folder; left out, the next number under `runs/`.
        held_out: Rewards that are measured and never optimised, under the names of `config.held_out`.
        kept: Rewards that must not fall, under the references of `config.keep` (`config.references`).
        monitors: What is measured of every epoch beside what always is.
        parts: The policy, prompts, optimizer and objective; left out, they are loaded as `config` says.
        progress: Called as `(phase, done, total)`; see `tqdm_progress`.
        processes: Those that train together. The first writes and gives the events, the others give none.
        hold: Entered while files are written.

    Raises:
        DDPOError: What `config` names cannot be had, `output` is used already, or the training fails.

    Example:
        >>> import tempfile
        >>> from ddpo_core import parse_config, toy
        >>> from ddpo_core.runs.defaults import run_config
        >>> config = run_config({"epochs": 1, "evidence_samples": 0})
        >>> next(train(config, toy.reward, held_out={"judge": toy.reward}))
        Traceback (most recent call last):
        ddpo_core.errors.DDPOError: held_out has the rewards 'judge', config.held_out names none; name the same ones
    """
    _check(config, held_out or {}, kept or {})
    loaded = parts or load_parts(config)
    config = _as_resolved(config, loaded)
    state = init(loaded.policy, loaded.optimizer, seed=config.seed)
    job = _Job(
        config, loaded, reward_fn, held_out or {}, kept or {}, monitors, progress or _no_progress, processes, hold
    )
    if not processes.is_writer:
        _follow(job, state)
        return
    folder = create_run(
        None if output is None else Path(output), label=label(config.reward), config=to_toml(config, _device(loaded))
    )
    with locked(folder) as is_locked:
        job = _with_its_start(folder, job)
        yield from _train_run(folder, job, state, notes=[*loaded.notes, *([] if is_locked else [_NO_LOCKS])])


def resume(
    target: str | PathLike[str] | None,
    reward_fn: RewardFunction,
    *,
    config: RunConfig | None = None,
    held_out: Mapping[str, RewardFunction] | None = None,
    kept: Mapping[str, RewardFunction] | None = None,
    monitors: Sequence[Monitor] = (),
    parts: Parts | None = None,
    progress: Progress | None = None,
    processes: Processes = SINGLE,
    hold: Hold = nullcontext,
) -> Iterator[Event]:
    """Go on with a run as if it had never stopped; arguments are those of `train`, but for two.

    What the run holds of later epochs than it goes on from is moved to `superseded/`.

    Args:
        target: A run, a checkpoint of one, or None for the run in `runs/` that was written to last.
        reward_fn: As for `train`.
        config: What decides the run from now on; left out, what its config.toml says.
        held_out: As for `train`.
        kept: As for `train`.
        monitors: As for `train`.
        parts: As for `train`.
        progress: As for `train`.
        processes: As for `train`.
        hold: As for `train`.

    Raises:
        DDPOError: There is no such run or checkpoint, it is finished, another process writes to it; or as for `train`.
    """
    folder, checkpoint = find_checkpoint(None if target is None else Path(target))
    config = config or read_run_config(folder)
    _check(config, held_out or {}, kept or {})
    loaded = parts or load_parts(config)
    config = _as_resolved(config, loaded)
    job = _Job(
        config, loaded, reward_fn, held_out or {}, kept or {}, monitors, progress or _no_progress, processes, hold
    )
    if not processes.is_writer:
        state = load_checkpoint(checkpoint, loaded.policy, loaded.optimizer)
        load_reward_states(folder, state.epoch, job.rewards)
        _follow(job, state)
        return
    with locked(folder) as is_locked:
        state = load_checkpoint(checkpoint, loaded.policy, loaded.optimizer)
        if evaluated_epoch(folder) == state.epoch >= config.epochs:
            raise DDPOError(
                f"{str(folder)!r} is finished: {state.epoch} of {config.epochs} epochs; for more, resume it with "
                f"epochs={2 * config.epochs}"
            )
        with hold(f"going back to epoch {state.epoch}"):
            job = _with_its_start(folder, job)
            notes = _prepare(folder, job, state)
        notes += [*loaded.notes, *([] if is_locked else [_NO_LOCKS])]
        yield from _train_run(folder, job, state, notes=notes)


@dataclass(frozen=True)
class _Job:
    """What is trained, with what, and how it is told."""

    config: RunConfig
    parts: Parts
    reward_fn: RewardFunction
    held_out: Mapping[str, RewardFunction]
    kept: Mapping[str, RewardFunction]
    monitors: Sequence[Monitor]
    progress: Progress
    processes: Processes
    hold: Hold

    @property
    def rewards(self) -> dict[str, RewardFunction]:
        """All that score in this run; a held-out reward that is the optimised one is it."""
        others = {
            f"{part} {name}": other for part in ("held_out", "kept") for name, other in getattr(self, part).items()
        }
        return {
            "reward": self.reward_fn,
            **{name: other for name, other in others.items() if other is not self.reward_fn},
        }


def _check(config: RunConfig, held_out: Mapping[str, RewardFunction], kept: Mapping[str, RewardFunction]) -> None:
    """Refuse what can be refused before anything is loaded."""
    check_trackers(config.tracker)
    for key, functions, named in (
        ("held_out", held_out, config.held_out),
        ("kept", kept, references(config.keep)),
    ):
        if set(functions) != set(named):
            given, wanted = (", ".join(map(repr, names)) or "none" for names in (functions, named))
            setting = "keep" if key == "kept" else key
            raise DDPOError(f"{key} has the rewards {given}, config.{setting} names {wanted}; name the same ones")


def _device(parts: Parts) -> str:
    return next(iter(parts.policy.params.values())).device.type


def _as_resolved(config: RunConfig, parts: Parts) -> RunConfig:
    """Write down the dtype that was chosen by the device: on another device, the run keeps it."""
    dtype = choose_dtype(None, torch.device(_device(parts)))
    return config if config.dtype else config.model_copy(update={"dtype": str(dtype).removeprefix("torch.")})


def _with_its_start(run: Path, job: _Job) -> _Job:
    """Keep the LoRA that a run starts from in its folder: where it came from, it may be trained on, or go."""
    policy, place = job.parts.policy, run / START
    if job.config.lora is None or job.config.lora == str(place):
        return job
    save_lora(place, policy.params, scale=policy.lora_scale)
    config = job.config.model_copy(update={"lora": str(place)})
    write_text(run / CONFIG, to_toml(config, _device(job.parts)))
    return replace(job, config=config)


def _prepare(run: Path, job: _Job, state: TrainState) -> list[str]:
    """Take a run back to `state`, and write down with what it goes on; returns what a person should know."""
    device = _device(job.parts)
    notes = [
        f"{name} was {then} when the run was started and is {now} now: numbers may differ a little"
        for name, (then, now) in changed_versions(run, device).items()
    ]
    notes += read_lines(run / METRICS).complaints
    aside = go_back(run, state.epoch)
    if aside is not None:
        notes.append(f"what the run holds of later epochs than {state.epoch} was moved to {aside}")
    write_text(run / CONFIG, to_toml(job.config, device))
    load_reward_states(run, state.epoch, job.rewards)
    return notes


def _train_run(run: Path, job: _Job, state: TrainState, *, notes: Sequence[str]) -> Iterator[Event]:
    """Evaluate, train, evaluate again; save the last whole epoch whatever stops that."""
    config = job.config
    keeper = Keeper(run, job.parts.policy, job.rewards, config.keep_last)
    keeper.advance(state)
    keeper.saved |= {epoch: path for epoch, path in list_checkpoints(run).items() if epoch == state.epoch}
    rows = read_metrics(run)
    options, text = config.model_dump(mode="json"), to_toml(config, _device(job.parts))
    try:
        with tracking(run, config.tracker, options=options, text=text, epoch=state.epoch) as log:
            yield Started(run, config, state.epoch, state.queries, tuple(row["reward_mean"] for row in rows))
            yield from map(Noted, notes)
            yield from _evaluated(run, job, keeper, log, tuple(map(as_observation, rows)))
    except BaseException as error:
        # What is asked for while it is saved (Ctrl-C held back until then) is what happens now.
        with suppress(KeyboardInterrupt), job.hold("the checkpoint"):
            attach_rescue(error, keeper.rescue())
        raise


def _evaluated(run: Path, job: _Job, keeper: Keeper, log: Log, history: tuple[Observation, ...]) -> Iterator[Event]:
    """Train between two evaluations, and leave the better model and what came of it."""
    config, began, start = job.config, time.monotonic(), keeper.latest.epoch
    before = yield from _base(run, job, log, is_new=start == 0)
    best, halted = yield from _trained(run, job, keeper, log, history)
    with job.hold("the model"):
        last = keeper.latest
        saved = keeper.save({last.epoch}, best=best)
        chosen = last
        if halted and best is not None:
            chosen = load_checkpoint(checkpoint_path(run, best), job.parts.policy, job.parts.optimizer)
        if halted and config.on_hack == "rollback":
            go_back_to_checkpoint(run, chosen.epoch)
            keeper.go_back(chosen)
            saved = [path for path in saved if path.exists()]
        artefact = artefact_path(run, config)
        params = model_params(config, chosen)
        write_artefact(artefact, config, params, lora_scale=job.parts.policy.lora_scale)
    yield from map(Saved, saved)
    after = _evaluate(job, params, count=config.eval_samples)
    with job.hold("what came of the run"):
        drawn = _draw(run, job, chosen.epoch, after)
        notes = log(_record_of(drawn))
        pictures = write_before_after(run, before, after, epoch=chosen.epoch)
        write_series(run)
        scores = scores_of(before, after, epoch=chosen.epoch)
        write_model_card(artefact, run, config, kind=config.trainable, epoch=chosen.epoch, scores=scores)
        write_model_record(run, ModelRecord(chosen.epoch, best))
        write_scores(run, scores)
        report, complaints = leave_report(run)
    yield drawn
    yield from map(Noted, [*notes, *complaints])
    yield Finished(
        run=run,
        epoch=chosen.epoch,
        best=best,
        halted=halted,
        before=mean_score(before),
        after=mean_score(after),
        trained=last.epoch - start,
        seconds=time.monotonic() - began,
        artefact=artefact,
        pictures=pictures,
        report=report,
    )


def _base(run: Path, job: _Job, log: Log, *, is_new: bool) -> Generator[Event, None, Evaluation]:
    """Evaluate the model before training, or find again what was kept of that."""
    config = job.config
    prompts = fixed_prompts(job.parts.prompts, config.eval_samples)
    described = {
        "policy": job.parts.policy.fingerprint,
        "num_steps": config.fit.num_steps,
        **config.model_dump(mode="json", include=_DECIDE_THE_BASE),
    }
    if config.lora is not None:
        described["lora"] = sha256((run / START / LORA_FILE).read_bytes()).hexdigest()
    kept = load_base(run, prompts, described=described)
    path = sample_path(run, 0)
    if kept is not None and path.is_file():
        yield Drawn(0, mean_score(kept), path)
        return kept
    before = _evaluate(job, job.parts.policy.params, count=config.eval_samples)
    with job.hold("the samples before training"):
        drawn = _draw(run, job, 0, before)
        save_base(run, before, described=described)
        notes = log(_record_of(drawn)) if is_new else []
    yield drawn
    yield from map(Noted, notes)
    return before


def _trained(
    run: Path, job: _Job, keeper: Keeper, log: Log, history: tuple[Observation, ...]
) -> Generator[Event, None, tuple[int | None, Verdict | None]]:
    """Train until `config.epochs`; returns the best epoch, and the verdict that ended the run before its time."""
    config, lap = job.config, time.monotonic()
    best = best_epoch(history, saved=list_checkpoints(run))
    write_model_record(run, ModelRecord(best=best))
    levels = _levels(run, job) if config.keep else {}
    complained: set[str] = set()
    for state, info, seen, samples in _epochs(job, keeper.latest, _constraints(job, levels)):
        held_out, shown = _look(job, state)
        seen = replace(seen, held_out={**seen.held_out, **held_out})
        history = remember(history, seen)
        verdict = assess(history)
        row = {
            "epoch": info.epoch,
            "queries": info.queries,
            **info.metrics,
            **({} if shown is None else {"samples_reward_mean": mean_score(shown)}),
            **({"kept": {name: kept._asdict() for name, kept in info.kept.items()}} if info.kept else {}),
            **as_row(seen, verdict),
        }
        # An epoch counts once it is written down: one that is broken off before is computed again.
        with job.hold(f"epoch {info.epoch}"):
            drawn = None if shown is None else _draw(run, job, state.epoch, shown)
            if drawn is not None or state.epoch == config.epochs:
                save_extremes(extremes_path(run, state.epoch), info.images, _sample_rows(info))
            append_samples(run, samples)
            append_metrics(run, row)
            keeper.advance(state, keep_before=judged_epoch(seen) < state.epoch)
            known, best = best, best_epoch(history, saved={*list_checkpoints(run), *keeper.snapshots})
            wanted = {state.epoch} if state.epoch % config.checkpoint_every == 0 else set()
            saved = keeper.save(wanted, best=best)
            if best != known:
                write_model_record(run, ModelRecord(best=best))
            distributions = {name: [sample[name] for sample in samples] for name in ("reward", "advantage")}
            pictures = {} if drawn is None else {"samples": drawn.picture}
            notes = log(Record(info.epoch, scalars(row), distributions, pictures))
        seconds, lap = time.monotonic() - lap, time.monotonic()
        yield Epoch(state, info, seen, verdict, row, seconds)
        yield from [] if drawn is None else [drawn]
        yield from map(Saved, saved)
        yield from map(Noted, notes)
        complaints = out_of_reach(info.kept)
        if _device(job.parts) == "cpu" and (waiting := contention(info.metrics, torch.get_num_threads())):
            complaints["threads"] = waiting
        yield from (Noted(line) for name, line in complaints.items() if name not in complained)
        complained |= complaints.keys()
        if _shared(verdict.status == "hacked" and config.on_hack != "warn", job.processes):
            return best, verdict
    return best, None


def _follow(job: _Job, state: TrainState) -> None:
    """Do this process's share of the epochs that another process writes."""
    levels = job.processes.gather_json(None)[0] if job.config.keep else {}
    for _ in _epochs(job, state, _constraints(job, levels)):
        if _shared(False, job.processes):
            return


def _levels(run: Path, job: _Job) -> dict[str, Level]:
    """Read the levels that are kept, or measure them, and tell the other processes."""
    config, parts = job.config, job.parts
    job.progress("measuring the base", 0, BASE_SAMPLES)
    with job.hold("the levels that are kept"):
        levels = find_levels(
            run,
            config.keep,
            _measures(job),
            policy=parts.policy,
            prompts=fixed_prompts(parts.prompts, BASE_SAMPLES),
            num_steps=config.fit.num_steps,
            batch_size=config.fit.sample_batch_size,
            progress=lambda _, done, total: job.progress("measuring the base", done, total),
        )
    job.processes.gather_json({name: list(level) for name, level in levels.items()})
    return levels


def _measures(job: _Job) -> tuple[Measure, ...]:
    batch_size = job.config.fit.sample_batch_size
    return make_measures(
        job.config.keep, job.kept, policy=job.parts.policy, prompts=job.parts.prompts, batch_size=batch_size
    )


def _constraints(job: _Job, levels: Mapping[str, Sequence[float]]) -> Constraints | None:
    named = {name: Level(*level) for name, level in levels.items()}
    return Constraints(_measures(job), named) if named else None


def _epochs(
    job: _Job, state: TrainState, constraints: Constraints | None
) -> Iterator[tuple[TrainState, EpochInfo, Observation, list[Mapping[str, Any]]]]:
    """Go through the missing epochs, with what is seen in the samples of all processes; all of them have to come."""
    observer = _observer(job)
    endless = fit(
        state,
        policy=job.parts.policy,
        optimizer=job.parts.optimizer,
        reward_fn=job.reward_fn,
        prompts=job.parts.prompts,
        objective=job.parts.objective,
        config=job.config.fit,
        constraints=constraints,
        progress=job.progress,
        processes=job.processes,
    )
    for after, info in islice(endless, max(0, job.config.epochs - state.epoch)):
        samples = [row for rows in job.processes.gather_json(_sample_rows(info)) for row in rows]
        yield after, info, observer(after, info), samples


def _look(job: _Job, state: TrainState) -> tuple[dict[str, float], Evaluation | None]:
    """Draw the fixed prompts where that is due: the means of held-out rewards, and what a picture is made of."""
    config = job.config
    # The evaluation after training draws the picture of the last epoch.
    is_shown = state.epoch % config.sample_every == 0 and state.epoch != config.epochs
    if not is_shown and not job.held_out:
        return {}, None
    # What is told from held-out rewards takes more images than looking at a grid.
    count = config.eval_samples if job.held_out else config.grid_samples
    evaluation = _evaluate(job, model_params(config, state), count=count)
    held_out = {name: fmean(map(float, evaluation.info[name])) for name in job.held_out}
    return held_out, evaluation if is_shown else None


def _evaluate(job: _Job, params: Params, *, count: int) -> Evaluation:
    """Sample and score the first `count` images of the fixed set."""
    whole = fixed_prompts(job.parts.prompts, job.config.eval_samples)
    count = min(count, len(whole.prompts))
    job.progress("evaluating", 0, count)
    return evaluate(
        job.parts.policy,
        params,
        with_others(job.reward_fn, job.held_out),
        PromptSet(whole.prompts[:count], whole.metadata[:count]),
        num_steps=job.config.fit.num_steps,
        seeds=range(count),
        batch_size=job.config.fit.sample_batch_size,
        progress=lambda _, done, total: job.progress("evaluating", done, total),
    )


def _draw(run: Path, job: _Job, epoch: int, evaluation: Evaluation) -> Drawn:
    """Write the first images with prompt and score below."""
    path = sample_path(run, epoch)
    save_samples(path, evaluation, count=job.config.grid_samples)
    return Drawn(epoch, mean_score(evaluation), path)


def _record_of(drawn: Drawn) -> Record:
    return Record(drawn.epoch, {"samples_reward_mean": drawn.reward_mean}, {}, {"samples": drawn.picture})


def _observer(job: _Job) -> Callable[[TrainState, EpochInfo], Observation]:
    """Return what looks at the samples of an epoch: all that is measured but the held-out rewards."""
    config, policy = job.config, job.parts.policy
    few = fixed_prompts(job.parts.prompts, KL_SAMPLES).prompts
    divergence = kl_monitor(policy, few, num_steps=config.fit.num_steps, seeds=range(len(few)))
    # Sampling and two replays in small batches: a tenth of a short epoch, so not in all of them.
    monitors = (image_monitor, diversity_monitor, every(config.sample_every, divergence), *job.monitors)
    view = None
    if config.judged_samples:
        size = config.fit.sample_batch_size
        view = initial_view_monitor(policy, num_samples=config.judged_samples, batch_size=size)
    return partial(observe, monitors=monitors, held_out=view, processes=job.processes)


def _sample_rows(info: EpochInfo) -> list[dict[str, Any]]:
    """One row per sample of this process; `sample` is its place among those of the epoch."""
    scores, advantages = decimals(info.scores), decimals(info.advantages)
    return [
        {
            "epoch": info.epoch,
            "sample": index,
            "prompt": info.prompts[place],
            "reward": scores[place],
            "advantage": advantages[place],
            **({"metadata": plain(info.metadata[place])} if info.metadata[place] else {}),
            **({"info": {key: plain(values[place]) for key, values in info.info.items()}} if info.info else {}),
        }
        for place, index in enumerate(info.indices)
    ]


def _shared(said: bool, processes: Processes) -> bool:
    """Return what the writing process says; each process has to ask."""
    return bool(processes.gather_json(said)[0])


def _no_progress(phase: str, done: int, total: int) -> None:
    """Show nothing."""
