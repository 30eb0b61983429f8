import math

import pytest
import torch
from photo_rewards.plugin import REWARDS
from photo_rewards.rewards import colourfulness, sharpness

from ddpo_rewards import Reward, RewardError
from ddpo_rewards.testing import assert_conforms


@pytest.mark.parametrize(("spec", "make"), [(REWARDS[0], colourfulness), (REWARDS[1], sharpness)])
def test_both_are_rewards(spec, make):
    assert_conforms(Reward(spec, lambda images, prompts, metadata: make()(images)))


def test_grey_is_not_colourful():
    grey = torch.rand(4, 1, 8, 8).expand(-1, 3, -1, -1)
    assert colourfulness()(grey).tolist() == pytest.approx([0.0] * 4, abs=1e-4)


def test_one_colour_has_no_spread_but_a_mean():
    # Pure red: rg = 255, yb = 127.5, no variance: M = 0.3 sqrt(255^2 + 127.5^2).
    red = torch.tensor([1.0, 0.0, 0.0]).view(1, 3, 1, 1).expand(1, 3, 4, 4)
    assert colourfulness()(red).item() == pytest.approx(0.3 * math.hypot(255, 127.5), rel=1e-5)


def test_half_red_and_half_green_has_a_spread():
    # rg is +255 and -255, so its variance is 255^2 and its mean 0; yb is 127.5 everywhere.
    image = torch.zeros(1, 3, 2, 2)
    image[0, 0, 0], image[0, 1, 1] = 1.0, 1.0
    assert colourfulness()(image).item() == pytest.approx(255 + 0.3 * 127.5, rel=1e-5)


def test_the_place_of_pixels_does_not_matter_to_colour():
    images = torch.rand(2, 3, 6, 6)
    order = torch.randperm(36)
    shuffled = images.flatten(2)[:, :, order].view(2, 3, 6, 6)
    torch.testing.assert_close(colourfulness()(shuffled), colourfulness()(images))


def test_a_ramp_is_not_sharp_and_noise_is():
    ramp = torch.linspace(0, 1, 16).view(1, 1, 1, 16).expand(1, 3, 16, 16)
    assert sharpness()(ramp).item() == pytest.approx(0.0, abs=1e-4)
    assert sharpness()(torch.rand(1, 3, 16, 16)).item() > 1000


def test_a_single_white_pixel_has_the_variance_of_the_laplacian():
    # Inside a 5 x 5 image the Laplacian is -4, 1, 1, 1, 1 and four zeros, times 255: mean 0, variance 20 / 9 * 255^2.
    image = torch.zeros(1, 3, 5, 5)
    image[..., 2, 2] = 1.0
    assert sharpness()(image).item() == pytest.approx(20 / 9 * 255**2, rel=1e-5)


def test_blurring_makes_an_image_less_sharp():
    image = torch.rand(1, 3, 32, 32)
    assert sharpness()(torch.nn.functional.avg_pool2d(image, 3, 1, 1)) < sharpness()(image)


def test_a_common_size_makes_resolutions_comparable():
    scene = torch.rand(1, 3, 512, 512, generator=torch.Generator().manual_seed(0))
    large, small = (torch.nn.functional.avg_pool2d(scene, edge) for edge in (2, 4))
    assert sharpness(size=32)(large).item() == pytest.approx(sharpness(size=32)(small).item(), rel=0.1)
    assert sharpness()(large).item() > 2 * sharpness()(small).item()


@pytest.mark.parametrize(
    ("make", "complaint"),
    [(lambda: sharpness(size=-1), "size=-1"), (lambda: sharpness()(torch.rand(1, 3, 2, 9)), "3 x 3")],
)
def test_bad_input_is_one_clear_line(make, complaint):
    with pytest.raises(RewardError, match=complaint):
        make()
