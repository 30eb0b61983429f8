"""samples.jsonl: what every sample of every epoch was asked for, scored, and said by its reward."""

import json
from collections.abc import Mapping, Sequence
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np

from ddpo_cli.runs import SAMPLE_LOG
from ddpo_core import EpochInfo, Processes


def sample_rows(info: EpochInfo) -> list[dict[str, Any]]:
    """One row per sample of this process; `sample` is its place among those of the epoch."""
    # By their shortest decimals, as float32 prints: -2.196 and not -2.196000099182129.
    scores, advantages = (
        [float(str(value)) for value in np.asarray(values, np.float32)] for values in (info.scores, info.advantages)
    )
    return [
        {
            "epoch": info.epoch,
            "sample": index,
            "prompt": info.prompts[place],
            "reward": scores[place],
            "advantage": advantages[place],
            **({"metadata": plain(info.metadata[place])} if info.metadata[place] else {}),
            **({"info": {key: plain(values[place]) for key, values in info.info.items()}} if info.info else {}),
        }
        for place, index in enumerate(info.indices)
    ]


def gather_rows(rows: Sequence[Mapping[str, Any]], processes: Processes) -> list[Mapping[str, Any]]:
    """Return the rows of all processes; each of them has to call this."""
    if processes.size == 1:
        return list(rows)
    import torch

    text = bytearray(json.dumps(rows).encode())
    sizes = processes.gather(torch.tensor([len(text)])).flatten().tolist()
    padded = torch.zeros(max(sizes), dtype=torch.uint8)
    padded[: len(text)] = torch.frombuffer(text, dtype=torch.uint8)
    parts = zip(processes.gather(padded).numpy(), sizes, strict=True)
    return [row for part, size in parts for row in json.loads(part[:size].tobytes())]


def append_samples(run: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Add the samples of one epoch to samples.jsonl, in order."""
    ordered = sorted(rows, key=lambda row: int(row["sample"]))
    with open(run / SAMPLE_LOG, "a", encoding="utf-8") as file:
        file.write("".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in ordered))


def plain(value: Any) -> Any:
    """Return what JSON can hold of `value`: a reward may say anything.

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
