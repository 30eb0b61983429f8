"""A checkpoint is complete or absent, whatever happens to the disk, and is told apart from a damaged one."""

import json
import os
import resource
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ddpo_core import (
    CheckpointError,
    DDPOError,
    adamw,
    checkpoint_path,
    init,
    latest_checkpoint,
    list_checkpoints,
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
    return TrainState(params, opt_state, {"a cat": [0.1, -1e300], "": [1 / 3]}, seed, epoch, queries=7)


def _save(run, **options):
    return save_checkpoint(run, _state(**options), POLICY)


def _assert_equal(first, second):
    for ours, theirs in ((first.params, second.params), (first.opt_state, second.opt_state)):
        assert list(ours) == list(theirs)
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert first.objective_state == second.objective_state
    assert (first.seed, first.epoch, first.queries) == (second.seed, second.epoch, second.queries)


def test_a_state_comes_back_bit_for_bit(tmp_path):
    saved = _save(tmp_path)
    _assert_equal(load_checkpoint(saved, POLICY, OPTIMIZER), _state())
    assert sorted(entry.name for entry in saved.iterdir()) == [
        "optimizer.safetensors",
        "params.safetensors",
        "state.json",
    ]
    assert [entry.name for entry in saved.parent.iterdir()] == ["epoch-000002"]


def test_a_checkpoint_is_replaced_by_a_newer_one(tmp_path):
    _save(tmp_path, seed=1)
    saved = _save(tmp_path, seed=2)
    _assert_equal(load_checkpoint(saved, POLICY, OPTIMIZER), _state(seed=2))
    assert [entry.name for entry in saved.parent.iterdir()] == ["epoch-000002"]


def test_leftovers_of_a_killed_process_are_neither_seen_nor_in_the_way(tmp_path):
    folder = tmp_path / "checkpoints"
    saved = _save(tmp_path)
    (folder / ".epoch-000003.writing").mkdir()
    (folder / ".epoch-000003.writing" / "params.safetensors").write_bytes(b"half")
    (folder / "epoch-notes").mkdir()
    assert latest_checkpoint(tmp_path) == saved
    newer = _save(tmp_path, epoch=3)
    assert latest_checkpoint(tmp_path) == newer
    assert not (folder / ".epoch-000003.writing").exists()


def test_the_latest_is_the_highest_epoch_and_none_where_there_are_none(tmp_path):
    assert latest_checkpoint(tmp_path) is None
    for epoch in (10, 9, 1_000_000):
        _save(tmp_path, epoch=epoch)
    assert latest_checkpoint(tmp_path) == tmp_path / "checkpoints" / "epoch-1000000"


@pytest.mark.parametrize("file", ["state.json", "params.safetensors", "optimizer.safetensors"])
def test_a_full_disk_leaves_the_previous_checkpoint_and_no_half_of_the_new(tmp_path, file):
    # A limit on the size of files fails a write as a full disk does: below the smallest, the middle, the largest file.
    saved = _save(tmp_path, seed=1)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    limit = (saved / file).stat().st_size - 1
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        for epoch in (2, 3):
            with pytest.raises(CheckpointError, match="cannot be written") as caught:
                _save(tmp_path, seed=2, epoch=epoch)
            assert "\n" not in str(caught.value)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    _assert_equal(load_checkpoint(saved, POLICY, OPTIMIZER), _state(seed=1))
    assert [entry.name for entry in saved.parent.iterdir()] == ["epoch-000002"]


def test_a_missing_checkpoint_is_one_clear_line(tmp_path):
    with pytest.raises(CheckpointError, match="epoch-000007' does not exist"):
        load_checkpoint(tmp_path / "epoch-000007", POLICY, OPTIMIZER)


@pytest.fixture(scope="module")
def intact(tmp_path_factory):
    return _save(tmp_path_factory.mktemp("intact"))


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
    with pytest.raises(CheckpointError, match="has format 99; this version reads 4"):
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
    _assert_equal(load_checkpoint(save_checkpoint(tmp_path, fresh, POLICY), POLICY, OPTIMIZER), fresh)


def test_old_checkpoints_are_removed_but_for_the_newest_and_those_to_keep(tmp_path):
    for epoch in (1, 2, 3, 4, 10):
        _save(tmp_path, epoch=epoch)
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


def test_going_back_moves_what_comes_after_to_a_folder_of_its_own(tmp_path):
    run, aside = tmp_path / "run", tmp_path / "run" / "superseded" / "0001"
    for epoch in (1, 2, 3, 10):
        _save(run, epoch=epoch)
    moved = rewind_checkpoints(run, epoch=2, into=aside)
    assert moved == (checkpoint_path(aside, 3), checkpoint_path(aside, 10))
    assert list(list_checkpoints(run)) == [1, 2]
    assert latest_checkpoint(aside) == moved[-1]
    _assert_equal(load_checkpoint(moved[0], POLICY, OPTIMIZER), _state(epoch=3))


def test_going_back_to_the_present_moves_nothing(tmp_path):
    _save(tmp_path / "run")
    for run in (tmp_path / "run", tmp_path / "elsewhere"):
        assert rewind_checkpoints(run, epoch=2, into=tmp_path / "aside") == ()
    assert not (tmp_path / "aside").exists()


def test_going_back_never_replaces_what_went_aside_before(tmp_path):
    for seed in (1, 2):
        _save(tmp_path / "run", epoch=3, seed=seed)
        if seed == 1:
            rewind_checkpoints(tmp_path / "run", epoch=2, into=tmp_path / "aside")
    with pytest.raises(CheckpointError, match=r"cannot be moved to .*aside': Directory not empty"):
        rewind_checkpoints(tmp_path / "run", epoch=2, into=tmp_path / "aside")
    for folder, seed in (("aside", 1), ("run", 2)):
        saved = load_checkpoint(latest_checkpoint(tmp_path / folder), POLICY, OPTIMIZER)
        _assert_equal(saved, _state(epoch=3, seed=seed))


@pytest.mark.parametrize("fails", ["replacing", "killed"])
def test_what_is_being_replaced_is_the_checkpoint_until_the_new_one_has_its_name(tmp_path, fails):
    # Between the two renames, and beside a new one that is complete but has no name yet.
    saved = _save(tmp_path, seed=1)
    saved.rename(saved.with_name(".epoch-000002.old"))
    if fails == "killed":
        shutil.copytree(saved.with_name(".epoch-000002.old"), saved.with_name(".epoch-000002.writing"))
    assert list_checkpoints(tmp_path) == {2: saved}
    _assert_equal(load_checkpoint(latest_checkpoint(tmp_path), POLICY, OPTIMIZER), _state(seed=1))
    assert not saved.exists()  # whoever reads changes nothing
    assert prune_checkpoints(tmp_path, keep_last=1) == (saved,)
    assert [entry.name for entry in saved.parent.iterdir()] == ["epoch-000002"]


def test_what_was_replaced_never_comes_back(tmp_path):
    # Killed before the old one was deleted: pruning the new one must not uncover it.
    shutil.copytree(_save(tmp_path, epoch=2), tmp_path / "checkpoints" / ".epoch-000002.old")
    _save(tmp_path, epoch=3)
    prune_checkpoints(tmp_path, keep_last=1)
    assert [entry.name for entry in (tmp_path / "checkpoints").iterdir()] == ["epoch-000003"]


@pytest.fixture(scope="module")
def replacements():
    """What every way to disturb the replacement of a checkpoint came to, by the real operations on files."""
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name("replaced.py")],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_replacing_is_disturbed_at_every_operation(replacements):
    for how in ("killed", "fails once", "fails on"):
        assert sum(each["how"] == how for each in replacements) > 20
    # With the name free in between, and killed once more while the next one is written.
    assert sum(each["how"] == "killed twice" for each in replacements) > 20


