"""What a run writes epoch after epoch, and taking it back: metrics.jsonl, samples.jsonl, checkpoints."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ddpo_cli.files import write_text
from ddpo_cli.runs import METRICS, SAMPLE_LOG, checkpoint_epoch, checkpoints
from ddpo_core import rewind_checkpoints
from ddpo_core.changes import noise
from ddpo_core.monitors import EVIDENCE, FAMILIARITY


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
    """Return the best epoch by what is not optimised, of those that have a checkpoint; None where none has.

    That is the sum of the held-out rewards, or without any the evidence for the prompt. Of epochs that the noise
    between epochs cannot tell from the best, it is the last: the most trained.

    Source: Breiman et al. 1984, section 3.4.3 (the one-standard-error rule).
    """
    saved = {checkpoint_epoch(path) for path in checkpoints(run)}
    rows = [row for row in read_metrics(run) if row.get("held_out")]
    # Sums of other rewards than the latest cannot be compared with it.
    alike = [row for row in rows if row["held_out"].keys() == rows[-1]["held_out"].keys()]
    totals = {row["epoch"]: _held_out_total(row["held_out"]) for row in alike}
    candidates = [epoch for epoch in totals if epoch in saved or not saved_only]
    if not candidates:
        return None
    bar = max(totals[epoch] for epoch in candidates) - (noise(list(totals.values())) if len(totals) > 1 else 0.0)
    return max(epoch for epoch in candidates if totals[epoch] >= bar)


def _held_out_total(measured: Mapping[str, float]) -> float:
    rewards = [value for name, value in measured.items() if name not in (EVIDENCE, FAMILIARITY)]
    return sum(rewards) if rewards else measured[EVIDENCE]


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
