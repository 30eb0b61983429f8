"""Numerical law 3 with the UNet compiled in truth, which takes minutes: `nox -s compiled`."""

import os

import pytest
import torch
from diffusers import DDIMScheduler

from ddpo_core import replay_log_probs, sample_trajectories, save_lora, stable_diffusion_policy

pytestmark = [
    pytest.mark.skipif("DDPO_TEST_COMPILED" not in os.environ, reason="takes minutes: nox -s compiled"),
    # torch.compile looks at the gradients of tensors that are no leaves, and warns itself about it.
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning"),
]

PROMPTS = ["a cat", "a dog"]


def _policy(pipeline, dtype, **options):
    return stable_diffusion_policy(pipeline, guidance_scale=2.0, device="cpu", dtype=dtype, **options)


def _trained(policy):
    """Give leaves that are not the initial ones: of those, half are zeros."""
    generator = torch.Generator().manual_seed(1)
    return {name: leaf + 0.05 * torch.randn(leaf.shape, generator=generator) for name, leaf in policy.params.items()}


@pytest.fixture(scope="module", params=[torch.float32, torch.bfloat16], ids=str)
def drawn(request, make_pipeline):
    """Give a policy that is compiled and one that is not, and what the first drew with trained leaves."""
    compiled, plain = (_policy(make_pipeline(), request.param, compile=compile) for compile in (True, False))
    leaves = _trained(plain)
    return compiled, plain, leaves, sample_trajectories(compiled, leaves, PROMPTS, num_steps=4, seeds=[0, 1])


def _gradients(policy, leaves, sampled):
    leaves = {name: leaf.clone().requires_grad_() for name, leaf in leaves.items()}
    log_probs = replay_log_probs(policy, leaves, sampled, range(4))
    gradients = torch.autograd.grad(log_probs.square().sum(), list(leaves.values()))
    return log_probs.detach(), torch.cat([gradient.flatten() for gradient in gradients])


def test_compiled_ratios_begin_at_1_and_gradients_are_those_of_the_plain_network(drawn):
    compiled, plain, leaves, sampled = drawn
    is_exact = compiled.encode(PROMPTS).dtype == torch.float32
    log_probs, gradient = _gradients(compiled, leaves, sampled)
    # A hundredth of the clip range, with gradients and without.
    assert ((log_probs - sampled.log_probs).exp() - 1).abs().max() <= 1e-6
    _, expected = _gradients(plain, leaves, sampled)
    assert (gradient - expected).norm() <= (1e-4 if is_exact else 5e-2) * expected.norm()


def test_what_is_exported_draws_in_diffusers_what_the_compiled_policy_drew(drawn, make_pipeline, tmp_path):
    compiled, _, leaves, sampled = drawn
    if compiled.encode(PROMPTS).dtype != torch.float32:
        pytest.skip("diffusers scales by guidance in the dtype of the network")
    save_lora(tmp_path, leaves, scale=compiled.lora_scale)
    pipeline = make_pipeline()
    pipeline.load_lora_weights(tmp_path)
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    still = _policy(make_pipeline(), torch.float32, eta=0.0, compile=True)
    latents = sample_trajectories(still, leaves, PROMPTS, num_steps=4, seeds=[0, 1]).latents
    expected = pipeline(
        PROMPTS, num_inference_steps=4, guidance_scale=2.0, eta=0.0, latents=latents[:, 0], output_type="pt"
    ).images
    torch.testing.assert_close(still.decode(latents[:, -1]), expected, rtol=1e-3, atol=1e-4)
    assert not torch.equal(latents[:, -1], sampled.latents[:, -1])
