"""What training does with scored samples: follow a policy gradient (DDPO), or imitate the best (RWR).

An objective is a value that owns all of its options, so that none is ever idle: `ddpo_is(clip_range=1e-4)`. Of a loss
of log-probabilities of your own `policy_gradient` makes one, of weights of your own `regression`.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal, NamedTuple, TypedDict, Unpack

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ddpo_core.advantages import Baseline, per_prompt, within_prompts
from ddpo_core.config import FitConfig
from ddpo_core.errors import DDPOError
from ddpo_core.losses import ddpo_is_loss, ddpo_sf_loss, kl_penalty, rwr_loss, rwr_weights, sparse_rwr_weights
from ddpo_core.random import generator
from ddpo_core.sampling import stochastic_steps, take_rows, transition_log_prob
from ddpo_core.types import LossFunction, Metrics, ObjectiveState, Params, Policy, Rows, Timesteps, Trajectories


class Minibatch(NamedTuple):
    """The samples of one update on one process, and what its randomness is a function of."""

    samples: Sequence[int]
    """Rows of this process's trajectories."""
    indices: Sequence[int]
    """The global index of every sample."""
    seed: int
    epoch: int
    pass_index: int = 0
    """Which pass over the samples of the epoch, from 0."""


class Objective(NamedTuple):
    """How an epoch's scored samples become gradients.

    - `check(policy, config)`: raises a `DDPOError` where they do not fit, before anything is sampled.
    - `weigh(state, prompts, scores)`: what it remembers from now on, and the advantage of every sample of all
      processes: how much it counts. For regression that is its weight.
    - `choose(policy, trajectories, advantages, minibatch)`: the rows that one update trains on, on the CPU, where the
      advantages are as well. The mean loss over its rows is what a process contributes.
    - `loss(policy, params, trajectories, advantages, rows)`: the mean loss over some of the rows, and metrics as
      tensors; everything is on the policy's device.
    - `steps(stochastic, epoch)`: which of the steps that have noise `choose` may choose in an epoch; the latents of
      those before and after need not be kept. Left out: any of them.
    """

    check: Callable[[Policy, FitConfig], None]
    weigh: Callable[[ObjectiveState, Sequence[str], Tensor], tuple[ObjectiveState, Tensor]]
    choose: Callable[[Policy, Trajectories, Tensor, Minibatch], Rows]
    loss: Callable[[Policy, Params, Trajectories, Tensor, Rows], tuple[Tensor, Metrics]]
    steps: Callable[[Sequence[int], int], Sequence[int]] = lambda stochastic, epoch: stochastic


class Pairs(NamedTuple):
    """Which steps of which samples of some trajectories a policy gradient trains, one entry per pair.

    Flat, so that every micro-batch is full.
    """

    samples: Int[Tensor, " pairs"]
    steps: Int[Tensor, " pairs"]


class Draws(NamedTuple):
    """Noisy versions of samples that regression learns to clean, one entry per draw."""

    samples: Int[Tensor, " draws"]
    time: Int[Tensor, " draws"]
    noise: Float[Tensor, "draws ..."]
    scale: Float[Tensor, " draws"]


class GradientOptions(TypedDict, total=False):
    """The options that all policy gradients share, with the defaults and the meaning of `policy_gradient`."""

    advantages: Baseline
    advantage_clip: float
    kl_weight: float
    timestep_fraction: float
    timestep_window: int
    timestep_window_epochs: int
    timestep_weighting: Literal["equal", "noise"]


def ddpo_is(*, clip_range: float = 1e-4, **options: Unpack[GradientOptions]) -> Objective:
    """DDPO with importance sampling: several clipped updates per epoch (`ddpo_is_loss`).

    Args:
        clip_range: How far a probability ratio may move an update, above 0.
        options: Those of `policy_gradient`.

    Raises:
        DDPOError: If an option is out of range.

    Example:
        >>> from ddpo_core import per_epoch
        >>> objective = ddpo_is(clip_range=1e-4, advantages=per_epoch(), kl_weight=0.1)
        >>> objective.weigh({}, ["a cat", "a dog"], torch.tensor([1.0, 3.0]))
        ({}, tensor([-1.,  1.]))

    Source: Black et al. 2023, section 4.3; ddpo-pytorch, `train.py`.
    """
    _want("clip_range", clip_range, clip_range > 0, "above 0")
    return policy_gradient(partial(ddpo_is_loss, clip_range=clip_range), **options)


