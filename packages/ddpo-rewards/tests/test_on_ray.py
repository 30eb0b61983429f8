"""Scoring on a local Ray gives what scoring in one process gives, also where a worker dies."""

import gc
import io
import json
import logging
import os
import socket
import sys
import tarfile
import warnings
from pathlib import Path

import pytest
from PIL import Image

from ddpo_rewards import RewardError, get_reward
from ddpo_rewards.folders import Item, on_ray, plan, score, score_on_ray
from ddpo_rewards.folders.on_ray import _LOCAL, _checked, _environment, _shares

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.data.context")  # said by Ray to itself

LEVELS = 24
REWARDS = """
import os
import signal
from pathlib import Path

HERE = Path({here!r})


def once(name):
    try:
        (HERE / name).touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def level(images):
    return [round(255 * float(image.mean())) for image in images]


def dies(images):
    (HERE / "workers" / str(os.getpid())).touch()
    if 20 in level(images) and once("died"):
        os.kill(os.getpid(), signal.SIGKILL)
    return level(images)


def fails(images, prompts, metadata):
    if 20 in level(images) and once("failed"):
        raise OSError("busy")
    return level(images), {{"words": prompts, "seeds": [one["seed"] for one in metadata]}}
"""


def encoded(level):
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), (level,) * 3).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """A folder of pictures, one of which is broken, and a shard; and rewards of which workers die, or fail, once."""
    folder = tmp_path_factory.mktemp("ray")
    (folder / "pictures").mkdir()
    (folder / "workers").mkdir()
    (folder / "my_ray_rewards.py").write_text(REWARDS.format(here=str(folder)))
    described = []
    for level in range(LEVELS):
        name = f"{level:02}.png"
        (folder / "pictures" / name).write_bytes(encoded(level))
        described.append({"file_name": name, "prompt": f"level {level}", "seed": level})
    (folder / "pictures" / "07.png").write_bytes(b"broken")
    (folder / "pictures" / "metadata.jsonl").write_text("\n".join(map(json.dumps, described)))
    with tarfile.open(folder / "pictures" / "s.tar", "w") as archive:
        for level in range(LEVELS):
            texts = {"txt": f"in a shard, {level}".encode(), "json": json.dumps({"seed": -level}).encode()}
            for ending, content in {"png": encoded(100 + level), **texts}.items():
                member = tarfile.TarInfo(f"{level:02}.{ending}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    return folder


@pytest.fixture(scope="module")
def ray(here):
    """A Ray of two cores, whose workers find what lies in `here`."""
    if "DDPO_TEST_RAY" not in os.environ:
        pytest.skip("takes a minute, and more on busy cores: nox -s ray")
    with pytest.MonkeyPatch.context() as patch, _environment(_LOCAL):
        ray = pytest.importorskip("ray")  # which looks at the environment when it is imported
        patch.chdir(here)
        patch.syspath_prepend(str(here))
        patch.setenv("RAY_TMPDIR", "/tmp")  # its sockets have no more than 107 bytes for their paths
        options = {"include_dashboard": False, "logging_level": logging.ERROR, "log_to_driver": False}
        for attempts_left in (2, 1, 0):
            try:
                ray.init("local", num_cpus=2, **options)
            except Exception as error:  # it gives a node 30 s to start, which is little on a busy machine
                if "timed out during startup" not in str(error) or not attempts_left:
                    raise
            if ray.is_initialized():
                break
            with warnings.catch_warnings(action="ignore"):  # of processes that it lets go, still running
                ray.shutdown()
                gc.collect()
        yield ray
        ray.shutdown()


def test_a_worker_that_is_killed_costs_no_row_and_doubles_none(ray, here):
    reward = "my_ray_rewards:dies"
    rows = list(score_on_ray(plan("pictures", reward, output="ray.jsonl", build=False), ray_workers=2))
    assert (here / "died").exists()
    assert len(list((here / "workers").iterdir())) >= 2
    assert len(rows) == 2 * LEVELS
    assert rows == list(score(plan("pictures", reward, output="here.jsonl")))
    assert Path("ray.jsonl").read_bytes() == Path("here.jsonl").read_bytes()


def test_what_failed_on_a_worker_is_one_line_and_the_job_goes_on_where_it_was(ray, here, monkeypatch):
    monkeypatch.setattr(on_ray, "_BATCH", 8)
    options = {"output": "failed.csv", "info": True}
    reward = "2*my_ray_rewards:fails"
    with pytest.raises(RewardError, match=r"'my_ray_rewards:fails' raised OSError: busy") as failed:
        list(score_on_ray(plan("pictures", reward, build=False, **options), ray_workers=2, batch_size=4))
    assert "\n" not in str(failed.value)
    job = plan("pictures", reward, build=False, resume=True, **options)
    rest = list(score_on_ray(job, ray_workers=2, batch_size=4))
    whole = list(score(plan("pictures", reward, output="whole.csv", info=True)))
    assert len(job.kept) == 15  # the third batch failed; of the rows before, one has an error and is tried again
    assert rest == [one for one in whole if one not in job.kept]
    assert Path("failed.csv").read_bytes() == Path("whole.csv").read_bytes()


def test_without_ray_it_is_said_how_to_get_it(here, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(RewardError, match=r"pip install 'ddpo-rewards\[ray\]'"):
        next(score_on_ray(plan(here / "pictures", "jpeg_compressibility", build=False)))


def test_a_cluster_that_does_not_answer_is_said_at_once(here, monkeypatch):
    monkeypatch.setattr(pytest.importorskip("ray"), "is_initialized", lambda: False)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{free.getsockname()[1]}")
        with pytest.raises(RewardError, match=r"cannot be reached at RAY_ADDRESS='127\.0\.0\.1:\d+': .*refused"):
            next(score_on_ray(plan(here / "pictures", "jpeg_compressibility", build=False)))


def test_a_job_is_scored_where_its_rewards_are_built(here):
    with pytest.raises(RewardError, match="were not built"):
        next(score(plan(here / "pictures", "jpeg_compressibility", build=False)))
    with pytest.raises(RewardError, match="give a reference"):
        plan(here / "pictures", get_reward("jpeg_compressibility"), build=False)
    with pytest.raises(RewardError, match="ray_workers=0 is not positive"):
        next(score_on_ray(plan(here / "pictures", "jpeg_compressibility", build=False), ray_workers=0))


@pytest.mark.parametrize(
    ("resources", "asked", "expected"),
    [
        ({"CPU": 8.0}, None, (8, {"num_cpus": 0.9}, 1)),
        ({"CPU": 8.0}, 2, (2, {"num_cpus": 0.9}, 4)),
        ({"CPU": 2.0}, 3, (3, {"num_cpus": 0.45}, 1)),  # two on a core, one on the other
        ({"CPU": 1.0}, None, (1, {"num_cpus": 0.9}, 1)),
        ({"CPU": 64.0, "GPU": 4.0}, None, (4, {"num_gpus": 1.0}, 16)),
        ({"CPU": 64.0, "GPU": 4.0}, 6, (6, {"num_gpus": 0.5}, 10)),  # two thirds of a GPU would leave two waiting
    ],
)
def test_workers_fit_into_what_there_is(resources, asked, expected):
    assert _shares(resources, asked) == expected


def row(part, number, name="x"):
    return {"part": part, "number": number, "item": json.dumps([name, None])}


def test_rows_of_a_part_have_to_follow_each_other():
    loose = [Item("a"), Item("b")]
    good = [row(0, 0, "a"), row(0, 1, "b"), row(2, 0, "s/1"), row(2, 1, "s/2")]
    assert [item.path for item, _ in _checked(good, loose)] == ["a", "b", "s/1", "s/2"]
    for wrong in (good[1:], good[:1], good[:2] + good[1:], good[:2] + good[3:], good[1::-1], good[:3] + good[2:]):
        with pytest.raises(RewardError, match="resume to score what is missing"):
            list(_checked(wrong, loose))
