"""What trackers are given, read back with their own tools: one run, three of them, then resumed; no network."""

import json
import sqlite3
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from wandb.proto.wandb_internal_pb2 import Record

EPOCHS = [1, 2, 3]


@pytest.fixture
def offline(working_directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep what trackers write in the folder of the test, and them off the network."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("TRACKIO_DIR", str(working_directory / "trackio"))
    for name in ("WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(working_directory / name))


@pytest.mark.usefixtures("offline")
def test_every_tracker_shows_the_curves_histograms_and_pictures_of_a_run_that_was_resumed(ddpo, quick):
    trackers = ("--tracker", "tensorboard", "--tracker", "wandb", "--tracker", "trackio")
    first = ddpo(*quick, *trackers, "--output", "run")
    assert first.exit_code == 0, first.output
    assert first.stdout == "run\n"
    again = ddpo("train", "--resume", "run", "--epochs", "3")
    assert again.exit_code == 0, again.output
    rewards = [json.loads(line)["reward_mean"] for line in Path("run/metrics.jsonl").read_text().splitlines()]
    check_tensorboard(rewards)
    check_wandb(rewards)
    check_trackio(rewards)


def check_tensorboard(rewards: list[float]) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    shown = EventAccumulator("run/tensorboard", size_guidance={"images": 0, "histograms": 0})
    shown.Reload()
    curve = [(event.step, event.value) for event in shown.Scalars("reward_mean")]
    assert curve == [(epoch, pytest.approx(reward)) for epoch, reward in zip(EPOCHS, rewards, strict=True)]
    assert [event.step for event in shown.Histograms("reward")] == EPOCHS
    assert shown.Histograms("reward")[0].histogram_value.num == 4
    assert {event.step for event in shown.Images("samples")} >= {0, 1, 2, 3}
    assert "config/text_summary" in shown.Tags()["tensors"]


def check_wandb(rewards: list[float]) -> None:
    history, runs = {}, set()
    for file in sorted(Path("run/wandb").glob("offline-run-*/*.wandb")):
        for record in wandb_records(file):
            if record.WhichOneof("record_type") == "run":
                runs.add((record.run.run_id, record.run.project, record.run.display_name))
            elif record.WhichOneof("record_type") == "history":
                row = {"/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
                history.setdefault(row["epoch"], {}).update(row)
    assert [name for _, *name in runs] == [["ddpo", "run"]]  # the resumed run goes on under its own id
    assert [history[epoch]["reward_mean"] for epoch in EPOCHS] == pytest.approx(rewards)
    assert (history[1]["reward/_type"], sum(history[1]["reward/values"])) == ("histogram", 4)
    assert all(history[epoch]["samples/_type"] == "image-file" for epoch in (0, *EPOCHS))


def wandb_records(file: Path) -> Iterator["Record"]:
    """The records of a file of wandb: blocks of 32 KiB after the format of LevelDB's log, with a header before them."""
    from wandb.proto.wandb_internal_pb2 import Record

    block, header, last_parts = 32768, 7, (1, 4)
    data, place, record = file.read_bytes(), header, b""
    while place + header <= len(data):
        left = block - place % block
        if left < header:
            place += left
            continue
        size, part = struct.unpack_from("<HB", data, place + 4)  # after a checksum
        record += data[place + header : place + header + size]
        place += header + size
        if part in last_parts:
            yield Record.FromString(record)
            record = b""


def check_trackio(rewards: list[float]) -> None:
    with sqlite3.connect("trackio/ddpo.db") as database:
        rows = database.execute("select run_name, step, metrics from metrics order by id").fetchall()
    assert {name for name, _, _ in rows} == {"run"}
    logged = {}
    for _, step, metrics in rows:
        logged.setdefault(step, {}).update(json.loads(metrics))
    assert [logged[epoch]["reward_mean"] for epoch in EPOCHS] == pytest.approx(rewards)
    assert logged[1]["reward"]["_type"] == "trackio.histogram"
    assert logged[0]["samples"]["_type"] == "trackio.image"
