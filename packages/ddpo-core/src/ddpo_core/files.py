"""Folders that are complete or absent: written beside their place, flushed to the disk, renamed."""

import os
import shutil
from pathlib import Path


def put_in_place(aside: Path, target: Path) -> None:
    """Rename a complete folder to its place, where another may be."""
    # A folder cannot be renamed onto another: the old one steps aside first, and the name is free for an instant.
    old = target.with_name(f".{target.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    aside.rename(target)
    flush(target.parent)
    shutil.rmtree(old, ignore_errors=True)


def flush(path: Path) -> None:
    """Wait until a file, or the entries of a folder, are on the disk and not only in its cache."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def reason(error: BaseException) -> str:
    """Say in a few words what went wrong with a file."""
    return getattr(error, "strerror", None) or str(error).splitlines()[0]
