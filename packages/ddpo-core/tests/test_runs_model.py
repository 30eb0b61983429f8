"""Which model is the run's."""

import json

import pytest

from ddpo_core import DDPOError, Observation
from ddpo_core.runs.folder import ModelRecord, read_model_record, write_model_record
from ddpo_core.runs.model import best_epoch, find_model

ERRORS = {"prompt_evidence": 0.03, "familiarity": 0.03}


def seen(*held_out):
    return [Observation(epoch, 0.0, values, {}, ERRORS) for epoch, values in enumerate(held_out, 1)]


def judged(*values):
    return seen(*({"judge": value} for value in values))


def evidence(*values):
    return seen(*({"prompt_evidence": value, "familiarity": 9.0} for value in values))


def test_the_best_epoch_is_the_last_that_noise_cannot_tell_from_the_best_so_far():
    # Epoch 2 is the highest. When 4 is judged, the differences are 0.5, 0.4, 0.3: a noise of
    # sqrt((0.25 + 0.16 + 0.09) / 3 / 2) = 0.29, and 0.8 lies above 0.9 - 0.29. Epoch 5 does not.
    assert best_epoch(judged(0.4, 0.9, 0.5, 0.8, 0.0)) == 4
    assert best_epoch(judged(0.4, 0.9, 0.5)) == 2
    assert best_epoch([]) is None


def test_an_epoch_that_was_the_best_stays_it_until_another_is():
    # However the noise of the whole series grows later, no epoch that was given up becomes the best again.
    values = [0.0, 1.0, 0.8, 0.5, 3.0, -4.0, 0.9, -2.0]
    chosen = [best_epoch(judged(*values[:end])) for end in range(1, len(values) + 1)]
    judged_last = range(1, len(values) + 1)
    before = [None, *chosen[:-1]]
    assert all(now in (earlier, latest) for now, earlier, latest in zip(chosen, before, judged_last, strict=True))


def test_only_epochs_that_were_saved_are_chosen_where_that_is_said():
    history = judged(0.4, 0.9, 0.5, 0.8, 0.0)
    assert best_epoch(history, saved={2, 3}) == 2
    assert best_epoch(history, saved={3}) is None


def test_what_the_initial_policy_sees_in_an_epoch_speaks_for_the_model_that_drew_it():
    # Epoch 4 drew what epoch 3 had learnt; epoch 1 what nobody had.
    assert best_epoch(evidence(0.9)) is None
    assert best_epoch(evidence(0.9, 0.5)) == 1
    assert best_epoch(evidence(0.6, 0.6, 0.62, 0.6)) == 3
    assert best_epoch(evidence(0.6, 0.6, 0.62, 0.6, 0.58)) == 3


def test_held_out_rewards_choose_the_best_and_not_what_the_initial_policy_sees():
    # What was measured of other rewards cannot be compared.
    other = {"other": 50.0, "prompt_evidence": 0.5, "familiarity": 9.0}
    judges = [{"judge": judge, "prompt_evidence": 1 - judge, "familiarity": 9.0} for judge in (0.0, 1.0, 0.0, 0.1)]
    assert best_epoch(seen(other, *judges)) == 3


def test_the_record_is_read_back_and_a_broken_one_says_nothing(tmp_path):
    assert read_model_record(tmp_path) == ModelRecord()
    write_model_record(tmp_path, ModelRecord(epoch=3, best=2))
    assert read_model_record(tmp_path) == (3, 2)
    for broken in ("", "[]", '{"epoch": "three"}'):
        (tmp_path / "model.json").write_text(broken)
        assert read_model_record(tmp_path) == ModelRecord()


def test_a_run_means_the_model_that_it_ended_with_and_before_that_its_last_checkpoint(tmp_path):
    (tmp_path / "config.toml").touch()
    with pytest.raises(DDPOError, match="has no checkpoint"):
        find_model(tmp_path)
    for epoch in (3, 9):
        (tmp_path / f"checkpoints/epoch-{epoch:06d}").mkdir(parents=True)
    last, best = (tmp_path / f"checkpoints/epoch-{epoch:06d}" for epoch in (9, 3))
    assert find_model(tmp_path) == (tmp_path, last)
    write_model_record(tmp_path, ModelRecord(best=3))
    assert find_model(tmp_path) == (tmp_path, last)
    write_model_record(tmp_path, ModelRecord(epoch=3, best=3))
    assert find_model(tmp_path) == (tmp_path, best)
    assert find_model(last) == (tmp_path, last)
    (tmp_path / "model.json").write_text(json.dumps({"epoch": 4}))  # its checkpoint is gone
    assert find_model(tmp_path) == (tmp_path, last)
