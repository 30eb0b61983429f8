"""Whether a run's UNet is compiled, where torch keeps what it compiled, and trying it before it is needed."""

import os
import time
from collections.abc import Sequence
from math import ceil
from pathlib import Path
from typing import NamedTuple

import torch

from ddpo_core.diffusion.models import choose_device
from ddpo_core.runs.config import RunConfig, trained_steps
from ddpo_core.sampling import replay_log_probs, sample_trajectories, take_samples
from ddpo_core.types import Policy

PAYS_FROM_CALLS = 20_000
"""A minute or two of compiling, by at least 6 ms that a call of the UNet is faster: an estimate, not measured by us."""

_TRIAL_STEPS = 2
_RATIO_SHARE = 0.1
"""Of the clip range: how far from 1 a ratio of probabilities may begin where the UNet is compiled."""


class Trial(NamedTuple):
    """What became of compiling a UNet."""

    is_kept: bool
    """Whether the run goes on with it compiled."""
    told: str
    """A line that says so, and why."""


def settle_compile(config: RunConfig) -> tuple[RunConfig, tuple[str, ...]]:
    """Decide whether `compile = "auto"` is worth a trial, and on a GPU say why in a line; "on" and "off" stay.

    It stays "auto" where the run is on a GPU, Triton is there, and the UNet is called often enough, and is "off" else:

        calls = epochs * (ceil(samples / sample_batch_size) * num_steps + 3 ceil(trained pairs / micro_batch_size))

    with a forward and backward pass as three. On a CPU it is off: in float32 109 s of compiling
    brought nothing there, and in bfloat16 ratios began too far from 1.

    Example:
        >>> from ddpo_core.runs.defaults import run_config
        >>> settle_compile(run_config({"device": "cpu", "compile": "auto"}))[0].compile
        'off'
    """
    if config.compile != "auto":
        return config, ()
    if choose_device(config.device).type != "cuda":
        return config.model_copy(update={"compile": "off"}), ()
    if not _has_triton():
        wanted, why = "off", "this installation of torch has no Triton, which compiles for GPUs"
    else:
        calls = _calls(config)
        wanted = "auto" if calls >= PAYS_FROM_CALLS else "off"
        why = (
            f"the UNet is called about {calls:,} times, and compiling, a minute or two, is estimated to pay from "
            f"{PAYS_FROM_CALLS:,} on"
        )
    return config.model_copy(update={"compile": wanted}), (f"compile: {wanted}; {why}",)


def keep_compiled() -> Path:
    """Let torch keep what it compiles in a folder of the user's own, for the next run, and return that.

    torch pickles it, and its own place is a folder of everybody's, `/tmp/torchinductor_USER`, which the next start of
    the machine empties. `TORCHINDUCTOR_CACHE_DIR`, where it is set, is the folder.
    """
    folder = compiled_folder()
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder)
    return folder


def compiled_folder() -> Path:
    """Return where torch keeps what it compiles: what a person chose, else a folder of the user's own."""
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir

    chosen = os.environ.get("TORCHINDUCTOR_CACHE_DIR")
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    # torch writes its own default into the variable as soon as parts of it are imported: nobody chose that.
    return Path(chosen) if chosen and chosen != default_cache_dir() else base / "ddpo" / "compiled"


def try_compiled(policy: Policy, prompts: Sequence[str], config: RunConfig) -> Trial:
    """Compile a UNet in the shapes of a run, and see what has come of it.

    Sampling and training are two programs then, which may round differently: a ratio of probabilities need not begin
    at 1. Where `config.compile` is "auto", the UNet is not kept compiled if that failed, if its calls take as long as
    before, or if a ratio begins further from 1 than a tenth of the clip range.

    Raises:
        Exception: What stopped the compiler, where `config.compile` is "on".
    """
    try:
        _pass_through(policy, prompts, config)
        seconds, ratio = _pass_through(policy, prompts, config)
    except Exception as error:  # whatever stops the compiler, training can do without it
        if config.compile == "on":
            raise
        reason = " ".join(str(error).split("\n\n")[0].split())  # then comes advice on debugging
        return Trial(False, f"the UNet is not compiled, which fails here: {reason}")
    with torch.compiler.set_stance("force_eager"):
        share = seconds / _pass_through(policy, prompts, config)[0]
    clip_range = getattr(config.objective, "clip_range", None)
    is_exact = clip_range is None or ratio <= _RATIO_SHARE * clip_range
    is_kept = config.compile == "on" or (share < 1 and is_exact)
    return Trial(
        is_kept,
        f"the UNet is {'compiled' if is_kept else 'not compiled'}: compiled, its calls take {share:.2f} of the time, "
        f"and before training, ratios of probabilities are within {ratio:.0e} of 1",
    )


def _pass_through(policy: Policy, prompts: Sequence[str], config: RunConfig) -> tuple[float, float]:
    """Sample and take gradients in every shape of a run: the seconds, and how far from 1 a ratio was at most."""
    size, began = config.fit.sample_batch_size, time.perf_counter()
    leaves = {name: leaf.detach().requires_grad_() for name, leaf in policy.params.items()}
    texts = [prompts[place % len(prompts)] for place in range(size)]
    sampled = sample_trajectories(policy, policy.params, texts, num_steps=_TRIAL_STEPS, seeds=range(size))
    step, ratio = sampled.stochastic[0], 0.0
    for rows in _trained_sizes(config):
        some = take_samples(sampled, [row % size for row in range(rows)])
        log_probs = replay_log_probs(policy, leaves, some, [step])[:, 0]
        gradient, *_ = torch.autograd.grad(log_probs.sum(), list(leaves.values()))
        gradient.sum().item()  # a GPU's work counts when it is done
        ratio = max(ratio, float(((log_probs.detach() - some.log_probs[:, step]).exp() - 1).abs().max()))
    return time.perf_counter() - began, ratio


def _trained_sizes(config: RunConfig) -> list[int]:
    """The numbers of rows that one process trains on at once: of whole micro-batches, and of what is left over."""
    fit = config.fit
    rows = fit.samples_per_epoch * trained_steps(config) // (fit.updates_per_epoch * fit.passes_per_epoch)
    sizes = (min(rows, fit.micro_batch_size), rows % fit.micro_batch_size)
    return [size for size in dict.fromkeys(sizes) if size]


def _calls(config: RunConfig) -> int:
    fit, pairs = config.fit, config.fit.samples_per_epoch * trained_steps(config)
    sampling = ceil(fit.samples_per_epoch / fit.sample_batch_size) * fit.num_steps
    return config.epochs * (sampling + 3 * ceil(pairs / fit.micro_batch_size))


def _has_triton() -> bool:
    from torch.utils._triton import has_triton

    return has_triton()
