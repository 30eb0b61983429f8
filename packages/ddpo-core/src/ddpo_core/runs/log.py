"""What a run writes epoch after epoch: metrics.jsonl, one object per epoch, and samples.jsonl, one per sample."""

import json
from collections.abc import Mapping, Sequence
from math import isfinite
from pathlib import Path
from typing import Any, NamedTuple

from ddpo_core.gaming.rule import Observation, Verdict

METRICS = "metrics.jsonl"
SAMPLE_LOG = "samples.jsonl"


class Lines(NamedTuple):
    """The rows of a log until an epoch, the rest of it as it stood there, and what could not be read."""

    kept: list[dict[str, Any]]
    rest: list[str]
    complaints: list[str]


def append_metrics(run: Path, row: Mapping[str, Any]) -> None:
    """Add one epoch to metrics.jsonl."""
    with open(run / METRICS, "a", encoding="utf-8") as file:
        file.write(json.dumps(row, allow_nan=False) + "\n")


def append_samples(run: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Add the samples of one epoch to samples.jsonl, in order."""
    ordered = sorted(rows, key=lambda row: int(row["sample"]))
    with open(run / SAMPLE_LOG, "a", encoding="utf-8") as file:
        file.write("".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in ordered))


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """Return the epochs of metrics.jsonl; lines that are no row (torn by a crash, edited) are left out."""
    return read_lines(run / METRICS).kept


def as_row(observation: Observation, verdict: Verdict) -> dict[str, Any]:
    """Return what metrics.jsonl says of an epoch that was watched.

    Example:
        >>> as_row(Observation(1, -2.0, {"judge": 0.5}, {"saturation": 0.25}), Verdict("ok", "as before"))
        {'held_out': {'judge': 0.5}, 'signals': {'saturation': 0.25}, 'verdict': 'ok', 'reason': 'as before'}
    """
    tables = {"held_out": observation.held_out, "signals": observation.signals, "errors": observation.errors}
    seen = {name: dict(table) for name, table in tables.items() if table}
    return {**seen, "verdict": verdict.status, "reason": verdict.reason}


def as_observation(row: Mapping[str, Any]) -> Observation:
    """Return what was seen in an epoch: all that the rule needs to go on as if the run had never stopped."""
    tables = (row.get(name, {}) for name in ("held_out", "signals", "errors"))
    return Observation(row["epoch"], row["reward_mean"], *tables)


def read_lines(file: Path, *, until: int | None = None) -> Lines:
    """Read a log: the rows of the epochs until `until` (left out: all), and apart from them everything else.

    One bad line costs itself and no other. A file that does not exist has no lines.
    """
    lines = Lines([], [], [])
    text = file.read_text(encoding="utf-8", errors="replace") if file.is_file() else ""
    # Not splitlines(): a prompt may hold U+2028, which JSON does not escape.
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        row = _row(line)
        if row is None:
            lines.complaints.append(f"{file.name}: line {number} is no row of a log and is left out")
        if row is not None and (until is None or row["epoch"] <= until):
            lines.kept.append(row)
        else:
            lines.rest.append(line)
    return lines


def decimals(values: Any) -> list[float]:
    """Return an array of float32 numbers by their shortest decimals, which are read back as the same float32.

    Example:
        >>> import numpy as np
        >>> array = np.array([-2.196], np.float32)
        >>> decimals(array), array.tolist()
        ([-2.196], [-2.196000099182129])
    """
    import numpy as np  # not above: the configuration imports this file, and `ddpo train --help` that

    return [float(str(value)) for value in np.asarray(values, np.float32)]


def plain(value: Any) -> Any:
    """Return what JSON can hold of `value`: a reward may say anything.

    Example:
        >>> plain({"caption": ("a", 1), "logit": float("nan"), "where": Path("x")})
        {'caption': ['a', 1], 'logit': 'nan', 'where': 'x'}
    """
    match value:
        case None | bool() | int() | str():
            return value
        case float():
            return float(value) if isfinite(value) else str(value)
        case Mapping():
            return {str(key): plain(part) for key, part in value.items()}
        case list() | tuple() | set() | frozenset():
            return [plain(part) for part in value]
        case _ if hasattr(value, "tolist"):
            return plain(value.tolist())
        case _:
            return str(value)


def _row(line: str) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except json.JSONDecodeError:
        return None
    is_row = isinstance(row, dict) and type(row.get("epoch")) is int
    return row if is_row else None
