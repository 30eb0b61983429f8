"""`ddpo train`: which options go together; each of them is in `train_options`."""

from ddpo_cli import train_options as options
from ddpo_cli.errors import CLIError

EPILOG = """
[bold]Examples[/bold]

  ddpo train                      [dim]the embedded model, smaller JPEGs, in runs/[/dim]

  ddpo train --reward jpeg_incompressibility --epochs 40

  ddpo train --preset aesthetic --dry-run       [dim]what the paper did, and what it costs[/dim]

  ddpo train --reward my_plugin:score --prompts file:prompts.txt

  ddpo train --reward aesthetic --reward "0.2*jpeg_compressibility"

  ddpo train --model ./stable-diffusion-v1-4 --guidance-scale 5

  ddpo train --model ./stable-diffusion-v1-4 --trainable unet --gradient-checkpointing --dry-run

  ddpo train --reward aesthetic --holdout clip_score --on-hack rollback

  ddpo train --config runs/0001-jpeg_compressibility/config.toml --seed 1

  ddpo train --tracker tensorboard         [dim]tensorboard --logdir runs[/dim]

  torchrun --nproc-per-node 8 -m ddpo_cli train --preset aesthetic

  ddpo train --resume             [dim]go on with the last run[/dim]

Ctrl-C writes a checkpoint and says how to go on; a second Ctrl-C leaves at once.

The path of the run is printed to stdout at the end, everything else to stderr.
"""


def train(
    run: options.Run = None,
    *,
    preset: options.Preset = None,
    model: options.Model = None,
    reward: options.Reward = None,
    algorithm: options.Algorithm = None,
    prompts: options.Prompts = None,
    epochs: options.Epochs = None,
    num_steps: options.NumSteps = None,
    samples_per_epoch: options.SamplesPerEpoch = None,
    updates_per_epoch: options.UpdatesPerEpoch = None,
    timestep_fraction: options.TimestepFraction = None,
    learning_rate: options.LearningRate = None,
    trainable: options.Trainable = None,
    lora_rank: options.LoraRank = None,
    lora_alpha: options.LoraAlpha = None,
    guidance_scale: options.GuidanceScale = None,
    seed: options.Seed = None,
    device: options.Device = None,
    dtype: options.Dtype = None,
    gradient_checkpointing: options.GradientCheckpointing = None,
    compile: options.Compile = None,
    keep_last: options.KeepLast = None,
    held_out: options.HeldOut = None,
    on_hack: options.OnHack = None,
    watch_text: options.WatchText = None,
    tracker: options.Tracker = None,
    config: options.Config = None,
    output: options.Output = None,
    resume: options.Resume = False,
    force: options.Force = False,
    dry_run: options.DryRun = False,
) -> None:
    """Finetune a diffusion model with a reward (DDPO, or reward-weighted regression)."""
    flags = {
        "model": model,
        "reward": reward,
        "algorithm": algorithm and algorithm.value,
        "prompts": prompts,
        "epochs": epochs,
        "num_steps": num_steps,
        "samples_per_epoch": samples_per_epoch,
        "updates_per_epoch": updates_per_epoch,
        "timestep_fraction": timestep_fraction,
        "learning_rate": learning_rate,
        "trainable": trainable and trainable.value,
        "lora_rank": lora_rank,
        "lora_alpha": lora_alpha,
        "guidance_scale": guidance_scale,
        "seed": seed,
        "device": device,
        "dtype": dtype and dtype.value,
        "gradient_checkpointing": gradient_checkpointing,
        "compile": compile,
        "keep_last": keep_last,
        "held_out": held_out,
        "on_hack": on_hack and on_hack.value,
        "watch_text": watch_text,
        "tracker": [one.value for one in tracker or ()],
    }
    if run is not None and not resume:
        raise CLIError(f"got the argument {str(run)!r} without --resume; did you mean --output {run}?")
    if resume and (output or config or preset):
        raise CLIError("--resume goes on with a run as it is; leave out --output, --config and --preset")
    if force and not resume:
        raise CLIError("--force changes the options of a resumed run; add --resume, or leave it out")
    from ddpo_cli.training import plan_run, resume_run, start_run

    if dry_run:
        plan_run(run, flags, preset=preset, config=config, resume=resume, force=force)
    elif resume:
        resume_run(run, flags, force=force)
    else:
        start_run(flags, preset=preset, config=config, output=output)
