"""What is trained, as files: diffusers draws with it what the policy draws, and training starts from it again."""

import json
import resource

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from ddpo_core import (
    DDPOError,
    load_policy,
    replay_log_probs,
    sample_trajectories,
    save_lora,
    save_pipeline,
    stable_diffusion_policy,
)

CPU = torch.device("cpu")
PROMPTS = ["a cat", "a dog"]
FILE = "pytorch_lora_weights.safetensors"


def _policy(pipeline, **options):
    fixed = {"guidance_scale": 1.0, "device": CPU, "dtype": torch.float32}
    return stable_diffusion_policy(pipeline, **{**fixed, **options})


def _policy_of(folder, **options):
    return load_policy(folder, guidance_scale=1.0, device="cpu", **options)


def _perturbed(params):
    generator = torch.Generator().manual_seed(1)
    return {name: leaf + 0.1 * torch.randn(leaf.shape, generator=generator) for name, leaf in params.items()}


@pytest.mark.parametrize(("rank", "alpha"), [(3, None), (4, 2.0)])
def test_exported_adapters_load_into_diffusers_bit_for_bit(make_pipeline, tmp_path, rank, alpha):
    pipeline = make_pipeline()
    policy = _policy(pipeline, lora_rank=rank, lora_alpha=alpha)
    params = _perturbed(policy.params)
    file = save_lora(tmp_path / "lora", params, scale=policy.lora_scale)
    assert [entry.name for entry in file.parent.iterdir()] == ["pytorch_lora_weights.safetensors"]
    reloaded = make_pipeline()
    reloaded.load_lora_weights(str(file.parent))
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
        save_lora(tmp_path, {"conv.weight": torch.zeros(1)}, scale=1.0)


def test_adapters_that_cannot_be_written_are_one_clear_line(make_pipeline, tmp_path):
    (tmp_path / "file").write_text("")
    policy = _policy(make_pipeline())
    with pytest.raises(DDPOError, match=r"cannot be written to .*Not a directory"):
        save_lora(tmp_path / "file" / "lora", policy.params, scale=policy.lora_scale)


def test_adapters_are_not_exported_without_their_scale(pipeline_folder, tmp_path):
    whole = _policy_of(pipeline_folder, trainable="unet")
    adapters = _policy_of(pipeline_folder)
    with pytest.raises(DDPOError, match=r"not LoRA matrices.*policy\.lora_scale"):
        save_lora(tmp_path, adapters.params, scale=whole.lora_scale)


def test_a_full_disk_leaves_the_previous_adapters_and_no_half_of_the_new(make_pipeline, tmp_path):
    policy = _policy(make_pipeline())
    saved = save_lora(tmp_path, policy.params, scale=1.0)
    before = saved.read_bytes()
    # A limit on the size of files fails a write as a full disk does.
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) - 1, hard))
    try:
        with pytest.raises(DDPOError, match="the adapters cannot be written") as caught:
            save_lora(tmp_path, _perturbed(policy.params), scale=1.0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "\n" not in str(caught.value)
    assert saved.read_bytes() == before
    assert list(tmp_path.iterdir()) == [saved]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"lora_rank": 3, "lora_alpha": 1.0},
        {"lora_rank": 49, "lora_alpha": 1.0},
        {"lora_rank": 2, "lora_targets": ["to_q", "conv1", "mid_block.attentions.0.proj_in"]},
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", ["folder", "file"])
def test_training_starts_from_saved_adapters_bit_for_bit(make_pipeline, tmp_path, options, kind):
    policy = _policy(make_pipeline(), **options)
    params = _perturbed(policy.params)
    file = save_lora(tmp_path, params, scale=policy.lora_scale)
    again = _policy(make_pipeline(), lora=file if kind == "file" else file.parent)
    assert again.lora_scale == policy.lora_scale
    assert list(again.params) == list(params)
    assert all(torch.equal(again.params[name], leaf) for name, leaf in params.items())
    assert again.fingerprint == policy.fingerprint
    sampled = sample_trajectories(policy, params, PROMPTS, num_steps=2, seeds=[0, 1])
    replayed = replay_log_probs(again, again.params, sampled, range(2))
    assert torch.equal(replayed, sampled.log_probs)
    fresh = replay_log_probs(policy, policy.params, sampled, range(2))
    assert not torch.equal(replayed, fresh)


def test_adapters_that_diffusers_saved_are_taken_up(make_pipeline, tmp_path):
    policy = _policy(make_pipeline(), lora_rank=2)
    params = _perturbed(policy.params)
    theirs = make_pipeline()
    theirs.load_lora_weights(str(save_lora(tmp_path / "ours", params, scale=0.5).parent))
    theirs.save_lora_weights(
        tmp_path / "theirs",
        unet_lora_layers={
            name.replace(".default_0.", "."): leaf for name, leaf in theirs.unet.named_parameters() if ".lora_" in name
        },
        unet_lora_adapter_metadata=theirs.unet.peft_config["default_0"].to_dict(),
    )
    again = _policy(make_pipeline(), lora=tmp_path / "theirs")
    assert again.lora_scale == 0.5
    assert all(torch.equal(again.params[name], leaf) for name, leaf in params.items())


