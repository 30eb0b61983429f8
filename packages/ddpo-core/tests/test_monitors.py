"""Watching a run: it composes with `fit`, changes nothing, and goes on where it stopped."""

import json
from dataclasses import asdict
from functools import partial
from itertools import islice

import pytest
import torch

from ddpo_core import DDPOError, FitConfig, adamw, ddpo_is, fit, init, load_checkpoint, save_checkpoint, toy
from ddpo_core.gaming.measures import image_statistics
from ddpo_core.gaming.monitors import diversity_monitor, every, held_out_monitor, image_monitor, kl_monitor, watch
from ddpo_core.gaming.rule import Observation, Thresholds, Verdict, assess

POLICY, OPTIMIZER = toy.policy(), adamw(3e-2)
CONFIG = FitConfig(num_steps=4, samples_per_epoch=16, samples_per_prompt=2, sample_batch_size=16, updates_per_epoch=1)
RULE = partial(assess, thresholds=Thresholds(baseline_epochs=3, window=2))


def start():
    return init(POLICY, OPTIMIZER, seed=0)


def train(state, reward_fn=toy.reward, policy=POLICY):
    return fit(
        state,
        policy=policy,
        optimizer=OPTIMIZER,
        reward_fn=reward_fn,
        prompts=["left", "right"],
        objective=ddpo_is(clip_range=0.1),
        config=CONFIG,
    )


def height(points, prompts, metadata):
    return points[:, 1], {}


def monitors():
    return [diversity_monitor, kl_monitor(POLICY, ["left", "right"], num_steps=4, seeds=[0, 1])]


def judges():
    return held_out_monitor(POLICY, {"goal": toy.reward, "height": height}, ["left"] * 3, num_steps=4, seeds=range(3))


def test_watching_changes_nothing_about_training():
    plain = [state for state, _ in islice(train(start()), 3)]
    watched = [seen.state for seen in islice(watch(train(start()), monitors=monitors(), held_out=judges()), 3)]
    for one, other in zip(plain, watched, strict=True):
        assert all(torch.equal(one.params[name], other.params[name]) for name in one.params)


def test_an_epoch_is_observed_as_it_was():
    *_, (state, info, history, _) = islice(watch(train(start()), monitors=monitors(), held_out=judges()), 2)
    assert [observation.epoch for observation in history] == [1, 2]
    assert history[-1].reward == info.metrics["reward_mean"]
    assert history[-1].signals["kl"] > 0
    assert history[-1].signals["diversity"] > 0
    # The same prompts and seeds drawn once more, by the state that came with it.
    assert history[-1].held_out == judges()(state, info)


def test_before_training_the_divergence_is_zero():
    _, info = next(train(start()))
    assert kl_monitor(POLICY, ["left"], num_steps=4, seeds=[0])(start(), info) == {"kl": 0.0}


def test_a_resumed_run_is_judged_bit_for_bit_as_if_it_had_never_stopped(tmp_path):
    def watched(state, history=()):
        return watch(train(state), monitors=monitors(), held_out=judges(), rule=RULE, history=history)

    uninterrupted = list(islice(watched(start()), 6))
    *_, stopped = islice(watched(start()), 3)
    saved = save_checkpoint(tmp_path, stopped.state, POLICY)
    text = json.dumps([asdict(observation) for observation in stopped.history])

    read = [Observation(**row) for row in json.loads(text)]
    resumed = list(islice(watched(load_checkpoint(saved, POLICY, OPTIMIZER), read), 3))
    assert [seen.verdict for seen in resumed] == [seen.verdict for seen in uninterrupted[3:]]
    assert resumed[-1].history == uninterrupted[-1].history


def test_epochs_that_come_again_replace_what_was_seen_of_them():
    *_, third = islice(watch(train(start()), monitors=[diversity_monitor]), 3)
    (again,) = islice(watch(train(start()), monitors=[diversity_monitor], history=third.history), 1)
    assert again.history == third.history[:1]


def test_the_rule_sees_everything_so_far_and_its_verdict_is_passed_on():
    def rule(history):
        return Verdict("warning" if len(history) > 1 else "ok", str(len(history)))

    verdicts = [seen.verdict for seen in islice(watch(train(start()), monitors=[], rule=rule), 2)]
    assert verdicts == [("ok", "1"), ("warning", "2")]


def test_a_reward_that_pulls_away_from_the_goal_is_found_out():
    # Up is both the goal and the reward until (0, 1) is passed; then the reward goes on rising and the goal recedes.
    epochs = watch(train(start(), reward_fn=height), monitors=[], held_out=judges(), rule=RULE)
    seen = list(islice(epochs, 120))
    goal = [each.history[-1].held_out["goal"] for each in seen]
    caught = next(place for place, each in enumerate(seen) if each.verdict.status == "hacked")
    assert goal.index(max(goal)) < caught
    assert "held-out goal fell from" in seen[caught].verdict.reason


def test_images_are_described_by_the_mean_of_their_statistics():
    _, info = next(train(start()))
    images = torch.rand(16, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    signals = image_monitor(start(), type(info)(**{**vars(info), "images": images}))
    assert signals == pytest.approx({name: value.mean().item() for name, value in image_statistics(images).items()})


def test_a_monitor_may_be_asked_now_and_then():
    epochs = watch(train(start()), monitors=[], held_out=every(2, judges()))
    *_, last = islice(epochs, 4)
    assert [sorted(observation.held_out) for observation in last.history] == [[], ["goal", "height"]] * 2


def test_what_is_not_finite_or_has_two_names_is_refused_aloud():
    with pytest.raises(DDPOError, match=r"measured x=nan in epoch 1; want a finite number or None"):
        next(watch(train(start()), monitors=[lambda state, info, processes: {"x": float("nan")}]))
    with pytest.raises(DDPOError, match="two monitors measure 'diversity'"):
        next(watch(train(start()), monitors=[diversity_monitor, diversity_monitor]))
    with pytest.raises(DDPOError, match="image statistics need images"):
        next(watch(train(start()), monitors=[image_monitor]))  # points are no images
