"""Policies of real pipeline classes: loaded from disk, sampled as diffusers samples, exported to diffusers."""

import json
import re
import shutil
from contextlib import nullcontext
from itertools import product
from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler

from ddpo_core import (
    DDPOError,
    NonFiniteError,
    load_policy,
    replay_log_probs,
    sample_trajectories,
    stable_diffusion_policy,
)
from ddpo_core.diffusion.models import _check_options, choose_dtype, fingerprint, load_pipeline
from ddpo_core.emoji import pipeline_path
from ddpo_core.rewards import score_images
from ddpo_core.testing import check_policy

CPU = torch.device("cpu")
PROMPTS = ["a cat", "a dog"]


def _policy(pipeline, **options):
    fixed = {"guidance_scale": 1.0, "device": CPU, "dtype": torch.float32}
    return stable_diffusion_policy(pipeline, **{**fixed, **options})


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
    check_policy(load_policy("builtin:emoji", guidance_scale=1.0, device="cpu", dtype=torch.float32), PROMPTS)


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


@pytest.mark.parametrize(("has_amx", "chosen"), [(False, torch.float32), (True, torch.bfloat16)])
def test_on_a_cpu_folders_load_as_what_it_has_instructions_for(make_pipeline, tmp_path, monkeypatch, has_amx, chosen):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: has_amx)
    make_pipeline().to(dtype=torch.float16).save_pretrained(tmp_path)
    policy = load_policy(str(tmp_path), guidance_scale=1.0, device="cpu")
    assert policy.encode(["a cat"]).dtype == chosen
    check_policy(policy, PROMPTS, rtol=1e-4 if chosen == torch.float32 else 5e-2)


def test_trainable_leaves_are_float32_in_a_bfloat16_model(make_pipeline):
    policy = _policy(make_pipeline(), dtype=torch.bfloat16)
    assert policy.encode(["a cat"]).dtype == torch.bfloat16
    assert {leaf.dtype for leaf in policy.params.values()} == {torch.float32}
    check_policy(policy, PROMPTS, rtol=5e-2)


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
        ({"lora_alpha": 0.0}, "lora_alpha=0.0: want a number above 0"),
        ({"lora_targets": "to_q"}, "lora_targets='to_q': want a list"),
        ({"lora_targets": ["to_q", "to_z"]}, "the UNet has no module 'to_z'"),
        ({"lora_targets": ["norm1"]}, "the UNet cannot be given adapters"),
        ({"height": 15}, "height=15: want a multiple of 2 pixels, such as 16"),
        ({"width": 0}, "width=0: want a multiple of 2 pixels, such as 2"),
        ({"revision": "main"}, "revision='main' pins a model of the hub, and .* is on this disk"),
        ({"variant": "fp16"}, "cannot be loaded"),
    ],
)
def test_arguments_out_of_range_are_one_clear_line(pipeline_folder, options, message):
    with pytest.raises(ValueError, match=message) as caught:
        load_policy(pipeline_folder, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"trainable": "unet", "lora_rank": 4}, "lora_rank=4 does nothing with trainable='unet'"),
        ({"trainable": "unet", "lora_alpha": 4.0}, "lora_alpha=4.0 does nothing"),
        ({"trainable": "unet", "lora_targets": ["to_q"]}, "lora_targets=.* does nothing"),
        ({"trainable": "unet", "lora": "folder"}, "lora='folder' does nothing"),
        ({"lora": "folder", "lora_rank": 4}, "lora_rank=4 is for a fresh LoRA, and 'folder' brings its own"),
        ({"guidance_scale": 1.0, "negative_prompt": "a dog"}, "negative_prompt='a dog' does nothing without guidance"),
    ],
    ids=str,
)
def test_options_that_would_do_nothing_are_refused_before_a_model_is_looked_for(options, message):
    with pytest.raises(DDPOError, match=message):
        load_policy("./nowhere", **options)