def ddpo_sf(**options: Unpack[GradientOptions]) -> Objective:
    """DDPO with the score function (REINFORCE): one update per epoch, on the policy that drew it (`ddpo_sf_loss`).

    Args:
        options: Those of `policy_gradient`.

    Raises:
        DDPOError: If an option is out of range; and by its `check`, if there is more than one update per epoch.

    Example:
        >>> from ddpo_core import toy
        >>> ddpo_sf().check(toy.policy(), FitConfig(updates_per_epoch=2))
        Traceback (most recent call last):
        ddpo_core.errors.DDPOError: ddpo_sf() got 2 updates per epoch, but only the first is on policy: want \
updates_per_epoch=1 and passes_per_epoch=1, or ddpo_is()

    Source: Black et al. 2023, section 4.3.
    """
    objective = policy_gradient(ddpo_sf_loss, **options)

    def check(policy: Policy, config: FitConfig) -> None:
        updates = config.updates_per_epoch * config.passes_per_epoch
        if updates > 1:
            raise DDPOError(
                f"ddpo_sf() got {updates} updates per epoch, but only the first is on policy: want updates_per_epoch=1 "
                "and passes_per_epoch=1, or ddpo_is()"
            )
        objective.check(policy, config)

    return objective._replace(check=check)


def rwr(*, inverse_temperature: float = 0.2, timestep_fraction: float = 1.0) -> Objective:
    """Imitate samples by how their reward compares with all of the epoch: reward-weighted regression (`rwr_weights`).

    Args:
        inverse_temperature: The reward times this is exponentiated, at least 0; 0 weighs all alike.
        timestep_fraction: As for `regression`.

    Raises:
        DDPOError: If an option is out of range.

    Example:
        >>> rwr().weigh({}, ["a cat", "a dog"], torch.tensor([1.0, 1.0]))
        ({}, tensor([1., 1.]))

    Source: Black et al. 2023, section 4.2; jannerm/ddpo, `pipeline/finetune.py`.
    """
    _want("inverse_temperature", inverse_temperature, inverse_temperature >= 0, "at least 0")
    weigh = partial(rwr_weights, inverse_temperature=inverse_temperature)
    return regression(lambda prompts, rewards: weigh(rewards), timestep_fraction=timestep_fraction)


def sparse_rwr(*, fraction: float = 0.1, timestep_fraction: float = 1.0) -> Objective:
    """Imitate the best samples of every prompt in the epoch and leave out the others (`sparse_rwr_weights`).

    It wants `samples_per_prompt` well above one over the fraction. Samples of weight 0 cost nothing.

    Args:
        fraction: How many samples of a prompt are kept, above 0 and at most 1.
        timestep_fraction: As for `regression`.

    Raises:
        DDPOError: If an option is out of range.

    Example:
        >>> sparse_rwr(fraction=0.5).weigh({}, ["a cat"] * 2, torch.tensor([1.0, 9.0]))
        ({}, tensor([0., 2.]))

    Source: as `rwr`; jannerm/ddpo, `per_prompt_weights`.
    """
    _want("fraction", fraction, 0 < fraction <= 1, "above 0 and at most 1")
    weigh = partial(sparse_rwr_weights, fraction=fraction)
    return regression(
        lambda prompts, rewards: within_prompts(weigh, rewards, prompts), timestep_fraction=timestep_fraction
    )


