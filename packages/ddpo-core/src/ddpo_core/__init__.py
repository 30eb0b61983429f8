"""The trainer: DDPO and RWR as pure functions on PyTorch and diffusers.

The public names are listed once, in the stub beside this file, where type checkers read them too. They are loaded at
first use, so that `import ddpo_core` imports neither torch nor diffusers.
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
