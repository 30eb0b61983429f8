"""Which files three walks through the packages pass, in order of first entry: `docs/design.md` shows them.

    python scripts/walks.py            prints them
    python scripts/walks.py --write    writes them into docs/design.md

A file is entered when a function in it is called; what is only imported does not count. Run it after a change that
moves code; `tests/test_design.py` compares the page with the code.
"""

import argparse
import contextlib
import io
import re
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

PACKAGES = Path(__file__).parents[1] / "packages"
PAGE = Path(__file__).parents[1] / "docs" / "design.md"


def main() -> None:
    """Trace all walks and print them, or write them into the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write them into docs/design.md")
    walks = {name: show(trace(prepare())) for name, prepare in WALKS.items()}
    if parser.parse_args().write:
        PAGE.write_text(written(PAGE.read_text(encoding="utf-8"), walks), encoding="utf-8")
        return
    for name, files in walks.items():
        print(f"{name}\n{files}\n")


def trace(walk: Callable[[], object]) -> list[str]:
    """List the files of the packages that a walk enters, in order of first entry, as `ddpo_core/fit.py`."""
    entered: dict[str, None] = {}

    def enter(frame: FrameType, event: str, argument: Any) -> None:
        file = frame.f_code.co_filename
        if event == "call" and file.startswith(str(PACKAGES)) and file not in entered and not _is_imported(frame):
            entered[file] = None

    threading.setprofile(enter)
    sys.setprofile(enter)
    try:
        walk()
    finally:
        sys.setprofile(None)
        threading.setprofile(None)  # type: ignore[arg-type]
    found = (re.fullmatch(rf"{re.escape(str(PACKAGES))}/[^/]+/src/(.+)", file) for file in entered)
    return [match[1] for match in found if match]


def one_epoch() -> Callable[[], object]:
    """One epoch of DDPO-IS on the toy policy."""
    from ddpo_core import FitConfig, adamw, ddpo_is, fit, init, toy

    policy, optimizer = toy.policy(), adamw(1e-3)
    epochs = fit(
        init(policy, optimizer, seed=0),
        policy=policy,
        optimizer=optimizer,
        reward_fn=toy.reward,
        prompts=["left", "right"],
        objective=ddpo_is(),
        config=FitConfig(num_steps=4),
    )
    return lambda: next(epochs)


def train_with_a_plugin() -> Callable[[], object]:
    """`ddpo train --reward my_plugin:score` on the embedded model, as short as it can be."""
    # Under the tracer, what these import would take most of a minute.
    import peft  # noqa: F401
    from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline  # noqa: F401

    from ddpo_cli import main as ddpo

    small = ["--epochs", "1", "--num-steps", "2", "--samples-per-epoch", "2", "--updates-per-epoch", "1"]
    small += ["--set", "eval_samples=2", "--set", "grid_samples=2", "--device", "cpu"]

    def walk() -> None:
        with _plugin(), _arguments("train", "--reward", "my_plugin:score", *small):
            ddpo()

    return walk


def one_image() -> Callable[[], object]:
    """One image through `get_reward("jpeg_compressibility")`."""
    import numpy as np

    from ddpo_rewards import get_reward

    return lambda: get_reward("jpeg_compressibility")([np.zeros((16, 16, 3), np.uint8)])


WALKS: dict[str, Callable[[], Callable[[], object]]] = {
    "one epoch": one_epoch,
    "ddpo train --reward my_plugin:score": train_with_a_plugin,
    "one image": one_image,
}


def show(files: list[str]) -> str:
    """Write a walk as a paragraph: the files of one folder after each other have its name once."""
    parts, folder = [], ""
    for file in files:
        parent, _, name = file.rpartition("/")
        parts.append(name if parent == folder else file)
        folder = parent
    return " → ".join(f"`{part}`" for part in parts)


def written(page: str, walks: dict[str, str]) -> str:
    """Put every walk below its marker `<!-- walk: NAME -->` in the page, in the place of the line that is there."""
    for name, files in walks.items():
        marker = f"<!-- walk: {name} -->\n"
        head, found, tail = page.partition(marker)
        if not found:
            raise SystemExit(f"{PAGE} has no line {marker!r}: want one, with a line of files below it")
        page = head + found + files + "\n" + tail.partition("\n")[2]
    return page


@contextlib.contextmanager
def _plugin() -> Iterator[None]:
    """Work in a new folder with a reward in `my_plugin.py`."""
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        Path("my_plugin.py").write_text("def score(images):\n    return images.mean((1, 2, 3))\n")
        yield


@contextlib.contextmanager
def _arguments(*arguments: str) -> Iterator[None]:
    """Be called with these arguments, say nothing, and go on after the command has left."""
    before, sys.argv = sys.argv, ["ddpo", *arguments]
    error = io.StringIO()
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(error):
            yield
    except SystemExit as left:
        if left.code:
            raise SystemExit(f"ddpo {' '.join(arguments)} left with {left.code}:\n{error.getvalue()}") from None
    finally:
        sys.argv = before


def _is_imported(frame: FrameType | None) -> bool:
    """Whether a frame runs because its module, or one that imports it, is being imported; or loads a name lazily."""
    while frame is not None:
        if frame.f_code.co_name == "__getattr__" or frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


if __name__ == "__main__":
    main()