def test_what_is_trained_is_a_lora_or_the_unet():
    # Past the types, which are checked in tests only.
    with pytest.raises(DDPOError, match="trainable='vae': want 'lora' or 'unet'"):
        _check_options("vae", None, None, None, None, 1.0, None, 1.0)


def test_a_pipeline_makes_one_policy(make_pipeline):
    pipeline = make_pipeline()
    _policy(pipeline)
    for trainable in ("lora", "unet"):
        with pytest.raises(DDPOError, match="has adapters already"):
            _policy(pipeline, trainable=trainable)


def test_device_and_dtype_may_be_left_out(make_pipeline):
    policy = stable_diffusion_policy(make_pipeline().to(dtype=torch.float16))
    place = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    encoded = policy.encode(["a cat"])
    assert (encoded.dtype, encoded.device.type) == (choose_dtype(None, place), place.type)


def test_the_size_of_the_images_is_asked_for_in_pixels(make_pipeline):
    policy = _policy(make_pipeline(), height=24, width=20)
    sampled = sample_trajectories(policy, policy.params, PROMPTS, num_steps=2, seeds=[0, 1])
    assert sampled.latents.shape == (2, 3, 4, 12, 10)
    assert policy.decode(sampled.latents[:, -1]).shape == (2, 3, 24, 20)
    assert _policy(make_pipeline(), height=24).noise([0], 1).shape == (1, 2, 4, 12, 8)
    check_policy(policy, PROMPTS)


@pytest.mark.skipif(not (pipeline_path() / "model_index.json").is_file(), reason="the embedded model is not built")
def test_the_embedded_model_draws_wider_pictures():
    policy = load_policy("builtin:emoji", guidance_scale=1.0, device="cpu", width=96)
    sampled = sample_trajectories(policy, policy.params, ["a fox"], num_steps=2, seeds=[0])
    assert policy.decode(sampled.latents[:, -1]).shape == (1, 3, 64, 96)


def test_a_negative_prompt_is_steered_away_from_as_in_diffusers_own_pipeline(make_pipeline):
    pipeline = make_pipeline()
    policies = [
        _policy(make_pipeline(), guidance_scale=5.0, eta=0.0, negative_prompt=prompt) for prompt in ("a fox", None)
    ]
    sampled = [sample_trajectories(policy, policy.params, PROMPTS, num_steps=5, seeds=[3, 4]) for policy in policies]
    pipeline.set_progress_bar_config(disable=True)
    expected = pipeline(
        PROMPTS,
        negative_prompt=["a fox"] * 2,
        num_inference_steps=5,
        guidance_scale=5.0,
        eta=0.0,
        latents=sampled[0].latents[:, 0],
        output_type="pt",
    ).images
    torch.testing.assert_close(policies[0].decode(sampled[0].latents[:, -1]), expected, rtol=1e-4, atol=1e-5)
    assert not torch.equal(sampled[0].latents, sampled[1].latents)


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
def test_pixels_that_are_not_finite_are_not_clamped_to_a_picture(make_pipeline, value):
    pipeline = make_pipeline()
    pipeline.vae.decoder.conv_out.bias.data[1] = value
    policy = _policy(pipeline)
    images = policy.decode(policy.noise([0], 0)[:, 0])
    assert torch.equal(images.isfinite().all((0, 2, 3)), torch.tensor([True, False, True]))
    with pytest.raises(NonFiniteError, match="images that are NaN or infinite"):
        score_images(lambda *_: pytest.fail("the reward was asked"), images, ["a cat"], [{}])


@pytest.mark.parametrize("vae_dtype", [torch.float32, torch.bfloat16])
def test_the_autoencoder_may_have_a_dtype_of_its_own(make_pipeline, vae_dtype):
    pipeline = make_pipeline()
    policy = _policy(pipeline, dtype=torch.bfloat16, vae_dtype=vae_dtype)
    assert (pipeline.vae.dtype, pipeline.unet.dtype) == (vae_dtype, torch.bfloat16)
    assert policy.decode(policy.noise([0], 0)[:, 0]).dtype == torch.float32