def policy_gradient(
    loss_fn: LossFunction,
    *,
    advantages: Baseline = per_prompt(),
    advantage_clip: float = 5.0,
    kl_weight: float = 0.0,
    timestep_fraction: float = 1.0,
    timestep_window: int = 0,
    timestep_window_epochs: int = 1,
    timestep_weighting: Literal["equal", "noise"] = "equal",
) -> Objective:
    """Train replayed log-probabilities with advantages: DDPO with a loss of your own.

    Args:
        loss_fn: `(log_probs, old_log_probs, advantages)` to the mean loss and its metrics.
        advantages: What rewards are compared with: `per_prompt()`, `per_epoch()`, `per_run()` or `per_group()`.
        advantage_clip: Advantages are clipped to plus or minus this, above 0.
        kl_weight: Weight of the KL divergence to the initial policy (`kl_penalty`), at least 0.
        timestep_fraction: Share of the steps that is trained, drawn anew for each sample; above 0 and at most 1.
        timestep_window: Train only this many consecutive steps at a time, first the noisiest; 0 trains all.
        timestep_window_epochs: Epochs until the window moves on by one step; 0: it stays on the noisiest.
        timestep_weighting: `"equal"` as in the paper, or `"noise"`: `timestep_weights`.

    Raises:
        DDPOError: If an option is out of range; and by its `check`, if every step of the policy is deterministic.

    Example:
        >>> objective = policy_gradient(ddpo_sf_loss, advantage_clip=0.5)
        >>> objective.weigh({}, ["a cat", "a dog"], torch.tensor([1.0, 3.0]))[1]
        tensor([-0.5000,  0.5000])

    Source: Black et al. 2023, section 4.3; ddpo-pytorch, `train.py`. The window: Li et al. 2025 (MixGRPO), algorithm 1;
        deviation: the steps outside it are sampled with noise too, so that all samples come from one and the same
        policy.
    """
    _want("advantage_clip", advantage_clip, advantage_clip > 0, "above 0")
    _want("kl_weight", kl_weight, kl_weight >= 0, "at least 0")
    _want("timestep_fraction", timestep_fraction, 0 < timestep_fraction <= 1, "above 0 and at most 1")
    _want("timestep_window", timestep_window, timestep_window >= 0, "at least 0")
    _want(
        "timestep_window_epochs",
        timestep_window_epochs,
        timestep_window_epochs == 1 or (timestep_window_epochs >= 0 and timestep_window > 0),
        "at least 0, and 1 without a timestep_window",
    )

    def weigh(state: ObjectiveState, prompts: Sequence[str], scores: Tensor) -> tuple[ObjectiveState, Tensor]:
        updated, compared = advantages(state, prompts, scores)
        return updated, compared.clamp(-advantage_clip, advantage_clip)

    def steps_of(stochastic: Sequence[int], epoch: int) -> Sequence[int]:
        moves = epoch // timestep_window_epochs if timestep_window_epochs else 0
        return _window(stochastic, timestep_window, moves)

    def choose(policy: Policy, trajectories: Trajectories, advantages: Tensor, minibatch: Minibatch) -> Pairs:
        return _choose_pairs(minibatch, steps_of(trajectories.stochastic, minibatch.epoch), timestep_fraction)

    def loss(
        policy: Policy, params: Params, trajectories: Trajectories, advantages: Tensor, rows: Rows
    ) -> tuple[Tensor, Metrics]:
        samples, steps = rows
        places = steps - trajectories.steps.start
        latents = trajectories.latents[samples, places]
        step = take_rows(trajectories.timesteps, steps)
        conditioning = take_rows(trajectories.conditioning, trajectories.prompt_index[samples])
        transition = policy.transition(params, latents, step, conditioning)
        log_probs = transition_log_prob(transition, trajectories.latents[samples, places + 1])
        weighed = advantages[samples]
        if timestep_weighting == "noise":
            weighed = weighed * timestep_weights(trajectories.timesteps)[steps]
        old_log_probs = trajectories.log_probs[samples, steps]
        policy_loss, metrics = loss_fn(log_probs, old_log_probs, weighed)
        trained = len(steps_of(trajectories.stochastic, 0))
        num_steps = trajectories.log_probs.shape[1]
        changes = log_prob_changes(log_probs, old_log_probs, steps, num_steps, trained=trained)
        metrics = {**metrics, "log_prob_change": changes}
        if kl_weight == 0:
            return policy_loss, metrics
        with torch.no_grad():
            reference = policy.transition(policy.params, latents, step, conditioning)
        kl = kl_penalty(transition.mean, reference.mean, transition.std)
        return policy_loss + kl_weight * kl, {**metrics, "kl": kl.detach()}

    return Objective(_check_stochastic, weigh, choose, loss, steps_of)


