"""A checkpoint is complete or absent, whatever happens to the disk, and is told apart from a damaged one."""

import json
import resource
import shutil

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ddpo_core import (
    CheckpointError,
    DDPOError,
    adamw,
    init,
    latest_checkpoint,
    load_checkpoint,
    prune_checkpoints,
    rewind_checkpoints,
    save_checkpoint,
    toy,
)
from ddpo_core.types import TrainState

POLICY, OPTIMIZER = toy.policy(), adamw(1e-3)


def _state(seed=5, epoch=2):
    generator = torch.Generator().manual_seed(seed)
    params = {name: torch.randn(leaf.shape, generator=generator) for name, leaf in POLICY.params.items()}
    opt_state = OPTIMIZER.update(params, OPTIMIZER.init(params), params)[1]
    return TrainState(params, opt_state, {"a cat": (0.1, -1e300), "": (1 / 3,)}, seed, epoch, queries=7)


def _assert_equal(first, second):
    for ours, theirs in ((first.params, second.params), (first.opt_state, second.opt_state)):
        assert list(ours) == list(theirs)
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert first.prompt_stats == second.prompt_stats
    assert (first.seed, first.epoch, first.queries) == (second.seed, second.epoch, second.queries)


def test_a_state_comes_back_bit_for_bit(tmp_path):
    saved = save_checkpoint(tmp_path / "checkpoints" / "epoch-000002", _state())
    _assert_equal(load_checkpoint(saved, POLICY, OPTIMIZER), _state())
    assert sorted(entry.name for entry in saved.iterdir()) == [
        "optimizer.safetensors",
        "params.safetensors",
        "state.json",
    ]
    assert [entry.name for entry in saved.parent.iterdir()] == ["epoch-000002"]


def test_a_checkpoint_is_replaced_by_a_newer_one(tmp_path):
    save_checkpoint(tmp_path / "epoch-000002", _state(seed=1))
    saved = save_checkpoint(tmp_path / "epoch-000002", _state(seed=2))
    _assert_equal(load_checkpoint(saved, POLICY, OPTIMIZER), _state(seed=2))
    assert [entry.name for entry in tmp_path.iterdir()] == ["epoch-000002"]


def test_leftovers_of_a_killed_process_are_neither_seen_nor_in_the_way(tmp_path):
    folder = tmp_path / "checkpoints"
    saved = save_checkpoint(folder / "epoch-000002", _state())
    (folder / ".epoch-000003.writing").mkdir()
    (folder / ".epoch-000003.writing" / "params.safetensors").write_bytes(b"half")
    (folder / "epoch-notes").mkdir()
    assert latest_checkpoint(tmp_path) == saved
    newer = save_checkpoint(folder / "epoch-000003", _state())
    assert latest_checkpoint(tmp_path) == newer
    assert not (folder / ".epoch-000003.writing").exists()


def test_the_latest_is_the_highest_epoch_and_none_where_there_are_none(tmp_path):
    assert latest_checkpoint(tmp_path) is None
    for epoch in (10, 9, 1_000_000):
        save_checkpoint(tmp_path / "checkpoints" / f"epoch-{epoch:06d}", _state(epoch=epoch))
    assert latest_checkpoint(tmp_path) == tmp_path / "checkpoints" / "epoch-1000000"


@pytest.mark.parametrize("file", ["state.json", "params.safetensors", "optimizer.safetensors"])
def test_a_full_disk_leaves_the_previous_checkpoint_and_no_half_of_the_new(tmp_path, file):
    # A limit on the size of files fails a write as a full disk does: below the smallest, the middle, the largest file.
    saved = save_checkpoint(tmp_path / "epoch-000002", _state(seed=1))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    limit = (saved / file).stat().st_size - 1
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        for name in ("epoch-000002", "epoch-000003"):
            with pytest.raises(CheckpointError, match="cannot be written") as caught:
                save_checkpoint(tmp_path / name, _state(seed=2))
            assert "\n" not in str(caught.value)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    _assert_equal(load_checkpoint(saved, POLICY, OPTIMIZER), _state(seed=1))
    assert [entry.name for entry in tmp_path.iterdir()] == ["epoch-000002"]


def test_a_missing_checkpoint_is_one_clear_line(tmp_path):
    with pytest.raises(CheckpointError, match="epoch-000007' does not exist"):
        load_checkpoint(tmp_path / "epoch-000007", POLICY, OPTIMIZER)


@pytest.fixture(scope="module")
def intact(tmp_path_factory):
    return save_checkpoint(tmp_path_factory.mktemp("intact") / "epoch-000002", _state())


