"""Docstrings as the documentation site shows them: griffe loads this, and it is told so in `zensical.toml`.

griffe knows the section "Examples", where ours say "Example"; and what stands under "Source" is a paragraph.
"""

import re
from typing import Any

import griffe


class Sections(griffe.Extension):
    """Give the sections of our docstrings the names and the form that griffe knows."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrite the docstring of an object that was loaded."""
        if obj.docstring is not None:
            obj.docstring.value = rewritten(obj.docstring.value)


def rewritten(text: str) -> str:
    """Return a docstring with the section "Examples", and its source as a paragraph."""
    named = re.sub(r"(?m)^Example:$", "Examples:", text)
    return re.sub(
        r"(?m)^(Source): (.*(?:\n +\S.*)*)", lambda found: f"**{found[1]}:** {' '.join(found[2].split())}", named
    )
