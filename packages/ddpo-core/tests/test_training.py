"""The loop: it learns, it is pure, it resumes bit for bit, and it stops aloud."""

from functools import partial
from itertools import islice

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ddpo_core import (
    DDPOError,
    FitConfig,
    Minibatch,
    NonFiniteError,
    Pairs,
    PromptSet,
    ScoreError,
    adamw,
    ddpo_is,
    ddpo_sf,
    ddpo_sf_loss,
    encode_once,
    evaluate,
    fit,
    init,
    load_checkpoint,
    minibatches,
    per_epoch,
    per_prompt,
    policy_gradient,
    replay_log_probs,
    rwr,
    sample_trajectories,
    save_checkpoint,
    stable_diffusion_policy,
    toy,
    train_step,
)
from ddpo_core.distributed import SINGLE

SMALL = FitConfig(num_steps=4, samples_per_epoch=16, updates_per_epoch=2, sample_batch_size=8)
SECONDS = ("sampling", "reward", "training", "training_cpu")
DEFAULT = ddpo_is(advantages=per_prompt(min_count=4))


def _fit(policy, *, state=None, config=SMALL, reward_fn=toy.reward, seed=0, learning_rate=1e-2, **options):
    optimizer = adamw(learning_rate)
    arguments = {"prompts": ["left", "right"], "objective": DEFAULT, **options}
    start = init(policy, optimizer, seed=seed) if state is None else state
    return fit(start, policy=policy, optimizer=optimizer, reward_fn=reward_fn, config=config, **arguments)


def _run(epochs, **options):
    return list(islice(_fit(**options), epochs))


def _last(epochs, **options):
    return _run(epochs, **options)[-1][0]


def _assert_equal(first, second):
    for ours, theirs in ((first.params, second.params), (first.opt_state, second.opt_state)):
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert first.objective_state == second.objective_state
    assert (first.seed, first.epoch, first.queries) == (second.seed, second.epoch, second.queries)


@pytest.fixture(scope="module")
def tiny_policy(make_pipeline):
    return stable_diffusion_policy(make_pipeline(), guidance_scale=2.0, device=torch.device("cpu"), dtype=torch.float32)


def brightness(images, prompts, metadata):
    return images.mean((1, 2, 3)), {"red": images[:, 0].mean((1, 2)).tolist()}


def test_the_toy_learns_its_reward():
    config = FitConfig(
        num_steps=8, samples_per_epoch=128, updates_per_epoch=4, sample_batch_size=128, micro_batch_size=256
    )
    epochs = _run(40, policy=toy.policy(), config=config, objective=ddpo_is(clip_range=0.1))
    # Untrained, the expected score is -(1 + 1 + 2 * 0.3^2) = -2.18.
    assert epochs[0][1].metrics["reward_mean"] == pytest.approx(-2.18, abs=0.3)
    assert epochs[-1][1].metrics["reward_mean"] > -1.2


def test_a_tiny_diffusion_model_learns_brightness(tiny_policy):
    prompts = ["a cat", "a dog"]
    state = _last(
        10,
        policy=tiny_policy,
        reward_fn=brightness,
        prompts=prompts,
        objective=ddpo_is(clip_range=1e-2, advantages=per_prompt(min_count=4)),
        learning_rate=5e-2,
    )
    # The same noise before and after: an untrained model moves by less than its samples differ.
    before, after = (
        evaluate(tiny_policy, params, brightness, prompts * 32, num_steps=4, seeds=range(64)).scores
        for params in (tiny_policy.params, state.params)
    )
    gain = after - before
    assert gain.mean() > 4 * gain.std() / len(gain) ** 0.5


def test_the_state_passed_in_is_untouched():
    policy, optimizer = toy.policy(), adamw(1e-2)
    state = init(policy, optimizer, seed=0)
    before = {name: leaf.clone() for name, leaf in state.params.items()}
    after = _last(1, policy=policy, state=state)
    assert all(torch.equal(state.params[name], before[name]) for name in before)
    assert state.epoch == 0
    assert state.objective_state == {}
    assert not torch.equal(after.params["last"], before["last"])
    assert not any(leaf.requires_grad for leaf in after.params.values())


