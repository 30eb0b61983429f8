"""samples.jsonl: what every sample of every epoch was asked for, scored, and said by its reward."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ddpo_core import EpochInfo, Processes
from ddpo_core.runs.log import plain


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
