"""The sampler against diffusers' own, and where its noise ends."""

import re
from itertools import product

import pytest
import torch
from diffusers import (
    CMStochasticIterativeScheduler,
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EDMEulerScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    PNDMScheduler,
)

from ddpo_core.diffusion.ddim import (
    Schedule,
    ddim_schedule,
    ddim_scheduler,
    ddim_timesteps,
    ddim_transition,
    warn_of_a_stub,
)
from ddpo_core.errors import DDPOError
from ddpo_core.sampling import stochastic_steps, take_rows

NUM_STEPS = 7
SCHEDULERS = [
    {"prediction_type": prediction, "steps_offset": offset, "set_alpha_to_one": to_one, "timestep_spacing": spacing}
    for prediction, offset, to_one, spacing in product(
        ("epsilon", "sample", "v_prediction"), (0, 1), (True, False), ("leading", "trailing")
    )
]


def _scheduler(**config):
    return DDIMScheduler(**{"beta_schedule": "scaled_linear", "clip_sample": False, **config})


def _diffusers_step(scheduler, output, time, latents, eta, noise):
    """Step with diffusers in float64, so that only our own rounding is measured."""
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.double()
    scheduler.final_alpha_cumprod = scheduler.final_alpha_cumprod.double()
    step = scheduler.step(output.double(), time, latents.double(), eta=eta, variance_noise=noise.double())
    return step.prev_sample


@pytest.mark.parametrize("clip_sample", [False, True])
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("config", SCHEDULERS, ids=lambda config: "-".join(str(value) for value in config.values()))
def test_every_step_is_that_of_diffusers(config, eta, clip_sample):
    scheduler = _scheduler(**config, clip_sample=clip_sample)
    table = ddim_timesteps(ddim_schedule(scheduler, NUM_STEPS), prediction_type=config["prediction_type"], eta=eta)
    scheduler.set_timesteps(NUM_STEPS)
    generator = torch.Generator().manual_seed(0)
    assert table.time.tolist() == scheduler.timesteps.tolist()
    for step, time in enumerate(scheduler.timesteps):
        latents, output, noise = torch.randn(3, 2, 4, 4, 4, generator=generator)
        rows = take_rows(table, torch.tensor([step, step]))
        mean, std = ddim_transition(latents, output, rows, clip_range=1.0 if clip_sample else None)
        expected = _diffusers_step(scheduler, output, time, latents, eta, noise)
        # The float32 weights of latents and output reach about 13 at the noisiest step: absolute error 13 * 2^-24 * 4.
        torch.testing.assert_close((mean + std * noise).double(), expected, rtol=1e-5, atol=3e-6)


def test_a_batch_may_be_at_different_steps():
    table = ddim_timesteps(ddim_schedule(_scheduler(), NUM_STEPS), prediction_type="epsilon", eta=1.0)
    latents, output = torch.randn(2, 3, 4, 2, 2, generator=torch.Generator().manual_seed(0))
    together = ddim_transition(latents, output, take_rows(table, torch.tensor([5, 0, 2])))
    for row, step in enumerate((5, 0, 2)):
        alone = ddim_transition(latents[row : row + 1], output[row : row + 1], take_rows(table, torch.tensor([step])))
        assert torch.equal(alone.mean[0], together.mean[row])
        assert torch.equal(alone.std[0], together.std[row])


@pytest.mark.parametrize(
    ("steps_offset", "set_alpha_to_one", "last_is_deterministic"),
    [(0, False, True), (0, True, True), (1, True, True), (1, False, False)],
)
def test_the_last_step_ends_where_the_scheduler_says(steps_offset, set_alpha_to_one, last_is_deterministic):
    # Its std is 0 if it leaves at alpha 1 (set_alpha_to_one), or at the alpha it entered with (offset 0, alpha_0 to
    # alpha_0). Entering at t = 1 and leaving at alpha_0 it is positive.
    scheduler = _scheduler(steps_offset=steps_offset, set_alpha_to_one=set_alpha_to_one)
    table = ddim_timesteps(ddim_schedule(scheduler, NUM_STEPS), prediction_type="epsilon", eta=1.0)
    assert torch.isfinite(torch.stack(list(table[1:]))).all()
    assert (table.std[-1] == 0).item() is last_is_deterministic
    assert stochastic_steps(table) == tuple(range(NUM_STEPS - last_is_deterministic))


def test_nothing_is_stochastic_at_eta_0():
    table = ddim_timesteps(ddim_schedule(_scheduler(), NUM_STEPS), prediction_type="epsilon", eta=0.0)
    assert stochastic_steps(table) == ()


