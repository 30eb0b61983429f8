"""`ddpo doctor`: what is installed, what there is to compute with, what is cached, and what is broken or missing."""

import os
import platform
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from enum import StrEnum
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import typer

from ddpo_cli.errors import BAD_INPUT
from ddpo_cli.ui.console import Format, FormatOption, emit, foreign_output, say
from ddpo_cli.ui.numbers import size

if TYPE_CHECKING:
    from packaging.requirements import Requirement

OURS = ("ddpo-core", "ddpo-rewards", "ddpo-cli")
LITTLE_ROOM = 1_000_000_000
"""Bytes of a disk below which a run with its checkpoints may not fit."""

LISTED = 5
"""Repositories of the hub's cache that are named, the largest."""

EPILOG = """
[bold]Examples[/bold]

  ddpo doctor

  ddpo doctor --format json > doctor.json      [dim]to send along with a question[/dim]

  ddpo doctor --format csv

The exit code is 0 where all is usable, 2 where something is broken. What is missing is
needed by some things only; each comes with the command that mends it.
"""


class State(StrEnum):
    """How something is."""

    ok = "ok"
    missing = "missing"
    broken = "broken"


class Finding(NamedTuple):
    """One thing that was looked at."""

    area: str
    what: str
    state: State
    seen: str
    command: str = ""
    """What mends it; of a cache, what empties it."""


def doctor(format: FormatOption = Format.table) -> None:
    """Say what is installed, what there is to compute with, what is cached, and what is broken or missing."""
    with foreign_output():
        found = [finding for area, look in LOOKS.items() for finding in _looked_at(area, look)]
    if format is Format.table:
        rows = [
            {
                "what": one.what,
                "state": one.state.value,
                "seen": f"{one.seen}\n{one.command}" if one.command and one.state is not State.ok else one.seen,
            }
            for one in found
        ]
        emit(rows, format, columns=("what", "state", "seen"))
    else:
        emit([{**one._asdict(), "state": one.state.value} for one in found], format, columns=Finding._fields)
    broken = [one.what for one in found if one.state is State.broken]
    if broken:
        say(f"Error: broken: {', '.join(broken)}")
        raise typer.Exit(BAD_INPUT)
    say("All is usable.")


def _looked_at(area: str, look: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    """Look at an area; where that itself fails, this is what was found."""
    try:
        yield from look()
    except Exception as error:  # whatever is broken here is what this command is for
        lines = str(error).splitlines()
        seen = f"{type(error).__name__}: {lines[0] if lines else ''}"
        yield Finding(area, area, State.broken, seen, f"pip install --force-reinstall {' '.join(OURS)}")


def _versions() -> Iterator[Finding]:
    seen = f"{platform.python_version()}, {platform.system()} {platform.machine()}, {sys.executable}"
    yield Finding("versions", "python", State.ok, seen)
    numbers = {name: version(name) for name in OURS}
    is_one = len(set(numbers.values())) == 1
    seen = ", ".join(f"{name} {number}" for name, number in numbers.items())
    command = "" if is_one else f"pip install --upgrade {' '.join(OURS)}"
    yield Finding("versions", "ddpo", State.ok if is_one else State.broken, seen, command)
    for requirement in _requirements(""):
        installed = _installed(requirement)
        if installed is None:
            seen, state = "not installed", State.broken
        elif not requirement.specifier.contains(installed, prereleases=True):
            seen, state = f"{installed}; want {requirement.specifier}", State.broken
        else:
            seen, state = installed, State.ok
        command = "" if state is State.ok else f"pip install '{requirement.name}{requirement.specifier}'"
        yield Finding("versions", requirement.name, state, seen, command)


def _devices() -> Iterator[Finding]:
    import torch

    from ddpo_core.diffusion.models import choose_dtype

    computed = str(choose_dtype(None, torch.device("cpu"))).removeprefix("torch.")
    seen = f"{os.cpu_count()} cores, torch uses {torch.get_num_threads()} threads, networks compute in {computed}"
    yield Finding("devices", "cpu", State.ok, seen)
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        free, whole = torch.cuda.mem_get_info(index)
        seen = f"{torch.cuda.get_device_name(index)}, {size(free)} of {size(whole)} free"
        yield _tried(torch, f"cuda:{index}", seen)
    if torch.backends.mps.is_available():
        yield _tried(torch, "mps", "Apple GPU")
    has_driver = Path("/proc/driver/nvidia/version").exists() or shutil.which("nvidia-smi") is not None
    if has_driver and not torch.cuda.is_available():
        seen = f"there is an NVIDIA driver, and torch {torch.__version__} cannot use it"
        yield Finding("devices", "cuda", State.broken, seen, "pip install --upgrade --force-reinstall torch")
    compiler = next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None)
    if compiler is None:
        seen = "no C++ compiler: --compile on cannot be used"
        yield Finding("devices", "compiler", State.missing, seen, "apt install g++   # or clang")
    else:
        yield Finding("devices", "compiler", State.ok, compiler)


def _tried(torch: Any, device: str, seen: str) -> Finding:
    """Multiply two small matrices on a device: one that is listed may still not work."""
    try:
        (torch.ones(4, 4, device=device) @ torch.ones(4, 4, device=device)).sum().item()
    except RuntimeError as error:
        said = f"{seen}: {str(error).splitlines()[0]}"
        return Finding("devices", device, State.broken, said, "pip install --upgrade --force-reinstall torch")
    return Finding("devices", device, State.ok, seen)