def test_an_interrupted_run_ends_as_if_nothing_had_happened(tmp_path):
    whole = _last(5, policy=toy.policy())
    saved = save_checkpoint(tmp_path, _last(2, policy=toy.policy()), toy.policy())
    resumed = load_checkpoint(saved, toy.policy(), adamw(1e-2))
    _assert_equal(whole, _last(3, policy=toy.policy(), state=resumed))


def test_an_interrupted_diffusion_run_ends_as_if_nothing_had_happened(tiny_policy, tmp_path):
    run = partial(_last, policy=tiny_policy, reward_fn=brightness, prompts=["a cat", "a dog", "a cow"])
    saved = save_checkpoint(tmp_path, run(1), tiny_policy)
    _assert_equal(run(3), run(2, state=load_checkpoint(saved, tiny_policy, adamw(1e-2))))


@pytest.mark.parametrize(
    ("objective", "places"),
    [
        (policy_gradient(ddpo_sf_loss, timestep_window=2), 4),
        (policy_gradient(ddpo_sf_loss, timestep_window=2, timestep_fraction=0.5), 4),
        (rwr(), 1),
        (DEFAULT, 5),  # three steps have noise; the last one's end is the sample
    ],
    ids=["window", "part of a window", "regression", "all"],
)
def test_only_what_may_be_trained_is_kept_and_the_training_is_the_same(objective, places):
    policy, seen = toy.policy(), []

    def loss(policy, params, trajectories, *others):
        seen.append(trajectories.latents.shape[1])
        return objective.loss(policy, params, trajectories, *others)

    # A window of two moves over the three steps with noise: from 0 and 1 to 1 and 2, and back again.
    kept = _last(3, policy=policy, objective=objective._replace(loss=loss))
    _assert_equal(kept, _last(3, policy=policy, objective=objective._replace(steps=lambda stochastic, epoch: range(4))))
    assert set(seen) == {places}


def test_seeds_decide():
    first, again, other = (_last(1, policy=toy.policy(), seed=seed) for seed in (0, 0, 1))
    _assert_equal(first, again)
    assert not torch.equal(first.params["last"], other.params["last"])


def test_before_the_first_update_the_ratio_is_exactly_1(tiny_policy):
    config = SMALL.model_copy(update={"updates_per_epoch": 1})
    metrics = _run(1, policy=tiny_policy, config=config, reward_fn=brightness, prompts=["a cat"])[0][1].metrics
    assert metrics["ratio_mean"] == 1
    assert metrics["clip_fraction"] == 0
    assert metrics["approx_kl"] == 0
    assert {metrics[f"log_prob_change/{step}"] for step in range(4)} == {0}


@pytest.mark.parametrize("sizes", [{"micro_batch_size": 1}, {"micro_batch_size": 5}, {"sample_batch_size": 3}])
def test_batch_sizes_change_the_update_within_float_tolerance_only(sizes):
    reference = _last(2, policy=toy.policy())
    other = _last(2, policy=toy.policy(), config=SMALL.model_copy(update=sizes))
    for name, leaf in reference.params.items():
        torch.testing.assert_close(other.params[name], leaf, rtol=1e-4, atol=1e-5)


