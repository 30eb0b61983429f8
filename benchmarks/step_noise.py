"""How much signal and noise every denoising step brings to the policy gradient of the embedded model, before training.

    python benchmarks/step_noise.py [--reward jpeg_compressibility] [--samples 270] [--threads 1]

For every step, over samples with the advantages a_i (of their prompt) and the scores g_i, the gradients of their
log-probabilities by the LoRA's B: the noise is the mean of |a_i g_i|^2, the signal the mean of a_i g_i . a_j g_j over
all pairs of different samples, which is unbiased for the square of the true gradient. Prints a table for RESULTS.md.
"""

import argparse

import torch

from ddpo_core import load_policy, prompt_set, timestep_weights
from ddpo_core.runs.compare import fixed_prompts
from ddpo_core.sampling import roll_out, take_rows, transition_log_prob
from ddpo_rewards import get_reward


def main() -> None:
    """Measure and print."""
    options = _parse()
    torch.set_num_threads(options.threads)
    policy = load_policy("builtin:emoji", lora_rank=8, guidance_scale=1.0, device="cpu")
    animals = prompt_set("simple_animals")
    prompts = fixed_prompts(animals, options.samples)
    reward = get_reward(options.reward)
    rollout = roll_out(
        policy,
        policy.params,
        lambda images, texts, metadata: (torch.as_tensor(reward(images, texts, metadata).scores), {}),
        prompts,
        seeds=range(options.samples),
        num_steps=5,
        batch_size=30,
    )
    advantages = _of_prompts(rollout.scores.double(), len(animals.prompts))
    sampled = rollout.trajectories
    params = {name: leaf.clone().requires_grad_("lora_B" in name) for name, leaf in policy.params.items()}
    leaves = [leaf for leaf in params.values() if leaf.requires_grad]
    weights = timestep_weights(sampled.timesteps)
    print("| step | weight | noise | share of the noise, weighed | signal | signal per noise and sample |")
    print("|---|---|---|---|---|---|")
    rows = []
    for step in sampled.stochastic:
        total, noise = torch.zeros(()), 0.0
        for sample in range(options.samples):
            rows_of = (torch.tensor([sample]), torch.tensor([step]))
            transition = policy.transition(
                params,
                sampled.latents[rows_of],
                take_rows(sampled.timesteps, rows_of[1]),
                take_rows(sampled.conditioning, sampled.prompt_index[rows_of[0]]),
            )
            log_prob = transition_log_prob(transition, sampled.latents[sample, step + 1][None]).sum()
            gradient = torch.cat([part.flatten() for part in torch.autograd.grad(log_prob, leaves)])
            weighed = advantages[sample].float() * sampled.latents[0, 0].numel() * gradient
            total, noise = total + weighed, noise + weighed.square().sum().item() / options.samples
        count = options.samples
        signal = (total.square().sum().item() / count - noise) / (count - 1)
        rows.append((step, weights[step].item(), noise, signal))
    whole = [sum(row[2] * factor for row, factor in zip(rows, _squares(rows, power), strict=True)) for power in (0, 2)]
    for step, weight, noise, signal in rows:
        shares = f"{noise / whole[0]:.1%}, {noise * weight**2 / whole[1]:.1%}"
        print(f"| {step} | {weight:.2f} | {noise:.3g} | {shares} | {signal:.2g} | {signal / noise:.1e} |")


def _squares(rows: list[tuple[int, float, float, float]], power: int) -> list[float]:
    return [row[1] ** power for row in rows]


def _of_prompts(scores: torch.Tensor, count: int) -> torch.Tensor:
    """Compare each score with the mean of its prompt; prompts follow each other in turn."""
    table = scores.view(-1, count)
    differences = table - table.mean(0)
    return (differences / differences.std()).flatten().clamp(-5, 5)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reward", default="jpeg_compressibility")
    parser.add_argument("--samples", type=int, default=270, help="a multiple of the 45 prompts")
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


if __name__ == "__main__":
    main()
