"""What a run writes epoch after epoch, and taking it back: metrics.jsonl, samples.jsonl, checkpoints."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ddpo_cli.files import write_text
from ddpo_cli.runs import METRICS, SAMPLE_LOG, checkpoint_epoch, checkpoints
from ddpo_core import rewind_checkpoints


def append_metrics(run: Path, row: Mapping[str, Any]) -> None:
    """Add one epoch to metrics.jsonl."""
    with open(run / METRICS, "a", encoding="utf-8") as file:
        file.write(json.dumps(row, allow_nan=False) + "\n")


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """Return the epochs of metrics.jsonl; a last line torn by a crash is left out."""
    return _read_lines(run / METRICS)


def keep_until(run: Path, epoch: int) -> None:
    """Drop the metrics, samples and checkpoints of the epochs after `epoch`, which a resumed run computes again."""
    for file in (run / METRICS, run / SAMPLE_LOG):
        if file.exists():
            kept = [row for row in _read_lines(file) if row["epoch"] <= epoch]
            write_text(file, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in kept))
    rewind_checkpoints(run, epoch=epoch)


def best_epoch(run: Path, *, saved_only: bool = True) -> int | None:
    """Return the epoch of the highest mean held-out reward, of those that have a checkpoint; None where none has."""
    saved = {checkpoint_epoch(path) for path in checkpoints(run)}
    rows = [row for row in read_metrics(run) if "held_out_mean" in row]
    measured = [row for row in rows if row["epoch"] in saved or not saved_only]
    return max(measured, key=lambda row: float(row["held_out_mean"]))["epoch"] if measured else None


def _read_lines(file: Path) -> list[dict[str, Any]]:
    if not file.is_file():
        return []
    rows = []
    for line in file.read_text(encoding="utf-8").split("\n"):
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows
