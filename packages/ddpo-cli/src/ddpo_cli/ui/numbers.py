"""Numbers as a person reads them: durations, sizes, changes, trends."""

from collections.abc import Sequence
from itertools import pairwise

BARS = "▁▂▃▄▅▆▇█"
TREND_WIDTH = 40


def duration(seconds: float) -> str:
    """Seconds in words of a clock.

    >>> duration(59.6), duration(3725)
    ('1:00', '1:02:05')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def size(count: float) -> str:
    """Bytes with a unit that a person reads.

    >>> size(512), size(2_300_000), size(7.25e9)
    ('512 B', '2.3 MB', '7.2 GB')
    """
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.2g} GB" if count < 10 else f"{count:.0f} GB"


def percent(before: float, after: float) -> str:
    """Return the change from `before` to `after`, in percent of the size of `before`.

    >>> percent(-2.0, -1.0), percent(2.0, 1.0), percent(0.0, 1.0)
    ('+50.0%', '-50.0%', 'from 0')
    """
    return f"{100 * (after - before) / abs(before):+.1f}%" if before else "from 0"


def moved(before: float, after: float) -> str:
    """Return two numbers and the change in percent of the size of the first.

    >>> moved(-2.0, -1.0)
    '-2 -> -1 (+50.0%)'
    """
    return f"{before:.4g} -> {after:.4g} ({percent(before, after)})"


def sparkline(values: Sequence[float], *, width: int = TREND_WIDTH) -> str:
    """Return the trend of `values` in block characters, at most `width` of them (means of equal stretches).

    >>> sparkline([0.0, 1.0, 2.0])
    '▁▅█'
    """
    if not values:
        return ""
    if len(values) > width:
        edges = [round(index * len(values) / width) for index in range(width + 1)]
        values = [sum(values[a:b]) / (b - a) for a, b in pairwise(edges)]
    low, span = min(values), max(values) - min(values)
    return "".join(BARS[int((value - low) / span * (len(BARS) - 1) + 0.5)] if span else BARS[3] for value in values)
