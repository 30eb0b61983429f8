"""The pages of `docs/` that are made from the code: every command, preset, prompt set and reward, every public name.

    python scripts/reference.py            says which pages are not up to date
    python scripts/reference.py --write    writes them

Run it after a change of a command, an option, a preset, a prompt set, a reward or a public name; `tests/test_docs.py`
compares. The pages of the API name what the site then shows the docstrings of.
"""

import argparse
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich.text import Text
from typer.main import get_command

from ddpo_cli.app import app
from ddpo_cli.presets import list_presets
from ddpo_core.prompts import describe_prompt_sets
from ddpo_core.runs.config import read_toml
from ddpo_rewards import load_registry

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PRESETS = ROOT / "packages" / "ddpo-cli" / "src" / "ddpo_cli" / "presets"
EVERYWHERE = ("--help", "--debug")

HEAD = """# Reference

Made from the code by `python scripts/reference.py --write`, and compared with it by a test. In a shell:
`ddpo COMMAND --help`.
"""


class Area(NamedTuple):
    """A part of a page of the API: the public names of some modules, and further names that stand in none."""

    heading: str
    modules: Sequence[str]
    further: Sequence[str] = ()


class Package(NamedTuple):
    """A page of the API."""

    stub: str
    intro: str
    areas: Sequence[Area]


PACKAGES = {
    "core": Package(
        "ddpo-core/src/ddpo_core",
        "The trainer as pure functions: a state goes in, a new state and what happened come out.\nWhole runs with a "
        "folder are in [`ddpo_core.runs`](runs.md).",
        (
            Area("Train", ("training", "config")),
            Area("Objectives", ("objectives", "losses")),
            Area("What rewards are compared with", ("advantages",)),
            Area("Policies", ("diffusion.models", "diffusion.network", "diffusion.export"), ("testing.check_policy",)),
            Area("Sample and replay", ("sampling", "rewards", "random")),
            Area("Prompts", ("prompts",)),
            Area("What must not fall", ("constraints",)),
            Area("Whether the reward is being gamed", ("gaming.rule", "gaming.monitors", "gaming.measures")),
            Area("Optimize", ("optim",)),
            Area("Evaluate", ("evaluation",)),
            Area("Save and go on", ("checkpoint",)),
            Area("Many processes", ("distributed",)),
            Area("Types", ("types",)),
            Area("A toy", (), ("toy.policy", "toy.reward")),
            Area("Errors", ("errors",)),
        ),
    ),
    "runs": Package(
        "ddpo-core/src/ddpo_core/runs",
        "A run with its folder: what `ddpo train` does, from Python. `train` and `resume` are generators of events;\n"
        "`open_run` reads a run as a value, without torch.",
        (
            Area("A whole run", ("loop", "events", "rescue")),
            Area("Configuration", ("config", "parts")),
            Area("Runs as values", ("run", "folder", "log", "model")),
            Area("Compare", ("compare",)),
            Area("Pictures, the report and exports", ("pictures", "view", "report", "export", "hub")),
            Area("What it will cost", ("costs",)),
        ),
    ),
    "rewards": Package(
        "ddpo-rewards/src/ddpo_rewards",
        "Rewards as plugins, folders of images, and probes.",
        (
            Area("Get a reward and call it", ("registry", "reward", "combining")),
            Area(
                "Many images",
                ("stream", "images"),
                ("folders.plan", "folders.score", "folders.score_on_ray", "folders.write_sheet"),
            ),
            Area("References", ("references",)),
            Area(
                "Plugins",
                ("specs", "plugins", "scaffold"),
                ("plugins.register_rewards", "plugins.register_probes", "plugins.resolve_reward"),
            ),
            Area(
                "Conformance",
                (),
                ("testing.check_reward", "testing.assert_conforms", "testing.verify_reference_scores"),
            ),
            Area("Probes", (), ("probes.probe", "probes.builtin_set", "probes.write_report")),
            Area(
                "Writing in pictures",
                (),
                (
                    "text_guard.prompt_overlap", "text_guard.asks_for_text", "text_guard.masked_rescore",
                    "models.ocr.read_text", "models.ocr.text_area", "models.ocr.blur_text",
                ),
            ),
            Area("Errors", ("errors",)),
        ),
    ),
}  # fmt: skip


