"""`ddpo train`: finetune a diffusion model with a reward."""

import os
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO, cast

import typer
from typer.core import TyperCommand

from ddpo_cli import completion
from ddpo_cli.errors import CLIError, describe, is_user_error, process_rank
from ddpo_cli.presets import list_presets, read_preset
from ddpo_cli.ui.console import foreign_output, messages, say, tell, to_json
from ddpo_cli.ui.inline import Pictures, known_pictures
from ddpo_cli.ui.numbers import duration, moved
from ddpo_cli.ui.progress import loading, uncollected

if TYPE_CHECKING:
    from ddpo_core.runs.config import RunConfig
    from ddpo_core.runs.events import Event, Finished

EPILOG = """
[bold]Examples[/bold]

  ddpo train                      [dim]the embedded model learns to draw what its prompts say, in runs/[/dim]

  ddpo train --reward jpeg_compressibility        [dim]... pictures that are small as a JPEG[/dim]

  ddpo train --reward jpeg_incompressibility --epochs 40

  ddpo train --preset aesthetic --dry-run       [dim]what the paper did, and what it costs[/dim]

  ddpo train --reward my_plugin:score --prompts file:prompts.txt

  ddpo train --reward aesthetic --reward "0.2*jpeg_compressibility"

  ddpo train --model ./stable-diffusion-v1-4 --guidance-scale 5

  ddpo train --model ./stable-diffusion-v1-4 --trainable unet --gradient-checkpointing --dry-run

  ddpo train --reward aesthetic --holdout clip_score --on-hack rollback

  ddpo train --keep none          [dim]the reward alone, to its extreme[/dim]

  ddpo train --reward aesthetic --keep "clip_score>=97%"

  ddpo train --config runs/0001-llava_bertscore/config.toml --seed 1

  ddpo train --set fit.num_steps=10 --set weight_decay=0     [dim]any key of config.toml[/dim]

  ddpo train --resume --set fit.micro_batch_size=4     [dim]when memory ran out[/dim]

  ddpo train --tracker tensorboard         [dim]tensorboard --logdir runs[/dim]

  torchrun --nproc-per-node 8 -m ddpo_cli train --preset aesthetic

  ddpo train --resume             [dim]go on with the last run[/dim]

Ctrl-C writes a checkpoint and says how to go on; a second Ctrl-C leaves at once.

The path of the run is printed to stdout at the end, everything else to stderr.
"""


FIRST_TASK = "emoji-alignment"
"""What `ddpo train` alone trains: in minutes one sees what for, with the reward that the paper was written for."""

_THE_RUN = "The run"

PresetOption = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help=f"A task of the paper: {', '.join(list_presets())}. --config, flags and --set override it.",
        rich_help_panel="What to train",
        autocompletion=completion.presets,
    ),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Any key of config.toml, such as fit.num_steps=10; repeat for several. It overrides all else.",
        rich_help_panel=_THE_RUN,
    ),
]


class TrainCommand(TyperCommand):
    """`ddpo train` with the options of the configuration, made when they are asked for: they take pydantic."""

    def get_params(self, ctx: Any) -> list[Any]:
        """Return the options of the configuration and those of the signature."""
        from ddpo_cli.train_options import options

        own = super().get_params(ctx)
        return [*own[:2], *options(), *own[2:]]


def train(
    run: Annotated[
        Path | None,
        typer.Argument(
            metavar="RUN",
            help="With [bold]--resume[/bold]: the run to go on with.",
            show_default=False,
            autocompletion=completion.checkpoints,
        ),
    ] = None,
    *,
    preset: PresetOption = None,
    set: SetOption = None,
    config: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.toml",
            help="Options from a file, such as a run's config.toml; flags override it.",
            rich_help_panel=_THE_RUN,
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="The folder of the run; it must be new or empty.",
            show_default="the next number in runs/",
            rich_help_panel=_THE_RUN,
        ),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Go on with RUN, or with the last run in runs/.", rich_help_panel=_THE_RUN),
    ] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Say only errors and the path of the run.", rich_help_panel=_THE_RUN)
    ] = False,
    json: Annotated[
        bool,
        typer.Option(
            "--json", help="Print every event as a JSON object to stdout, and nothing else.", rich_help_panel=_THE_RUN
        ),
    ] = False,
    pictures: Annotated[
        Pictures,
        typer.Option(
            metavar="HOW",
            help="Samples in the terminal: auto (where it is known to show them), none, kitty, iterm or sixel.",
            rich_help_panel=_THE_RUN,
        ),
    ] = Pictures.auto,
    force: Annotated[
        bool,
        typer.Option("--force", help="With --resume: let other options change the run.", rich_help_panel=_THE_RUN),
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Print the configuration and what it will cost; train nothing.",
            rich_help_panel=_THE_RUN,
        ),
    ] = False,
    **flags: Any,
) -> None:
    """Finetune a diffusion model with a reward (DDPO, or reward-weighted regression)."""
    if run is not None and not resume:
        raise CLIError(f"got the argument {str(run)!r} without --resume; did you mean --output {run}?")
    if resume and (output or config or preset):
        raise CLIError("--resume goes on with a run as it is; leave out --output, --config and --preset")
    if force and not resume:
        raise CLIError("--force changes the options of a resumed run; add --resume, or leave it out")
    exclusive = [name for name, given in (("--quiet", quiet), ("--json", json), ("--dry-run", dry_run)) if given]
    if len(exclusive) > 1:
        raise CLIError(f"got {' and '.join(exclusive)}; give one of them")
    from ddpo_cli.train_options import as_table

    said = as_table(flags, set or ())
    note = _say_nothing if quiet or json else say
    wanted = resumed_config(run, said, force=force) if resume else new_config(said, config, preset, note=note)
    if not dry_run:
        with foreign_output() as data:
            report = _printed_as_json(data) if json else _say_nothing
            kind = None if quiet or json else known_pictures(os.environ) if pictures is Pictures.auto else pictures
            finished = _train(wanted, run if resume else output, resume=resume, pictures=kind, report=report)
        if finished is not None and not json:
            _conclude(finished, wanted, say=note)
            tell(str(finished.run))
    elif process_rank() == 0:
        from ddpo_cli.plan import print_plan

        print_plan(wanted)


