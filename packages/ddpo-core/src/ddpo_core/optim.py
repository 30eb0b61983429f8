"""Optimizers as pure functions on dicts of tensors, and learning rates as functions of the number of updates."""

import math
from collections.abc import Callable
from itertools import chain
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.optim.adamw import adamw as torch_adamw

from ddpo_core.errors import DDPOError
from ddpo_core.types import Optimizer, OptState, Params

Schedule: TypeAlias = Callable[[int], float]
"""From the number of updates made so far to the learning rate of the next one."""

_COUNT, _EMA = "step", "ema/"


def adamw(
    learning_rate: float | Schedule,
    *,
    betas: tuple[float, float] = (0.9, 0.999),
    weight_decay: float = 1e-4,
    eps: float = 1e-8,
) -> Optimizer:
    """AdamW on a dict of tensors; the arithmetic is torch's own, on copies.

        m = beta1 m + (1 - beta1) g,   v = beta2 v + (1 - beta2) g^2
        params = (1 - rate weight_decay) params - rate m_hat / (sqrt(v_hat) + eps)

    Args:
        learning_rate: The step size, or a schedule of it; the reference uses 3e-4 for LoRA and 1e-5 for a whole UNet.
        betas: The decay of both moments, each in [0, 1).
        weight_decay: Decoupled decay per step, relative to the learning rate.
        eps: Added to the root of the second moment.

    Raises:
        ValueError: If a hyperparameter is out of range.

    Example:
        >>> optimizer = adamw(0.1)
        >>> params = {"weight": torch.tensor([1.0])}
        >>> updated, _ = optimizer.update({"weight": torch.tensor([1.0])}, optimizer.init(params), params)
        >>> updated, params
        ({'weight': tensor([0.9000])}, {'weight': tensor([1.])})

    Source: Loshchilov & Hutter 2019, algorithm 2. Defaults: ddpo-pytorch, `config/base.py`.
    """
    # `not (a < b)` and not `a >= b`: NaN must fail as well.
    if not (
        (callable(learning_rate) or learning_rate >= 0)
        and eps > 0
        and weight_decay >= 0
        and all(0 <= beta < 1 for beta in betas)
    ):
        raise ValueError(
            f"got learning_rate={learning_rate!r}, betas={betas!r}, weight_decay={weight_decay!r}, eps={eps!r}; "
            "want learning_rate and weight_decay at least 0, eps above 0 and betas in [0, 1)"
        )
    schedule = _as_schedule(learning_rate)

    def update(gradients: Params, state: OptState, params: Params) -> tuple[Params, OptState]:
        updated = {name: tensor.detach().clone() for name, tensor in params.items()}
        moments = {key: tensor.clone() for key, tensor in state.items() if key != _COUNT}
        # torch advances every entry of this list, so that one shared tensor would count each parameter as a step.
        steps = [state[_COUNT].clone() for _ in params]
        torch_adamw(
            list(updated.values()),
            [gradients[name] for name in params],
            [moments[f"first_moment/{name}"] for name in params],
            [moments[f"second_moment/{name}"] for name in params],
            [],
            steps,
            foreach=True,
            amsgrad=False,
            beta1=betas[0],
            beta2=betas[1],
            lr=_rate(schedule, state),
            weight_decay=weight_decay,
            eps=eps,
            maximize=False,
        )
        return updated, {_COUNT: state[_COUNT] + 1, **moments}

    return Optimizer(_init_moments, update)