def test_an_update_is_the_mean_gradient_over_all_pairs():
    # One plain gradient step with learning rate 1 and nothing else: the parameters move by minus the gradient.
    policy = toy.policy()
    descend = adamw(1e-3)._replace(
        update=lambda gradients, state, params: ({name: params[name] - gradients[name] for name in params}, state)
    )
    state = init(policy, descend, seed=0)
    sampled = sample_trajectories(policy, state.params, ["left", "right"], num_steps=4, seeds=[0, 1])
    advantages, pairs = torch.tensor([1.0, -2.0]), Pairs(torch.tensor([0, 0, 1]), torch.tensor([0, 2, 1]))
    after, metrics = train_step(
        state,
        sampled,
        advantages,
        pairs,
        policy=policy,
        optimizer=descend,
        objective=ddpo_sf(),
        micro_batch_size=2,
        max_grad_norm=1e9,
    )
    leaves = {name: leaf.clone().requires_grad_() for name, leaf in state.params.items()}
    chosen = replay_log_probs(policy, leaves, sampled, range(4))[pairs.samples, pairs.steps]
    loss = -(advantages[pairs.samples] * chosen).mean()
    gradients = dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))
    torch.testing.assert_close(metrics["loss"], loss.detach())
    for name, gradient in gradients.items():
        torch.testing.assert_close(state.params[name] - after.params[name], gradient, rtol=1e-4, atol=1e-6)


def test_large_gradients_are_scaled_to_the_norm():
    policy = toy.policy()
    moved = adamw(1e-3)._replace(update=lambda gradients, state, params: (gradients, state))
    state = init(policy, moved, seed=0)
    sampled = sample_trajectories(policy, state.params, ["left"], num_steps=4, seeds=[0])
    pairs = Pairs(torch.tensor([0]), torch.tensor([0]))
    after, metrics = train_step(
        state,
        sampled,
        torch.tensor([1e6]),
        pairs,
        policy=policy,
        optimizer=moved,
        objective=ddpo_sf(),
        micro_batch_size=8,
        max_grad_norm=0.5,
    )
    assert metrics["grad_norm"] > 0.5
    torch.testing.assert_close(torch.nn.utils.get_total_norm(list(after.params.values())), torch.tensor(0.5))


def test_only_the_chosen_fraction_of_steps_is_computed():
    policy, trained = toy.policy(), []

    def watched(params, latents, step, conditioning):
        if torch.is_grad_enabled():
            trained.extend(step.time.tolist())
        return policy.transition(params, latents, step, conditioning)

    config = SMALL.model_copy(update={"num_steps": 5})
    _run(1, policy=policy._replace(transition=watched), config=config, objective=ddpo_is(timestep_fraction=0.5))
    table = policy.timesteps(5)
    # Four of five steps are stochastic; half of them for each of 16 samples.
    assert len(trained) == 2 * 16
    assert set(trained) == set(table.time[:4].tolist())


def test_the_chosen_steps_depend_on_seed_epoch_and_index_alone():
    policy, objective = toy.policy(), ddpo_is(timestep_fraction=0.3)
    sampled = sample_trajectories(policy, policy.params, ["left"] * 2, num_steps=11, seeds=[0, 1])

    def choose(samples, indices, epoch=2):
        return objective.choose(policy, sampled, torch.ones(2), Minibatch(samples, indices, 1, epoch))

    both = choose([0, 1], [7, 8])
    assert torch.equal(both.steps[3:], choose([0], [8]).steps)
    assert both.samples.tolist() == [0, 0, 0, 1, 1, 1]
    several = {tuple(choose([0], [7], epoch).steps.tolist()) for epoch in range(10)}
    assert len(several) > 5


def test_every_prompt_is_drawn_as_often_as_asked():
    config = SMALL.model_copy(update={"samples_per_prompt": 4})
    prompts = [str(number) for number in range(100)]
    policy = toy.policy()._replace(encode=lambda drawn: torch.zeros(len(drawn), 2))
    drawn = _run(1, policy=policy, config=config, prompts=prompts)[0][1].prompts
    assert [len(set(drawn[start : start + 4])) for start in range(0, 16, 4)] == [1] * 4
    assert len(set(drawn)) == 4


def _trained(policy, config, **options):
    """What the network saw in every micro-batch that was trained: latents, times and conditioning."""
    seen = []

    def watched(params, latents, step, conditioning):
        if torch.is_grad_enabled():
            seen.append((latents, step.time, conditioning))
        return policy.transition(params, latents, step, conditioning)

    _run(1, policy=policy._replace(transition=watched), config=config, **options)
    return seen