def new_config(
    said: Mapping[str, Any], file: Path | None, preset: str | None, *, note: Callable[[str], None] = say
) -> "RunConfig":
    """Return the configuration of a new run: the defaults, a preset, a file and flags, each over those before it.

    Where nothing says what the embedded model should learn, it is the preset `FIRST_TASK`. What a preset or a file says
    in vain is told to `note`.
    """
    from ddpo_core import DDPOError
    from ddpo_core.runs.config import BUILTIN_MODEL, read_toml
    from ddpo_core.runs.defaults import left_out, run_config

    if file is not None and not file.exists() and str(file) in list_presets():
        raise CLIError(f"there is no configuration file {str(file)!r}; did you mean --preset {file}?")
    stored = read_toml(file) if file is not None else None
    chosen = {**(stored or {}), **said}
    if preset is None and "reward" not in chosen and chosen.get("model", BUILTIN_MODEL) == BUILTIN_MODEL:
        preset = FIRST_TASK
    task = read_preset(preset) if preset is not None else None
    try:
        wanted = run_config(said, stored=stored, preset=task)
    except DDPOError as error:
        if stored is None or str(error) == _fault(said, None, task):
            raise CLIError(str(error)) from None
        is_of_the_file = str(error) == _fault({}, stored, task)
        raise CLIError(f"{file}{'' if is_of_the_file else ' and the flags'}: {error}") from None
    for source, table in ((f"--preset {preset}", task), (file, stored)):
        unused = left_out(wanted, table or {})
        if unused and process_rank() == 0:
            options = ", ".join(unused)
            note(f"{source}: what it says of {options} is left out, since the run has no use for it")
    return wanted


def resumed_config(run: Path | None, said: Mapping[str, Any], *, force: bool) -> "RunConfig":
    """Return the configuration with which a run goes on: its own, but for what may change, or is forced to."""
    from ddpo_core.runs.config import differences, read_run_config, validate
    from ddpo_core.runs.folder import find_checkpoint

    folder, _ = find_checkpoint(run)
    stored = read_run_config(folder)
    wanted = validate(stored.model_dump(exclude_none=True), said)
    changed = differences(stored, wanted)
    if changed and not force:
        raise CLIError(
            f"--resume {folder}: the run has other options ({'; '.join(changed)}); "
            "leave them out, add --force to change them, or start a new run"
        )
    return wanted


def _say_nothing(_: object) -> None:
    """Keep it to oneself."""


def _printed_as_json(data: TextIO) -> "Callable[[Event], None]":
    """Return what prints an event as a line of JSON to `data`."""
    from ddpo_core.runs.events import as_record

    return lambda event: tell(to_json(as_record(event)), file=data)


def _fault(said: Mapping[str, Any], stored: Mapping[str, Any] | None, task: Mapping[str, Any] | None) -> str:
    """Return what is wrong with flags or a configuration file by themselves, in words; nothing where they are right."""
    from ddpo_core import DDPOError
    from ddpo_core.runs.defaults import run_config

    try:
        run_config(said, stored=stored, preset=task)
    except DDPOError as error:
        return str(error)
    return ""


