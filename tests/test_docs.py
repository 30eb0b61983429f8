"""The pages of `docs/` say what is so: programs run, commands are understood, and what is generated is up to date."""

import inspect
import re
import runpy
import shlex
import tomllib
from pathlib import Path

import pytest
import typer
from PIL import Image
from typer.testing import CliRunner

import ddpo_core
import ddpo_rewards
from ddpo_cli.app import app
from ddpo_core import runs
from ddpo_core.emoji import pipeline_path
from ddpo_core.runs.defaults import run_config
from ddpo_rewards import plugins
from ddpo_rewards.testing import example_images

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
REFERENCE = runpy.run_path(str(ROOT / "scripts" / "reference.py"))
SITE = tomllib.loads((ROOT / "zensical.toml").read_text(encoding="utf-8"))["project"]
# The design shows signatures, and its walks have a test of their own; the commands of `gaming.md` take 80 minutes.
WRITTEN = sorted({path.name for path in DOCS.glob("*.md")} - {"design.md", "gaming.md", "results.md"})
TESTED = ("examples/",)
QUICK = ("ddpo score photos/ --reward jpeg_compressibility", "ddpo rewards list", "ddpo rewards check my_")


def blocks(name: str) -> list[tuple[str, str, str]]:
    """The code of a page: language, title, text."""
    text = (DOCS / name).read_text(encoding="utf-8")
    # What is quoted has its language in braces, so that nobody formats the quotation itself.
    return re.findall(r'^```(?: \{ \.)?(\w*)(?: title="([^"]*)")?(?: \})?\n(.*?)^```', text, re.DOTALL | re.MULTILINE)


def quoted(text: str) -> str | None:
    found = re.fullmatch(r'--8<-- "([^"]+)"\n', text)
    return found and found[1]


COMMANDS = sorted(
    {line for name in WRITTEN for language, _, text in blocks(name) if language == "bash" for line in text.splitlines()}
)


@pytest.mark.parametrize("name", WRITTEN)
def test_every_block_of_code_is_of_a_kind_that_is_tested(name):
    kinds = {language for language, _, text in blocks(name) if quoted(text) is None}
    assert kinds <= {"python", "bash", "toml", "bibtex", "", "text"}
    for _, title, text in blocks(name):
        if (file := quoted(text)) is not None:
            assert file.startswith(TESTED), f"{file} is quoted, and no test runs it"
            assert title == file, "a reader of the source wants to know what is quoted"


@pytest.mark.parametrize("path", sorted(DOCS.glob("*.md")), ids=lambda path: path.name)
def test_every_list_has_an_empty_line_before_it(path):
    text = re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    assert re.findall(r"^(?![-\s]|\d+\.).+\n(?:- |1\. ).*", text, re.MULTILINE) == [], "the site shows no list there"


@pytest.mark.parametrize("path", sorted(DOCS.glob("*.md")), ids=lambda path: path.name)
def test_every_link_leads_somewhere(path):
    links = re.findall(
        r"\]\((?!https?:)([^)#]*)(?:#([^)]+))?\)", re.sub(r"`[^`]*`", "", path.read_text(encoding="utf-8"))
    )
    for place, anchor in links:
        target = path if not place else DOCS / place
        assert target.is_file(), place
        assert not anchor or anchor in anchors(target), f"{place}#{anchor}"


def anchors(path: Path) -> set[str]:
    """The places in a page that a link can name: headings as the site spells them, and names of the API."""
    text = path.read_text(encoding="utf-8")
    for file in re.findall(r'^--8<-- "([^":]+)', text, re.MULTILINE):
        text += (ROOT / file).read_text(encoding="utf-8")
    given = re.findall(r"\{ #([\w-]+) \}$|^::: (\S+)$", text, re.MULTILINE)
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    spelt = (re.sub(r"[^\w\s-]", "", heading).strip().lower() for heading in headings)
    return {name for names in given for name in names if name} | {re.sub(r"[-\s]+", "-", words) for words in spelt}