def test_minibatches_mix_the_samples_of_a_prompt_that_stand_side_by_side_anew_in_every_pass():
    sizes = {"samples_per_epoch": 64, "samples_per_prompt": 16, "updates_per_epoch": 4, "passes_per_epoch": 2}
    # Three of the four steps are trained, so that 48 pairs are the 16 samples of a minibatch.
    config = SMALL.model_copy(update={**sizes, "micro_batch_size": 48})
    policy = toy.policy()._replace(encode=lambda drawn: torch.tensor([[float(name), 0.0] for name in drawn]))
    seen = _trained(policy, config, prompts=[str(number) for number in range(1000)])
    assert len(seen) == 2 * 4
    assert all(len(conditioning.unique(dim=0)) > 1 for _, _, conditioning in seen)
    minibatches = [frozenset(map(tuple, latents.tolist())) for latents, _, _ in seen]
    assert frozenset.union(*minibatches[:4]) == frozenset.union(*minibatches[4:])
    assert not set(minibatches[:4]) & set(minibatches[4:])


def test_every_pass_trains_all_samples_on_other_steps():
    sizes = {"num_steps": 9, "passes_per_epoch": 3, "updates_per_epoch": 1}
    # Half of the eight stochastic steps of each of 16 samples.
    config = SMALL.model_copy(update={**sizes, "micro_batch_size": 64})
    seen = _trained(toy.policy(), config, objective=ddpo_is(timestep_fraction=0.5))
    passes = [frozenset(map(tuple, latents.tolist())) for latents, _, _ in seen]
    assert len(passes) == len(set(passes)) == 3


def test_a_policy_without_noise_has_nothing_to_train():
    with pytest.raises(DDPOError, match="nothing to train: want eta above 0"):
        next(_fit(toy.policy(eta=0.0)))


def test_the_penalty_keeps_the_policy_near_its_start():
    distances = []
    for kl_weight in (0.0, 100.0):
        objective = ddpo_is(clip_range=0.1, kl_weight=kl_weight, advantages=per_prompt(min_count=4))
        state, info = _run(8, policy=toy.policy(), objective=objective)[-1]
        assert ("kl" in info.metrics) == (kl_weight > 0)
        distances.append(state.params["last"].norm().item())
    assert distances[1] < distances[0]


def test_what_an_epoch_reports(tiny_policy):
    prompts = PromptSet(("a cat", "a dog"), ({"id": 0}, {"id": 1}))
    (state, info), (_, second) = _run(2, policy=tiny_policy, reward_fn=brightness, prompts=prompts)
    assert (state.epoch, info.epoch, second.epoch) == (1, 1, 2)
    assert (info.queries, second.queries) == (16, 32)
    assert info.images.shape == (16, 3, 16, 16)
    assert len(info.prompts) == len(info.metadata) == len(info.info["red"]) == 16
    assert all(prompts.prompts[row["id"]] == prompt for prompt, row in zip(info.prompts, info.metadata, strict=True))
    torch.testing.assert_close(info.scores, info.images.mean((1, 2, 3)))
    expected = {"reward_mean", "reward_std", "reward_min", "reward_max", "loss", "grad_norm", "approx_kl", "ratio_mean"}
    expected |= {"clip_fraction", "clip_fraction_high", "clip_fraction_low", "prompts_without_spread"}
    expected |= {*(f"log_prob_change/{step}" for step in range(4)), *(f"seconds_{part}" for part in SECONDS)}
    assert info.metrics.keys() == expected


def test_progress_is_reported_within_an_epoch():
    reports = []
    _run(1, policy=toy.policy(), progress=lambda phase, done, total: reports.append((phase, done, total)))
    # 16 samples in batches of 8; three stochastic steps each, in micro-batches of 8 of each update's 24 pairs.
    assert reports == [
        *(("sampling", done, 16) for done in (8, 16)),
        *(("training", done, 48) for done in (8, 16, 24, 32, 40, 48)),
    ]