def torch_optimizer(
    optimizer_class: Callable[..., torch.optim.Optimizer], learning_rate: float | Schedule, **options: Any
) -> Optimizer:
    """Make a pure optimizer of a class like those of `torch.optim`; it steps on copies.

    Every update makes the optimizer anew, hands it what the last one remembered, and takes that out again: the numbers
    are those of the class itself, and the state is a flat dict of tensors, `{"momentum_buffer/NAME": ...}`.

    Args:
        optimizer_class: It takes `params`, `lr` and `options`, steps on gradients alone, and remembers tensors per
            parameter: not `LBFGS`, which asks for losses, and not those that remember anything else.
        learning_rate: The step size, or a schedule of it.
        options: Its other hyperparameters; what is out of their range it refuses itself.

    Raises:
        ValueError: If the learning rate, or an option, is out of range.
        TypeError: If the class has no such option.
        DDPOError: At `init`, if the class wants more than gradients, or remembers what cannot be saved as tensors.

    Example:
        >>> optimizer = torch_optimizer(torch.optim.SGD, 0.1, momentum=0.9)
        >>> params, gradients = {"weight": torch.tensor([1.0])}, {"weight": torch.tensor([2.0])}
        >>> updated, state = optimizer.update(gradients, optimizer.init(params), params)
        >>> updated["weight"], state["momentum_buffer/weight"], params["weight"]
        (tensor([0.8000]), tensor([2.]), tensor([1.]))
    """
    schedule = _as_schedule(learning_rate)
    name_of_class = getattr(optimizer_class, "__name__", repr(optimizer_class))
    # It checks its options by itself, and that before anything costly is loaded.
    optimizer_class([torch.zeros(1, 1, requires_grad=True)], lr=schedule(0), **options)

    def init(params: Params) -> OptState:
        # What is remembered shows after a step only; its values belong to nothing, an update from step 0 drops them.
        zeros = {name: torch.zeros_like(tensor) for name, tensor in params.items()}
        _, remembered = step(zeros, {}, params, _rate(schedule, {_COUNT: torch.zeros(())}))
        return {_COUNT: torch.zeros(()), **{key: torch.zeros_like(tensor) for key, tensor in remembered.items()}}

    def update(gradients: Params, state: OptState, params: Params) -> tuple[Params, OptState]:
        remembered = {key: tensor for key, tensor in state.items() if key != _COUNT} if state[_COUNT] else {}
        updated, after = step(gradients, remembered, params, _rate(schedule, state))
        return updated, {_COUNT: state[_COUNT] + 1, **after}

    def step(gradients: Params, remembered: OptState, params: Params, rate: float) -> tuple[Params, OptState]:
        leaves = {name: tensor.detach().clone().requires_grad_() for name, tensor in params.items()}
        stepping = optimizer_class(list(leaves.values()), lr=rate, **options)
        for key, tensor in remembered.items():
            part, name = key.split("/", 1)
            stepping.state[leaves[name]][part] = tensor.clone()
        for name, leaf in leaves.items():
            leaf.grad = gradients[name].detach().clone()
        before = _hyperparameters(stepping)
        try:
            stepping.step()
        except TypeError as error:
            raise DDPOError(f"{name_of_class} does not step on gradients alone: {error}") from error
        if _hyperparameters(stepping) != before:
            raise DDPOError(f"{name_of_class} remembers something in its options, which no checkpoint holds")
        after = {}
        for name, leaf in leaves.items():
            for part, value in stepping.state[leaf].items():
                if isinstance(value, Tensor):
                    after[f"{part}/{name}"] = value.detach().clone()
                elif value is not None:
                    raise DDPOError(
                        f"{name_of_class} remembers {part!r} as {type(value).__name__}: want tensors, which "
                        "checkpoints hold"
                    )
        return {name: leaf.detach() for name, leaf in leaves.items()}, after

    return Optimizer(init, update)


def with_ema(optimizer: Optimizer, decay: float) -> Optimizer:
    """Let an optimizer keep the exponential moving average of the params, from their initial values on.

        average = decay average + (1 - decay) params        after every update

    It is part of the optimizer's state, so it is saved with it; `ema_params` gives it out.

    Args:
        optimizer: Whose updates are averaged.
        decay: In [0, 1); updates of the last `1 / (1 - decay)` count the most.

    Raises:
        ValueError: If the decay is out of range.
        DDPOError: At `init`, if the optimizer keeps an average already.

    Example:
        >>> optimizer = with_ema(torch_optimizer(torch.optim.SGD, 1.0), 0.75)
        >>> params, gradients = {"weight": torch.tensor([1.0])}, {"weight": torch.tensor([-4.0])}
        >>> updated, state = optimizer.update(gradients, optimizer.init(params), params)
        >>> updated["weight"], ema_params(state)["weight"]  # 0.75 * 1 + 0.25 * 5
        (tensor([5.]), tensor([2.]))

    Source: Polyak & Juditsky 1992; the constant decay as in Ho et al. 2020, appendix B.
    """
    if not 0 <= decay < 1:
        raise ValueError(f"decay={decay!r}: want at least 0 and below 1")

    def init(params: Params) -> OptState:
        state = optimizer.init(params)
        if any(key.startswith(_EMA) for key in state):
            raise DDPOError("this optimizer keeps an average of the params already: want with_ema once")
        return {**state, **{f"{_EMA}{name}": tensor.detach().clone() for name, tensor in params.items()}}

    def update(gradients: Params, state: OptState, params: Params) -> tuple[Params, OptState]:
        inner = {key: tensor for key, tensor in state.items() if not key.startswith(_EMA)}
        updated, after = optimizer.update(gradients, inner, params)
        averages = {f"{_EMA}{name}": state[f"{_EMA}{name}"].lerp(updated[name], 1 - decay) for name in params}
        return updated, {**after, **averages}

    return Optimizer(init, update)


