"""Import `module:attribute`, and say in one line why that fails."""

import importlib
import sys
from pathlib import Path
from typing import Any

from ddpo_rewards.types import RewardError


def import_attribute(ref: str) -> Any:
    """Import what `module:attr` (or `module:object.attr`) names. This runs the module's code.

    Raises:
        RewardError: the module cannot be found or raises while it is imported, or has no such attribute.

    Example:
        >>> import_attribute("math:sqrt")(9.0)
        3.0
    """
    module_name, _, path = ref.partition(":")
    if not module_name or not path:
        raise RewardError(f"reward {ref!r} is not of the form module:attribute")
    value = _import_module(module_name, ref)
    for attribute in path.split("."):
        if not hasattr(value, attribute):
            public = [name for name in dir(value) if not name.startswith("_")]
            raise RewardError(f"reward {ref!r}: {module_name!r} has no {attribute!r}; it has {', '.join(public[:12])}")
        value = getattr(value, attribute)
    return value


def _import_module(name: str, ref: str) -> Any:
    importlib.invalidate_caches()  # a module written a moment ago is found too
    try:
        return importlib.import_module(name)
    # SystemExit too: a script without a __main__ guard must not end the caller's process in silence.
    except (Exception, SystemExit) as error:
        is_itself = isinstance(error, ModuleNotFoundError) and error.name == name
        why = _not_found(name) if is_itself else f"importing {name!r} raised {type(error).__name__}: {error}"
        raise RewardError(f"reward {ref!r}: {why}") from error


def _not_found(name: str) -> str:
    lies_here = Path(f"{name.split('.')[0]}.py").exists() and str(Path.cwd()) not in sys.path
    hint = "it lies in the current folder: set PYTHONPATH=." if lies_here else "install it or set PYTHONPATH"
    return f"there is no module {name!r} on the import path; {hint}"
