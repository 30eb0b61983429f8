"""Policies of real pipeline classes: loaded from disk, sampled as diffusers samples, exported to diffusers."""

import json
import shutil
from itertools import product
from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler

from ddpo_core import DDPOError, load_policy, replay_log_probs, sample_trajectories, save_lora
from ddpo_core.diffusion.stable_diffusion import stable_diffusion_policy
from ddpo_core.emoji import pipeline_path
from ddpo_core.testing import check_policy

CPU = torch.device("cpu")
PROMPTS = ["a cat", "a dog"]


def _policy(pipeline, **options):
    return stable_diffusion_policy(
        pipeline, **{"guidance_scale": 1.0, "device": CPU, "dtype": torch.float32, **options}
    )


def _perturbed(params):
    generator = torch.Generator().manual_seed(1)
    return {name: leaf + 0.1 * torch.randn(leaf.shape, generator=generator) for name, leaf in params.items()}


@pytest.mark.parametrize(
    "config",
    [
        {"prediction_type": prediction, "steps_offset": offset, "set_alpha_to_one": to_one, "timestep_spacing": spacing}
        for prediction, (offset, to_one), spacing in product(
            ("epsilon", "v_prediction", "sample"), ((0, True), (1, False), (1, True)), ("leading", "trailing")
        )
    ],
    ids=lambda config: "-".join(str(value) for value in config.values()),
)
# diffusers' pipeline complains about the offset of the scheduler it is given, and changes it.
@pytest.mark.filterwarnings("ignore:.*steps_offset.*:FutureWarning")
def test_policies_of_every_scheduler_keep_their_promises(make_pipeline, config):
    pipeline = make_pipeline()
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, **config)
    check_policy(_policy(pipeline), PROMPTS)


@pytest.mark.skipif(not (pipeline_path() / "model_index.json").is_file(), reason="the embedded model is not built")
def test_the_embedded_model_keeps_its_promises():
    check_policy(load_policy("builtin:emoji", guidance_scale=1.0, device="cpu"), PROMPTS)


def test_a_guided_policy_keeps_its_promises(make_pipeline):
    check_policy(_policy(make_pipeline(), guidance_scale=4.0), PROMPTS)


def test_images_are_those_of_diffusers_own_pipeline(make_pipeline):
    # Without sampler noise both are functions of the first latents: the same guidance, schedule, decoding.
    pipeline = make_pipeline()
    policy = _policy(make_pipeline(), guidance_scale=5.0, eta=0.0)
    sampled = sample_trajectories(policy, policy.params, PROMPTS, num_steps=5, seeds=[3, 4])
    pipeline.set_progress_bar_config(disable=True)
    expected = pipeline(
        PROMPTS, num_inference_steps=5, guidance_scale=5.0, eta=0.0, latents=sampled.latents[:, 0], output_type="pt"
    ).images
    torch.testing.assert_close(policy.decode(sampled.latents[:, -1]), expected, rtol=1e-4, atol=1e-5)


def test_without_guidance_each_sample_and_step_costs_one_network_row(make_pipeline):
    pipeline = make_pipeline()
    policy = _policy(pipeline)
    rows = []
    pipeline.unet.register_forward_pre_hook(lambda module, inputs: rows.append(len(inputs[0])))
    sample_trajectories(policy, policy.params, PROMPTS, num_steps=4, seeds=[0, 1])
    assert rows == [2] * 4


def test_fresh_adapters_change_nothing_and_every_attention_projection_has_them(make_pipeline):
    pipeline = make_pipeline()
    latents, time = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([5])
    embeddings = pipeline.encode_prompt(["a cat"], CPU, 1, False)[0]
    with torch.no_grad():
        plain = pipeline.unet(latents, time, embeddings).sample
        projections = [
            name for name, _ in pipeline.unet.named_modules() if name.endswith(("to_q", "to_k", "to_v", "to_out.0"))
        ]
        policy = _policy(pipeline, lora_rank=2)
        adapted = torch.func.functional_call(pipeline.unet, policy.params, (latents, time, embeddings)).sample
    torch.testing.assert_close(plain, adapted)
    assert len(policy.params) == 2 * len(projections) > 0


def test_loading_a_policy_twice_gives_the_same_and_draws_nothing(pipeline_folder):
    torch.manual_seed(0)
    first = load_policy(pipeline_folder, guidance_scale=1.0)
    assert torch.equal(torch.rand(1), torch.rand(1, generator=torch.Generator().manual_seed(0)))
    second = load_policy(pipeline_folder, guidance_scale=1.0)
    assert all(torch.equal(first.params[name], second.params[name]) for name in first.params)


def test_half_precision_folders_load_as_float32_on_a_cpu(make_pipeline, tmp_path):
    make_pipeline().to(dtype=torch.float16).save_pretrained(tmp_path)
    policy = load_policy(str(tmp_path), guidance_scale=1.0, device="cpu")
    assert policy.encode(["a cat"]).dtype == torch.float32
    check_policy(policy, PROMPTS)


