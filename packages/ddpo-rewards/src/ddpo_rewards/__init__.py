"""Score images with the rewards of DDPO and with anybody's plugins.

The public names are listed once, in the stub beside this file, where type checkers read them too. They are loaded at
first use, so that `import ddpo_rewards` imports neither torch nor numpy.
"""

import re
from importlib import import_module
from importlib.resources import files

__version__ = "0.1.0"

_STUB = files(__name__).joinpath("__init__.pyi").read_text(encoding="utf-8")
_MODULE_OF = {name: module for module, name in re.findall(r"^from (\S+) import (\w+) as \w+$", _STUB, re.MULTILINE)}
__all__ = list(_MODULE_OF)


def __getattr__(name: str) -> object:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_MODULE_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*globals(), *__all__]