def timestep_weights(timesteps: Timesteps) -> Float[Tensor, " steps"]:
    """Weigh the steps of a sampler so that each brings about as much noise to a policy gradient.

        weight_k ~ std_k / |output_weight_k|,     averaging 1 over the steps with std > 0; 0 for the others

    The mean of a step moves by `output_weight_k` with the network's output, so that the gradient of its log-probability
    is steep as `|output_weight_k| / std_k`: steepest in the last steps of a diffusion model, which hardly decide what
    is drawn. As they are, theirs is nearly all of the gradient's variance and the smallest part of its signal.

    Args:
        timesteps: Of the sampler.

    Example:
        >>> from ddpo_core import toy
        >>> weights = timestep_weights(toy.policy().timesteps(4))
        >>> weights.sum(), weights[3]
        (tensor(3.), tensor(0.))

    Source: He et al. 2025 (TempFlow-GRPO), section 4.2, weighs by the noise level; dividing by the slope is ours.
    """
    # By where and not by an index: nothing here waits for the device.
    has_noise = timesteps.std > 0
    noise = torch.where(has_noise, timesteps.std / timesteps.output_weight.abs(), 0.0)
    return noise / (noise.sum() / has_noise.sum())


def log_prob_changes(
    log_probs: Float[Tensor, " batch"],
    old_log_probs: Float[Tensor, " batch"],
    steps: Int[Tensor, " batch"],
    num_steps: int,
    *,
    trained: int,
) -> Float[Tensor, " num_steps"]:
    """Say how far updates have moved the log-probabilities of each denoising step.

        trained * mean(|log_probs - old_log_probs| where steps == step, else 0)

    That is the mean over the rows of a step where all steps are equally many, and in expectation where each sample
    draws some of them; the formula is linear, so that it may be averaged over micro-batches.

    Args:
        log_probs: Of the policy that is trained.
        old_log_probs: Of the policy that sampled.
        steps: The step of every row.
        num_steps: How many there are; 0 is told of those that are not trained.
        trained: How many of them are trained.

    Example:
        >>> log_prob_changes(torch.tensor([1.0, 3.0]), torch.zeros(2), torch.tensor([0, 1]), 3, trained=2)
        tensor([1., 3., 0.])
    """
    changes = (log_probs.detach() - old_log_probs).abs() * (trained / len(steps))
    return changes.new_zeros(num_steps).index_add(0, steps, changes)


def regression(weight_fn: Callable[[Sequence[str], Tensor], Tensor], *, timestep_fraction: float = 1.0) -> Objective:
    """Imitate samples as in pretraining, each as much as its weight says, without log-probabilities.

    Every sample is noised and cleaned at random times, `num_steps * timestep_fraction` of them, as many as a policy
    gradient would train steps of it. The reference makes 5 `passes_per_epoch`.

    Args:
        weight_fn: `(prompts, rewards)` of an epoch to non-negative weights that average 1.
        timestep_fraction: Above 0 and at most 1.

    Raises:
        DDPOError: If the fraction is out of range; and by its `check`, if the policy has no `denoising_error`.

    Example:
        >>> best = regression(lambda prompts, rewards: len(rewards) * (rewards == rewards.max()).float())
        >>> best.weigh({}, ["a cat", "a dog"], torch.tensor([1.0, 9.0]))
        ({}, tensor([0., 2.]))

    Source: as `rwr`.
    """
    _want("timestep_fraction", timestep_fraction, 0 < timestep_fraction <= 1, "above 0 and at most 1")
    return Objective(
        _check_regression,
        lambda state, prompts, scores: (state, weight_fn(prompts, scores)),
        partial(_choose_draws, timestep_fraction),
        _regression_loss,
        lambda stochastic, epoch: (),
    )