def test_prompts_are_encoded_once_in_a_whole_run():
    policy, encoded = toy.policy(), []

    def encode(prompts):
        encoded.extend(prompts)
        return policy.encode(prompts)

    _run(3, policy=policy._replace(encode=encode))
    assert sorted(encoded) == ["left", "right"]


def test_only_the_latest_prompts_are_remembered_and_asked_again_give_the_same():
    encoded = []

    def encode(prompts):
        encoded.extend(prompts)
        return toy.policy().encode(prompts)

    remembering = encode_once(encode, capacity=1)
    first = remembering(["left", "right", "left"])
    assert encoded == ["left", "right", "left"]
    assert torch.equal(first, toy.policy().encode(["left", "right", "left"]))


def test_a_text_instead_of_prompts_is_refused_before_anything_is_sampled():
    with pytest.raises(DDPOError, match="got the text 'left' as prompts"):
        next(_fit(toy.policy(), prompts="left", reward_fn=lambda *_: pytest.fail("the reward was called")))


def test_integer_rewards_train_like_their_numbers():
    def rounded(points, prompts, metadata, dtype):
        return (10 * points[:, 1]).round().to(dtype), {}

    dtypes = (torch.int64, torch.float32)
    _assert_equal(*(_last(1, policy=toy.policy(), reward_fn=partial(rounded, dtype=dtype)) for dtype in dtypes))


@pytest.mark.parametrize("baseline", [per_epoch(), per_prompt(buffer_size=8, min_count=1)], ids=["epoch", "prompt"])
def test_advantages_are_compared_and_clipped_and_what_is_remembered_is_in_the_state(baseline):
    state, info = _run(1, policy=toy.policy(), objective=ddpo_is(advantages=baseline, advantage_clip=0.7))[0]
    remembered, expected = baseline({}, info.prompts, info.scores)
    assert state.objective_state == remembered
    torch.testing.assert_close(info.advantages, expected.clamp(-0.7, 0.7))


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (lambda count: None, r"returned None; want a pair \(scores, info\)"),
        (lambda count: torch.zeros(count), "want a pair"),
        (lambda count: (torch.zeros(count + 1), {}), r"shape \(9,\) for 8 images; want \(8,\)"),
        (lambda count: (torch.zeros(count, 1), {}), r"shape \(8, 1\) for 8 images"),
        (lambda count: (["high"] * count, {}), "want 8 numbers"),
        (lambda count: ("high", {}), "'high'; want 8 numbers"),
        (lambda count: ([0.0] * (count - 1) + [float("nan")], {}), "returned nan for image 7 of 8"),
        (lambda count: (torch.zeros(count), None), "want a dict of lists"),
        (lambda count: (torch.zeros(count), {"words": ["a"]}), r"info\['words'\] = \['a'\]; want 8 entries"),
    ],
)
def test_a_reward_that_breaks_the_contract_is_named(returned, message):
    with pytest.raises(ScoreError, match=message) as caught:
        next(_fit(toy.policy(), reward_fn=lambda images, prompts, metadata: returned(len(images))))
    assert "\n" not in str(caught.value)


def test_an_exception_of_the_reward_passes_through():
    def broken(images, prompts, metadata):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        next(_fit(toy.policy(), reward_fn=broken))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_images_that_are_not_finite_stop_the_run_before_the_reward_sees_them(value):
    policy = toy.policy()
    broken = policy._replace(decode=lambda latents: policy.decode(latents).index_fill(1, torch.tensor([0]), value))
    with pytest.raises(NonFiniteError, match="images that are NaN or infinite"):
        next(_fit(broken, reward_fn=lambda *_: pytest.fail("the reward was called")))


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_state():
    def infinite_later(log_probs, old_log_probs, advantages):
        loss, metrics = ddpo_sf_loss(log_probs, old_log_probs, advantages)
        return (loss * float("inf") if healthy else loss), metrics

    healthy = []
    epochs = _fit(toy.policy(), objective=policy_gradient(infinite_later))
    state, _ = next(epochs)
    kept = {name: leaf.clone() for name, leaf in state.params.items()}
    healthy.append(None)
    with pytest.raises(NonFiniteError, match=r"epoch 2: .*loss.*parameters.* stopped being finite"):
        next(epochs)
    assert all(torch.equal(state.params[name], kept[name]) for name in kept)


