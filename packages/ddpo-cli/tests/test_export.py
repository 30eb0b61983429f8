"""`ddpo export`, from checkpoints as training leaves them; `ddpo_core` tests what is in the files."""

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

from ddpo_core import adamw, init, save_checkpoint, toy
from ddpo_core.runs.config import to_toml
from ddpo_core.runs.defaults import run_config

LAYER = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"


@pytest.fixture
def run() -> Path:
    """A run of two saved epochs, in which a LoRA of rank 1 became the number of the epoch everywhere."""
    import torch

    folder = Path("runs/0001-a")
    folder.mkdir(parents=True)
    (folder / "config.toml").write_text(to_toml(run_config({"epochs": 9})))
    rows = [{"epoch": n, "queries": 64 * n, "reward_mean": -1.0 * n, "reward_std": 0.5} for n in (1, 2)]
    (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    for epoch in (1, 2):
        parts = {"A": torch.full((1, 4), float(epoch)), "B": torch.full((4, 1), float(epoch))}
        params = {f"{LAYER}.lora_{part}.default.weight": leaf for part, leaf in parts.items()}
        policy = toy.policy()._replace(params=params, lora_scale=1.0)
        state = init(policy, adamw(1e-3), seed=0)
        save_checkpoint(folder, type(state)(**{**vars(state), "epoch": epoch}), policy)
    return folder


def exported(folder: str) -> float:
    leaves = load_file(Path(folder.strip()) / "pytorch_lora_weights.safetensors")
    return {float(leaf.mean()) for leaf in leaves.values()}.pop()


def test_the_model_of_a_run_a_chosen_epoch_or_a_checkpoint_is_exported(ddpo, run):
    (run / "model.json").write_text('{"epoch": null, "best": 1}')
    for arguments, epoch in (([], 2), ([run, "--epoch", "best"], 1), ([run, "--epoch", "last"], 2),
                             ([run, "--epoch", "1"], 1), ([run / "checkpoints/epoch-000001"], 1)):  # fmt: skip
        result = ddpo("export", *arguments, "-o", f"mine-{len(list(Path().glob('mine-*')))}")
        assert (result.exit_code, exported(result.stdout)) == (0, epoch), result.stderr
        assert f"Epoch {epoch} of runs/0001-a, a LoRA for load_lora_weights." in result.stderr
    default = ddpo("export", run)
    assert default.stdout == "runs/0001-a/export/epoch-000002-lora\n"
    assert "reward -1" not in (Path(default.stdout.strip()) / "README.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["nowhere"], "'nowhere' is no run"),
        (["runs/0001-a", "--epoch", "7"], "epoch 7 of 'runs/0001-a' is not saved; there are: 1, 2"),
        (["runs/0001-a", "--epoch", "first"], "want best, last, or the number of an epoch"),
        (["runs/0001-a", "--epoch", "best"], "has no best epoch"),
        (["runs/0001-a", "--output", "runs"], "'runs' exists already; choose a new folder"),
        (["runs/0001-a", "--private"], "add --push-to-hub OWNER/NAME"),
        (["runs/0001-a", "--push-to-hub", "mine"], "want OWNER/NAME"),
    ],
)
def test_what_cannot_be_exported_is_one_line(ddpo, run, arguments, reason):
    result = ddpo("export", *arguments)
    assert (result.exit_code, len(result.stderr.splitlines())) == (2, 1), result.stderr
    assert reason in result.stderr


def test_a_damaged_checkpoint_is_said_to_be_and_leaves_nothing(ddpo, run):
    (run / "checkpoints/epoch-000002/params.safetensors").write_bytes(b"torn")
    result = ddpo("export", run, "-o", "mine")
    assert result.exit_code == 2
    assert "is damaged (params.safetensors): go on from an earlier one" in result.stderr
    assert [path.name for path in Path().iterdir()] == ["runs"]


def test_what_is_not_pushed_stays(ddpo, run):
    result = ddpo("export", run, "-o", "mine", "--push-to-hub", "me/mine")  # the tests are offline
    assert result.exit_code == 2
    assert "'mine' cannot be pushed to 'me/mine'" in result.stderr
    assert exported("mine") == 2.0
