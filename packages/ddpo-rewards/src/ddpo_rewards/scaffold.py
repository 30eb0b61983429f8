"""Write a new reward plugin: an installable package with a working reward and passing tests."""

import keyword
import re
import shutil
import tempfile
from importlib.resources import files
from pathlib import Path
from string import Template

from ddpo_rewards.errors import RewardError

_FILES = {
    "pyproject.toml.tmpl": "pyproject.toml",
    "README.md.tmpl": "README.md",
    "module.py.tmpl": "src/{module}/__init__.py",
    "test_module.py.tmpl": "tests/test_{module}.py",
}


def new_plugin(name: str, folder: str | Path = ".") -> Path:
    """Write the package of a plugin called `name` into `folder/name` and return that path.

    The package holds a working reward (mean brightness) to be changed, its entry point, a README and tests that pass.

    Raises:
        RewardError: a name that is no package name, a target that exists, or a folder that cannot be written.

    Example:
        >>> import tempfile
        >>> path = new_plugin("my-reward", tempfile.mkdtemp())
        >>> sorted(str(file.relative_to(path)) for file in path.rglob("*.py"))
        ['src/my_reward/__init__.py', 'tests/test_my_reward.py']
    """
    module = name.replace("-", "_").lower()
    if not re.fullmatch(r"[A-Za-z](?:[\w-]*[A-Za-z0-9])?", name, re.ASCII) or keyword.iskeyword(module):
        raise RewardError(f"{name!r} is no name for a package; want letters, digits and '-', such as my-reward")
    target = Path(folder) / name
    if target.exists():
        raise RewardError(f"{str(target)!r} exists already; choose another name or folder")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        # Written aside, then renamed: the package is there as a whole or not at all.
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{name}-") as aside:
            _write_files(Path(aside) / name, {"distribution": name, "module": module})
            shutil.move(Path(aside) / name, target)
    except OSError as error:
        raise RewardError(f"{str(target)!r} cannot be written: {error.strerror or error}") from error
    return target


def _write_files(root: Path, words: dict[str, str]) -> None:
    templates = files("ddpo_rewards") / "template"
    for source, name in _FILES.items():
        path = root / name.format(**words)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(Template((templates / source).read_text()).substitute(words))
