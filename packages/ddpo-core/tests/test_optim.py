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
