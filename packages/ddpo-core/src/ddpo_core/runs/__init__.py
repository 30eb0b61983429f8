"""The SDK of a run: its folder, logs, checkpoints, evaluation, pictures and trackers, without any command line.

    from ddpo_core import runs

    config = runs.run_config({"reward": "my reward", "epochs": 8})
    for event in runs.train(config, reward_fn):
        if isinstance(event, runs.Epoch):
            print(event.info.epoch, event.info.metrics["reward_mean"])

The public names are listed once, in the stub beside this file, and loaded at first use, as those of `ddpo_core`.
"""

import re
from importlib import import_module
from importlib.resources import files

_STUB = files(__name__).joinpath("__init__.pyi").read_text(encoding="utf-8")
_HOMES = {name: module for module, name in re.findall(r"^from (\S+) import (\w+) as \w+$", _STUB, re.MULTILINE)}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(_HOMES)
