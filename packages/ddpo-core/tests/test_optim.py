"""Optimizers as functions: torch's numbers, nothing mutated, and nothing remembered but what is saved."""

from functools import partial
from itertools import islice

import pytest
import torch
from safetensors.torch import load_file, save_file

from ddpo_core import (
    DDPOError,
    FitConfig,
    adamw,
    constant,
    cosine,
    ddpo_is,
    ema_params,
    fit,
    half_life,
    init,
    load_checkpoint,
    save_checkpoint,
    torch_optimizer,
    toy,
    warmup,
    with_ema,
)


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


# The state is all that passes from one step to the next, so torch's trajectory means that nothing else is needed.
@pytest.mark.parametrize(
    ("optimizer_class", "options"),
    [
        (torch.optim.SGD, {}),
        (torch.optim.SGD, {"momentum": 0.9, "dampening": 0.1, "weight_decay": 0.01}),
        (torch.optim.SGD, {"momentum": 0.9, "nesterov": True}),
        (torch.optim.Adam, {"amsgrad": True}),
        (torch.optim.AdamW, {"weight_decay": 0.1}),
        (torch.optim.RMSprop, {"momentum": 0.5, "centered": True}),
        (torch.optim.Adagrad, {"lr_decay": 0.1, "initial_accumulator_value": 0.5}),
        (torch.optim.Adadelta, {}),
        (torch.optim.NAdam, {}),
        (torch.optim.Rprop, {}),
        (torch.optim.ASGD, {}),
    ],
)
def test_every_optimizer_of_torch_steps_as_its_class_does_bit_for_bit(optimizer_class, options, tmp_path):
    optimizer = torch_optimizer(optimizer_class, 0.01, **options)
    params = _tensors(0)
    state = optimizer.init(params)
    structure = {key: tensor.shape for key, tensor in state.items()}
    leaves = {name: tensor.clone().requires_grad_() for name, tensor in params.items()}
    reference = optimizer_class(leaves.values(), lr=0.01, **options)
    for seed in range(1, 6):
        gradients = _tensors(seed)
        inputs = [*params.values(), *gradients.values(), *state.values()]
        before = [tensor.clone() for tensor in inputs]
        params, state = optimizer.update(gradients, state, params)
        assert all(torch.equal(tensor, copy) for tensor, copy in zip(inputs, before, strict=True))
        # As a resumed run: through a file, into what `init` says there is.
        save_file(state, tmp_path / "state.safetensors")
        loaded = load_file(tmp_path / "state.safetensors")
        assert {key: tensor.shape for key, tensor in loaded.items()} == structure
        state = {key: loaded[key] for key in structure}
        for name, leaf in leaves.items():
            leaf.grad = gradients[name].clone()
        reference.step()
        assert all(torch.equal(params[name], leaf) for name, leaf in leaves.items())
    assert state["step"] == 5
    assert not any(leaf.requires_grad for leaf in params.values())


def test_names_that_end_alike_keep_their_own_memory():
    params = {"a": torch.ones(2), "b/a": torch.ones(3), "momentum_buffer/a": torch.ones(4)}
    optimizer = torch_optimizer(torch.optim.SGD, 0.1, momentum=0.9)
    state = optimizer.init(params)
    for _ in range(2):
        params, state = optimizer.update(params, state, params)
    # 1 - 0.1 * 1 = 0.9, then 0.9 - 0.1 * (0.9 * 1 + 0.9) = 0.72
    assert {name: leaf.shape for name, leaf in params.items()} == {"a": (2,), "b/a": (3,), "momentum_buffer/a": (4,)}
    assert all(leaf.tolist() == pytest.approx([0.72] * len(leaf)) for leaf in params.values())


class _Counting(torch.optim.SGD):
    """Remembers a number."""

    def step(self):
        super().step()
        self.state[self.param_groups[0]["params"][0]]["steps"] = 1


class _Adapting(torch.optim.SGD):
    """Remembers in its options."""

    def step(self):
        super().step()
        self.param_groups[0]["lr"] *= 0.5


@pytest.mark.parametrize(
    ("optimizer_class", "message"),
    [
        (_Counting, "_Counting remembers 'steps' as int: want tensors"),
        (_Adapting, "_Adapting remembers something in its options"),
        (torch.optim.LBFGS, "LBFGS does not step on gradients alone"),
    ],
)
def test_what_no_checkpoint_could_hold_is_refused_before_training(optimizer_class, message):
    with pytest.raises(DDPOError, match=message):
        torch_optimizer(optimizer_class, 0.1).init({"weight": torch.ones(1)})


def test_options_are_checked_at_once():
    with pytest.raises(ValueError, match="momentum"):
        torch_optimizer(torch.optim.SGD, 0.1, momentum=-1.0)
    with pytest.raises(TypeError, match="momentun"):
        torch_optimizer(torch.optim.SGD, 0.1, momentun=0.9)
    with pytest.raises(ValueError, match="learning_rate=nan"):
        torch_optimizer(torch.optim.SGD, float("nan"))


