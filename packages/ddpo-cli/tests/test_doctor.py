"""`ddpo doctor`: what is broken is found, named, and comes with what mends it."""

import json
from pathlib import Path

import pytest

from ddpo_cli import doctor


@pytest.fixture(autouse=True)
def a_cache_of_its_own(monkeypatch):
    monkeypatch.setenv("DDPO_REWARDS_CACHE", str(Path("cache").absolute()))


def found(ddpo, *arguments) -> tuple[int, dict[str, dict]]:
    result = ddpo("doctor", "-f", "json", *arguments)
    return result.exit_code, {row["what"]: row for row in json.loads(result.stdout)}


def test_an_installation_that_works_is_usable(ddpo, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    code, rows = found(ddpo)
    assert [row for row in rows.values() if row["state"] == "broken"] == []
    assert code == 0
    assert {"python", "torch", "cpu", "disk", "cache of ddpo-rewards", "reward aesthetic", "ddpo-rewards[ocr]"} <= {
        *rows
    }
    assert all(row["command"] for row in rows.values() if row["state"] == "missing")
    result = ddpo("doctor")
    assert max(map(len, result.stdout.splitlines())) <= 80
    assert result.stderr == "All is usable.\n"


def test_what_is_broken_is_named_with_the_command_that_mends_it(ddpo, monkeypatch):
    info = Path("site/broken_rewards-1.dist-info")
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: broken-rewards\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[ddpo_rewards]\nmine = no_such_module\n")
    monkeypatch.syspath_prepend(str(Path("site").absolute()))
    Path("cache").mkdir()
    Path("cache/recorded.json").write_text("{")
    monkeypatch.setitem(doctor.LOOKS, "devices", lambda: iter([1 // 0]))
    code, rows = found(ddpo)
    assert code == 2
    broken = {name: row["command"] for name, row in rows.items() if row["state"] == "broken"}
    assert set(broken) == {"plugin broken-rewards:mine", "records of weights", "devices"}
    assert broken["plugin broken-rewards:mine"].startswith("pip install --upgrade broken-rewards ")
    assert broken["records of weights"].startswith("rm ")
    assert rows["devices"]["seen"].startswith("ZeroDivisionError")


def test_what_our_packages_require_and_their_extras_add_is_read_from_themselves():
    assert {"torch", "typer", "pluggy"} <= {one.name for one in doctor._requirements("")}
    assert {one.name for one in doctor._requirements("ocr", of=("ddpo-rewards",))} == {"rapidocr", "onnxruntime"}


def test_of_a_torn_cache_only_what_is_torn_is_to_be_deleted(monkeypatch):
    from huggingface_hub import constants

    hub = Path("hub").absolute()
    (hub / "models--me--torn" / "blobs").mkdir(parents=True)
    (hub / "models--me--torn" / "blobs" / "a.incomplete").touch()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(hub))
    rows = {one.what: one for one in doctor._caches()}
    assert rows["models--me--torn"].command == f"rm -r {hub}/models--me--torn"
    assert rows["downloads"].command == f"find {hub} -name '*.incomplete' -delete"
