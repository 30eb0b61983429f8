"""The commands of `ddpo`: one file each, with its options and its help; what is heavy is imported when one runs."""

from typing import Annotated

import typer

from ddpo_cli import (
    __version__,
    config,
    doctor,
    evaluate,
    export,
    presets,
    probe,
    prompts,
    report,
    rewards,
    runs,
    sample,
    score,
    train,
)
from ddpo_cli.errors import Debug, readable

HELP = """
Finetune a diffusion model so that its samples maximise a reward, score images with those rewards, and find out whether
a reward can be gamed.

A reward is a name from [bold]ddpo rewards list[/bold], or any Python function of images: [bold]my_plugin:score[/bold].
"""

EPILOG = """
[bold]A first run[/bold], no download and no GPU needed:

  ddpo train                 [dim]the embedded model learns to draw what its prompts say[/dim]

  ddpo sample runs/0001-llava_bertscore

  ddpo eval runs/0001-llava_bertscore

  ddpo report runs/0001-llava_bertscore    [dim]one page with all of it[/dim]

  ddpo score photos/ --reward jpeg_compressibility --sheet best.png

  ddpo probe jpeg_compressibility    [dim]can this reward be gamed?[/dim]

Exit codes: 0 done, 2 bad usage or input, 3 a probe found the reward susceptible,
4 inconclusive, 130 interrupted (a checkpoint is written).
"""

app = typer.Typer(
    name="ddpo",
    help=HELP,
    epilog=EPILOG,
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["--help", "-h"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"ddpo {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    *,
    debug: Debug = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    """Take the options before the command; `readable` looks up `--debug`."""


app.command("train", cls=train.TrainCommand, epilog=train.EPILOG)(readable(train.train))
app.command("sample", epilog=sample.EPILOG)(readable(sample.sample))
app.command("eval", epilog=evaluate.EPILOG)(readable(evaluate.evaluate))
app.command("report", epilog=report.EPILOG)(readable(report.report))
app.command("export", epilog=export.EPILOG)(readable(export.export))
app.command("score", epilog=score.EPILOG)(readable(score.score))
app.command("probe", epilog=probe.EPILOG)(readable(probe.probe))
app.command("doctor", epilog=doctor.EPILOG)(readable(doctor.doctor))
app.add_typer(rewards.app, name="rewards")
app.add_typer(runs.app, name="runs")
app.add_typer(config.app, name="config")
app.command("presets", epilog=presets.EPILOG)(readable(presets.presets))
app.add_typer(prompts.app, name="prompts")