def _check_stochastic(policy: Policy, config: FitConfig) -> None:
    if not stochastic_steps(policy.timesteps(config.num_steps)):
        raise DDPOError("every step of this policy is deterministic, so there is nothing to train: want eta above 0")


def _window(steps: Sequence[int], size: int, moves: int) -> Sequence[int]:
    """Take `size` consecutive steps, as many steps on as the window has moved, from the start again after the end."""
    if size == 0 or size >= len(steps):
        return steps
    start = moves % (len(steps) - size + 1)
    return steps[start : start + size]


def _choose_pairs(minibatch: Minibatch, steps: Sequence[int], fraction: float) -> Pairs:
    """Draw a random subset of `steps` for every sample, independently; a function of (seed, epoch, global index).

    Source: Black et al. 2023, appendix (a subset of timesteps); ddpo-pytorch, `train.py` (an independent permutation
        of the steps of every sample).
    """
    count = max(1, round(len(steps) * fraction))
    later = () if minibatch.pass_index == 0 else (minibatch.pass_index,)
    streams = [generator(minibatch.seed, "steps", minibatch.epoch, index, *later) for index in minibatch.indices]
    chosen = [sorted(stream.permutation(steps)[:count].tolist()) for stream in streams]
    return Pairs(torch.tensor(minibatch.samples).repeat_interleave(count), torch.tensor(chosen).flatten())


def _check_regression(policy: Policy, config: FitConfig) -> None:
    if policy.denoising_error is None or policy.num_train_timesteps < 1:
        raise DDPOError("this policy has no denoising_error, which regression trains: want one, or a policy gradient")


def _choose_draws(
    timestep_fraction: float, policy: Policy, trajectories: Trajectories, advantages: Tensor, minibatch: Minibatch
) -> Draws:
    count = max(1, round(trajectories.log_probs.shape[1] * timestep_fraction))
    # Where all weights are 0, one sample stays: it adds nothing, and an empty batch would have no metrics.
    kept = [place for place, sample in enumerate(minibatch.samples) if advantages[sample] != 0] or [0]
    where = [(minibatch.epoch, minibatch.indices[place], minibatch.pass_index) for place in kept]
    streams = [generator(minibatch.seed, "regression", *index) for index in where]
    time = [stream.integers(policy.num_train_timesteps, size=count) for stream in streams]
    shape = (count, *trajectories.latents.shape[2:])
    noise = [stream.standard_normal(shape, dtype=np.float32) for stream in streams]
    return Draws(
        torch.tensor([minibatch.samples[place] for place in kept]).repeat_interleave(count),
        torch.from_numpy(np.concatenate(time)),
        torch.from_numpy(np.concatenate(noise)),
        # The mean is over all samples of the minibatch, those of weight 0 among them.
        torch.full((len(kept) * count,), len(kept) / len(minibatch.samples)),
    )


def _regression_loss(
    policy: Policy, params: Params, trajectories: Trajectories, advantages: Tensor, rows: Rows
) -> tuple[Tensor, Metrics]:
    samples, time, noise, scale = rows
    assert policy.denoising_error is not None
    clean = trajectories.latents[samples, -1].float()
    conditioning = take_rows(trajectories.conditioning, trajectories.prompt_index[samples])
    errors = policy.denoising_error(params, clean, noise, time, conditioning)
    return rwr_loss(errors, scale * advantages[samples])


def _want(name: str, value: object, is_fine: bool, wanted: str) -> None:
    """Refuse an option out of range; the caller compares so that NaN is not fine."""
    if not is_fine:
        raise DDPOError(f"{name}={value!r}: want {wanted}")