def _train(
    config: "RunConfig",
    place: Path | None,
    *,
    resume: bool,
    pictures: Pictures | None,
    report: "Callable[[Event], None]",
) -> "Finished | None":
    """Show the events of a run as they come, with pictures as the terminal takes them, and report them.

    Where `pictures` is None, nothing is shown. Returns the last event, or None on a process that only helps another.
    """
    with uncollected():
        from ddpo_cli.interrupts import handled
        from ddpo_cli.setup import judges
        from ddpo_cli.ui.live import View, shown, silent
        from ddpo_core import processes_from_environment
        from ddpo_core.runs.compiling import keep_compiled, settle_compile
        from ddpo_core.runs.events import Finished
        from ddpo_core.runs.folder import refuse_used
        from ddpo_core.runs.trackers import check_trackers

    check_trackers(config.tracker)
    with processes_from_environment() as processes:
        if place is not None and not resume and processes.is_writer:
            refuse_used(place)
        is_shown = processes.is_writer and pictures is not None
        is_compiled = settle_compile(config)[0].compile != "off"
        if is_compiled:
            keep_compiled()
        waiting = f"Loading {config.model}" + ", and compiling it: a minute or two" * is_compiled
        with uncollected(), loading(waiting) if is_shown else nullcontext():
            from ddpo_core.runs import loop  # takes seconds
            from ddpo_core.runs.parts import load_parts

            scored, parts = judges(config), load_parts(config)
        view = View(f"ddpo train · {' + '.join(config.reward)} · {config.model}", config.epochs)
        screen = silent(view) if pictures is None else shown(view, messages(), pictures=pictures)
        with (
            screen if processes.is_writer else nullcontext(),
            handled(view.print_news if is_shown else say) as interrupts,
        ):
            options: dict[str, Any] = {
                "held_out": scored.held_out,
                "kept": scored.kept,
                "monitors": scored.monitors,
                "parts": parts,
                "progress": view.show_phase,
                "processes": processes,
                "hold": interrupts.held_back,
            }
            if resume:
                events = loop.resume(place, scored.reward_fn, config=config, **options)
            else:
                events = loop.train(config, scored.reward_fn, output=place, **options)
            finished = None
            try:
                for event in events:
                    view.show(event)
                    report(event)
                    finished = event if isinstance(event, Finished) else finished
            except BaseException as error:
                told = _with_whereabouts(error, events)
                if told is error:
                    raise
                raise told from error
    return finished


def _with_whereabouts(error: BaseException, events: "Iterator[Event]") -> BaseException:
    """Return the exception to raise instead of `error`, which says where the last whole epoch is saved."""
    from ddpo_core.runs.rescue import rescue_of

    if rescue_of(error) is None:  # it was raised here, while the run waited
        with suppress(BaseException):
            cast("Generator[Event]", events).throw(error)
    # Ctrl-C while an error is dealt with takes its place.
    rescue = rescue_of(error) or (rescue_of(error.__context__) if error.__context__ else None)
    if rescue is None:
        return error
    go_on = f"ddpo train --resume {rescue.run}"
    what = describe(error).removesuffix(".")
    if rescue.checkpoint is None:
        where = f"the last checkpoint is {rescue.latest}, go on with: {go_on}"
        why = f" ({describe(rescue.failure)})" if rescue.failure and str(rescue.failure) not in what else ""
        return CLIError(
            f"{what}. Epoch {rescue.epoch} is not saved{why}; {where if rescue.latest else 'there is no checkpoint'}"
        )
    saved = f"poch {rescue.epoch} is saved in {rescue.checkpoint}"
    if isinstance(error, KeyboardInterrupt):
        return KeyboardInterrupt(f"e{saved}. Go on with: {go_on}")
    if is_user_error(error):
        return CLIError(f"{what}. E{saved}; once that is mended: {go_on}")
    say(f"E{saved}; go on with: {go_on}")
    return error


def _conclude(finished: "Finished", config: "RunConfig", *, say: Callable[[str], None]) -> None:
    """Say what came of a run, where things are, and how to go on."""
    from ddpo_core.checkpoint import checkpoint_path

    run = finished.run
    say(f"Trained {finished.trained} epochs in {duration(finished.seconds)}.")
    if finished.halted:
        say(f"Ended early, since the reward is being gamed: {finished.halted.reason}")
        say(f"The model is that of epoch {finished.epoch}, the best by what is not optimised.")
    change = moved(finished.before, finished.after)
    say(f"Mean reward on {config.eval_samples} fixed prompts and seeds: {change}")
    if finished.best is not None:
        say(f"Best by what is not optimised: {checkpoint_path(run, finished.best)}")
    if finished.report is not None:
        say(f"Report:              {finished.report}")
    say(f"Before and after:    {finished.pictures}")
    say(f"For diffusers:       {finished.artefact}")
    say(f"Draw samples:        ddpo sample {run}")
    say(f"Base and finetuned:  ddpo eval {run}")
    more = "--on-hack warn" if finished.halted else f"--epochs {2 * config.epochs}"
    say(f"Train on:            ddpo train --resume {run} {more}")
