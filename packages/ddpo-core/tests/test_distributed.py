"""Several processes make the update of one, and fall together. They are real ones, on gloo."""

import importlib.util
import json
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ddpo_core import DDPOError, adamw, latest_checkpoint, load_checkpoint, processes_from_environment
from ddpo_core.distributed import SINGLE

PROCESS = Path(__file__).with_name("process.py")


def start(jobs, size=2):
    """Run jobs in `size` processes; returns the errors and the exit code of each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as errors:
        command = [sys.executable, PROCESS, json.dumps(jobs), str(size), errors]
        done = subprocess.run(command, env=shared, stdout=subprocess.PIPE, text=True, timeout=900)
        return [(Path(errors, str(rank)).read_text(), code) for rank, code in enumerate(json.loads(done.stdout))]


def module_of_a_process():
    spec = importlib.util.spec_from_file_location("process", PROCESS)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run_here(jobs):
    """Run the same jobs in this process alone."""
    for job in jobs:
        module_of_a_process().run(job, SINGLE)


def assert_same_run(first, second, model=None):
    policy, _ = module_of_a_process().load(model)
    states = [load_checkpoint(latest_checkpoint(folder), policy, adamw(1e-2)) for folder in (first, second)]
    assert states[0].epoch == states[1].epoch
    for name, leaf in states[0].params.items():
        # By norm: Adam moves an element as far as any other whose gradient is hardly more than rounding, and other
        # batches round otherwise.
        moved = (leaf - policy.params[name]).norm()
        assert (states[1].params[name] - leaf).norm() <= 2e-3 * moved, name
    drawn = [
        {name: point for file in folder.glob("process-*.safetensors") for name, point in load_file(file).items()}
        for folder in (first, second)
    ]
    assert drawn[0].keys() == drawn[1].keys() == {str(index) for index in range(16)}
    for index, point in drawn[0].items():
        torch.testing.assert_close(drawn[1][index], point, rtol=1e-4, atol=1e-4)


@pytest.fixture(scope="module")
def runs(tmp_path_factory, pipeline_folder):
    """Every objective and a diffusion model here and in two processes; and a run that changes to two and back."""
    folder = tmp_path_factory.mktemp("runs")

    def job(name, objective="policy gradient", epochs=3, begin=None, model=None, *, keeps=False):
        start = None if begin is None else str(folder / begin)
        described = {"objective": objective, "epochs": epochs, "start": start, "model": model, "keeps": keeps}
        return {"folder": str(folder / name), **described}

    def all_kinds(size):
        return [
            job(f"gradient-{size}"),
            job(f"kept-{size}", keeps=True),
            job(f"regression-{size}", "regression"),
            job(f"pictures-{size}", epochs=2, model=pipeline_folder),
        ]

    run_here([*all_kinds(1), job("changing-1", epochs=1)])
    done = start([*all_kinds(2), job("changing-2", epochs=1, begin="changing-1")])
    assert [code for _, code in done] == [0, 0], done
    run_here([job("changing-3", epochs=1, begin="changing-2")])
    return folder


@pytest.mark.parametrize("objective", ["gradient", "regression", "kept"])
def test_two_processes_draw_the_samples_and_make_the_updates_of_one(runs, objective):
    assert_same_run(runs / f"{objective}-1", runs / f"{objective}-2")


def test_two_processes_draw_the_pictures_and_train_the_adapters_of_one(runs, pipeline_folder):
    assert_same_run(runs / "pictures-1", runs / "pictures-2", pipeline_folder)
    trained = load_file(latest_checkpoint(runs / "pictures-1") / "params.safetensors")
    assert any(leaf.abs().max() > 0 for name, leaf in trained.items() if ".lora_B." in name)


def test_two_processes_answer_what_falls_as_one_does(runs):
    alone, both = (
        json.loads((latest_checkpoint(runs / f"kept-{size}") / "state.json").read_text())["constraint_state"]
        for size in (1, 2)
    )
    for name in ("prompt_margin", "near"):
        assert both[name] == pytest.approx(alone[name], rel=1e-4)
        assert alone[name]["integral"] > 0


@pytest.mark.parametrize("kind", ["gradient", "regression", "pictures", "kept"])
def test_every_process_sees_of_an_epoch_what_one_alone_would_see(runs, kind):
    alone, first, second = (
        json.loads((runs / f"{kind}-{size}" / f"process-{rank}.json").read_text())
        for size, rank in ((1, 0), (2, 0), (2, 1))
    )
    assert first == second
    assert len(alone) == len(first)
    for before, after in zip(alone, first, strict=True):
        assert after["reward"] == pytest.approx(before["reward"], rel=1e-4)
        for table in ("signals", "held_out", "errors"):
            assert after[table] == pytest.approx(before[table], rel=1e-3, abs=1e-5)
    assert {"diversity", "saturation"} & set(alone[0]["signals"])
    assert set(alone[0]["errors"]) == {"prompt_evidence", "familiarity"}


def test_a_run_goes_on_with_two_processes_and_with_one_again(runs):
    assert_same_run(runs / "gradient-1", runs / "changing-3")


def test_only_one_process_writes(runs):
    assert sorted(path.name for path in (runs / "gradient-2").iterdir()) == [
        "checkpoints",
        "process-0.json",
        "process-0.safetensors",
        "process-1.json",
        "process-1.safetensors",
    ]


@pytest.mark.parametrize("culprit", [0, 1])
def test_a_failing_process_ends_all_with_its_own_error(tmp_path, culprit):
    job = {"folder": str(tmp_path / "run"), "objective": "policy gradient", "epochs": 3}
    done = start([{**job, "fails": culprit, "how": "raises"}])
    assert all(code == 1 for _, code in done)
    assert "DDPOError: the reward broke" in done[culprit][0]
    assert f"ProcessError: process {culprit} of 2 failed: the reward broke" in done[1 - culprit][0]
    assert not (tmp_path / "run").exists()


def test_a_killed_process_ends_all(tmp_path):
    job = {"folder": str(tmp_path / "run"), "objective": "policy gradient", "epochs": 3}
    done = start([{**job, "fails": 1, "how": "killed"}])
    assert done[1][1] == -9
    assert done[0][1] == 1
    assert "ProcessError: another process ended without a word" in done[0][0]


@pytest.mark.parametrize("environment", [{}, {"RANK": "0", "WORLD_SIZE": "1"}])
def test_without_others_there_is_one_process(environment):
    with processes_from_environment(environment) as processes:
        assert processes == SINGLE
        assert processes.is_writer


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"WORLD_SIZE": "2"}, "the environment has RANK=None: want a whole number; start with torchrun"),
        ({"WORLD_SIZE": "two", "RANK": "0"}, "WORLD_SIZE='two'"),
    ],
)
def test_half_an_environment_is_one_clear_line(environment, message):
    with pytest.raises(DDPOError, match=message), processes_from_environment(environment):
        pass
