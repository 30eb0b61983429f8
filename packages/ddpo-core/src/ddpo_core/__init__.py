"""The trainer: DDPO and RWR as pure functions on PyTorch and diffusers.

The public names are listed once, in the stub beside this file, where type checkers read them too. They are loaded at
first use, so that `import ddpo_core` imports neither torch nor diffusers.
"""

from ddpo_core.lazy import lazy_names

__all__, __getattr__, __dir__ = lazy_names(__name__)