# With a constant gradient of 1 a step of either is exactly the rate.
@pytest.mark.parametrize(
    "make", [partial(adamw, weight_decay=0.0), partial(torch_optimizer, torch.optim.SGD)], ids=["adamw", "torch"]
)
@pytest.mark.parametrize(
    ("schedule", "rates"),
    [
        (0.1, [0.1, 0.1, 0.1]),
        (constant(0.1), [0.1, 0.1, 0.1]),
        (half_life(0.1, 1.0), [0.1, 0.05, 0.025]),
        # (1 + cos(0)) / 2 = 1, (1 + cos(pi / 2)) / 2 = 1 / 2, (1 + cos(pi)) / 2 = 0
        (cosine(0.1, 2), [0.1, 0.05, 0.0, 0.0]),
        (cosine(0.1, 2, last=0.02), [0.1, 0.06, 0.02, 0.02]),
        (warmup(constant(0.1), 1), [0.05, 0.1, 0.1]),
        (warmup(half_life(0.3, 1), 2), [0.1, 0.2, 0.3, 0.15]),
        (warmup(cosine(0.2, 2), 1), [0.1, 0.2, 0.1, 0.0]),
        (warmup(constant(0.1), 0), [0.1, 0.1]),
        (lambda count: 0.1 * count, [0.0, 0.1, 0.2]),
    ],
)
def test_the_rate_is_that_of_the_schedule(make, schedule, rates):
    optimizer = make(schedule)
    params = {"weight": torch.tensor([1.0])}
    state = optimizer.init(params)
    moved = []
    for _ in rates:
        before = params["weight"]
        params, state = optimizer.update({"weight": torch.tensor([1.0])}, state, params)
        moved.append((before - params["weight"]).item())
    assert moved == pytest.approx(rates, rel=1e-5, abs=1e-7)


@pytest.mark.parametrize(
    ("schedule", "arguments", "message"),
    [
        (half_life, (0.1, 0.0), "half_life"),
        (half_life, (0.1, -1.0), "half_life"),
        (half_life, (0.1, float("nan")), "half_life"),
        (half_life, (-0.1, 1.0), "learning_rate=-0.1"),
        (cosine, (0.1, 0), "cosine updates=0"),
        (warmup, (constant(0.1), -1), "warmup updates=-1"),
        (constant, (float("inf"),), "learning_rate=inf"),
    ],
)
def test_a_schedule_out_of_range_is_refused(schedule, arguments, message):
    with pytest.raises(ValueError, match=message):
        schedule(*arguments)


def test_a_schedule_that_gives_no_rate_is_refused_when_it_does():
    optimizer = adamw(lambda count: -1.0)
    params = _tensors(0)
    with pytest.raises(ValueError, match="learning_rate=-1"):
        optimizer.update(params, optimizer.init(params), params)


def test_the_average_is_that_of_the_params_after_every_update():
    plain, averaging = adamw(0.1), with_ema(adamw(0.1), 0.9)
    params, gradients = _tensors(0), _tensors(1)
    states = [plain.init(params), averaging.init(params)]
    expected, both = dict(params), [params, params]
    assert all(torch.equal(ema_params(states[1])[name], params[name]) for name in params)
    for _ in range(3):
        kept = {name: tensor.clone() for name, tensor in states[1].items()}
        given = states[1]
        for place, optimizer in enumerate((plain, averaging)):
            both[place], states[place] = optimizer.update(gradients, states[place], both[place])
        assert all(torch.equal(given[name], kept[name]) for name in kept)  # pure
        expected = {name: 0.9 * expected[name] + 0.1 * both[1][name] for name in expected}
        # Averaging changes nothing about the updates.
        assert all(torch.equal(both[0][name], both[1][name]) for name in params)
    for name, average in ema_params(states[1]).items():
        torch.testing.assert_close(average, expected[name], rtol=1e-6, atol=1e-6)
    assert ema_params(states[1]).keys() == params.keys()
    assert averaging.init(params).keys() == states[1].keys()


def test_an_average_that_is_not_there_and_one_too_many_are_refused():
    params = _tensors(0)
    with pytest.raises(DDPOError, match="want with_ema"):
        ema_params(adamw(0.1).init(params))
    with pytest.raises(DDPOError, match="already: want with_ema once"):
        with_ema(with_ema(adamw(0.1), 0.9), 0.9).init(params)
    with pytest.raises(ValueError, match="decay=1"):
        with_ema(adamw(0.1), 1.0)


def test_a_run_with_an_average_and_an_optimizer_of_torch_is_resumed_bit_for_bit(tmp_path):
    policy, optimizer = toy.policy(), with_ema(torch_optimizer(torch.optim.RMSprop, warmup(constant(1e-2), 3)), 0.9)

    def train(state, epochs):
        config = FitConfig(num_steps=4, samples_per_epoch=8, updates_per_epoch=2)
        run = fit(
            state,
            policy=policy,
            optimizer=optimizer,
            reward_fn=toy.reward,
            prompts=["left"],
            objective=ddpo_is(),
            config=config,
        )
        *_, (last, _) = islice(run, epochs)
        return last

    whole = train(init(policy, optimizer, seed=0), 3)
    saved = save_checkpoint(tmp_path, train(init(policy, optimizer, seed=0), 1), policy)
    resumed = train(load_checkpoint(saved, policy, optimizer), 2)
    assert list(resumed.opt_state) == list(whole.opt_state)
    assert all(torch.equal(resumed.opt_state[key], tensor) for key, tensor in whole.opt_state.items())
    assert all(torch.equal(resumed.params[name], leaf) for name, leaf in whole.params.items())
