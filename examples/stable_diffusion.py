"""Finetune a Stable Diffusion model for smaller JPEGs, save what was trained, and draw before and after.

    python examples/stable_diffusion.py [MODEL]

MODEL is "builtin:emoji" (a small model that is part of the package, minutes on a CPU), a folder in diffusers' layout,
or a hub id such as CompVis/stable-diffusion-v1-4, which wants a GPU and the numbers of the comments.
Writes `before.png`, `after.png` and `lora/`, which `StableDiffusionPipeline.load_lora_weights("lora")` takes.
"""

import sys
from functools import partial
from itertools import islice

from ddpo_core import (
    FitConfig,
    adamw,
    ddpo_is,
    evaluate,
    fit,
    image_grid,
    init,
    load_policy,
    per_prompt,
    prompt_set,
    save_lora,
)
from ddpo_rewards import get_reward

model = sys.argv[1] if len(sys.argv) > 1 else "builtin:emoji"
policy = load_policy(model, lora_rank=4, guidance_scale=1.0)  # 5.0
optimizer = adamw(1e-3)  # 3e-4
reward = get_reward("jpeg_compressibility")
prompts = prompt_set("simple_animals")
config = FitConfig(
    num_steps=5,  # 50
    samples_per_epoch=32,  # 256
    updates_per_epoch=2,  # 4
)

state = init(policy, optimizer, seed=0)
draw = partial(
    evaluate, policy, reward_fn=reward, prompts=prompts.prompts[:8], num_steps=config.num_steps, seeds=range(8)
)
image_grid(draw(state.params).images, columns=4).save("before.png")
epochs = fit(
    state,
    policy=policy,
    optimizer=optimizer,
    reward_fn=reward,
    prompts=prompts,
    objective=ddpo_is(clip_range=1e-4, advantages=per_prompt(buffer_size=16)),
    config=config,
)
for state, info in islice(epochs, 4):  # 60
    print(f"epoch {info.epoch:3d}  queries {info.queries:5d}  reward {info.metrics['reward_mean']:8.3f}")
    save_lora("lora", state.params, scale=policy.lora_scale)
image_grid(draw(state.params).images, columns=4).save("after.png")
