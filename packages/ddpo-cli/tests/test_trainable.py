"""What is trained, a LoRA or the whole UNet, and how its gradients are computed."""

import json
import shutil
from contextlib import chdir
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors import safe_open
from safetensors.numpy import load_file
from typer.testing import CliRunner

from ddpo_cli.app import app
from ddpo_core.runs.config import validate
from ddpo_core.runs.parts import make_policy

WHOLE = ("--reward", "jpeg_compressibility", "--trainable", "unet", "--learning-rate", "1e-3")
PARAMS = "checkpoints/epoch-000002/params.safetensors"
SMALL = ("--num-images", "3", "--num-steps", "2", "--device", "cpu")


def pixels(path: str) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


@pytest.fixture(scope="module")
def resumed(write_quick, tmp_path_factory) -> Path:
    """Train all weights of a tiny model for one epoch, and resume the run for another."""
    with chdir(tmp_path_factory.mktemp("resumed")):
        for arguments in (
            (*write_quick(), *WHOLE, "--epochs", "1", "--output", "run"),
            ("train", "--resume", "run", "--epochs", "2"),
        ):
            result = CliRunner().invoke(app, arguments)
            assert result.exit_code == 0, result.output
        return Path("run").absolute()


@pytest.fixture
def whole(resumed) -> Path:
    """A run of all weights that this test may do with what it likes."""
    return Path(shutil.copytree(resumed, "run"))


def test_a_whole_unet_is_trained_and_resumed_bit_for_bit_and_exported(ddpo, quick, whole):
    assert ddpo(*quick, *WHOLE, "--output", "uninterrupted").exit_code == 0
    assert (whole / PARAMS).read_bytes() == Path("uninterrupted", PARAMS).read_bytes()
    assert not (whole / "lora").exists()
    assert [path.name for path in whole.iterdir() if path.name.startswith(".")] == [".lock"]
    trained, exported = load_file(whole / PARAMS), load_file(whole / "model/unet/diffusion_pytorch_model.safetensors")
    assert trained.keys() == exported.keys()
    assert all((trained[name] == exported[name]).all() for name in trained)


def test_a_run_and_the_model_that_it_leaves_draw_the_same_and_not_what_the_base_draws(ddpo, whole, tiny_model):
    for name, source in {"run": "run", "model": "run/model", "base": tiny_model}.items():
        result = ddpo("sample", source, *SMALL, "--guidance-scale", "1", "-o", f"{name}.png")
        assert result.exit_code == 0, result.output
    assert (pixels("run.png") == pixels("model.png")).all()
    assert (pixels("run.png") != pixels("base.png")).any()


def test_a_whole_unet_is_compared_with_its_base(ddpo, whole):
    result = ddpo("eval", "run", *SMALL, "--prompts", "simple_animals", "--format", "json")
    assert result.exit_code == 0, result.output
    (row,) = json.loads(result.stdout)
    assert row["base"] != row["finetuned"]


def test_the_card_of_a_whole_model_says_how_to_draw_with_it(whole):
    card = (whole / "model/README.md").read_text()
    assert "lora" not in card.lower()
    code = card.split("```python\n")[1].split("```")[0].replace("path/to/this/folder", "run/model")
    exec(code, {})
    assert pixels("fox.png").shape == (16, 16, 3)


def test_the_scale_of_a_lora_is_exported_with_it(ddpo, quick):
    assert ddpo(*quick, "--lora-rank", "2", "--lora-alpha", "8", "--output", "run").exit_code == 0
    with safe_open("run/lora/pytorch_lora_weights.safetensors", "numpy") as file:
        described = json.loads(file.metadata()["lora_adapter_metadata"])
    assert (described["unet.r"], described["unet.lora_alpha"]) == (2, 8)


