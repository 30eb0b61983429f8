"""Optimizers as pure functions on dicts of tensors."""

import math
from itertools import chain

import torch
from torch import Tensor
from torch.optim.adamw import adamw as torch_adamw

from ddpo_core.types import Optimizer, OptState, Params


def adamw(
    learning_rate: float,
    *,
    betas: tuple[float, float] = (0.9, 0.999),
    weight_decay: float = 1e-4,
    eps: float = 1e-8,
    half_life: float = math.inf,
) -> Optimizer:
    """AdamW on a dict of tensors; the arithmetic is torch's own, on copies.

        m = beta1 m + (1 - beta1) g,   v = beta2 v + (1 - beta2) g^2
        rate = learning_rate 2^(-step / half_life)
        params = (1 - rate weight_decay) params - rate m_hat / (sqrt(v_hat) + eps)

    Args:
        learning_rate: The step size; the reference uses 3e-4 for LoRA and 1e-5 for a whole UNet.
        betas: The decay of both moments, each in [0, 1).
        weight_decay: Decoupled decay per step, relative to the learning rate.
        eps: Added to the root of the second moment.
        half_life: Updates after which the rate has halved; by default it never does. The rate depends on the number
            of updates alone, not on a planned end, so a run that is resumed for longer goes on smoothly.

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
        learning_rate >= 0 and eps > 0 and half_life > 0 and weight_decay >= 0 and all(0 <= beta < 1 for beta in betas)
    ):
        raise ValueError(
            f"got learning_rate={learning_rate!r}, betas={betas!r}, weight_decay={weight_decay!r}, eps={eps!r}, "
            f"half_life={half_life!r}; want learning_rate and weight_decay at least 0, eps and half_life above 0 and "
            "betas in [0, 1)"
        )

    def update(gradients: Params, state: OptState, params: Params) -> tuple[Params, OptState]:
        updated = {name: tensor.detach().clone() for name, tensor in params.items()}
        moments = {key: tensor.clone() for key, tensor in state.items() if key != "step"}
        # torch advances every entry of this list, so that one shared tensor would count each parameter as a step.
        steps = [state["step"].clone() for _ in params]
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
            lr=learning_rate * 0.5 ** (state["step"].item() / half_life),
            weight_decay=weight_decay,
            eps=eps,
            maximize=False,
        )
        return updated, {"step": state["step"] + 1, **moments}

    return Optimizer(_init_moments, update)


def _init_moments(params: Params) -> OptState:
    step: tuple[str, Tensor] = ("step", torch.zeros(()))
    moments = (
        (f"{moment}/{name}", torch.zeros_like(tensor))
        for moment in ("first_moment", "second_moment")
        for name, tensor in params.items()
    )
    return dict(chain([step], moments))
