"""`python -m ddpo_cli` is `ddpo` (torchrun starts it this way)."""

from ddpo_cli import main

main()
