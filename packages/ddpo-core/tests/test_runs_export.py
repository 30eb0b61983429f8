"""What a run leaves for others: weights for diffusers, and a card that says what they are."""

import json
import re
from itertools import islice

import numpy as np
import pytest
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

from ddpo_core import DDPOError
from ddpo_core.runs.defaults import run_config
from ddpo_core.runs.events import Epoch
from ddpo_core.runs.export import export_run, reward_curve
from ddpo_core.runs.loop import train

QUICK = {
    "device": "cpu", "epochs": 1, "eval_samples": 2, "grid_samples": 2, "checkpoint_every": 1, "guidance_scale": 1.0,
    "evidence_samples": 0, "learning_rate": 0.1,
    "fit": {"num_steps": 2, "samples_per_epoch": 4, "updates_per_epoch": 1, "sample_batch_size": 4,
            "micro_batch_size": 4},
}  # fmt: skip


def brightness(images, prompts, metadata):
    return images.mean((1, 2, 3)), {}


def sums_of(leaves):
    """One number per tensor, whatever its name: the names of an export are diffusers' own."""
    return sorted(round(float(leaf.double().sum()), 6) for leaf in leaves.values())


@pytest.fixture(scope="module", params=["lora", "unet"])
def trained(request, make_pipeline, tmp_path_factory):
    """A run of each kind, and the folder of the model that it was trained on."""
    folder = tmp_path_factory.mktemp("export")
    make_pipeline().save_pretrained(folder / "tiny")
    kind = {"lora": {"lora_rank": 2, "lora_alpha": 8.0}, "unet": {"learning_rate": 1e-3}}[request.param]
    given = {**QUICK, **kind, "model": str(folder / "tiny"), "trainable": request.param}
    for _ in train(run_config(given), brightness, output=folder / "run"):
        pass
    return folder, request.param


def test_the_weights_are_those_of_the_last_epoch_under_the_names_of_diffusers(trained):
    folder, kind = trained
    params = load_file(folder / "run/checkpoints/epoch-000001/params.safetensors")
    if kind == "unet":
        exported = load_file(folder / "run/model/unet/diffusion_pytorch_model.safetensors")
        assert exported.keys() == params.keys()
        assert all((exported[name] == params[name]).all() for name in params)
        return
    file = folder / "run/lora/pytorch_lora_weights.safetensors"
    sums = [
        sorted(round(float(leaf.double().sum()), 6) for leaf in leaves.values()) for leaves in (params, load_file(file))
    ]
    assert sums[0] == sums[1]
    with safe_open(file, "pt") as read:
        described = json.loads(read.metadata()["lora_adapter_metadata"])
    assert (described["unet.r"], described["unet.lora_alpha"]) == (2, 8)


def test_the_usage_on_the_card_draws_what_it_says(trained, monkeypatch, tmp_path):
    folder, kind = trained
    artefact = folder / "run" / ("lora" if kind == "lora" else "model")
    card = (artefact / "README.md").read_text(encoding="utf-8")
    assert ("lora" in card.lower()) == (kind == "lora")
    assert str(folder) not in card  # where it lay is nobody's business
    for picture in re.findall(r"!\[.*\]\((.+)\)", card):
        with Image.open(artefact / picture) as image:
            image.load()
    monkeypatch.chdir(tmp_path)
    code = card.split("```python\n")[1].split("```")[0]
    code = code.replace("'tiny'", repr(str(folder / "tiny"))).replace("path/to/this/folder", str(artefact))
    exec(code, {})
    with Image.open("fox.png") as image:
        assert np.asarray(image).shape == (16, 16, 3)


def test_the_curve_has_a_point_for_every_epoch():
    rows = [{"queries": 64 * epoch, "reward_mean": float(epoch), "reward_std": 0.5} for epoch in (1, 2, 3)]
    assert reward_curve(rows, "t").size == (720, 400)


def test_what_is_exported_is_what_the_run_left_and_says_what_it_is(trained, tmp_path):
    folder, kind = trained
    left = folder / "run" / ("lora" if kind == "lora" else "model")
    done = export_run(folder / "run", output=tmp_path / "mine")
    assert (done.epoch, done.kind, done.run) == (1, kind, folder / "run")
    for file in sorted(path.relative_to(left) for path in left.rglob("*") if path.is_file()):
        if file.suffix != ".safetensors":  # whose head is written in any order
            assert (done.folder / file).read_bytes() == (left / file).read_bytes(), file
            continue
        exported, before = load_file(done.folder / file), load_file(left / file)
        assert exported.keys() == before.keys()
        assert all((exported[name] == before[name]).all() for name in before)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
    with pytest.raises(DDPOError, match="exists already"):
        export_run(folder / "run", output=tmp_path / "mine")


def test_a_lora_is_added_to_the_weights_of_the_model(trained, tmp_path):
    folder, kind = trained
    if kind == "unet":
        with pytest.raises(DDPOError, match="of which there is no LoRA"):
            export_run(folder / "run", weights="lora")
        return
    done = export_run(folder / "run/checkpoints/epoch-000001", weights="full", output=tmp_path / "whole")
    base, merged = (
        load_file(place / "unet/diffusion_pytorch_model.safetensors") for place in (folder / "tiny", done.folder)
    )
    trained_on = load_file(folder / "run/checkpoints/epoch-000001/params.safetensors")
    changed = {name for name in base if not (base[name] == merged[name]).all()}
    assert len(changed) == len(trained_on) // 2
    for name in changed:  # W + scale * B A, where the scale is alpha / rank = 8 / 2
        layer = name.removesuffix(".weight")
        low, high = (trained_on[f"{layer}.lora_{part}.default.weight"] for part in ("A", "B"))
        np.testing.assert_allclose(merged[name].numpy(), (base[name] + 4 * high @ low).numpy(), atol=1e-6)
    assert "A LoRA added to the UNet" in (done.folder / "README.md").read_text(encoding="utf-8")


def test_a_run_that_was_broken_off_is_exported_at_any_epoch_that_is_saved(trained, tmp_path):
    folder, kind = trained
    if kind == "unet":
        pytest.skip("how the run ended makes no difference to what is trained")
    given = {**QUICK, "model": str(folder / "tiny"), "lora_rank": 2, "epochs": 9, "sample_every": 1}
    run = tmp_path / "run"
    epochs = (event for event in train(run_config(given), brightness, output=run) if isinstance(event, Epoch))
    list(islice(epochs, 2))
    epochs.close()
    assert export_run(run).epoch == 2
    done = export_run(run, epoch=1)
    card = (done.folder / "README.md").read_text(encoding="utf-8")
    assert "This model was not compared with its base." in card
    assert "![Samples after 1 epochs](epoch-0001.png)" in card
    assert (done.folder / "epoch-0001.png").is_file()
    for epoch, reason in ((7, "epoch 7 of .* is not saved; there are: 1, 2"), ("best", "has no best epoch")):
        with pytest.raises(DDPOError, match=reason):
            export_run(run, epoch=epoch)
    with pytest.raises(DDPOError, match="is a checkpoint, and so one epoch"):
        export_run(run / "checkpoints/epoch-000001", epoch="last")
