"""Write the training loop yourself: sample, score, compare, update, with nothing hidden and nothing remembered."""

from dataclasses import replace

from ddpo_core import adamw, ddpo_is, init, minibatches, per_prompt, sample_images, sample_seeds, toy, train_step

STEPS, SAMPLES, UPDATES = 10, 128, 4
policy, optimizer = toy.policy(), adamw(3e-3)
objective = ddpo_is(clip_range=0.1, advantages=per_prompt(buffer_size=128))
prompts = ["left", "right"] * (SAMPLES // 2)

state = init(policy, optimizer, seed=0)
while state.epoch < 30:
    # Randomness is a function of (seed, epoch, sample index): run this again and it gives the same numbers.
    seeds = sample_seeds(state.seed, state.epoch, range(SAMPLES))
    trajectories, points = sample_images(policy, state.params, prompts, num_steps=STEPS, seeds=seeds)
    scores, _ = toy.reward(points, prompts, [{}] * SAMPLES)

    remembered, advantages = objective.weigh(state.objective_state, prompts, scores)
    for minibatch in minibatches(SAMPLES, UPDATES, seed=state.seed, epoch=state.epoch):
        state, metrics = train_step(
            state,
            trajectories,
            advantages,
            objective.choose(policy, trajectories, advantages, minibatch),
            policy=policy,
            optimizer=optimizer,
            objective=objective,
            micro_batch_size=512,
            max_grad_norm=1.0,
        )
    state = replace(state, objective_state=remembered, epoch=state.epoch + 1, queries=state.queries + SAMPLES)
    print(f"epoch {state.epoch:3d}  reward {scores.mean():7.3f}  loss {metrics['loss']:7.4f}")
