"""AdamW as a function: torch's numbers, and nothing mutated."""

import pytest
import torch

from ddpo_core.optim import adamw


def _tensors(seed):
    generator = torch.Generator().manual_seed(seed)
    return {"matrix": torch.randn(3, 4, generator=generator), "vector": torch.randn(5, generator=generator)}


def test_five_steps_equal_those_of_torch_bit_for_bit():
    options = {"betas": (0.8, 0.95), "weight_decay": 0.1, "eps": 1e-6}
    optimizer = adamw(0.01, **options)
    params = _tensors(0)
    state = optimizer.init(params)
    leaves = {name: tensor.clone().requires_grad_() for name, tensor in params.items()}
    reference = torch.optim.AdamW(leaves.values(), lr=0.01, foreach=True, **options)
    for seed in range(1, 6):
        gradients = _tensors(seed)
        params, state = optimizer.update(gradients, state, params)
        for name, leaf in leaves.items():
            leaf.grad = gradients[name]
        reference.step()
    assert state["step"] == 5
    assert all(torch.equal(params[name], leaf) for name, leaf in leaves.items())


def test_an_update_mutates_nothing():
    optimizer = adamw(0.1)
    params, gradients = _tensors(0), _tensors(1)
    state = optimizer.init(params)
    _, warm = optimizer.update(gradients, state, params)
    inputs = [*params.values(), *gradients.values(), *warm.values()]
    before = [tensor.clone() for tensor in inputs]
    first, second = (optimizer.update(gradients, warm, params) for _ in range(2))
    assert all(torch.equal(tensor, copy) for tensor, copy in zip(inputs, before, strict=True))
    assert all(torch.equal(first[0][name], second[0][name]) for name in params)


@pytest.mark.parametrize(
    ("learning_rate", "options"),
    [(-1.0, {}), (float("nan"), {}), (0.1, {"betas": (1.0, 0.9)}), (0.1, {"eps": 0.0}), (0.1, {"weight_decay": -1.0})],
)
def test_hyperparameters_out_of_range_are_refused(learning_rate, options):
    with pytest.raises(ValueError, match="want learning_rate"):
        adamw(learning_rate, **options)


def test_after_a_half_life_the_rate_has_halved():
    # With a constant gradient of 1 every step of Adam is exactly the rate: 0.1, then 0.1 / 2, then 0.1 / 4.
    optimizer = adamw(0.1, weight_decay=0.0, half_life=1.0)
    params = {"weight": torch.tensor([1.0])}
    state = optimizer.init(params)
    moved = []
    for _ in range(3):
        before = params["weight"]
        params, state = optimizer.update({"weight": torch.tensor([1.0])}, state, params)
        moved.append((before - params["weight"]).item())
    assert moved == pytest.approx([0.1, 0.05, 0.025], rel=1e-5)


@pytest.mark.parametrize("half_life", [0.0, -1.0, float("nan")])
def test_a_half_life_that_is_not_above_zero_is_refused(half_life):
    with pytest.raises(ValueError, match="half_life"):
        adamw(0.1, half_life=half_life)
