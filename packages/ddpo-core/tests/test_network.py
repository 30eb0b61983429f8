"""The network between sampler and decoder: whole or with adapters, checkpointed, compiled, in half precision."""

from functools import partial
from itertools import islice

import pytest
import torch

from ddpo_core import (
    DDPOError,
    FitConfig,
    adamw,
    ddpo_is,
    fit,
    init,
    load_checkpoint,
    per_prompt,
    replay_log_probs,
    rwr,
    sample_trajectories,
    save_checkpoint,
    scale_lora,
    stable_diffusion_policy,
)
from ddpo_core.diffusion.network import _scale_gradient
from ddpo_core.testing import check_policy

CPU = torch.device("cpu")
PROMPTS = ["a cat", "a dog"]
KINDS = pytest.mark.parametrize("trainable", ["lora", "unet"])


def _policy(trainable, pipeline, **options):
    fixed = {"guidance_scale": 2.0, "device": CPU, "dtype": torch.float32}
    return stable_diffusion_policy(pipeline, trainable=trainable, **{**fixed, **options})


def _gradients(policy, scale=1.0):
    """Give the gradient of all replayed log-probabilities, at leaves that are not the initial ones."""
    generator = torch.Generator().manual_seed(1)
    leaves = {
        name: (leaf + 0.02 * torch.randn(leaf.shape, generator=generator)).requires_grad_()
        for name, leaf in policy.params.items()
    }
    sampled = sample_trajectories(policy, leaves, PROMPTS, num_steps=3, seeds=[0, 1])
    total = scale * replay_log_probs(policy, leaves, sampled, range(3)).square().sum()
    gradients = torch.autograd.grad(total, list(leaves.values()))
    return torch.cat([gradient.flatten() for gradient in gradients]) / scale


def _difference(first, second):
    return ((first - second).norm() / second.norm()).item()


@KINDS
def test_checkpointing_changes_no_gradient(make_pipeline, trainable):
    pipeline = make_pipeline()
    plain = _gradients(_policy(trainable, make_pipeline()))
    checkpointed = _gradients(_policy(trainable, pipeline, gradient_checkpointing=True))
    assert pipeline.unet.is_gradient_checkpointing
    assert plain.norm() > 0
    assert _difference(checkpointed, plain) < 1e-5


def test_checkpointing_computes_the_blocks_again_and_not_the_wrong_way(make_pipeline):
    # diffusers' own way is the trap: if this stops failing, `enable_checkpointing` can go.
    pipeline = make_pipeline()
    policy = _policy("lora", pipeline, gradient_checkpointing=True)
    runs = []
    pipeline.unet.up_blocks[1].resnets[0].register_forward_pre_hook(lambda *_: runs.append(torch.is_grad_enabled()))
    right = _gradients(policy)
    # Three steps sampled without gradients, three replayed with, three recomputed.
    assert runs == [False] * 3 + [True] * 6
    pipeline.unet.enable_gradient_checkpointing()
    assert _difference(_gradients(policy), right) > 0.1


@pytest.mark.skipif(torch.cuda.is_available(), reason="of the CPU")
def test_attention_in_half_precision_is_recomputed_as_it_was_computed(make_pipeline):
    plain = _gradients(_policy("lora", make_pipeline(), dtype=torch.bfloat16))
    checkpointed = _gradients(_policy("lora", make_pipeline(), dtype=torch.bfloat16, gradient_checkpointing=True))
    assert plain.norm() > 0
    assert torch.equal(plain, checkpointed)


def test_half_of_a_lora_is_half_of_its_update(make_pipeline):
    pipeline = make_pipeline()
    policy = _policy("lora", pipeline)
    trained = {name: leaf + 0.1 for name, leaf in policy.params.items()}
    half = scale_lora(trained, 0.5)
    down, up = (
        f"mid_block.attentions.0.transformer_blocks.0.attn1.to_q.lora_{side}.default.weight" for side in ("A", "B")
    )
    torch.testing.assert_close(half[up] @ half[down], 0.5 * trained[up] @ trained[down])
    # At 0 it draws what the base model draws, to the bit.
    base, none = (
        sample_trajectories(policy, params, PROMPTS, num_steps=2, seeds=[0, 1]).latents
        for params in (policy.params, scale_lora(trained, 0.0))
    )
    assert torch.equal(base, none)
    with pytest.raises(DDPOError, match="there is no LoRA to scale"):
        scale_lora({"weight": torch.ones(1)}, 0.5)


