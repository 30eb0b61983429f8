"""The values that flow through the trainer, and the functions a policy consists of.

Axis names, here and in every signature: `batch` samples, `steps` denoising steps, `prompts` unique prompts.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from jaxtyping import Float, Int
from torch import Tensor

Params = dict[str, Tensor]
"""The trainable leaves by name, and nothing else: LoRA matrices, or all weights of a network. Always float32."""

OptState = dict[str, Tensor]
"""What an optimizer remembers: a flat dict of tensors, so that every optimizer's state is saved in the same way."""

Metrics = dict[str, Tensor]
"""Scalar tensors by name, left on the device: reading one there would stall it in the middle of a phase.

A vector has one number per denoising step; told as `NAME/STEP` of the steps that have noise.
"""

Conditioning = Tensor | tuple[Tensor, ...]
"""What the network is told about the prompts: tensors whose rows belong together (a tensor, a tuple, a NamedTuple)."""

ObjectiveState = Mapping[str, Any]
"""What an objective remembers from epoch to epoch; JSON can hold it, and reads the same back."""

ConstraintState = Mapping[str, Any]
"""What the multipliers of constraints remember from epoch to epoch; JSON can hold it, and reads the same back."""

Rows = tuple[Tensor, ...]
"""What one update trains on: a NamedTuple of tensors with one entry per trained row, such as `Pairs`."""

RewardFunction = Callable[[Any, Sequence[str], Sequence[Mapping[str, Any]]], Any]
"""`(images, prompts, metadata) -> (scores, info)`: one finite score per image, and a dict of per-sample lists."""

LossFunction = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Metrics]]
"""`(log_probs, old_log_probs, advantages)`, all `[batch]`, to the mean loss and the means worth logging."""

Progress = Callable[[str, int, int], None]
"""Called as `(phase, done, total)` with the phase `"sampling"` (in samples) or `"training"` (in pairs of both)."""


class Timesteps(NamedTuple):
    r"""The coefficients of a sampler, one row per denoising step, in the order of sampling.

    With `m` the network's output at latents `x`, every sampler here is affine before clipping:

        mean  = latent_weight x + output_weight m
        clean = clean_latent_weight x + clean_output_weight m          (the predicted clean latents, x_0)

    and clipping adds `clean_weight (clip(clean) - clean)` to the mean.
    Rows of a `Timesteps` taken with an index tensor (`take_rows`) are the steps of a batch, one per sample.
    """

    time: Int[Tensor, " steps"]
    latent_weight: Float[Tensor, " steps"]
    output_weight: Float[Tensor, " steps"]
    clean_latent_weight: Float[Tensor, " steps"]
    clean_output_weight: Float[Tensor, " steps"]
    clean_weight: Float[Tensor, " steps"]
    std: Float[Tensor, " steps"]


class Transition(NamedTuple):
    """The diagonal Gaussian p(x_prev | x_t, conditioning); where `std` is 0 it is the point `mean`."""

    mean: Float[Tensor, "batch ..."]
    std: Float[Tensor, "batch ..."]


class Trajectories(NamedTuple):
    """What sampling leaves behind: enough to replay every step, and nothing that depends on gradients.

    `latents[:, k]` enters step `k` and `latents[:, k + 1]` leaves it, in the dtype in which the policy stores latents;
    `latents[:, -1]` is the sample. Where only some `steps` were kept, places count from the first of them.
    `log_probs[:, k]` is 0 where step `k` is deterministic or was not kept: `stochastic` lists the steps with noise, on
    the host, so that choosing among them never waits for the device. `prompt_index` selects the rows of `conditioning`.
    """

    latents: Float[Tensor, "batch places ..."]
    log_probs: Float[Tensor, "batch steps"]
    conditioning: Conditioning
    prompt_index: Int[Tensor, " batch"]
    timesteps: Timesteps
    stochastic: tuple[int, ...]
    prompts: tuple[str, ...]
    steps: range


