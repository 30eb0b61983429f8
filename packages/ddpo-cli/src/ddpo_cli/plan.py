"""`ddpo train --dry-run`: the configuration, and what it will cost."""

from ddpo_cli.setup import judges
from ddpo_cli.ui.console import foreign_output, say, tell
from ddpo_cli.ui.numbers import duration, size
from ddpo_cli.ui.progress import loading
from ddpo_core.runs.compiling import keep_compiled, settle_compile
from ddpo_core.runs.config import RunConfig, to_toml, trained_steps
from ddpo_core.runs.costs import Costs, Estimate, estimate, measure
from ddpo_core.runs.parts import Parts, load_parts
from ddpo_core.runs.trackers import check_trackers

BYTES_PER_PARAMETER = 32
"""Eight float32 numbers: the weight before training, now and after the update, its gradient, and both moments of Adam
before and after the update. A moving average adds two."""


def print_plan(config: RunConfig) -> None:
    """Print `config` to stdout and what it amounts to on stderr; train nothing that is kept, write nothing."""
    tell(to_toml(config).removesuffix("\n"))
    fit = config.fit
    updates = config.epochs * fit.updates_per_epoch * fit.passes_per_epoch
    say(
        f"{config.epochs} epochs: {config.epochs * fit.samples_per_epoch} queries, {updates} updates; in each epoch "
        f"{fit.samples_per_epoch} samples of {fit.num_steps} steps, up to "
        f"{trained_steps(config)} trained steps of each."
    )
    check_trackers(config.tracker)
    if settle_compile(config)[0].compile != "off":
        keep_compiled()
    with foreign_output(), loading(f"Timing a trial with {config.model}"):
        scored, parts = judges(config), load_parts(config)
        costs = measure(config, parts, scored.reward_fn)
    for line in (*parts.notes, *_lines(costs, estimate(costs, config), config, parts)):
        say(line)


def _lines(costs: Costs, expected: Estimate, config: RunConfig, parts: Parts) -> list[str]:
    parameters = sum(leaf.numel() for leaf in parts.policy.params.values())
    place = "GPU memory" if costs.on_gpu else "memory"
    epoch = expected.sampling + expected.reward + expected.training
    kept = config.fit.samples_per_epoch * costs.sample_bytes
    copies = size((BYTES_PER_PARAMETER + (0 if config.ema_decay is None else 8)) * parameters)
    lines = [
        f"Trained: {parameters:,} parameters, {copies} in an update, with their gradients, moments and copies.",
        f"Time: about {duration(epoch)} an epoch (sampling {duration(expected.sampling)}, reward "
        f"{duration(expected.reward)}, training {duration(expected.training)}), {duration(expected.run)} in all.",
    ]
    if expected.memory is not None and costs.peak_bytes is not None:
        lines.append(
            f"Memory: about {size(expected.memory)} of {place}: {size(costs.peak_bytes)} in the trial, "
            f"{size(kept)} for the samples of an epoch."
        )
    tried = f"{costs.images} samples of 2 steps and {costs.images} trained steps"
    return [*lines, f"Time and memory are estimates for one process, from a trial of {tried} on this machine."]
