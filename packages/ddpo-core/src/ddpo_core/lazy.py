"""Public names that a package lists once, in the stub beside its `__init__.py`, and loads at first use."""

import re
from collections.abc import Callable
from importlib import import_module
from importlib.resources import files


def lazy_names(package: str) -> tuple[list[str], Callable[[str], object], Callable[[], list[str]]]:
    """Return a package's `__all__`, `__getattr__` and `__dir__`, read from its stub.

    Type checkers read the same list, and importing the package imports nothing of what it names.

    Args:
        package: Its `__name__`. Its `__init__.pyi` has a line `from MODULE import NAME as NAME` for every name.

    Example:
        >>> names, load, _ = lazy_names("ddpo_core")
        >>> "fit" in names, load("FitConfig").__module__
        (True, 'ddpo_core.config')
    """
    stub = files(package).joinpath("__init__.pyi").read_text(encoding="utf-8")
    homes = {name: module for module, name in re.findall(r"^from (\S+) import (\w+) as \w+$", stub, re.MULTILINE)}

    def load(name: str) -> object:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(homes[name]), name)

    return sorted(homes), load, lambda: sorted(homes)
