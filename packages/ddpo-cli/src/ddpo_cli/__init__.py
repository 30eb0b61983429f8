"""The `ddpo` command: train, sample, score, and look at rewards."""

import os
import sys
import warnings
from importlib.metadata import version

__version__ = version("ddpo-cli")


def main() -> None:
    """Run `ddpo` with the arguments of the process."""
    _silence_libraries()
    from ddpo_cli.app import app

    app(prog_name="ddpo")


def _silence_libraries() -> None:
    """Keep third parties out of our output: their warnings say nothing that a user can act on.

    `python -W` and the libraries' own variables still have the last word.
    """
    if not sys.warnoptions:
        warnings.filterwarnings("ignore")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
