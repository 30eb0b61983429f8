"""The `ddpo` command."""


def main() -> None: ...