# torch.compile looks at the gradients of tensors that are no leaves, and warns itself about it.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
@pytest.mark.parametrize(("trainable", "checkpointing"), [("lora", False), ("unet", True)], ids=str)
def test_compiling_changes_no_gradient(make_pipeline, monkeypatch, trainable, checkpointing):
    # The whole of torch.compile but its code generator, which takes a minute.
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    plain = _gradients(_policy(trainable, make_pipeline()))
    compiled = _gradients(_policy(trainable, make_pipeline(), compile=True, gradient_checkpointing=checkpointing))
    assert plain.norm() > 0
    assert _difference(compiled, plain) < 1e-4


def test_no_shape_is_left_uncompiled(make_pipeline, monkeypatch):
    # Each batch size is a program of its own, with gradients and without; beyond its limit torch compiles no more.
    seen = []

    def backend(graph, inputs, **options):
        seen.append(inputs[-1].shape)
        return graph.forward

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    monkeypatch.setattr(torch._dynamo.config, "recompile_limit", 2)  # torch's own is 8, which takes half a minute
    policy = _policy("lora", make_pipeline(), compile=True)
    for size in range(1, 5):
        before = len(seen)
        sample_trajectories(policy, policy.params, ["a cat"] * size, num_steps=1, seeds=range(size))
        assert len(seen) > before


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_policy_that_is_trained_whole_keeps_its_promises(make_pipeline, dtype):
    pipeline = make_pipeline()
    policy = _policy("unet", pipeline, dtype=dtype)
    assert policy.params.keys() == dict(pipeline.unet.named_parameters()).keys()
    assert policy.encode(["a cat"]).dtype == dtype
    check_policy(policy, PROMPTS, rtol=1e-4 if dtype == torch.float32 else 5e-2)


def test_adapters_compute_in_the_dtype_of_the_network_and_their_masters_stay_float32(make_pipeline):
    pipeline = make_pipeline()
    policy = _policy("lora", pipeline, dtype=torch.bfloat16)
    seen = []
    adapter = pipeline.unet.get_submodule("mid_block.attentions.0.transformer_blocks.0.attn1.to_q.lora_A.default")
    adapter.register_forward_hook(lambda module, inputs, output: seen.append((inputs[0].dtype, output.dtype)))
    gradients = _gradients(policy)
    assert set(seen) == {(torch.bfloat16, torch.bfloat16)}
    assert {leaf.dtype for leaf in policy.params.values()} == {torch.float32}
    assert gradients.dtype == torch.float32
    assert _difference(gradients, _gradients(_policy("lora", make_pipeline()))) < 0.1


@KINDS
def test_float16_keeps_gradients_that_it_cannot_hold(make_pipeline, trainable):
    # Scaled by 1e-7, the gradients are mostly below the smallest number of float16.
    exact = _gradients(_policy(trainable, make_pipeline()))
    half = _gradients(_policy(trainable, make_pipeline(), dtype=torch.float16), scale=1e-7)
    assert _difference(half, exact) < 0.1


def test_a_scaled_gradient_by_hand():
    leaf = torch.tensor([2.0], requires_grad=True)
    scaled = _scale_gradient(leaf, 8.0)
    assert scaled.item() == 2
    assert torch.autograd.grad(scaled, leaf)[0].item() == 8


def _brightness(images, prompts, metadata):
    return images.mean((1, 2, 3)), {}


DEFAULT = ddpo_is(advantages=per_prompt(min_count=4))


def _train(policy, epochs, state=None, objective=DEFAULT):
    optimizer = adamw(1e-3)
    config = FitConfig(num_steps=3, samples_per_epoch=8, updates_per_epoch=2)
    states = fit(
        init(policy, optimizer, seed=0) if state is None else state,
        policy=policy,
        optimizer=optimizer,
        reward_fn=_brightness,
        prompts=PROMPTS,
        objective=objective,
        config=config,
    )
    return [state for state, _ in islice(states, epochs)][-1]


@pytest.mark.parametrize("objective", [DEFAULT, rwr()], ids=["policy gradient", "regression"])
def test_training_all_weights_resumes_bit_for_bit_and_leaves_the_model_alone(make_pipeline, tmp_path, objective):
    policy = _policy("unet", make_pipeline())
    before = {name: leaf.clone() for name, leaf in policy.params.items()}
    whole, half = _train(policy, 2, objective=objective), _train(policy, 1, objective=objective)
    resumed = load_checkpoint(save_checkpoint(tmp_path, half, policy), policy, adamw(1e-3))
    again = _train(policy, 1, resumed, objective=objective)
    assert all(torch.equal(again.params[name], leaf) for name, leaf in whole.params.items())
    assert all(torch.equal(policy.params[name], leaf) for name, leaf in before.items())
    assert any(not torch.equal(whole.params[name], leaf) for name, leaf in before.items())
