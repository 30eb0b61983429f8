"""Third parties may not chatter into our output: their warnings say nothing that a user can act on."""

import os
import sys
import warnings


def quiet_process() -> None:
    """Silence libraries that are yet to be imported; `python -W` and their own variables still have the last word."""
    if not sys.warnoptions:
        warnings.filterwarnings("ignore")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
