"""The `ddpo` command: train, sample, score, and look at rewards."""

from importlib.metadata import version

__version__ = version("ddpo-cli")


def main() -> None:
    """Run `ddpo` with the arguments of the process."""
    from ddpo_cli.app import app

    app(prog_name="ddpo")