class Policy(NamedTuple):
    """A diffusion model with its sampler, as pure functions over frozen networks.

    - `params`: the initial trainable leaves; the reference of the KL penalty.
    - `timesteps(num_steps)`: the coefficients of every step, on the device of the policy.
    - `encode(prompts)`: one row per prompt; a prompt's row must not depend on the prompts beside it.
    - `noise(seeds, num_steps)`: standard normal `[batch, num_steps + 1, ...]` in the dtype in which latents are stored;
      row `i` is a function of `seeds[i]` alone. Entry 0 is the first latent, entry `k + 1` the noise of step `k`.
    - `transition(params, latents, step, conditioning)`: the Gaussian of the next latents, in float32. `step` has one
      row per sample.
    - `decode(latents)`: what the reward reads, float32 images `[batch, 3, height, width]` in [0, 1] for image models.
    - `denoising_error(params, clean, noise, time, conditioning)`: the squared error of regression per sample, for
      objectives that need no log-probabilities (RWR); None where a policy has no such thing. `time` counts from 0 to
      `num_train_timesteps - 1`.
    - `fingerprint`: what the frozen networks are; a checkpoint is refused by a policy of another.
    - `lora_scale`: what the product of LoRA matrices is multiplied by (alpha / rank); None where none are trained.
    - `cast(params)`: the leaves as the network computes with them, where no gradient is wanted: what the other
      functions make of them at every call, made once. They give the same for both.

    `ddpo_core.testing.check_policy` says whether a policy of your own keeps these promises.
    """

    params: Params
    timesteps: Callable[[int], Timesteps]
    encode: Callable[[Sequence[str]], Conditioning]
    noise: Callable[[Sequence[int], int], Tensor]
    transition: Callable[[Params, Tensor, Timesteps, Conditioning], Transition]
    decode: Callable[[Tensor], Tensor]
    denoising_error: Callable[[Params, Tensor, Tensor, Tensor, Conditioning], Tensor] | None = None
    num_train_timesteps: int = 0
    fingerprint: str = ""
    lora_scale: float | None = None
    cast: Callable[[Params], Params] = dict


class Kept(NamedTuple):
    """How a signal that must not fall stood in an epoch."""

    value: float
    """The mean over the samples, each up to the ceiling."""
    error: float
    """Its standard error."""
    level: float
    """What it must not fall below."""
    multiplier: float
    """What it was weighed with against the reward."""


class Optimizer(NamedTuple):
    """`init(params) -> state` and `update(gradients, state, params) -> (params, state)`; neither mutates its inputs."""

    init: Callable[[Params], OptState]
    update: Callable[[Params, OptState, Params], tuple[Params, OptState]]


@dataclass(frozen=True)
class TrainState:
    """All that training carries from one epoch to the next. Randomness is a function of `seed` and `epoch` alone."""

    params: Params
    opt_state: OptState
    objective_state: ObjectiveState
    seed: int
    epoch: int = 0
    queries: int = 0
    constraint_state: ConstraintState = field(default_factory=dict)


@dataclass(frozen=True)
class EpochInfo:
    """What one epoch saw and did: the samples of this process in order, on the CPU, and metrics over all processes.

    `indices` are the places of these samples among those of all processes; `images` were decoded from `latents`.
    `epoch` counts from 1 (it equals the epoch of the state beside it), `queries` is the total of reward evaluations,
    `advantages` are after clipping; for regression they are its weights.
    `metrics` holds `reward_mean`, `reward_std`, `reward_min`, `reward_max`, `loss`, `grad_norm`, what the loss
    function reports (`approx_kl`, `clip_fraction`, also its parts `clip_fraction_high` and `clip_fraction_low`,
    `ratio_mean`, or `denoising_error`), `log_prob_change/STEP` of each denoising step, `kl` where it is penalised,
    `prompts_without_spread` where a prompt has several samples, and `seconds_sampling`, `seconds_reward`,
    `seconds_training` (the first two overlap where rewards have threads), `seconds_training_cpu` (what all threads of
    this process computed in it); with constraints `seconds_constraints` as well, and `kept` says how each stood.
    """

    epoch: int
    queries: int
    prompts: tuple[str, ...]
    metadata: tuple[Mapping[str, Any], ...]
    images: Tensor
    latents: Tensor
    scores: Float[Tensor, " batch"]
    advantages: Float[Tensor, " batch"]
    info: Mapping[str, Sequence[Any]]
    metrics: Mapping[str, float]
    indices: tuple[int, ...] = ()
    kept: Mapping[str, Kept] = field(default_factory=dict)
