"""What a run writes epoch after epoch, and taking it back: metrics.jsonl, samples.jsonl, checkpoints."""

import json
from collections.abc import Mapping
from itertools import count
from pathlib import Path
from statistics import fmean
from typing import Any

from ddpo_cli.files import write_text
from ddpo_cli.runs import METRICS, SAMPLE_LOG, checkpoint_epoch, checkpoints
from ddpo_core import rewind_checkpoints
from ddpo_core.gaming.monitors import EVIDENCE, FAMILIARITY
from ddpo_core.gaming.rule import noise

PARKED = "superseded"


def append_metrics(run: Path, row: Mapping[str, Any]) -> None:
    """Add one epoch to metrics.jsonl."""
    with open(run / METRICS, "a", encoding="utf-8") as file:
        file.write(json.dumps(row, allow_nan=False) + "\n")


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """Return the epochs of metrics.jsonl; a last line torn by a crash is left out."""
    return _read_lines(run / METRICS)


def keep_until(run: Path, epoch: int) -> None:
    """Drop the metrics and samples of the epochs after `epoch`, which a resumed run computes again.

    Their checkpoints are moved to a folder of their own under `superseded/`.
    """
    for file in (run / METRICS, run / SAMPLE_LOG):
        if file.exists():
            kept = [row for row in _read_lines(file) if row["epoch"] <= epoch]
            write_text(file, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in kept))
    rewind_checkpoints(run, epoch=epoch, into=next_parking(run))


def next_parking(run: Path) -> Path:
    """Return a folder of `run` that is not there yet, for what it goes back behind."""
    taken = {path.name for path in (run / PARKED).glob("*")}
    return run / PARKED / next(name for number in count(1) if (name := f"{number:04d}") not in taken)


def best_epoch(run: Path) -> int | None:
    """Return the best epoch by what is not optimised, of those that have a checkpoint; None where none has.

    That is the sum of the held-out rewards, or without any the evidence for the prompt. Of epochs that one standard
    deviation of the noise cannot tell from the best, it is the last: the most trained.

    Source: Breiman et al. 1984, section 3.4.3 (the one-standard-error rule).
    """
    totals, tolerance = _totals(run)
    saved = {checkpoint_epoch(path) for path in checkpoints(run)}
    return _last_good({epoch: total for epoch, total in totals.items() if epoch in saved}, tolerance)


def is_improving(run: Path) -> bool:
    """Whether the latest epoch that was judged is the best so far: then its checkpoint is worth keeping."""
    totals, tolerance = _totals(run)
    return bool(totals) and _last_good(totals, tolerance) == max(totals)


def _totals(run: Path) -> tuple[dict[int, float], float]:
    """What speaks for the model after each epoch, and its noise."""
    rows = [row for row in read_metrics(run) if row.get("held_out")]
    # Sums of other rewards than the latest cannot be compared with it.
    alike = [row for row in rows if row["held_out"].keys() == rows[-1]["held_out"].keys()]
    if not alike:
        return {}, 0.0
    if alike[0]["held_out"].keys() <= {EVIDENCE, FAMILIARITY}:
        # The samples of an epoch were drawn by the model of the epoch before.
        totals = {row["epoch"] - 1: row["held_out"][EVIDENCE] for row in alike}
        return totals, fmean(row["errors"][EVIDENCE] for row in alike)
    totals = {row["epoch"]: _sum_of_rewards(row["held_out"]) for row in alike}
    return totals, noise(list(totals.values())) if len(totals) > 1 else 0.0


def _sum_of_rewards(held_out: Mapping[str, float]) -> float:
    return sum(value for name, value in held_out.items() if name not in (EVIDENCE, FAMILIARITY))


def _last_good(totals: Mapping[int, float], tolerance: float) -> int | None:
    return max((epoch for epoch in totals if totals[epoch] >= max(totals.values()) - tolerance), default=None)


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
