"""Small pieces of HTML with which values show themselves in a notebook; what others wrote is escaped."""

from base64 import b64encode
from collections.abc import Mapping
from html import escape

_LEFT = 'style="text-align:left"'


def html_facts(title: str, facts: Mapping[str, object]) -> str:
    """Return a title and a table of two columns; facts that are None are left out.

    Example:
        >>> html_facts("a < b", {"reward": -1.5, "best": None}).startswith("<b>a &lt; b</b><table><tr>")
        True
    """
    cells = ((escape(name), escape(str(value))) for name, value in facts.items() if value is not None)
    rows = "".join(f"<tr><th {_LEFT}>{name}</th><td {_LEFT}>{value}</td></tr>" for name, value in cells)
    return f"<b>{escape(title)}</b><table>{rows}</table>"


def html_picture(png: bytes, text: str, *, width: int | None = None) -> str:
    """Return a picture that the page holds itself, with its caption, which is its alternative text as well.

    Args:
        png: The bytes of the file.
        text: What it shows.
        width: In pixels of the page; a small picture that is enlarged keeps its own. Left out: as it is.

    Example:
        >>> html_picture(b"", "a 'fox'").endswith("a &#x27;fox&#x27;</figcaption></figure>")
        True
    """
    source, said = f"data:image/png;base64,{b64encode(png).decode()}", escape(text)
    limit = "max-width:100%" if width is None else f"width:{width}px;image-rendering:pixelated"
    caption = "" if width is None else f"max-width:{width}px;"
    return (
        f'<figure style="margin:4px;display:inline-block;vertical-align:top">'
        f'<img src="{source}" alt="{said}" style="{limit}">'
        f'<figcaption style="{caption}font-size:smaller">{said}</figcaption></figure>'
    )