def test_a_run_with_an_average_draws_and_compares_it_and_leaves_it_to_the_next_run(ddpo, quick):
    lora = ("--learning-rate", "0.05", "--lora-rank", "2")
    for run, decay in {"plain": (), "averaged": ("--ema-decay", "0.9")}.items():
        assert ddpo(*quick, *lora, *decay, "--output", run).exit_code == 0
        result = ddpo("sample", run, *SMALL, "-o", f"{run}.png")
        assert result.exit_code == 0, result.output
        assert ddpo("eval", run, *SMALL, "--prompts", "simple_animals", "-o", f"eval-{run}").exit_code == 0
    assert Path("plain", PARAMS).read_bytes() == Path("averaged", PARAMS).read_bytes()
    assert (pixels("plain.png") != pixels("averaged.png")).any()
    scores = [json.loads(Path(f"eval-{run}/eval.json").read_text())["scores"] for run in ("plain", "averaged")]
    (plain, averaged) = (next(iter(pair.values())) for pair in scores)
    assert plain["base"] == averaged["base"]
    assert plain["finetuned"] != averaged["finetuned"]
    # What it leaves is the average: a run that starts from there draws first what was drawn last.
    result = ddpo(*quick, "--lora", "averaged/lora", "--epochs", "1", "--output", "next")
    assert result.exit_code == 0, result.output
    before, after = (json.loads(Path(run, "evaluation.json").read_text())["scores"] for run in ("next", "averaged"))
    assert before["before"] == after["after"]


def test_a_lora_that_is_not_there_or_would_do_nothing_is_refused(ddpo, quick):
    for arguments, message in {
        ("--lora", "nowhere"): "the LoRA 'nowhere' does not exist",
        ("--lora", "x", "--lora-rank", "4"): "lora_rank=4 is for a fresh LoRA, and lora='x' brings its own",
        ("--lora", "x", "--trainable", "unet"): "lora='x' is of a LoRA, and trainable='unet' has none",
    }.items():
        result = ddpo(*quick, *arguments)
        assert result.exit_code == 2
        assert message in result.stderr
    assert not Path("runs").exists()


def test_gradient_checkpointing_computes_blocks_again_with_the_same_result(ddpo, quick, monkeypatch):
    from ddpo_core.diffusion import network

    calls = []
    real = network.checkpoint
    monkeypatch.setattr(network, "checkpoint", lambda *given, **options: (calls.append(1), real(*given, **options))[1])
    assert ddpo(*quick, "--output", "kept").exit_code == 0
    assert calls == []
    assert ddpo(*quick, "--gradient-checkpointing", "--output", "again").exit_code == 0
    assert calls
    kept, again = (load_file(Path(run, PARAMS)) for run in ("kept", "again"))
    assert all(np.allclose(kept[name], again[name], atol=1e-6) for name in kept)


def test_the_unet_is_compiled_where_that_is_asked_for(tiny_model, monkeypatch):
    import torch

    compiled = []
    monkeypatch.setattr(torch, "compile", lambda call, **options: (compiled.append(type(call.__self__)), call)[1])
    for wanted in ("auto", "off"):
        make_policy(validate({"model": str(tiny_model), "device": "cpu", "compile": wanted}))
    assert compiled == []
    make_policy(validate({"model": str(tiny_model), "device": "cpu", "compile": "on"}))
    assert {kind.__name__ for kind in compiled} == {"BasicTransformerBlock"}


def test_how_gradients_are_computed_may_change_when_a_run_is_resumed_but_not_what_is_trained(ddpo, quick):
    assert ddpo(*quick, "--output", "run").exit_code == 0
    more = ("train", "--resume", "run", "--epochs", "3")
    refused = ddpo(*more, "--trainable", "unet")
    assert refused.exit_code == 2
    assert "trainable: 'lora' -> 'unet'" in refused.stderr
    assert ddpo(*more, "--gradient-checkpointing").exit_code == 0


def test_a_dry_run_counts_all_weights(ddpo, quick):
    counts = {}
    for part in ("lora", "unet"):
        result = ddpo(*quick, "--trainable", part, "--dry-run")
        assert result.exit_code == 0, result.output
        counts[part] = int(result.stderr.split("Trained: ")[1].split(" ")[0].replace(",", ""))
    assert counts["unet"] > 10 * counts["lora"]