def _renamed(old, new):
    return lambda saved: {key.replace(old, new): leaf for key, leaf in saved.items()}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_renamed("unet.", "text_encoder."), r"what is no adapter of a UNet: text_encoder\..* \(and \d+ more\)"),
        (_renamed("lora_A.weight", "lora.down.weight"), r"what is no adapter of a UNet: unet\.\S*\.lora\.down\.weight"),
        (_renamed("mid_block", "middle"), r"what is not in this UNet: unet\.middle\.\S*"),
        (lambda saved: dict(list(saved.items())[1:]), r"what is missing: unet\.\S*\.lora_A\.weight$"),
        (
            lambda saved: {key: leaf[:, :-1] if "mid_block" in key else leaf for key, leaf in saved.items()},
            r"what is of another size: unet\.mid_block\S* is \(4, 31\), wanted \(4, 32\)",
        ),
        (
            lambda saved: {key: leaf[:2] if "lora_A" in key and "mid" in key else leaf for key, leaf in saved.items()},
            r"has the ranks \[2, 4\]: want one rank",
        ),
        (lambda saved: {}, r"has the ranks \[\]"),
    ],
)
def test_adapters_that_do_not_fit_say_which(make_pipeline, tmp_path, change, message):
    file = save_lora(tmp_path, _policy(make_pipeline()).params, scale=1.0)
    saved = change(load_file(file))
    save_file({key: leaf.contiguous() for key, leaf in saved.items()}, file)
    with pytest.raises(DDPOError, match=message) as caught:
        _policy(make_pipeline(), lora=tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("described", "message"),
    [
        ({"unet.lora_alpha": "2"}, r"lora_alpha='2': want a number above 0"),
        ({"unet.lora_alpha": 2, "unet.alpha_pattern": {"to_q": 3}}, r"alpha_pattern: want one rank and one alpha"),
        ([], "cannot be read"),
    ],
    ids=str,
)
def test_adapters_with_a_scale_that_is_no_number_are_refused(make_pipeline, tmp_path, described, message):
    file = save_lora(tmp_path, _policy(make_pipeline()).params, scale=1.0)
    save_file(load_file(file), file, {"lora_adapter_metadata": json.dumps(described)})
    with pytest.raises(DDPOError, match=message):
        _policy(make_pipeline(), lora=tmp_path)


def test_adapters_that_are_absent_or_damaged_are_one_clear_line(make_pipeline, tmp_path):
    with pytest.raises(DDPOError, match=rf"{FILE}' does not exist: want a folder"):
        _policy(make_pipeline(), lora=tmp_path)
    (tmp_path / FILE).write_bytes(b"damaged")
    with pytest.raises(DDPOError, match="cannot be read") as caught:
        _policy(make_pipeline(), lora=tmp_path)
    assert "\n" not in str(caught.value)


def test_the_file_says_the_scale_where_it_is_not_1(make_pipeline, tmp_path):
    policy = _policy(make_pipeline(), lora_rank=4, lora_alpha=2.0, lora_targets=["to_q"])
    with safe_open(save_lora(tmp_path, policy.params, scale=policy.lora_scale), "pt") as file:
        described = json.loads(file.metadata()["lora_adapter_metadata"])
    assert (described["unet.r"], described["unet.lora_alpha"]) == (4, 2)
    assert all(target.endswith(".to_q") for target in described["unet.target_modules"])


def test_a_whole_model_is_exported_and_draws_the_same_images_bit_for_bit(pipeline_folder, tmp_path, capsys):
    policy = load_policy(pipeline_folder, trainable="unet", guidance_scale=2.0, device="cpu")
    trained = {name: leaf * 1.01 for name, leaf in policy.params.items()}
    saved = save_pipeline(tmp_path / "model", trained, model=pipeline_folder)
    assert capsys.readouterr() == ("", "")
    assert [entry.name for entry in tmp_path.iterdir()] == ["model"]
    reloaded = load_policy(str(saved), trainable="unet", guidance_scale=2.0, device="cpu")
    images = [
        model.decode(sample_trajectories(model, params, PROMPTS, num_steps=3, seeds=[5, 6]).latents[:, -1])
        for model, params in ((policy, trained), (reloaded, reloaded.params), (policy, policy.params))
    ]
    assert torch.equal(images[0], images[1])
    assert not torch.equal(images[0], images[2])


def test_an_export_that_cannot_be_is_one_clear_line(pipeline_folder, tmp_path):
    adapters = load_policy(pipeline_folder, device="cpu").params
    with pytest.raises(DDPOError, match=r"not all weights of the UNet .* save_lora writes adapters"):
        save_pipeline(tmp_path / "model", adapters, model=pipeline_folder)
    with pytest.raises(DDPOError, match="exists already"):
        save_pipeline(tmp_path, adapters, model=pipeline_folder)
    weights = load_policy(pipeline_folder, trainable="unet", device="cpu").params
    (tmp_path / "file").write_text("")
    with pytest.raises(DDPOError, match=r"cannot be written to .*(Not a directory|File exists)"):
        save_pipeline(tmp_path / "file" / "model", weights, model=pipeline_folder)
