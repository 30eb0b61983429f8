"""The project's checks: `uv run nox` runs what CI runs, `uv run nox -l` lists everything."""

import os
import shutil
from pathlib import Path

import nox

nox.needs_version = ">=2026.4"
nox.options.default_venv_backend = "uv|virtualenv"
nox.options.reuse_existing_virtualenvs = True
nox.options.sessions = ["lint", "types", "wheels", "alone", "tests"]

ROOT = Path(__file__).parent
PACKAGES = ["ddpo-core", "ddpo-rewards", "ddpo-cli"]
PROJECT = nox.project.load_toml("pyproject.toml")
TEST_TOOLS = nox.project.dependency_groups(PROJECT, "test")
# Not more than there are cores: every worker first imports and collects all (20 s), and slows the longest file down.
PARALLEL = ["-n", str(min(4, os.cpu_count() or 1)), "--dist", "loadfile"]
# Files that are handed out first, so that no worker ends alone with one of them.
LONGEST = {
    "packages/ddpo-cli": ["test_torchrun", "test_trainable", "test_processes", "test_killed", "test_terminal"],
    ".": ["test_paper", "test_embedded", "test_examples", "test_design"],
}
LINT_TOOLS = nox.project.dependency_groups(PROJECT, "lint")
DOCS_TOOLS = nox.project.dependency_groups(PROJECT, "docs")


@nox.session
def lint(session: nox.Session) -> None:
    """Check style, formatting and that the packages import each other in one direction only."""
    _install(session, *LINT_TOOLS)
    session.install("--no-deps", *_editable(*PACKAGES))  # import-linter only reads them
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("lint-imports")


@nox.session
def types(session: nox.Session) -> None:
    """Check types strictly in all three packages."""
    _install(session, "mypy", *_editable(*PACKAGES))
    shared = ("--num-workers", "auto", "--config-file", "pyproject.toml")
    session.run("mypy", *shared, *(f"packages/{package}/src" for package in PACKAGES))


@nox.session
@nox.parametrize("package", PACKAGES)
def alone(session: nox.Session, package: str) -> None:
    """Test one package with nothing installed but what it declares."""
    _test_package(session, package)


@nox.session
def wheels(session: nox.Session) -> None:
    """Build the three wheels, install them outside the tree, import them and ask for help."""
    built = Path(session.create_tmp()) / "wheels"
    shutil.rmtree(built, ignore_errors=True)
    _install(session, "build", "hatchling")
    for package in PACKAGES:
        session.run("python", "-m", "build", "--wheel", "--no-isolation", "-o", str(built), f"packages/{package}")
    _install(session, *map(str, built.glob("*.whl")))
    session.chdir(session.create_tmp())
    session.run("python", "-c", "import ddpo_core, ddpo_rewards, ddpo_cli")
    session.run("ddpo", "--help", silent=True)
    session.run("ddpo", "rewards", "list")


@nox.session
def tests(session: nox.Session) -> None:
    """Test what crosses the packages: the embedded model, the examples, the README, the design page."""
    _install(session, *TEST_TOOLS, *_editable(*PACKAGES))
    session.run("pytest", *PARALLEL, *(session.posargs or _longest_first(".")), env=_environment())


@nox.session(default=False)
def docs(session: nox.Session) -> None:
    """Build the documentation site into build/site; a link, anchor or name that leads nowhere is an error."""
    _install(session, *DOCS_TOOLS)  # the packages are read, not imported
    session.run("zensical", "build", "--clean", "--strict")


@nox.session(default=False)
def peers(session: nox.Session) -> None:
    """Time ddpo beside TRL's trainer at the same work (`-- --rounds 1`), or each to a reward (`-- --to-reward`)."""
    results = ROOT / "runs" / "peers"
    _install(session, *_editable("ddpo-core"))
    # TRL 0.23.1, the last release with the trainer, wants the libraries of its time: an environment of its own.
    session.run("uv", "venv", "--allow-existing", str(results / "trl"), external=True)
    other = ("--python", str(results / "trl"), "-r", "benchmarks/peers/trl.txt")
    session.run("uv", "pip", "install", "--no-config", *other, external=True)
    to_reward = "--to-reward" in session.posargs
    given = [argument for argument in session.posargs if argument != "--to-reward"]
    script = "to_reward.py" if to_reward else "compare.py"
    session.run("python", f"benchmarks/peers/{script}", str(results), *given)


