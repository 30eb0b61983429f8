"""The `ddpo` command: train, sample, score, and look at rewards."""

from importlib.metadata import version

__version__ = version("ddpo-cli")


def main() -> None:
    """Run `ddpo` with the arguments of the process."""
    from ddpo_cli.app import app
    from ddpo_cli.quiet import quiet_process

    quiet_process()
    app(prog_name="ddpo")
