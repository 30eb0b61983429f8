"""Write a new reward plugin: an installable package with a working reward and passing tests."""

from pathlib import Path


def new_plugin(name: str, folder: str | Path = ".") -> Path:
    """Write the package of a plugin called `name` into `folder/name` and return that path."""
    raise NotImplementedError