@nox.session(default=False)
def paper(session: nox.Session) -> None:
    """Repeat the paper's findings on the embedded model into runs/paper: hours, and it goes on where it was stopped."""
    _install(session, *_editable("ddpo-core", "ddpo-rewards[ocr]", "ddpo-cli"))
    jobs = ("--jobs", str(os.cpu_count() or 1), "--figures", "docs/images/paper")
    for script in ("algorithms", "same_seeds", "alignment", "generalisation", "overoptimisation", "typographic_attack"):
        session.run("python", f"examples/paper/{script}.py", "runs/paper", *jobs, *session.posargs, env=_environment())


@nox.session(default=False)
def compiled(session: nox.Session) -> None:
    """Test that a compiled UNet samples and trains the same policy: minutes of compiling, seconds the second time."""
    _install(session, *_package_test_tools("ddpo-core"), *_editable("ddpo-core"))
    session.chdir("packages/ddpo-core")
    kept = {"DDPO_TEST_COMPILED": "1", "TORCHINDUCTOR_CACHE_DIR": str(ROOT / "build" / "compiled")}
    session.run("pytest", "tests/test_compiled.py", env={**_environment(), **kept})


@nox.session(default=False)
def ray(session: nox.Session) -> None:
    """Test scoring on a local Ray, a worker of which is killed: a minute on idle cores, and it wants them idle."""
    # Earlier releases of Ray leave files open, which tests do not forgive.
    _install(session, "ray[data]>=2.60", *_package_test_tools("ddpo-rewards"), *_editable("ddpo-rewards"))
    session.chdir("packages/ddpo-rewards")
    session.run("pytest", "tests/test_on_ray.py", env={**_environment(), "DDPO_TEST_RAY": "1"})


@nox.session(default=False, python=["3.12", "3.13"])
@nox.parametrize("package", PACKAGES)
def python(session: nox.Session, package: str) -> None:
    """Test one package on a newer Python, which has to be on the PATH."""
    _test_package(session, package)


@nox.session(default=False)
@nox.parametrize("package", PACKAGES)
def lowest(session: nox.Session, package: str) -> None:
    """Test one package against the oldest releases that its ranges admit."""
    # Without --no-config, uv would hold everything to the versions in the workspace's constraint-dependencies.
    lowest = ("--no-config", "--resolution", "lowest-direct")
    session.install(*lowest, *_package_test_tools(package), *_editable(*_needed(package)))
    session.chdir(f"packages/{package}")
    session.run("pytest", *PARALLEL, env=_environment())


def _test_package(session: nox.Session, package: str) -> None:
    _install(session, *_package_test_tools(package), *_editable(*_needed(package)))
    session.chdir(f"packages/{package}")
    session.run("pytest", *PARALLEL, *_longest_first(f"packages/{package}"), env=_environment())


def _longest_first(folder: str) -> list[str]:
    """Say in which order the files of a folder are tested; of one without long files, xdist's own is as good."""
    names = LONGEST.get(folder)
    if names is None:
        return []
    order = {name: place for place, name in enumerate(names)}
    files = (ROOT / folder / "tests").glob("test_*.py")
    files = sorted(files, key=lambda file: (order.get(file.stem, len(order)), file.name))
    sources = [ROOT / folder / "src"] if (ROOT / folder / "src").is_dir() else []  # for their examples
    return ["--no-loadscope-reorder", *map(str, [*files, *sources])]


def _needed(package: str) -> list[str]:
    return PACKAGES if package == "ddpo-cli" else [package]


def _install(session: nox.Session, *what: str) -> None:
    """Install with the versions that the workspace was tested with."""
    constraints = Path(session.create_tmp()) / "constraints.txt"
    constraints.write_text("\n".join(PROJECT["tool"]["uv"]["constraint-dependencies"]) + "\n")
    session.install("-c", str(constraints), *what)


def _editable(*packages: str) -> list[str]:
    return [part for package in packages for part in ("-e", f"packages/{package}")]


def _package_test_tools(package: str) -> list[str]:
    project = nox.project.load_toml(f"packages/{package}/pyproject.toml")
    return ["pytest-xdist>=3.8", *nox.project.dependency_groups(project, "test")]


def _environment() -> dict[str, str | None]:
    """Keep hubs out of the tests, and the parallel test processes out of each other's way.

    What Python compiles is kept, whatever the machine says: every test that starts a process would otherwise wait for
    torch and diffusers to be compiled again, which is more than half of what importing them takes.
    """
    return {
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "OMP_NUM_THREADS": "1",
        "PYTHONDONTWRITEBYTECODE": None,
    }
