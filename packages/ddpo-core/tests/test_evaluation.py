"""The same prompts and seeds, before and after."""

import numpy as np
import pytest
import torch

from ddpo_core import DDPOError, Evaluation, as_prompt_set, evaluate, image_grid, toy


def test_equal_parameters_give_equal_images_and_others_do_not():
    policy = toy.policy()
    changed = {**policy.params, "last": torch.full((2, 32), 0.1)}
    look = [
        evaluate(policy, params, toy.reward, ["left", "right", "left"], num_steps=4, seeds=[1, 2, 3], batch_size=2)
        for params in (policy.params, policy.params, changed)
    ]
    assert torch.equal(look[0].images, look[1].images)
    assert not torch.equal(look[0].images, look[2].images)
    assert look[0].info["height"] == look[0].images[:, 1].tolist()
    assert torch.equal(look[0].scores, toy.reward(look[0].images, [], [])[0])


def test_every_prompt_needs_a_seed():
    policy = toy.policy()
    with pytest.raises(DDPOError, match="got 1 prompts; want 2"):
        evaluate(policy, policy.params, toy.reward, ["left"], num_steps=2, seeds=[0, 1])


def test_a_grid_holds_the_pixels_it_was_given():
    images = torch.stack([torch.full((3, 2, 2), value) for value in (0.0, 0.5, 2.0)])
    grid = np.asarray(image_grid(images, columns=2, gap=1))
    # Two rows of two 2x2 images with one white pixel between: 5 x 5; the last place stays white.
    assert grid.shape == (5, 5, 3)
    assert (grid[:2, :2] == 0).all()
    assert (grid[:2, 3:] == 128).all()
    assert (grid[3:, :2] == 255).all()
    assert (grid[2] == 255).all()
    assert (grid[3:, 3:] == 255).all()


def test_a_grid_is_no_wider_than_its_images():
    assert image_grid(torch.zeros(2, 3, 4, 4), columns=8, gap=0).size == (8, 4)


def test_a_notebook_shows_the_scores_and_the_images_with_their_prompts_escaped():
    prompts = as_prompt_set([f"<b>{number}</b>" for number in range(18)])
    shown = Evaluation(torch.zeros(18, 3, 8, 8), torch.arange(18.0), {}, prompts, tuple(range(18)))._repr_html_()
    assert shown.count("data:image/png;base64,") == 16
    assert '<td style="text-align:left">8.5 ± 5.2</td>' in shown  # the mean of 0 to 17; their variance is 323 / 12
    assert "&lt;b&gt;17&lt;/b&gt;: 17" not in shown
    assert 'alt="&lt;b&gt;15&lt;/b&gt;: 15"' in shown
    assert "and 2 more" in shown
    assert "<b>1</b>" not in shown