def ema_params(opt_state: OptState) -> Params:
    """Take the averaged params out of the state of an optimizer `with_ema`: sample, evaluate or export with them.

    Raises:
        DDPOError: If it keeps none.
    """
    averages = {key.removeprefix(_EMA): tensor for key, tensor in opt_state.items() if key.startswith(_EMA)}
    if not averages:
        raise DDPOError("this optimizer keeps no average of the params: want with_ema(optimizer, decay)")
    return averages


def constant(rate: float) -> Schedule:
    """Keep the learning rate.

    Example:
        >>> constant(0.1)(1000)
        0.1

    Raises:
        ValueError: If the rate is negative or not finite.
    """
    _check_rate(rate)
    return lambda count: rate


def half_life(rate: float, updates: int | float) -> Schedule:
    """Halve the learning rate in every so many updates: `rate 2^(-count / updates)`.

    It depends on no planned end, so a run that is resumed for longer goes on smoothly.

    Args:
        rate: That of the first update.
        updates: Above 0; infinite keeps the rate.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> [half_life(0.8, 10)(count) for count in (0, 10, 20)]
        [0.8, 0.4, 0.2]
    """
    _check_rate(rate)
    if not updates > 0:
        raise ValueError(f"half_life updates={updates!r}: want above 0")
    return lambda count: rate * 0.5 ** (count / updates)


def cosine(rate: float, updates: int, *, last: float = 0.0) -> Schedule:
    """Lower the learning rate along half a cosine, and keep it at its end.

        last + (rate - last) (1 + cos(pi min(count / updates, 1))) / 2

    Args:
        rate: That of the first update.
        updates: After how many `last` is reached, at least 1: the planned end of the run.
        last: The rate from there on.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> [round(cosine(1.0, 4)(count), 3) for count in (0, 1, 2, 3, 4, 5)]
        [1.0, 0.854, 0.5, 0.146, 0.0, 0.0]

    Source: Loshchilov & Hutter 2017 (SGDR), equation 5, without restarts.
    """
    _check_rate(rate)
    _check_rate(last)
    if updates < 1:
        raise ValueError(f"cosine updates={updates!r}: want at least 1")
    return lambda count: last + (rate - last) * (1 + math.cos(math.pi * min(count / updates, 1))) / 2


def warmup(schedule: Schedule, updates: int) -> Schedule:
    """Let the learning rate rise in equal parts over so many updates, to the first of another schedule that follows.

        schedule(0) (count + 1) / (updates + 1)     for the first `updates`,     then schedule(count - updates)

    Raises:
        ValueError: If `updates` is negative.

    Example:
        >>> [warmup(half_life(0.8, 1), 3)(count) for count in range(6)]
        [0.2, 0.4, 0.6000000000000001, 0.8, 0.4, 0.2]
    """
    if updates < 0:
        raise ValueError(f"warmup updates={updates!r}: want at least 0")
    return lambda count: schedule(0) * (count + 1) / (updates + 1) if count < updates else schedule(count - updates)


def _as_schedule(learning_rate: float | Schedule) -> Schedule:
    return learning_rate if callable(learning_rate) else constant(learning_rate)


def _rate(schedule: Schedule, state: OptState) -> float:
    rate = schedule(int(state[_COUNT].item()))
    _check_rate(rate)
    return rate


def _check_rate(rate: float) -> None:
    if not 0 <= rate < math.inf:
        raise ValueError(f"learning_rate={rate!r}: want learning_rate finite and at least 0")


def _hyperparameters(optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    return [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]


def _init_moments(params: Params) -> OptState:
    step: tuple[str, Tensor] = (_COUNT, torch.zeros(()))
    moments = (
        (f"{moment}/{name}", torch.zeros_like(tensor))
        for moment in ("first_moment", "second_moment")
        for name, tensor in params.items()
    )
    return dict(chain([step], moments))
