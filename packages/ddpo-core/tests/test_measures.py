"""Signals of samples, derived by hand on images of a few pixels."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ddpo_core import DDPOError, PromptSet, sample_trajectories, toy
from ddpo_core.gaming.measures import image_statistics, initial_kl, negative_kl_measure, prompt_diversity
from ddpo_core.sampling import roll_out

BLACK, WHITE, RED = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), (1.0, 0.0, 0.0)


def picture(*rows):
    """One image of the colours given, `[1, 3, height, width]`."""
    return torch.tensor(rows).permute(2, 0, 1)[None]


def statistics_of(*rows):
    return {name: value.item() for name, value in image_statistics(picture(*rows)).items()}


def test_half_black_and_half_white():
    seen = statistics_of([BLACK, WHITE], [BLACK, WHITE])
    assert seen["saturation"] == 0
    assert seen["dark_fraction"] == seen["bright_fraction"] == 0.5
    # Two pairs beside each other differ, the two below each other do not.
    assert seen["edge_density"] == 0.5
    # Two colours, half each: 1 bit.
    assert seen["colour_entropy"] == pytest.approx(1)
    # It changes sides at every pixel: half a cycle per pixel is all the power there is.
    assert seen["high_frequency_share"] == pytest.approx(1)


def test_saturation_is_that_of_the_colour_and_not_of_its_brightness():
    assert statistics_of([RED, (0.5, 0.0, 0.0)], [(0.8, 0.4, 0.4), WHITE])["saturation"] == pytest.approx(2.5 / 4)


def test_a_slow_wave_has_no_high_frequencies_and_a_fast_one_nothing_else():
    def share(cycles):
        wave = 0.5 + 0.4 * torch.cos(2 * math.pi * cycles * torch.arange(16) / 16)
        return image_statistics(wave.expand(1, 3, 16, 16))["high_frequency_share"].item()

    # 2 / 16 = 1/8 cycle per pixel lies below a quarter, 6 / 16 above.
    assert share(2) == pytest.approx(0, abs=1e-6)
    assert share(6) == pytest.approx(1, abs=1e-6)


def test_every_colour_once_has_the_most_entropy():
    levels = torch.tensor([0.0, 0.3, 0.6, 1.0])
    every = torch.cartesian_prod(levels, levels, levels).T.reshape(1, 3, 8, 8)
    assert image_statistics(every)["colour_entropy"].item() == pytest.approx(6)


@given(st.integers(0, 2**31), st.integers(2, 9), st.integers(2, 9))
def test_statistics_lie_in_their_ranges_and_belong_to_one_image_each(seed, height, width):
    images = torch.rand(3, 3, height, width, generator=torch.Generator().manual_seed(seed))
    together = image_statistics(images)
    alone = [image_statistics(image[None]) for image in images]
    for name, values in together.items():
        assert ((values >= 0) & (values <= (6 if name == "colour_entropy" else 1))).all()
        assert values.tolist() == pytest.approx([each[name].item() for each in alone], abs=1e-5)


@pytest.mark.parametrize("shape", [(2, 2), (1, 1, 4, 4), (1, 3, 1, 4)])
def test_what_is_no_image_has_no_statistics(shape):
    with pytest.raises(DDPOError, match=r"want|need images"):
        image_statistics(torch.zeros(shape))


def test_diversity_is_a_mean_over_pairs_and_then_over_prompts():
    images = torch.tensor([0.0, 0.3, 0.6, 0.0, 0.1])[:, None].expand(5, 4)
    # "a": pairs 0.3, 0.6, 0.3, mean 0.4; "b": 0.1; together 0.25.
    assert prompt_diversity(images, ["a", "a", "a", "b", "b"]) == pytest.approx(0.25)
    assert prompt_diversity(images, ["b", "a", "a", "b", "c"]) == pytest.approx((0.3 + 0.0) / 2)


def test_samples_of_different_prompts_say_nothing_about_diversity():
    assert prompt_diversity(torch.rand(3, 3, 4, 4), ["a", "b", "c"]) is None


def test_the_divergence_from_the_initial_policy_is_that_of_shifted_gaussians():
    policy = toy.policy()
    shifted = policy._replace(
        transition=lambda params, latents, step, conditioning: policy.transition(
            policy.params, latents, step, conditioning
        )._replace(mean=params["shift"].expand(len(latents), 2))
    )
    params = {"shift": torch.tensor(0.5)}
    moved = shifted._replace(params={"shift": torch.tensor(0.0)})
    sampled = sample_trajectories(moved, params, ["left", "right"], num_steps=4, seeds=[0, 1])
    # The mean of 0.5^2 / (2 std^2) over the steps with std > 0.
    stds = [std for std in sampled.timesteps.std.tolist() if std > 0]
    expected = sum(0.125 / std**2 for std in stds) / len(stds)
    assert initial_kl(moved, params, sampled) == pytest.approx(expected, rel=1e-5)
    assert initial_kl(moved, moved.params, sampled) == 0


def test_the_divergence_that_is_kept_is_the_one_that_is_reported():
    policy = toy.policy()
    moved = {name: leaf + 0.2 for name, leaf in policy.params.items()}
    prompts = PromptSet(("left", "right") * 1000, ({},) * 2000)
    drawn = roll_out(policy, moved, toy.reward, prompts, seeds=range(2000), num_steps=4, batch_size=500)
    signal = negative_kl_measure(policy, batch_size=300)(drawn, range(2000))["negative_kl"].double()
    expected, error = initial_kl(policy, moved, drawn.trajectories), signal.std().item() / 2000**0.5
    assert expected > 10 * error
    assert abs(signal.mean().item() + expected) < 4 * error


def test_a_deterministic_policy_has_no_divergence():
    policy = toy.policy(eta=0.0)
    sampled = sample_trajectories(policy, policy.params, ["left"], num_steps=4, seeds=[0])
    with pytest.raises(DDPOError, match="want eta above 0"):
        initial_kl(policy, policy.params, sampled)
