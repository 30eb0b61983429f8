"""Write the training loop yourself: sample, score, compare, update, with nothing hidden and nothing remembered."""

from dataclasses import replace
from functools import partial

from ddpo_core import (
    FitConfig,
    adamw,
    ddpo_is_loss,
    init,
    sample_trajectories,
    toy,
    train_step,
    update_prompt_stats,
)
from ddpo_core.batches import choose_pairs
from ddpo_core.randomness import sample_seeds
from ddpo_core.sampling import stochastic_steps

STEPS, SAMPLES, UPDATES = 10, 128, 4
policy, optimizer = toy.policy(), adamw(3e-3)
loss_fn = partial(ddpo_is_loss, clip_range=0.1)
config = FitConfig(micro_batch_size=512)
prompts = ["left", "right"] * (SAMPLES // 2)
indices = range(SAMPLES)

state = init(policy, optimizer, seed=0)
while state.epoch < 30:
    # Randomness is a function of (seed, epoch, sample index): run this again and it gives the same numbers.
    seeds = sample_seeds(state.seed, state.epoch, indices)
    trajectories = sample_trajectories(policy, state.params, prompts, num_steps=STEPS, seeds=seeds)
    scores, _ = toy.reward(policy.decode(trajectories.latents[:, -1]), prompts, [{}] * SAMPLES)

    stats, advantages = update_prompt_stats(state.prompt_stats, prompts, scores, buffer_size=128, min_count=16)
    steps = stochastic_steps(trajectories.timesteps)
    for update in range(UPDATES):
        part = indices[update::UPDATES]
        pairs = choose_pairs(part, steps, fraction=1.0, seed=state.seed, epoch=state.epoch, indices=part)
        state, metrics = train_step(
            state,
            trajectories,
            advantages.clamp(-5, 5),
            pairs,
            policy=policy,
            optimizer=optimizer,
            loss_fn=loss_fn,
            config=config,
        )
    state = replace(state, prompt_stats=stats, epoch=state.epoch + 1, queries=state.queries + SAMPLES)
    print(f"epoch {state.epoch:3d}  reward {scores.mean():7.3f}  loss {metrics['loss']:7.4f}")