def test_zero_terminal_signal_is_sampled_from_v_and_refused_for_epsilon():
    scheduler = _scheduler(rescale_betas_zero_snr=True, timestep_spacing="trailing")
    schedule = ddim_schedule(scheduler, NUM_STEPS)
    table = ddim_timesteps(schedule, prediction_type="v_prediction", eta=1.0)
    assert torch.isfinite(torch.stack(list(table[1:]))).all()
    # diffusers leaves 4096 * eps of signal at most; put the exact zero that other schedulers have.
    silent = schedule._replace(alphas=torch.cat([torch.zeros(1, dtype=torch.float64), schedule.alphas[1:]]))
    with pytest.raises(ValueError, match="use v_prediction or sample"):
        ddim_timesteps(silent, prediction_type="epsilon", eta=1.0)


@pytest.mark.parametrize("eta", [-0.1, 1.5, float("nan")])
def test_eta_outside_0_to_1_is_refused(eta):
    with pytest.raises(ValueError, match=r"eta=.*want a number from 0"):
        ddim_timesteps(ddim_schedule(_scheduler(), 3), prediction_type="epsilon", eta=eta)


def test_an_unknown_prediction_type_is_refused():
    schedule = Schedule(torch.tensor([1]), torch.tensor([0.5]).double(), torch.tensor([0.9]).double())
    with pytest.raises(ValueError, match="prediction_type='flow'"):
        ddim_timesteps(schedule, prediction_type="flow", eta=1.0)


@pytest.mark.parametrize("num_steps", [0, 1001])
def test_impossible_step_counts_are_refused(num_steps):
    with pytest.raises(DDPOError, match=f"num_steps={num_steps}: want 1 to 1000"):
        ddim_schedule(_scheduler(), num_steps)


def test_a_configuration_that_says_nothing_about_clipping_does_not_clip():
    assert ddim_scheduler(EulerDiscreteScheduler()).config.clip_sample is False
    assert ddim_scheduler(DDPMScheduler(clip_sample=True)).config.clip_sample is True


def test_dynamic_thresholding_is_refused():
    with pytest.raises(DDPOError, match="thresholding=True"):
        ddim_scheduler(DDPMScheduler(thresholding=True))


@pytest.mark.parametrize(
    "scheduler",
    [DDIMScheduler(), DDPMScheduler(), PNDMScheduler(), EulerDiscreteScheduler(), DPMSolverMultistepScheduler()],
    ids=lambda scheduler: type(scheduler).__name__,
)
def test_every_scheduler_of_a_noising_chain_is_read(scheduler):
    assert torch.equal(ddim_scheduler(scheduler).alphas_cumprod, DDIMScheduler().alphas_cumprod)


@pytest.mark.parametrize(
    "scheduler",
    [
        EDMEulerScheduler(),
        FlowMatchEulerDiscreteScheduler(),
        CMStochasticIterativeScheduler(),
        DPMSolverMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction"),
    ],
    ids=lambda scheduler: type(scheduler).__name__,
)
def test_other_noise_is_refused_and_not_sampled_as_garbage(scheduler):
    with pytest.raises(
        DDPOError, match=rf"scheduler is a {type(scheduler).__name__}.*not that of a DDPM.*want a model"
    ):
        ddim_scheduler(scheduler)


@pytest.mark.parametrize("num_steps", [6, 7, 11, 15])
def test_a_number_of_steps_that_leaves_a_stub_is_warned_of(num_steps):
    # 1000 / 6 = 166.67: the last step goes from timestep 166 to 166 - 166 = 0, where alpha is not yet 1.
    scheduler = _scheduler(timestep_spacing="trailing")
    with pytest.warns(UserWarning, match=rf"num_steps={num_steps} divides the 1000.*training hardly learns") as caught:
        warn_of_a_stub(scheduler, num_steps)
    named = [int(count) for count in re.findall(r"want num_steps=(\d+) or (\d+)", str(caught[0].message))[0]]
    assert named[0] < num_steps < named[1]
    for count in named:
        warn_of_a_stub(scheduler, count)
        assert ddim_timesteps(ddim_schedule(scheduler, count), prediction_type="epsilon", eta=1.0).std[-1] == 0


@pytest.mark.parametrize(
    ("config", "num_steps"),
    [
        ({"timestep_spacing": "trailing"}, 50),
        ({"timestep_spacing": "leading", "steps_offset": 1}, 6),
        ({"timestep_spacing": "leading", "steps_offset": 1, "set_alpha_to_one": False}, 50),
        ({"timestep_spacing": "trailing", "set_alpha_to_one": False}, 6),
        ({"timestep_spacing": "linspace"}, 6),
        ({"timestep_spacing": "trailing"}, 1),
    ],
    ids=str,
)
def test_where_every_number_of_steps_ends_alike_there_is_no_warning(config, num_steps):
    warn_of_a_stub(_scheduler(**config), num_steps)