def test_parameters_that_are_not_finite_stop_the_run():
    policy, optimizer = toy.policy(), adamw(1e-2)

    def diverge(gradients, state, params):
        return {name: leaf + float("inf") for name, leaf in params.items()}, state

    diverging = optimizer._replace(update=diverge)
    epochs = fit(
        init(policy, diverging, seed=0),
        policy=policy,
        optimizer=diverging,
        reward_fn=toy.reward,
        prompts=["left"],
        objective=DEFAULT,
        config=SMALL.model_copy(update={"updates_per_epoch": 1}),
    )
    with pytest.raises(NonFiniteError, match="epoch 1: parameters stopped being finite"):
        next(epochs)


def test_half_precision_masters_are_refused():
    policy = toy.policy()
    halved = policy._replace(params={name: leaf.half() for name, leaf in policy.params.items()})
    with pytest.raises(ValueError, match=r"must be float32.*first \(torch.float16\)"):
        init(halved, adamw(1e-3), seed=0)


def test_a_negative_seed_is_refused():
    with pytest.raises(ValueError, match="seed=-1: want at least 0"):
        init(toy.policy(), adamw(1e-3), seed=-1)


def test_no_prompts_are_refused():
    with pytest.raises(DDPOError, match="got 0 prompts; want at least one"):
        next(_fit(toy.policy(), prompts=[]))


def test_samples_that_cannot_be_shared_are_refused():
    with pytest.raises(DDPOError, match="want a multiple of 6"):
        next(_fit(toy.policy(), processes=SINGLE._replace(size=3)))


@given(updates=st.integers(1, 4), share=st.integers(1, 3), size=st.integers(1, 4), passes=st.integers(1, 3))
def test_processes_share_every_minibatch_of_every_pass_equally(updates, share, size, passes):
    samples = updates * share * size
    deal = partial(minibatches, samples, updates, passes=passes, seed=3, epoch=5)
    ranks = [list(deal(processes=SINGLE._replace(rank=rank, size=size))) for rank in range(size)]
    # What one process trains together is what several do.
    for whole, *parts in zip(deal(), *ranks, strict=True):
        assert [len(part.indices) for part in parts] == [share] * size
        assert (
            sorted(index for part in parts for index in part.indices) == sorted(whole.indices) == sorted(whole.samples)
        )
    for dealt in ranks:
        # A process owns the same samples in every pass, and samples them in ascending order.
        owned = [
            sorted(index for part in dealt if part.pass_index == place for index in part.indices)
            for place in range(passes)
        ]
        assert all(own == owned[0] for own in owned)
        assert all([owned[0][row] for row in part.samples] == list(part.indices) for part in dealt)


def test_what_processes_gather_is_weighed_in_global_order():
    # Two processes: what the other one would have scored stands in for it, told from its indices alone.
    config, policy = SMALL.model_copy(update={"num_steps": 2}), toy.policy()
    weighed = []

    def weigh(state, prompts, scores):
        weighed.append(scores)
        return state, torch.zeros(16)

    def reward(points, prompts, metadata):
        return points[:, 0], {}

    whole = _run(1, policy=policy, config=config, reward_fn=reward)[0][1].scores
    owned = [sorted(i for part in minibatches(16, 2, seed=0, epoch=0, processes=SINGLE._replace(rank=rank, size=2))
                    for i in part.indices) for rank in range(2)]  # fmt: skip
    pair = SINGLE._replace(size=2, gather=lambda own: torch.stack([own, whole[owned[1]]]))
    next(_fit(policy, config=config, reward_fn=reward, processes=pair, objective=DEFAULT._replace(weigh=weigh)))
    torch.testing.assert_close(weighed[0], whole, rtol=1e-4, atol=1e-4)
    assert owned[0] != list(range(8))
