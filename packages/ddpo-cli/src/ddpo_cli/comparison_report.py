"""What `ddpo eval` found: rows with intervals, a grid per prompt set, eval.json."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ddpo_cli.bootstrap import CONFIDENCE, RESAMPLES, Interval, compare
from ddpo_cli.config import RunConfig
from ddpo_cli.evaluating import SHOWN_PAIRS, captions, mean
from ddpo_cli.files import write_text
from ddpo_cli.grids import before_after, save_png, to_pil
from ddpo_cli.ui.console import Format, emit
from ddpo_cli.ui.live import percent
from ddpo_core import Evaluation

COLUMNS = (
    "prompts", "seen", "reward", "images", "base", "base_low", "base_high", "finetuned", "finetuned_low",
    "finetuned_high", "change", "change_low", "change_high", "improved",
)  # fmt: skip


class Pair(NamedTuple):
    """One prompt set drawn with both models."""

    prompts: str
    base: Evaluation
    finetuned: Evaluation


def comparison_rows(pair: Pair, rewards: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Give one row per reward: means with their intervals, the change, and the share that improved."""
    for name in rewards:
        found = compare(pair.base.info[name], pair.finetuned.info[name])
        row = {"prompts": pair.prompts, "reward": name, "images": len(pair.base.seeds), "improved": found.improved}
        for part in ("base", "finetuned", "change"):
            interval: Interval = getattr(found, part)
            row |= {part: interval.mean, f"{part}_low": interval.low, f"{part}_high": interval.high}
        yield row


def save_comparison(
    folder: Path, pairs: Sequence[Pair], rows: Sequence[Mapping[str, Any]], *, checkpoint: Path, config: RunConfig
) -> None:
    """Write a grid per prompt set, and eval.json with the rows and every score."""
    for pair in pairs:
        save_png(_sheet(pair), folder / f"{_file_name(pair.prompts)}.png")
    record = {
        "checkpoint": checkpoint.name,
        "model": config.model,
        "num_steps": config.fit.num_steps,
        "guidance_scale": config.guidance_scale,
        "confidence": CONFIDENCE,
        "resamples": RESAMPLES,
        "rows": rows,
        "scores": {pair.prompts: _scores(pair) for pair in pairs},
    }
    write_text(folder / "eval.json", json.dumps(record, indent=1, ensure_ascii=False) + "\n")


def print_rows(rows: Sequence[Mapping[str, Any]], format: Format, *, title: str) -> None:
    """Print the rows to stdout; a table has what fits a terminal."""
    if format is not Format.table:
        emit([{key: row[key] for key in COLUMNS} for row in rows], format, columns=COLUMNS)
        return
    shown = [
        {
            **row,
            "prompts": f"{row['prompts']}{'' if row['seen'] else ' (unseen)'}",
            "change": f"{row['change']:+.4g} ({row['change_low']:+.4g} to {row['change_high']:+.4g})",
            "improved": f"{row['improved']:.0%}",
        }
        for row in rows
    ]
    several = len({row["reward"] for row in rows}) > 1
    columns = ("prompts", *(["reward"] if several else []), "base", "finetuned", "change", "improved")
    emit(shown, format, columns=columns, title=title if several else f"{rows[0]['reward']} of {title}")


def _scores(pair: Pair) -> dict[str, Any]:
    return {
        "prompts": pair.base.prompts.prompts,
        "seeds": pair.base.seeds,
        "base": dict(pair.base.info),
        "finetuned": dict(pair.finetuned.info),
    }


def _sheet(pair: Pair) -> Any:
    before, after = mean(pair.base), mean(pair.finetuned)
    return before_after(
        to_pil(pair.base.images[:SHOWN_PAIRS]),
        to_pil(pair.finetuned.images[:SHOWN_PAIRS]),
        captions=(captions(pair.base), captions(pair.finetuned)),
        titles=(f"base: reward {before:.4g}", f"finetuned: reward {after:.4g} ({percent(before, after)})"),
    )


def _file_name(prompts: str) -> str:
    return re.sub(r"[^A-Za-z0-9]+", "_", prompts.removeprefix("file:")).strip("_")