@pytest.mark.parametrize("name", WRITTEN)
def test_the_programs_of_a_page_run_from_top_to_bottom(name, tmp_path, monkeypatch):
    programs = [(title, text) for language, title, text in blocks(name) if language == "python" and not quoted(text)]
    if any("runs.train(" in text for _, text in programs) and not (pipeline_path() / "model_index.json").is_file():
        pytest.skip("the embedded model is not built")
    photographs(tmp_path / "photos")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    names: dict[str, object] = {}
    for title, text in programs:
        if title:
            Path(title).write_text(text)
        program = compile(text, f"{name}: {text.splitlines()[0]}", "exec")
        if "import ray\n" not in text:  # no dependency, not even of the tests
            exec(program, names)


@pytest.mark.parametrize("line", COMMANDS)
def test_every_command_is_understood(line):
    words = shlex.split(line, comments=True)
    if words[0] == "torchrun":
        words = ["ddpo", *words[words.index("ddpo_cli") + 1 :]]
    if words[:2] == ["pip", "install"]:
        assert words[2] in {"ddpo-cli", "ddpo-rewards", "ddpo-core"}
        return
    if words[0] == "python":
        assert (ROOT / words[1]).is_file()
        return
    assert words[0] == "ddpo"
    group = typer.main.get_command(app)
    context = group.make_context("ddpo", words[1:])
    rest = words[1:]
    while hasattr(group, "resolve_command"):
        name, group, rest = group.resolve_command(context, rest)
        context = group.make_context(name, list(rest), parent=context)


@pytest.mark.parametrize("line", [line for line in COMMANDS if line.startswith(QUICK)])
def test_every_quick_command_does_what_it_says(line, tmp_path, monkeypatch):
    photographs(tmp_path / "photos")
    for name in WRITTEN:
        for _, title, text in blocks(name):
            if title.startswith("my_"):
                (tmp_path / title).write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    done = CliRunner().invoke(app, shlex.split(line)[1:])
    assert done.exit_code == 0, done.output
    for written in re.findall(r"--(?:sheet|output) (\S+)", line):
        assert Path(written).is_file()


@pytest.mark.parametrize("name", WRITTEN)
def test_every_configuration_is_one(name):
    for language, _, text in blocks(name):
        if language == "toml" and quoted(text) is None:
            run_config({}, stored=tomllib.loads(text))


def test_what_is_made_from_the_code_is_up_to_date():
    for name, text in REFERENCE["pages"]().items():
        assert (DOCS / name).read_text(encoding="utf-8") == text, "run: python scripts/reference.py --write"


@pytest.mark.parametrize(("page", "module"), [("core", ddpo_core), ("runs", runs), ("rewards", ddpo_rewards)])
def test_every_public_name_is_on_a_page_once(page, module):
    shown = re.findall(rf"^::: {module.__name__}\.(\w+)$", (DOCS / "api" / f"{page}.md").read_text(), re.MULTILINE)
    assert sorted(shown) == sorted(name for name in module.__all__ if not name.startswith("_"))


def test_every_hook_is_documented_with_its_signature():
    page = (DOCS / "rewards.md").read_text(encoding="utf-8")
    hooks = {name: function for name, function in vars(plugins).items() if hasattr(function, "ddpo_rewards_spec")}
    assert hooks
    for name, function in hooks.items():
        assert f"`{name}({', '.join(inspect.signature(function).parameters)})`" in page


def test_every_page_is_in_the_navigation_once():
    listed = [page for entry in SITE["nav"] for value in entry.values() for page in pages(value)]
    assert sorted(listed) == sorted(path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md"))


def pages(value) -> list[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        return [page for inner in value.values() for page in pages(inner)]
    return [page for inner in value for page in pages(inner)]


def photographs(folder: Path) -> None:
    folder.mkdir()
    for number, pixels in enumerate(example_images()):
        Image.fromarray(pixels).save(folder / f"{number}.png")