def test_a_fingerprint_is_of_the_frozen_networks_and_of_nothing_else(make_pipeline, make_sdxl_pipeline):
    expected = _policy(make_pipeline()).fingerprint
    assert re.fullmatch("[0-9a-f]{16}", expected)
    assert _policy(make_pipeline(), trainable="unet", dtype=torch.bfloat16).fingerprint == expected
    assert _policy(make_pipeline(), lora_rank=2, guidance_scale=3.0, eta=0.5, height=32).fingerprint == expected
    others = [_policy(make_sdxl_pipeline()), _policy(make_pipeline(prediction_type="v_prediction"))]
    # Of equal architecture, with one weight changed of one network after another.
    for name in ("unet", "vae", "text_encoder"):
        pipeline = make_pipeline()
        next(getattr(pipeline, name).parameters()).data.mul_(1.001)
        others.append(_policy(pipeline))
    assert len({expected, *(policy.fingerprint for policy in others)}) == 6


def test_a_fingerprint_does_not_depend_on_how_weights_lie_in_memory_or_what_loaded_them(make_pipeline, tmp_path):
    pipeline = make_pipeline()
    pipeline.save_pretrained(tmp_path)
    expected = fingerprint(pipeline)
    pipeline.unet.to(memory_format=torch.channels_last)
    assert fingerprint(pipeline) == expected == fingerprint(load_pipeline(str(tmp_path)))


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_a_number_of_steps_that_cannot_be_trained_well_is_warned_of_where_there_is_something_to_train(
    make_pipeline, eta
):
    policy = _policy(make_pipeline(timestep_spacing="trailing", set_alpha_to_one=True), eta=eta)
    with pytest.warns(UserWarning, match="num_steps=6 .* want num_steps=5 or 8") if eta else nullcontext():
        policy.timesteps(6)


# diffusers asks the hub for what the hub ignores by now.
@pytest.mark.filterwarnings("ignore:The `local_dir_use_symlinks` argument is deprecated:UserWarning")
def test_a_model_of_the_hub_is_pinned_to_its_revision(make_pipeline, tmp_path, monkeypatch):
    # The hub's own cache, without a network: two commits, each with a name.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    cached = tmp_path / "models--owner--name"
    for commit, branch, predicted in (("0" * 40, "old", "sample"), ("1" * 40, "main", "epsilon")):
        make_pipeline(prediction_type=predicted).save_pretrained(cached / "snapshots" / commit)
        (cached / "refs").mkdir(exist_ok=True)
        (cached / "refs" / branch).write_text(commit)
    for revision, predicted in ((None, "epsilon"), ("old", "sample"), ("0" * 40, "sample")):
        assert load_pipeline("owner/name", revision=revision).scheduler.config.prediction_type == predicted


def test_a_variant_is_loaded_where_a_model_has_it(make_pipeline, tmp_path):
    pipeline = make_pipeline()
    pipeline.save_pretrained(tmp_path)
    pipeline.unet.conv_in.bias.data += 1
    pipeline.save_pretrained(tmp_path, variant="fp16")
    loaded = [load_pipeline(str(tmp_path), variant=variant).unet.conv_in.bias for variant in (None, "fp16")]
    torch.testing.assert_close(loaded[1], loaded[0] + 1)


def test_replaying_a_subset_of_steps_gives_their_columns(make_pipeline):
    policy = _policy(make_pipeline())
    sampled = sample_trajectories(policy, policy.params, PROMPTS, num_steps=4, seeds=[0, 1])
    replayed = replay_log_probs(policy, policy.params, sampled, [3, 1])
    assert torch.equal(replayed, sampled.log_probs[:, [3, 1]])
