"""The conformance test of policies lets good ones pass, and catches every kind of broken one."""

import pytest
import torch

from ddpo_core import Policy, toy
from ddpo_core.testing import check_policy

TOY, PROMPTS = toy.policy(), ["left", "right"]


def _noise_of_the_batch(seeds, num_steps):
    """Every sample's noise is drawn from the sum of the seeds."""
    together = torch.stack([TOY.noise([sum(seeds) + place], num_steps)[0] for place in range(len(seeds))])
    return together


def _noise_of_the_place(seeds, num_steps):
    return TOY.noise([seed + place for place, seed in enumerate(seeds)], num_steps)


def _noise_of_the_last(seeds, num_steps):
    """The first seed decides, unless there are more than two."""
    return TOY.noise([seed + (7 if len(seeds) > 2 else 0) for seed in seeds], num_steps)


def _noise_of_company(seeds, num_steps):
    return TOY.noise([seed + (7 if len(seeds) == 1 else 0) for seed in seeds], num_steps)


def _encode_together(prompts):
    return TOY.encode(prompts) + 0.1 * len(set(prompts))


def _decode_normalised(latents):
    return latents.float() / latents.float().std(0, correction=0).clamp(min=1e-3).mean()


def _mutating(params, *arguments):
    params["bias"] += 1e-3
    return TOY.transition(params, *arguments)


def _detached(params, *arguments):
    transition = TOY.transition(params, *arguments)
    return transition._replace(mean=transition.mean.detach())


def _endless_slope(params, *arguments):
    transition = TOY.transition(params, *arguments)
    # The root of 0 has an infinite slope.
    return transition._replace(
        mean=transition.mean + sum((leaf - leaf.detach()).abs().sqrt().sum() for leaf in params.values())
    )


def _always_random(params, latents, step, conditioning):
    transition = TOY.transition(params, latents, step, conditioning)
    return transition._replace(std=transition.std.clamp(min=0.1))


def _error(change):
    def measure(params, clean, noise, time, conditioning):
        return change(TOY.denoising_error(params, clean, noise, time, conditioning))

    return measure


def _error_of_noise(*arguments):
    return TOY.denoising_error(*arguments) + torch.rand(len(arguments[1]))


class _Drifting(Policy):
    """A policy whose fingerprint is another whenever one asks."""

    calls = 0

    @property
    def fingerprint(self):
        type(self).calls += 1
        return str(self.calls)


class _OfParams(Policy):
    """A policy whose fingerprint counts what is trained."""

    @property
    def fingerprint(self):
        return str(len(self.params))


BROKEN = {
    "other seeds, the same latents": (
        {"noise": lambda seeds, n: TOY.noise([0] * len(seeds), n)},
        "a sample depends|other seeds",
    ),
    "noise of the batch": ({"noise": _noise_of_the_batch}, "a sample depends on the seed beside it"),
    "noise of the place": ({"noise": _noise_of_the_place}, "a sample depends on its place in the batch"),
    "noise of the number": ({"noise": _noise_of_the_last}, "depends on the number of samples beside it"),
    "noise of company": ({"noise": _noise_of_company}, "a sample depends on not being alone"),
    "encoded together": ({"encode": _encode_together}, "a sample depends on the prompt beside it"),
    "decoded together": ({"decode": _decode_normalised}, "what is decoded of a sample depends on"),
    "decoded to halves": ({"decode": lambda latents: latents.half()}, "decode must give float32"),
    "decoded too few": ({"decode": lambda latents: latents[:1].float()}, "one row per sample"),
    "changed parameters": ({"transition": _mutating}, "sampling changed the parameters|something is remembered"),
    "no gradient": (
        {"transition": _detached},
        "no gradient of the log-probabilities reaches any leaf",
    ),
    "an infinite gradient": ({"transition": _endless_slope}, "a gradient of the log-probabilities is not finite"),
    "a random last step": ({"transition": _always_random}, "a deterministic step has a log-probability"),
    "an error for all": ({"denoising_error": _error(torch.sum)}, "one number per sample"),
    "a double error": ({"denoising_error": _error(torch.Tensor.double)}, "denoising_error must give float32"),
    "a NaN": ({"denoising_error": _error(lambda errors: errors * float("nan"))}, "a denoising error is not finite"),
    "a negative error": ({"denoising_error": _error(torch.neg)}, "a denoising error is negative"),
    "an error of the batch": (
        {"denoising_error": _error(lambda errors: errors + errors.mean())},
        "a denoising error depends on the samples beside it",
    ),
    "an error of the number": (
        {"denoising_error": _error(lambda errors: errors + len(errors) % 2)},
        "a denoising error depends on not being alone",
    ),
    "a drawn error": ({"denoising_error": _error_of_noise}, "the same call gave another denoising error"),
    "an error without gradient": (
        {"denoising_error": lambda params, *given: TOY.denoising_error({**params, "bias": TOY.params["bias"]}, *given)},
        r"no gradient of the denoising error reaches \['bias'\]",
    ),
    "no times": ({"num_train_timesteps": 0}, "needs its num_train_timesteps"),
    "a number for a fingerprint": ({"fingerprint": 7}, "the fingerprint must be a text"),
    "an endless LoRA scale": ({"lora_scale": float("inf")}, "the LoRA scale must be a finite number"),
    "half-precision leaves": (
        {"params": {name: leaf.double() for name, leaf in TOY.params.items()}},
        "trainable leaves must be float32",
    ),
}


def test_a_policy_that_keeps_its_promises_passes():
    check_policy(TOY, PROMPTS)
    check_policy(TOY._replace(denoising_error=None, num_train_timesteps=0), PROMPTS)
    check_policy(TOY._replace(fingerprint="toy", lora_scale=0.5), PROMPTS)


@pytest.mark.parametrize("kind", BROKEN)
def test_every_broken_promise_is_caught(kind):
    changes, message = BROKEN[kind]
    with pytest.raises(AssertionError, match=message):
        check_policy(TOY._replace(**changes), PROMPTS)


@pytest.mark.parametrize("kind", [_Drifting, _OfParams])
def test_a_fingerprint_that_changes_is_caught(kind):
    with pytest.raises(AssertionError, match="the fingerprint changes"):
        check_policy(kind(*TOY), PROMPTS)


def test_two_prompts_are_needed_to_see_anything():
    with pytest.raises(AssertionError, match="want two different ones"):
        check_policy(TOY, ["left", "left"])