@pytest.mark.parametrize("name", ["params.safetensors", "optimizer.safetensors", "state.json"])
@given(place=st.floats(0, 1, exclude_max=True), cut=st.booleans())
def test_every_damage_is_noticed(intact, tmp_path_factory, name, place, cut):
    damaged = shutil.copytree(intact, tmp_path_factory.mktemp("damaged") / "epoch-000002")
    content = (damaged / name).read_bytes()
    at = int(place * len(content))
    flipped = content[:at] + bytes([content[at] ^ 0x80]) + content[at + 1 :]
    (damaged / name).write_bytes(content[:at] if cut else flipped)
    with pytest.raises(CheckpointError, match=r"damaged|cannot be read|format") as caught:
        load_checkpoint(damaged, POLICY, OPTIMIZER)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["params.safetensors", "state.json"])
def test_a_missing_file_is_one_clear_line(intact, tmp_path, name):
    damaged = shutil.copytree(intact, tmp_path / "epoch-000002")
    (damaged / name).unlink()
    with pytest.raises(CheckpointError, match="cannot be read: No such file"):
        load_checkpoint(damaged, POLICY, OPTIMIZER)


def test_a_format_of_the_future_is_refused(intact, tmp_path):
    future = shutil.copytree(intact, tmp_path / "epoch-000002")
    described = json.loads((future / "state.json").read_text())
    (future / "state.json").write_text(json.dumps({**described, "format": 99}))
    with pytest.raises(CheckpointError, match="has format 99; this version reads 1"):
        load_checkpoint(future, POLICY, OPTIMIZER)


def test_a_checkpoint_of_another_model_is_refused_by_name(intact):
    wider = POLICY._replace(params={**POLICY.params, "last": torch.zeros(2, 64)})
    with pytest.raises(CheckpointError, match=r"'last' is \(2, 32\) there and \(2, 64\) here"):
        load_checkpoint(intact, wider, OPTIMIZER)
    other = POLICY._replace(params={"weight": torch.zeros(1)})
    with pytest.raises(CheckpointError, match="'weight' is absent there"):
        load_checkpoint(intact, other, OPTIMIZER)


def test_a_fresh_state_can_be_saved(tmp_path):
    fresh = init(POLICY, OPTIMIZER, seed=0)
    _assert_equal(load_checkpoint(save_checkpoint(tmp_path / "epoch-000000", fresh), POLICY, OPTIMIZER), fresh)


def test_old_checkpoints_are_removed_but_for_the_newest_and_those_to_keep(tmp_path):
    for epoch in (1, 2, 3, 4, 10):
        save_checkpoint(tmp_path / "checkpoints" / f"epoch-{epoch:06d}", _state(epoch=epoch))
    (tmp_path / "checkpoints" / "notes").mkdir()
    kept = prune_checkpoints(tmp_path, keep_last=2, keep=[2, 7])
    assert [path.name for path in kept] == ["epoch-000002", "epoch-000004", "epoch-000010"]
    assert sorted(entry.name for entry in (tmp_path / "checkpoints").iterdir()) == [
        *(path.name for path in kept),
        "notes",
    ]


def test_the_last_checkpoint_is_never_removed(tmp_path):
    with pytest.raises(DDPOError, match="keep_last=0: want at least 1"):
        prune_checkpoints(tmp_path, keep_last=0)
    assert prune_checkpoints(tmp_path, keep_last=1) == ()


def test_going_back_removes_what_comes_after(tmp_path):
    for epoch in (1, 2, 3):
        save_checkpoint(tmp_path / "checkpoints" / f"epoch-{epoch:06d}", _state(epoch=epoch))
    (tmp_path / "checkpoints" / ".epoch-000009.removed").mkdir()  # of a process that was killed
    left = rewind_checkpoints(tmp_path, epoch=2)
    assert [path.name for path in left] == ["epoch-000001", "epoch-000002"]
    assert sorted((tmp_path / "checkpoints").iterdir()) == list(left)
    assert rewind_checkpoints(tmp_path / "elsewhere", epoch=2) == ()


def test_tensors_come_back_in_the_layout_of_the_policy(tmp_path):
    weight = torch.randn(4, 3, 2, 2).to(memory_format=torch.channels_last)
    policy = POLICY._replace(params={"weight": weight})
    loaded = load_checkpoint(save_checkpoint(tmp_path / "e", init(policy, OPTIMIZER, seed=0)), policy, OPTIMIZER)
    assert loaded.params["weight"].stride() == weight.stride()
    assert torch.equal(loaded.params["weight"], weight)