def main() -> None:
    """Write the pages, or say which are not up to date."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write them")
    is_written = parser.parse_args().write
    for name, text in pages().items():
        if is_written:
            (DOCS / name).write_text(text, encoding="utf-8")
        elif (DOCS / name).read_text(encoding="utf-8") != text:
            print(f"docs/{name} is not up to date")


def pages() -> dict[str, str]:
    """Return every page that is made, by its place in `docs/`."""
    return {"reference.md": reference(), **{f"api/{name}.md": api(package) for name, package in PACKAGES.items()}}


def api(package: Package) -> str:
    """Return the page of a package: what its stub makes public, by subject."""
    name = package.stub.partition("/src/")[2].replace("/", ".")
    stub = (ROOT / "packages" / package.stub / "__init__.pyi").read_text(encoding="utf-8")
    public = re.findall(rf"^from {re.escape(name)}\.([\w.]+) import (\w+) as \2$", stub, re.MULTILINE)
    placed = {module for area in package.areas for module in area.modules}
    rest = Area("More", tuple(dict.fromkeys(module for module, _ in public if module not in placed)))
    lines = [f"# {name}", package.intro]
    for area in (*package.areas, rest):
        names = [found for module in area.modules for place, found in public if place == module]
        if names or area.further:
            lines += [f"## {area.heading}", *(f"::: {name}.{found}" for found in (*names, *area.further))]
    return "\n\n".join(lines) + "\n"


def reference() -> str:
    """Return the page of commands and names."""
    registry = load_registry(disabled=["*"])  # what is installed beside them is no part of the project
    presets = {name: read_toml(PRESETS / f"{name}.toml") for name in list_presets()}
    return "\n".join(
        [
            HEAD,
            "## Commands\n",
            "`--help` and `--debug` (show the traceback of an error) go with every command.\n",
            *_commands(get_command(app), ["ddpo"]),
            "## Presets\n",
            "`ddpo train --preset NAME`; `ddpo config show --preset NAME` prints all of it.\n",
            *_table(
                ("preset", "task", "`reward`", "`prompts`"),
                (
                    (f"`{name}`", what, f"`{presets[name]['reward'][0]}`", f"`{presets[name]['prompts']}`")
                    for name, what in list_presets().items()
                ),
            ),
            "## Prompt sets\n",
            "`--prompts NAME`, or `file:PATH` of a `.txt`, `.csv` or `.jsonl`.\n",
            *_table(
                ("prompt set", "prompts", "what"),
                (
                    (f"`{name}`", str(known.size), _plain(known.summary))
                    for name, known in describe_prompt_sets().items()
                ),
            ),
            "## Rewards\n",
            "`--reward NAME`; `ddpo rewards show NAME` adds licence, source and weights.\n",
            *_table(
                ("reward", "what", "unit", "range", "needs", "extra"),
                (
                    (
                        f"`{name}`",
                        _plain(spec.summary),
                        spec.unit,
                        "" if spec.range is None else f"{spec.range[0]:g} to {spec.range[1]:g}",
                        ", ".join(["images", *sorted(spec.needs)]),
                        ", ".join(f"`{extra}`" for extra in spec.extras),
                    )
                    for name, spec in registry.list_rewards().items()
                ),
            ),
            "## Probes\n",
            "`ddpo probe REF --suite NAME`.\n",
            *_table(
                ("suite", "what it asks"),
                ((f"`{spec.name}`", _plain(spec.summary)) for spec in registry.list_probes().values()),
            ),
        ]
    )


def _commands(command: Any, words: Sequence[str]) -> Iterator[str]:
    """Yield a command and those below it, a heading and a table each."""
    for name, child in getattr(command, "commands", {}).items():
        yield from _commands(child, [*words, name])
    if hasattr(command, "commands"):
        return
    context = command.make_context(words[-1], [], resilient_parsing=True)
    parameters = command.get_params(context)
    arguments = [_name(one, context) for one in parameters if one.param_type_name == "argument"]
    usage = " ".join([*words, "[OPTIONS]", *arguments])
    summary = Text.from_markup((command.help or "").strip().split("\n\n")[0]).plain
    yield f"### {' '.join(words)}\n"
    yield f"{_plain(summary)}\n"
    yield f"```text\n{usage}\n```\n"
    shown = [parameter for parameter in parameters if not set(parameter.opts) & set(EVERYWHERE)]
    yield from _table(
        ("option", "what it does"), ((_spelling(one, context), _described(one, context)) for one in shown)
    )


def _name(argument: Any, context: Any) -> str:
    name = argument.make_metavar(context).strip("[]{}")
    return name if argument.required else f"[{name}]"


def _spelling(parameter: Any, context: Any) -> str:
    if parameter.param_type_name == "argument":
        return " or ".join(f"`{name}`" for name in _name(parameter, context).strip("[]").split("|"))
    names = ", ".join(f"`{name}`" for name in [*parameter.opts, *parameter.secondary_opts])
    return names if parameter.is_flag else f"{names} `{parameter.make_metavar(context)}`"


def _described(parameter: Any, context: Any) -> str:
    """The help of an option with its default, as `--help` shows both."""
    text = Text.from_markup(getattr(parameter, "help", None) or "").plain
    default = parameter.show_default
    if isinstance(default, str):
        text += f" [default: {default}]"
    elif default and not (parameter.default in (None, ()) or parameter.default is False or callable(parameter.default)):
        text += f" [default: {getattr(parameter.default, 'value', parameter.default)}]"
    return _plain(text)


def _plain(text: str) -> str:
    """Keep Markdown from reading signs in a text of the code."""
    return re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", " ".join(text.split()))


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)]
    return ["\n".join(lines) + "\n"]


if __name__ == "__main__":
    main()
