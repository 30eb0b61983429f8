"""What a run will cost, estimated from a trial on this machine."""

import os
import sys
import time
from collections.abc import Mapping
from itertools import islice
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ddpo_core.config import FitConfig, parse_config
from ddpo_core.runs.config import INITIAL_VIEW, NEGATIVE_KL, ObjectiveOptions, RunConfig, parse_keep, trained_steps
from ddpo_core.runs.parts import Parts, make_objective
from ddpo_core.training import fit, init
from ddpo_core.types import Policy, RewardFunction

TRIAL_STEPS = 2

_TELLING_SECONDS, _FAIR_SHARE = 1.0, 0.75


class Costs(NamedTuple):
    """Seconds and bytes; every figure of seconds is for one sample."""

    step: float
    """One denoising step of sampling."""
    decode: float
    reward: float
    pair: float
    """One trained step: forward, backward, and its share of the update."""
    images: int
    """How many samples the trial drew."""
    peak_bytes: int | None
    """The most memory that the trial held; None where the system does not say."""
    sample_bytes: int
    """What one sample of an epoch keeps where the trial's peak was measured."""
    on_gpu: bool


class Estimate(NamedTuple):
    """What a run is expected to take."""

    sampling: float
    reward: float
    training: float
    run: float
    """Seconds of all epochs and evaluations; the three before are those of one epoch."""
    memory: int | None


def measure(config: RunConfig, parts: Parts, reward_fn: RewardFunction) -> Costs:
    """Run two short epochs of one batch each, time the second, and throw their result away.

    Raises:
        DDPOError: What would stop the run stops the trial.
    """
    wanted = config.fit
    count = min(wanted.samples_per_epoch, max(wanted.sample_batch_size, wanted.micro_batch_size))
    same = {key: getattr(wanted, key) for key in ("sample_batch_size", "micro_batch_size")}
    short = {"num_steps": TRIAL_STEPS, "reward_workers": 0}
    trial = parse_config(FitConfig, {**same, **short, "samples_per_epoch": count, "updates_per_epoch": 1})
    epochs = fit(
        init(parts.policy, parts.optimizer, seed=config.seed),
        policy=parts.policy,
        optimizer=parts.optimizer,
        reward_fn=reward_fn,
        prompts=parts.prompts,
        objective=make_objective(_one_step(config.objective)),
        config=trial,
    )
    (_, _), (_, info) = islice(epochs, 2)  # the first loads weights and warms caches
    decode, sample_bytes, on_gpu = _decoding(config, parts.policy, info.images[:1])
    seconds = {name: value / count for name, value in info.metrics.items() if name.startswith("seconds_")}
    return Costs(
        step=max(0.0, seconds["seconds_sampling"] - decode) / TRIAL_STEPS,
        decode=decode,
        reward=seconds["seconds_reward"],
        pair=seconds["seconds_training"],
        images=count,
        peak_bytes=_peak_bytes(on_gpu),
        sample_bytes=sample_bytes,
        on_gpu=on_gpu,
    )


def estimate(costs: Costs, config: RunConfig) -> Estimate:
    """Extend the costs of a trial to the whole run, on one process.

    epoch    = samples (steps x step + decode + reward + trained steps x pair)
    run      = epochs x (epoch + viewed samples x 2 steps + compared samples x steps)
               + evaluated images (steps x step + decode + reward)
    memory   = peak of the trial + samples x bytes of a sample
    """
    fit_config = config.fit
    sampling = fit_config.num_steps * costs.step + costs.decode
    samples = fit_config.samples_per_epoch
    epoch = (samples * sampling, samples * costs.reward, samples * trained_steps(config) * costs.pair)
    grids = (config.epochs - 1) // config.sample_every
    on_the_way = config.epochs * config.eval_samples
    if not config.held_out:
        on_the_way = grids * min(config.grid_samples, config.eval_samples)
    kept = {parse_keep(text).reference for text in config.keep}
    viewed = min(config.judged_samples, samples) + (samples if kept & set(INITIAL_VIEW) else 0)
    compared = samples if NEGATIVE_KL in kept else 0
    evidence = (2 * viewed + fit_config.num_steps * compared) * costs.step
    evaluated = (2 * config.eval_samples + on_the_way) * (sampling + costs.reward)
    run = config.epochs * (sum(epoch) + evidence) + evaluated
    memory = None if costs.peak_bytes is None else costs.peak_bytes + samples * costs.sample_bytes
    return Estimate(*epoch, run, memory)


def contention(metrics: Mapping[str, float], threads: int) -> str | None:
    """Say so where the threads of a run on a CPU did not get their cores, and so wait for each other at every call.

        share = CPU seconds of training / (threads * seconds of training)

    Threads that wait for the others spin, unless `OMP_WAIT_POLICY` says otherwise: on idle cores the share is nearly 1.
    Beside two busy programs on two cores it was 0.5, and training took seventeen times as long.

    Args:
        metrics: Of an epoch.
        threads: That PyTorch computes with.

    Example:
        >>> contention({"seconds_training": 10.0, "seconds_training_cpu": 19.8}, threads=2)
        >>> contention({"seconds_training": 10.0, "seconds_training_cpu": 10.0}, threads=2)[:58]
        'the 2 threads of this run had 50 % of the time of 2 cores,'
    """
    seconds = metrics["seconds_training"]
    share = metrics["seconds_training_cpu"] / (threads * seconds)
    if threads == 1 or seconds < _TELLING_SECONDS or share > _FAIR_SHARE or "OMP_WAIT_POLICY" in os.environ:
        return None
    return (
        f"the {threads} threads of this run had {100 * share:.0f} % of the time of {threads} cores, since other "
        "programs are busy, and wait for each other: with OMP_NUM_THREADS=1 or OMP_WAIT_POLICY=passive in the "
        "environment such a run is many times as fast"
    )


def _one_step(options: ObjectiveOptions) -> ObjectiveOptions:
    """Return options that train one step of a sample, whatever its trial's prompts are."""
    plain: dict[str, Any] = {"timestep_fraction": 1 / TRIAL_STEPS, "timestep_window": 0, "timestep_window_epochs": 1}
    plain |= {"baseline": "epoch", "buffer_size": None, "min_count": None}
    return options.model_copy(update={key: value for key, value in plain.items() if key in type(options).model_fields})


def _decoding(config: RunConfig, policy: Policy, image: Tensor) -> tuple[float, int, bool]:
    """Seconds of decoding one sample, bytes that one sample keeps, and whether on a GPU."""
    count = config.fit.sample_batch_size
    latents = policy.noise(range(count), 1)[:, 0]
    start = time.perf_counter()
    with torch.inference_mode():
        policy.decode(latents).cpu()
    seconds = (time.perf_counter() - start) / count
    trajectory = (config.fit.num_steps + 1) * latents[0].numel() * latents.element_size()
    on_gpu = latents.device.type == "cuda"
    return seconds, trajectory if on_gpu else trajectory + 4 * prod(image.shape), on_gpu


def _peak_bytes(on_gpu: bool) -> int | None:
    if on_gpu:
        return torch.cuda.max_memory_allocated()
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak  # macOS counts bytes, the others kilobytes
