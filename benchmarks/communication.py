"""What the processes of a run do and tell each other: calls of the network, queries, collectives and their bytes.

    python benchmarks/communication.py [--processes 1 2] [--samples 16]

Nothing is timed, so that a busy machine does not matter: two epochs of the embedded model with two updates each and the
monitors of every run, in real processes that meet through gloo, each counting what it does in the second epoch. Prints
one row per process. Bytes are what a process gives to a collective: of an average all of it, of a gathering its part.
"""

import argparse
import json
import os
import socket
import subprocess
import sys
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from ddpo_core import (
    FitConfig,
    adamw,
    ddpo_is,
    diversity_monitor,
    fit,
    image_monitor,
    init,
    load_policy,
    processes_from_environment,
    prompt_set,
    watch,
)


def main() -> None:
    """Run every number of processes, and print the table."""
    options = _parse()
    if options.folder is not None:
        _work(options)
        return
    columns = ("rows_sampled", "rows_trained", "queries", "averages", "average_bytes", "gathers", "gather_bytes")
    print(f"| processes | process | {' | '.join(column.replace('_', ' ') for column in columns)} |")
    print("|---" * (2 + len(columns)) + "|")
    for size in options.processes:
        with TemporaryDirectory() as folder:
            for rank, counted in enumerate(_run(size, Path(folder), options.samples)):
                print(f"| {size} | {rank} | {' | '.join(f'{counted.get(column, 0):,}' for column in columns)} |")


def _run(size: int, folder: Path, samples: int) -> list[dict[str, int]]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, "--folder", str(folder), "--samples", str(samples)]
    started = [
        subprocess.Popen(command, env={**shared, "RANK": str(rank), "WORLD_SIZE": str(size)}) for rank in range(size)
    ]
    if any([process.wait() for process in started]):
        raise SystemExit("a process failed")
    return [json.loads((folder / f"{rank}.json").read_text(encoding="utf-8")) for rank in range(size)]


def _work(options: argparse.Namespace) -> None:
    """Train as one of the processes, and write down what was counted in the second epoch."""
    torch.set_num_threads(1)
    total: Counter[str] = Counter()
    policy = load_policy("builtin:emoji", lora_rank=8, guidance_scale=1.0, device="cpu")

    def transition(params, latents, step, conditioning):
        total["rows_trained" if torch.is_grad_enabled() else "rows_sampled"] += len(latents)
        return policy.transition(params, latents, step, conditioning)

    def reward(images, prompts, metadata):
        total["queries"] += len(images)
        return images.mean((1, 2, 3)), {}

    with processes_from_environment() as processes:

        def average(tensors):
            total["averages"] += 1
            total["average_bytes"] += sum(tensor.numel() * tensor.element_size() for tensor in tensors)
            return processes.average(tensors)

        def gather(tensor):
            total["gathers"] += 1
            total["gather_bytes"] += tensor.numel() * tensor.element_size()
            return processes.gather(tensor)

        counting, optimizer = policy._replace(transition=transition), adamw(1e-3)
        counted = processes._replace(average=average, gather=gather)
        epochs = watch(
            fit(
                init(counting, optimizer, seed=0),
                policy=counting,
                optimizer=optimizer,
                reward_fn=reward,
                prompts=prompt_set("simple_animals"),
                objective=ddpo_is(timestep_window=2, timestep_window_epochs=0),
                config=FitConfig(num_steps=5, samples_per_epoch=options.samples, updates_per_epoch=2),
                processes=counted,
            ),
            monitors=[image_monitor, diversity_monitor],
            processes=counted,
        )
        next(epochs)
        before = total.copy()
        next(epochs)
    (options.folder / f"{processes.rank}.json").write_text(json.dumps(total - before), encoding="utf-8")


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--samples", type=int, default=16, help="of an epoch")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
