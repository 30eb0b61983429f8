"""Third parties may not chatter into our output: their warnings and bars say nothing that a user can act on."""

import os
import warnings

LOUD = "DDPO_LOUD"


def quiet_process() -> None:
    """Silence libraries that are yet to be imported; `DDPO_LOUD=1` leaves them as they are."""
    if os.environ.get(LOUD):
        return
    warnings.filterwarnings("ignore")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
