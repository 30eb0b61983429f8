"""The runs of a benchmark in processes of their own, several side by side, each with its log."""

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path


def run_side_by_side(
    script: str, results: Path, names: Sequence[str], *given: str, jobs: int, threads: int = 1
) -> list[str]:
    """Call `script RESULTS --only NAME` for every name, and return the names of those that failed.

    A line for each that is through says how long the others take. What a run prints is added to RESULTS/NAME.log.

    Args:
        script: The file of the benchmark.
        results: Its folder.
        names: Of the runs.
        given: Its other options.
        jobs: How many run at once.
        threads: Of each.
    """
    results.mkdir(parents=True, exist_ok=True)

    def run(name: str) -> int:
        command = [sys.executable, script, str(results), "--only", name, *given]
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        with open(results / f"{name}.log", "a", encoding="utf-8") as log:
            return subprocess.run(command, stdout=log, stderr=log, env=environment, check=False).returncode

    start, failed = time.perf_counter(), []
    with ThreadPoolExecutor(jobs) as pool:
        waiting = {pool.submit(run, name): name for name in names}
        try:
            for done, future in enumerate(as_completed(waiting), 1):
                failed += [waiting[future]] if future.result() else []
                seconds = time.perf_counter() - start
                left = seconds / done * (len(names) - done) / 60
                told = f"{done}/{len(names)} {waiting[future]}: {seconds:.0f} s, {left:.0f} min left"
                print(told, file=sys.stderr, flush=True)
        except KeyboardInterrupt:  # the runs got it too, and save themselves
            pool.shutdown(cancel_futures=True)
            raise SystemExit(130) from None
    if failed:
        print(f"failed: {', '.join(failed)}; see their .log in {results}", file=sys.stderr)
    return failed
