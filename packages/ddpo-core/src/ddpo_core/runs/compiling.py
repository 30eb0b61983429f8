"""Whether a run's UNet is compiled, where torch keeps what it compiled, and compiling it before it is needed."""

import os
from collections.abc import Sequence
from math import ceil
from pathlib import Path

import torch

from ddpo_core.diffusion.models import choose_device
from ddpo_core.runs.config import RunConfig
from ddpo_core.sampling import replay_log_probs, sample_trajectories
from ddpo_core.types import Policy, Progress

PAYS_FROM_CALLS = 20_000
"""A minute or two of compiling, by at least 6 ms that a call of the UNet is faster: an estimate, not measured by us."""

_TRIAL_STEPS = 2


def settle_compile(config: RunConfig) -> tuple[RunConfig, tuple[str, ...]]:
    """Decide `compile = "auto"`, and on a GPU say why in a line; what is decided already stays as it is.

    It is on where the run is on a GPU, Triton is there, and the UNet is called often enough:

        calls = epochs * (ceil(samples / sample_batch_size) * num_steps + 3 ceil(trained pairs / micro_batch_size))

    with a forward and backward pass as three. On a CPU it is off: 109 s of compiling brought nothing there.

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
        wanted = "on" if calls >= PAYS_FROM_CALLS else "off"
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
    """Return where torch keeps what it compiles."""
    chosen = os.environ.get("TORCHINDUCTOR_CACHE_DIR")
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(chosen) if chosen else base / "ddpo" / "compiled"


def compile_now(policy: Policy, prompts: Sequence[str], config: RunConfig, progress: Progress) -> str:
    """Call a compiled UNet in the shapes of a run, with and without gradients, so that waiting for it has a name.

    Returns:
        A line that says how far a ratio of probabilities is from 1 before anything is trained, at most: sampling and
        training are two programs then, which may round differently.
    """
    wanted = dict.fromkeys((config.fit.sample_batch_size, config.fit.micro_batch_size))
    leaves = {name: leaf.detach().requires_grad_() for name, leaf in policy.params.items()}
    ratio = 0.0
    for done, size in enumerate(wanted):
        progress("compiling", 2 * done, 2 * len(wanted))
        texts = [prompts[place % len(prompts)] for place in range(size)]
        sampled = sample_trajectories(policy, policy.params, texts, num_steps=_TRIAL_STEPS, seeds=range(size))
        progress("compiling", 2 * done + 1, 2 * len(wanted))
        step = sampled.stochastic[0]
        log_probs = replay_log_probs(policy, leaves, sampled, [step])[:, 0]
        torch.autograd.grad(log_probs.sum(), list(leaves.values()))
        ratio = max(ratio, float(((log_probs.detach() - sampled.log_probs[:, step]).exp() - 1).abs().max()))
    progress("compiling", 2 * len(wanted), 2 * len(wanted))
    return f"the UNet is compiled; before training, ratios of probabilities are within {ratio:.0e} of 1"


def _calls(config: RunConfig) -> int:
    fit, options = config.fit, config.objective
    steps = min(fit.num_steps, getattr(options, "timestep_window", 0) or fit.num_steps)
    pairs = fit.passes_per_epoch * fit.samples_per_epoch * max(1, round(options.timestep_fraction * steps))
    sampling = ceil(fit.samples_per_epoch / fit.sample_batch_size) * fit.num_steps
    return config.epochs * (sampling + 3 * ceil(pairs / fit.micro_batch_size))


def _has_triton() -> bool:
    from torch.utils._triton import has_triton

    return has_triton()
