"""When a UNet is compiled, where that is kept, and what is told of it."""

import os
import stat

import pytest
import torch

from ddpo_core import stable_diffusion_policy
from ddpo_core.runs import compiling
from ddpo_core.runs.compiling import compile_now, compiled_folder, keep_compiled, settle_compile
from ddpo_core.runs.defaults import run_config

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
    assert settled.compile == "on"
    assert told.startswith("compile: on; the UNet is called about 640,000 times, and compiling")
    settled, (told,) = settle_compile(run_config({**LONG, "epochs": 3}))
    assert settled.compile == "off"
    assert "about 19,200 times" in told
    monkeypatch.setattr(compiling, "_has_triton", lambda: False)
    settled, (told,) = settle_compile(run_config(LONG))
    assert settled.compile == "off"
    assert "no Triton" in told


def test_what_is_compiled_is_kept_in_a_folder_of_the_users_own(tmp_path, monkeypatch):
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = keep_compiled()
    assert folder == tmp_path / "ddpo" / "compiled"
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(folder)
    if os.name == "posix":
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "mine"))
    assert keep_compiled() == compiled_folder() == tmp_path / "mine"


def test_the_programs_of_a_run_are_compiled_before_it_and_their_ratio_is_told(make_pipeline):
    policy = stable_diffusion_policy(make_pipeline(), guidance_scale=2.0, device="cpu", dtype=torch.float32)
    shapes, phases = [], []

    def transition(params, latents, *others):
        shapes.append((len(latents), torch.is_grad_enabled()))
        return policy.transition(params, latents, *others)

    config = run_config({"fit": {"sample_batch_size": 3, "micro_batch_size": 2}})
    told = compile_now(
        policy._replace(transition=transition), ["a cat", "a dog"], config, lambda *phase: phases.append(phase)
    )
    assert shapes == [(3, False), (3, False), (3, True), (2, False), (2, False), (2, True)]
    assert phases[0] == ("compiling", 0, 4)
    assert phases[-1] == ("compiling", 4, 4)
    # Not compiled, it is 1 in truth.
    assert told == "the UNet is compiled; before training, ratios of probabilities are within 0e+00 of 1"