def test_trainable_leaves_are_float32_in_a_bfloat16_model(make_pipeline):
    policy = _policy(make_pipeline(), dtype=torch.bfloat16)
    assert policy.encode(["a cat"]).dtype == torch.bfloat16
    assert {leaf.dtype for leaf in policy.params.values()} == {torch.float32}
    check_policy(policy, PROMPTS, rtol=5e-2)


@pytest.mark.parametrize(("rank", "alpha"), [(3, None), (4, 2.0)])
def test_exported_adapters_load_into_diffusers_bit_for_bit(make_pipeline, tmp_path, rank, alpha):
    pipeline = make_pipeline()
    policy = _policy(pipeline, lora_rank=rank, lora_alpha=alpha)
    params = _perturbed(policy.params)
    file = save_lora(tmp_path / "lora", params, alpha=alpha)
    assert [entry.name for entry in file.parent.iterdir()] == ["pytorch_lora_weights.safetensors"]
    reloaded = make_pipeline()
    reloaded.load_lora_weights(str(file.parent))
    # The layout of the policy: convolutions round differently in another.
    reloaded.unet.to(memory_format=torch.channels_last)
    latents, time = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([5, 900])
    embeddings = policy.encode(PROMPTS)
    with torch.no_grad():
        ours = torch.func.functional_call(pipeline.unet, params, (latents, time, embeddings)).sample
        theirs = reloaded.unet(latents, time, embeddings).sample
        plain = make_pipeline().unet(latents, time, embeddings).sample
    assert torch.equal(ours, theirs)
    assert (ours - plain).abs().max() > 1e-3


def test_only_adapters_are_exported_as_adapters(tmp_path):
    with pytest.raises(DDPOError, match="not LoRA matrices"):
        save_lora(tmp_path, {"conv.weight": torch.zeros(1)})


def test_adapters_that_cannot_be_written_are_one_clear_line(make_pipeline, tmp_path):
    (tmp_path / "file").write_text("")
    params = _policy(make_pipeline()).params
    with pytest.raises(DDPOError, match=r"cannot be written to .*Not a directory"):
        save_lora(tmp_path / "file" / "lora", params)


@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
def test_the_denoising_error_of_a_silent_network_is_the_square_of_its_target(make_pipeline, prediction_type):
    pipeline = make_pipeline(prediction_type=prediction_type)
    for weight in pipeline.unet.parameters():
        weight.data.zero_()
    policy = _policy(pipeline)
    clean, noise = torch.randn(2, 2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    time = torch.tensor([10, 500])
    error = policy.denoising_error(policy.params, clean, noise, time, policy.encode(PROMPTS))
    target = {
        "epsilon": noise,
        "sample": clean,
        "v_prediction": pipeline.scheduler.get_velocity(clean, noise, time),
    }[prediction_type]
    torch.testing.assert_close(error, target.square().flatten(1).mean(1))


def _broken(folder: str, tmp_path: Path, name: str, content: str) -> str:
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    (copy / name).write_text(content)
    return str(copy)


def test_unknown_models_are_one_clear_line(tmp_path):
    with pytest.raises(DDPOError, match="model 'builtin:emojy' is not built in"):
        load_policy("builtin:emojy")
    with pytest.raises(DDPOError, match=r"model '\./nowhere' does not exist"):
        load_policy("./nowhere")
    with pytest.raises(DDPOError, match="is no diffusers folder"):
        load_policy(str(tmp_path))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("model_index.json", json.dumps({"_class_name": "FluxPipeline"}), "is a FluxPipeline; want a StableDiff"),
        ("model_index.json", "{", "cannot be loaded"),
        ("unet/config.json", "[]", "cannot be loaded"),
        ("unet/diffusion_pytorch_model.safetensors", "damaged", "cannot be loaded"),
    ],
)
def test_damaged_models_are_one_clear_line(pipeline_folder, tmp_path, name, content, message):
    with pytest.raises(DDPOError, match=message) as caught:
        load_policy(_broken(pipeline_folder, tmp_path, name, content))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"guidance_scale": 0.5}, "guidance_scale=0.5: want at least 1"),
        ({"guidance_scale": float("nan")}, "guidance_scale=nan"),
        ({"lora_rank": 0}, "lora_rank=0: want at least 1"),
        ({"device": "gpu"}, "device 'gpu' cannot be used"),
        ({"eta": 2.0}, "eta=2.0: want"),
    ],
)
def test_arguments_out_of_range_are_one_clear_line(pipeline_folder, options, message):
    with pytest.raises(ValueError, match=message) as caught:
        load_policy(pipeline_folder, **options).timesteps(3)
    assert "\n" not in str(caught.value)


def test_replaying_a_subset_of_steps_gives_their_columns(make_pipeline):
    policy = _policy(make_pipeline())
    sampled = sample_trajectories(policy, policy.params, PROMPTS, num_steps=4, seeds=[0, 1])
    replayed = replay_log_probs(policy, policy.params, sampled, [3, 1])
    assert torch.equal(replayed, sampled.log_probs[:, [3, 1]])
