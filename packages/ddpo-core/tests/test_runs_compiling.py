"""When a UNet is compiled, where that is kept, and what is told of it."""

import os
import re
import stat
from functools import partial

import pytest
import torch
from torch._inductor.runtime.cache_dir_utils import cache_dir

from ddpo_core import sample_trajectories, stable_diffusion_policy
from ddpo_core.runs import compiling
from ddpo_core.runs.compiling import compiled_folder, keep_compiled, settle_compile, try_compiled
from ddpo_core.runs.defaults import run_config
from ddpo_core.runs.parts import load_parts

FIT = {"num_steps": 50, "samples_per_epoch": 256, "sample_batch_size": 8, "micro_batch_size": 8}
LONG = {"epochs": 100, "model": "a/b", "compile": "auto", "fit": FIT}


def test_on_a_cpu_it_is_off_and_nothing_is_said_of_it():
    settled, told = settle_compile(run_config({**LONG, "device": "cpu"}))
    assert (settled.compile, told) == ("off", ())


@pytest.mark.parametrize("chosen", ["on", "off"])
def test_what_was_asked_for_is_done(chosen):
    config = run_config({**LONG, "device": "cpu", "compile": chosen})
    assert settle_compile(config) == (config, ())


def test_on_a_gpu_the_calls_of_the_unet_decide_and_are_told(monkeypatch):
    monkeypatch.setattr(compiling, "choose_device", lambda device: torch.device("cuda"))
    monkeypatch.setattr(compiling, "_has_triton", lambda: True)
    # 32 batches of 50 steps, and 256 x 50 pairs in 1,600 micro-batches of three calls each, 100 times.
    settled, (told,) = settle_compile(run_config(LONG))
    assert settled.compile == "auto"
    assert told.startswith("compile: auto; the UNet is called about 640,000 times, and compiling")
    settled, (told,) = settle_compile(run_config({**LONG, "epochs": 3}))
    assert settled.compile == "off"
    assert "about 19,200 times" in told
    monkeypatch.setattr(compiling, "_has_triton", lambda: False)
    settled, (told,) = settle_compile(run_config(LONG))
    assert settled.compile == "off"
    assert "no Triton" in told


@pytest.mark.parametrize("has_looked", [False, True])
def test_what_is_compiled_is_kept_in_a_folder_of_the_users_own(tmp_path, monkeypatch, has_looked):
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    if has_looked:  # torch then writes its own place, which everybody may write to, into the variable
        cache_dir()
        assert "TORCHINDUCTOR_CACHE_DIR" in os.environ
    folder = keep_compiled()
    assert folder == tmp_path / "ddpo" / "compiled"
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(folder)
    if os.name == "posix":
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "mine"))
    assert keep_compiled() == compiled_folder() == tmp_path / "mine"


@pytest.fixture
def policy(make_pipeline):
    return stable_diffusion_policy(make_pipeline(), guidance_scale=2.0, device="cpu", dtype=torch.float32)


def test_every_shape_is_tried_thrice_to_compile_to_time_it_and_to_compare(policy):
    shapes = []

    def transition(params, latents, *others):
        shapes.append((len(latents), torch.is_grad_enabled()))
        return policy.transition(params, latents, *others)

    # An update has two steps of 64 / 8 samples: five times three rows, and one that is left over.
    config = run_config({"compile": "on", "fit": {"sample_batch_size": 4, "micro_batch_size": 3}})
    assert try_compiled(policy._replace(transition=transition), ["a cat", "a dog"], config).is_kept
    assert shapes == 3 * [(4, False), (4, False), (3, True), (1, True)]


def test_what_is_told_of_a_network_that_is_not_compiled_in_truth_is_a_ratio_of_1(policy):
    config = run_config({"compile": "on", "fit": {"sample_batch_size": 2, "micro_batch_size": 2}})
    trial = try_compiled(policy, ["a cat"], config)
    assert re.fullmatch(
        r"the UNet is compiled: compiled, its calls take \d\.\d\d of the time, and before training, ratios of "
        r"probabilities are within 0e\+00 of 1",
        trial.told,
    )


@pytest.mark.parametrize(
    ("seconds", "off_by", "is_kept"),
    # The clip range is 1e-4, a tenth of it is bearable.
    [(0.9, 1e-6, True), (0.9, 2e-5, False), (1.1, 0.0, False)],
    ids=["faster", "inexact", "slower"],
)
def test_by_itself_it_is_kept_where_it_is_faster_and_exact(policy, monkeypatch, seconds, off_by, is_kept):
    measured = iter([(100.0, off_by), (seconds, off_by), (1.0, 0.0)])  # compiling, compiled, without
    monkeypatch.setattr(compiling, "_pass_through", lambda *given: next(measured))
    config = run_config({"compile": "auto", "objective": {"clip_range": 1e-4}})
    trial = try_compiled(policy, ["a cat"], config)
    assert trial.is_kept == is_kept
    assert f"its calls take {seconds:.2f} of the time" in trial.told


def test_programs_that_round_differently_are_noticed(policy):
    def transition(params, latents, *others):
        found = policy.transition(params, latents, *others)
        return found._replace(mean=found.mean + 1e-2 * torch.is_grad_enabled())

    config = run_config({"compile": "on", "fit": {"sample_batch_size": 2, "micro_batch_size": 2}})
    trial = try_compiled(policy._replace(transition=transition), ["a cat"], config)
    assert "within 0e+00" not in trial.told


def test_a_compiler_that_fails_stops_only_who_asked_for_it(make_pipeline, tmp_path, monkeypatch):
    def backend(graph, inputs, **options):
        raise RuntimeError("no room in the oven")

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    monkeypatch.setattr(compiling, "choose_device", lambda device: torch.device("cuda"))
    monkeypatch.setattr(compiling, "_has_triton", lambda: True)
    make_pipeline().save_pretrained(tmp_path)
    config = run_config({**LONG, "model": str(tmp_path), "device": "cpu", "dtype": "float32"})
    parts = load_parts(config)
    asked, said = parts.notes
    assert asked.startswith("compile: auto")
    assert said.startswith("the UNet is not compiled, which fails here: ")
    assert "no room in the oven" in said
    sampled = sample_trajectories(parts.policy, parts.policy.params, ["a cat"], num_steps=1, seeds=[0])
    assert torch.isfinite(sampled.latents).all()
    with pytest.raises(Exception, match="no room in the oven"):
        load_parts(config.model_copy(update={"compile": "on"}))