def _room() -> Iterator[Finding]:
    memory = _free_memory()
    if memory is not None:
        yield Finding("room", "memory", State.ok, f"{size(memory)} free")
    here = Path.cwd()
    free = shutil.disk_usage(here).free
    if free < LITTLE_ROOM:
        yield Finding("room", "disk", State.broken, f"{size(free)} free in {here}", "ddpo runs list   # ddpo runs rm")
    else:
        yield Finding("room", "disk", State.ok, f"{size(free)} free in {here}")
    if not os.access(here, os.W_OK):
        seen = f"{here} may not be written to"
        yield Finding("room", "working directory", State.missing, seen, "ddpo train --output DIR")


def _free_memory() -> int | None:
    """Bytes that programs can still have; None where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration, ValueError):
        return None


def _caches() -> Iterator[Finding]:
    from huggingface_hub import constants, scan_cache_dir

    from ddpo_core.runs.compiling import compiled_folder
    from ddpo_rewards.errors import RewardError
    from ddpo_rewards.weights import cache_folder, read_records, records_path

    hub = Path(constants.HF_HUB_CACHE)
    if hub.is_dir():
        scanned = scan_cache_dir(hub)
        largest = sorted(scanned.repos, key=lambda repository: -repository.size_on_disk)[:LISTED]
        named = "".join(f", {one.repo_id} ({size(one.size_on_disk)})" for one in largest)
        seen = f"{hub}: {size(scanned.size_on_disk)}, {len(scanned.repos)} repositories{named}"
        yield Finding("caches", "cache of Hugging Face", State.ok, seen, f"rm -r {hub}")
        for warning in scanned.warnings:  # of one repository, which need not be one of ours
            torn = re.search(r"(?:models|datasets|spaces)--[^/\s)]+", str(warning))
            command = f"rm -r {hub / torn[0]}" if torn else "hf cache list"
            yield Finding("caches", torn[0] if torn else "cache of Hugging Face", State.missing, str(warning), command)
        broken_off = list(hub.rglob("*.incomplete"))
        if broken_off:
            seen = f"{len(broken_off)} downloads that were broken off, {size(sum(map(_bytes, broken_off)))}"
            command = f"find {hub} -name '*.incomplete' -delete"
            yield Finding("caches", "downloads", State.missing, seen, command)
    else:
        yield Finding("caches", "cache of Hugging Face", State.ok, f"{hub}: empty")
    own = cache_folder()
    yield _cache("cache of ddpo-rewards", own)
    try:
        read_records()
    except RewardError as error:
        yield Finding("caches", "records of weights", State.broken, str(error), f"rm {records_path()}")
    yield _cache("cache of torch.compile", compiled_folder())


def _cache(what: str, folder: Path) -> Finding:
    files = [path for path in folder.rglob("*") if path.is_file()] if folder.is_dir() else []
    if not files:
        return Finding("caches", what, State.ok, f"{folder}: empty")
    seen = f"{folder}: {size(sum(map(_bytes, files)))}, {len(files)} files"
    return Finding("caches", what, State.ok, seen, f"rm -r {folder}")


def _bytes(path: Path) -> int:
    return path.lstat().st_size


def _rewards() -> Iterator[Finding]:
    from ddpo_rewards import load_registry
    from ddpo_rewards.weights import find_cached, is_offline

    registry = load_registry()
    for failure in registry.failures:
        name = failure.plugin.partition(":")[0]
        command = f"pip install --upgrade {name}   # or: export DDPO_REWARDS_DISABLE={name}"
        yield Finding("rewards", f"plugin {failure.plugin}", State.broken, failure.error, command)
    for name, spec in registry.list_rewards().items():
        lacking = [weight for weight in spec.weights if find_cached(weight) is None]
        if not lacking:
            yield Finding("rewards", f"reward {name}", State.ok, f"of {spec.distribution}")
            continue
        sizes = [weight.size for weight in lacking if weight.size]
        told = f" ({size(sum(sizes))})" if len(sizes) == len(lacking) else ""
        seen = f"weights are downloaded at first use{told}"
        command = f"ddpo rewards check {name}"
        if is_offline():
            seen, command = "weights are not here, and HF_HUB_OFFLINE is set", f"HF_HUB_OFFLINE=0 {command}"
        yield Finding("rewards", f"reward {name}", State.missing, seen, command)


def _extras() -> Iterator[Finding]:
    for name in OURS:
        for extra in distribution(name).metadata.get_all("Provides-Extra") or []:
            lacking = [one.name for one in _requirements(extra, of=(name,)) if _installed(one) is None]
            state = State.missing if lacking else State.ok
            seen = f"{', '.join(lacking)} not installed" if lacking else "installed"
            yield Finding(
                "extras", f"{name}[{extra}]", state, seen, f"pip install '{name}[{extra}]'" if lacking else ""
            )


def _requirements(extra: str, *, of: tuple[str, ...] = OURS) -> "Iterator[Requirement]":
    """What our packages require, or what one of their extras adds; nothing of our own, each once."""
    from packaging.requirements import Requirement

    named: dict[str, Requirement] = {}
    for text in (text for name in of for text in distribution(name).requires or []):
        requirement = Requirement(text)
        is_of_extra = requirement.marker is not None and "extra" in str(requirement.marker)
        holds = requirement.marker is None or requirement.marker.evaluate({"extra": extra})
        if holds and is_of_extra == bool(extra) and requirement.name not in OURS:
            named.setdefault(requirement.name, requirement)
    yield from (named[name] for name in sorted(named))


def _installed(requirement: "Requirement") -> str | None:
    try:
        return version(requirement.name)
    except PackageNotFoundError:
        return None


LOOKS: dict[str, Callable[[], Iterator[Finding]]] = {
    "versions": _versions,
    "devices": _devices,
    "room": _room,
    "caches": _caches,
    "rewards": _rewards,
    "extras": _extras,
}