def test_after_every_disturbance_the_old_or_the_new_checkpoint_can_be_loaded(replacements):
    assert [each for each in replacements if each["found"] not in each["possible"]] == []
    assert {each["found"] for each in replacements if each["how"] == "killed"} == {1, 2}


def test_after_every_disturbance_the_next_one_can_be_saved_and_nothing_else_is_left(replacements):
    assert [each for each in replacements if each["next"] != 9 or each["left"] != ["epoch-000002"]] == []


def test_a_checkpoint_of_another_model_of_the_same_shapes_is_refused_by_both_fingerprints(tmp_path):
    first, second = (POLICY._replace(fingerprint=name) for name in ("model-1.4", "model-1.5"))
    saved = save_checkpoint(tmp_path, _state(), first)
    with pytest.raises(CheckpointError, match=r"its fingerprint is 'model-1.4', that of this policy is 'model-1.5'"):
        load_checkpoint(saved, second, OPTIMIZER)
    _assert_equal(load_checkpoint(saved, first, OPTIMIZER), _state())


@pytest.mark.parametrize(
    ("remembered", "message"),
    [
        ({"rewards": (1.0, 2.0)}, "under 'rewards' what JSON reads back as something else"),
        ({"fine": [1], "counts": {1: 2}}, "under 'counts' what JSON reads back"),
        ({"tensor": torch.zeros(1)}, "what JSON cannot hold .*Tensor"),
        ({"mean": float("nan")}, "what JSON cannot hold"),
    ],
)
def test_what_would_be_remembered_differently_is_refused_and_leaves_nothing(tmp_path, remembered, message):
    state = replace(_state(), objective_state=remembered)
    with pytest.raises(CheckpointError, match=message):
        save_checkpoint(tmp_path, state, POLICY)
    assert list((tmp_path / "checkpoints").iterdir()) == []


def test_a_checkpoint_of_another_lora_scale_is_refused_by_both(tmp_path):
    saved = save_checkpoint(tmp_path, _state(), POLICY._replace(lora_scale=0.1))
    with pytest.raises(CheckpointError, match=r"has the LoRA scale 0\.1, this policy has 2\.0"):
        load_checkpoint(saved, POLICY._replace(lora_scale=2.0), OPTIMIZER)
    _assert_equal(load_checkpoint(saved, POLICY._replace(lora_scale=0.1), OPTIMIZER), _state())


def test_tensors_come_back_in_the_layout_of_the_policy(tmp_path):
    weight = torch.randn(4, 3, 2, 2).to(memory_format=torch.channels_last)
    policy = POLICY._replace(params={"weight": weight})
    loaded = load_checkpoint(save_checkpoint(tmp_path, init(policy, OPTIMIZER, seed=0), policy), policy, OPTIMIZER)
    assert loaded.params["weight"].stride() == weight.stride()
    assert torch.equal(loaded.params["weight"], weight)
