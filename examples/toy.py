"""Train the toy policy in seconds: points drawn around (-1, 0) and (1, 0) learn to go to (0, 1)."""

from itertools import islice

from ddpo_core import FitConfig, adamw, ddpo_is, fit, init, toy

policy, optimizer = toy.policy(), adamw(3e-3)
config = FitConfig(num_steps=10, samples_per_epoch=128, sample_batch_size=128, micro_batch_size=512)

epochs = fit(
    init(policy, optimizer, seed=0),
    policy=policy,
    optimizer=optimizer,
    reward_fn=toy.reward,
    prompts=["left", "right"],
    objective=ddpo_is(clip_range=0.1),
    config=config,
)
for _, info in islice(epochs, 40):
    print(f"epoch {info.epoch:3d}  reward {info.metrics['reward_mean']:7.3f}")
