"""The processes of a run of several, told who they are as torchrun would tell them; `test_distributed.py` starts them.

    python process.py JOBS SIZE ERRORS

JOBS is a list of JSON objects: how many epochs, the folder to write to, a run to go on from, the objective, whether
something is kept, the model (a folder; left out: the toy), and in which process and how the reward fails in the second
epoch. SIZE processes do them, each a fork, so that torch is imported once; process 0 says what went wrong in the file
ERRORS/0. Prints how each ended.
"""

import json
import multiprocessing
import os
import signal
import sys
from dataclasses import asdict
from datetime import timedelta
from itertools import islice
from pathlib import Path

from safetensors.torch import save_file

from ddpo_core import (
    Constraints,
    DDPOError,
    FitConfig,
    Level,
    adamw,
    ddpo_is,
    distributed,
    diversity_monitor,
    fit,
    image_monitor,
    init,
    initial_view_measure,
    initial_view_monitor,
    latest_checkpoint,
    load_checkpoint,
    per_prompt,
    processes_from_environment,
    regression,
    reward_measure,
    rwr_weights,
    save_checkpoint,
    toy,
    watch,
    within_prompts,
)

CONFIG = FitConfig(num_steps=4, samples_per_epoch=16, updates_per_epoch=2, sample_batch_size=4)
OBJECTIVES = {
    "policy gradient": ddpo_is(advantages=per_prompt(min_count=4)),
    "regression": regression(lambda prompts, rewards: within_prompts(rwr_weights, rewards, prompts)),
}


# Out of reach, so that the multipliers rise at once.
KEPT_LEVELS = {"prompt_margin": Level(9.0, 1.0), "near": Level(0.0, 0.5)}


def constraints(policy):
    """Keep what the initial policy sees, and a reward."""
    measures = [initial_view_measure(policy, ["left", "right"], batch_size=3), reward_measure({"near": toy.reward})]
    return Constraints(measures, KEPT_LEVELS)


def load(model=None):
    """Give the toy, or the model with guidance and LoRA, and its reward."""
    if model is None:
        return toy.policy(), toy.reward
    from ddpo_core import load_policy  # and with it diffusers, which most processes need not wait for

    policy = load_policy(model, guidance_scale=2.0, device="cpu")
    return policy, lambda images, prompts, metadata: (images.mean((1, 2, 3)), {})


def run(job, processes):
    """Train; the writer saves the last state, every process what it drew in the last epoch."""
    policy, score = load(job.get("model"))
    optimizer, calls = adamw(1e-2), []

    def reward(points, prompts, metadata):
        calls.append(len(points))
        if job.get("fails") == processes.rank and sum(calls) > CONFIG.samples_per_epoch // processes.size:
            if job["how"] == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            raise DDPOError("the reward broke")
        return score(points, prompts, metadata)

    start = job.get("start")
    images = [image_monitor] if job.get("model") else []
    watched = watch(
        fit(
            load_checkpoint(latest_checkpoint(start), policy, optimizer) if start else init(policy, optimizer, seed=0),
            policy=policy,
            optimizer=optimizer,
            reward_fn=reward,
            prompts=["left", "right"],
            objective=OBJECTIVES[job["objective"]],
            config=CONFIG,
            constraints=constraints(policy) if job.get("keeps") else None,
            processes=processes,
        ),
        monitors=[diversity_monitor, *images],
        held_out=initial_view_monitor(policy, num_samples=7, batch_size=2),
        processes=processes,
    )
    *_, (state, info, history, _) = islice(watched, job["epochs"])
    folder = Path(job["folder"])
    folder.mkdir(exist_ok=True)
    drawn = {str(index): point.contiguous().clone() for index, point in zip(info.indices, info.images, strict=True)}
    save_file(drawn, folder / f"process-{processes.rank}.safetensors")
    seen = json.dumps([asdict(observation) for observation in history])
    (folder / f"process-{processes.rank}.json").write_text(seen, encoding="utf-8")
    if processes.is_writer:
        save_checkpoint(folder, state, policy)


def work(rank, jobs, errors):
    """Be process `rank`, and do all jobs."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
    os.dup2(os.open(f"{errors}/{rank}", os.O_WRONLY | os.O_CREAT), sys.stderr.fileno())
    with processes_from_environment() as processes:
        for job in jobs:
            run(job, processes)


def main(jobs, size, errors):
    """Fork the processes and wait for them."""
    os.environ["WORLD_SIZE"] = str(size)
    if any(job.get("how") == "killed" for job in jobs):
        distributed._FAREWELL = timedelta(seconds=1)  # what a killed process never says is waited for
    if any(job.get("model") for job in jobs):
        import ddpo_core.diffusion.models  # noqa: F401  # before the processes part
    forking = multiprocessing.get_context("fork")
    processes = [forking.Process(target=work, args=(rank, jobs, errors)) for rank in range(size)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    print(json.dumps([process.exitcode for process in processes]))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
