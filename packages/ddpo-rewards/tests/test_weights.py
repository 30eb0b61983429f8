"""Weights are downloaded once and pinned, from a plain address and from a (loopback) hub."""

import hashlib
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from ddpo_rewards import RewardError, Weight, get_reward, list_rewards, models
from ddpo_rewards.weights import describe_pin, fetch, records_path, tree_sha256

HEAD = b"the weights of a head"
SHA = hashlib.sha256(HEAD).hexdigest()


def serve(handle):
    """Run `handle(method, path) -> (status, headers, body)` as a server; returns its address and a stopper."""

    class Handler(BaseHTTPRequestHandler):
        def respond(self):
            status, headers, body = handle(self.command, unquote(urlsplit(self.path).path))
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        do_GET = do_HEAD = respond

        def log_message(self, *_):
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DDPO_REWARDS_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    return tmp_path / "cache"


@pytest.fixture
def address():
    """A server of files by path; returns its base address, the files and the requests."""
    files, requests = {"/head.pth": HEAD}, []

    def handle(method, path):
        requests.append(path)
        return (200, {}, files[path]) if path in files else (404, {}, b"")

    server = serve(handle)
    yield f"http://127.0.0.1:{server.server_port}", files, requests
    server.shutdown()
    server.server_close()


def head_at(base, **fields):
    return Weight(source=f"{base}/head.pth", filename="head.pth", **fields)


def test_a_pinned_file_is_downloaded_once_and_checked(address):
    base, _, requests = address
    path = fetch(head_at(base, sha256=SHA, size=len(HEAD)))
    assert path.read_bytes() == HEAD
    assert fetch(head_at(base, sha256=SHA)) == path
    assert requests == ["/head.pth"]
    assert list(path.parent.iterdir()) == [path]


def test_other_bytes_than_pinned_are_not_used_and_leave_nothing_behind(address, cache):
    base, _, _ = address
    with pytest.raises(RewardError, match=r"has the sha256 .* as pinned; not used"):
        fetch(head_at(base, sha256="0" * 64))
    assert [path for path in cache.rglob("*") if path.is_file()] == []


def test_a_file_that_is_too_long_is_not_read_to_its_end(address):
    base, files, _ = address
    files["/head.pth"] = HEAD + b"x" * (4 << 20)
    with pytest.raises(RewardError, match="as pinned; not used"):
        fetch(head_at(base, sha256=SHA, size=len(HEAD)))


def test_a_damaged_copy_is_found(address):
    base, _, _ = address
    fetch(head_at(base, sha256=SHA)).write_bytes(b"damaged")
    with pytest.raises(RewardError, match="is damaged"):
        fetch(head_at(base, sha256=SHA))


def test_an_unknown_hash_is_recorded_at_first_and_checked_ever_after(address):
    base, files, _ = address
    weight = head_at(base)
    assert describe_pin(weight) == "recorded at the first download, checked ever after"
    path = fetch(weight)
    assert describe_pin(weight).startswith(f"sha256 {SHA}, recorded here on 2")
    path.unlink()
    files["/head.pth"] = b"other weights"
    with pytest.raises(RewardError, match=f"not {SHA} as recorded on 2"):
        fetch(weight)


def test_damaged_records_are_an_error_and_are_not_overwritten(address):
    records_path().parent.mkdir(parents=True)
    records_path().write_text("{")
    with pytest.raises(RewardError, match="cannot be read"):
        fetch(head_at(address[0]))
    assert records_path().read_text() == "{"


def test_what_cannot_be_downloaded_is_one_clear_line(address, monkeypatch):
    base, files, _ = address
    files.clear()
    with pytest.raises(RewardError, match=r"cannot be downloaded to .*HTTP Error 404"):
        fetch(head_at(base, sha256=SHA))
    with pytest.raises(RewardError, match="cannot be downloaded to"):
        fetch(head_at("http://127.0.0.1:9", sha256=SHA))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(RewardError, match="HF_HUB_OFFLINE is set; unset it once, or put the file"):
        fetch(head_at(base, sha256=SHA))


def test_offline_works_once_the_file_is_there(address, monkeypatch):
    base, files, _ = address
    path = fetch(head_at(base, sha256=SHA))
    files.clear()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert fetch(head_at(base, sha256=SHA)) == path


def test_the_hash_of_a_folder_depends_on_names_and_bytes_only(tmp_path):
    for name, files in {
        "a": {"x": b"1", "d/y": b"2"},
        "b": {"d/y": b"2", "x": b"1"},
        "c": {"x": b"2", "d/y": b"1"},
    }.items():
        for file, content in files.items():
            path = tmp_path / name / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    assert tree_sha256(tmp_path / "a") == tree_sha256(tmp_path / "b") != tree_sha256(tmp_path / "c")


class Hub:
    """As much of the hub's protocol as its client needs: revisions, file lists and files; one commit at a time."""

    def __init__(self, files):
        self.commits, self.name = {}, "them/model"
        self.commit("1" * 40, files)

    def commit(self, name, files):
        self.head, self.commits[name] = name, files

    def handle(self, method, path):
        if path.startswith(f"/api/models/{self.name}"):
            return self.api(path.removeprefix(f"/api/models/{self.name}"))
        _, revision, name = path.removeprefix(f"/{self.name}/").split("/", 2)
        commit = self.head if revision == "main" else revision
        content = self.commits.get(commit, {}).get(name)
        if content is None:
            return 404, {"X-Error-Code": "EntryNotFound"}, b""
        etag = hashlib.sha256(content).hexdigest()
        return 200, {"X-Repo-Commit": commit, "ETag": f'"{etag}"'}, content

    def api(self, path):
        revision = path.split("/")[2] if path else "main"
        commit = self.head if revision == "main" else revision
        if path.startswith("/tree"):
            rows = [
                {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                for name, content in self.commits[commit].items()
            ]
            return 200, {"Content-Type": "application/json"}, json.dumps(rows).encode()
        siblings = [{"rfilename": name} for name in self.commits[commit]]
        info = {"id": self.name, "modelId": self.name, "sha": commit, "siblings": siblings, "private": False}
        return 200, {"Content-Type": "application/json"}, json.dumps(info).encode()


SCRIPT = """
import json, sys
from ddpo_rewards import RewardError, Weight
from ddpo_rewards.weights import describe_pin, fetch
weight = Weight(**json.loads(sys.argv[1]))
try:
    path = fetch(weight)
    names = sorted(file.name for file in path.iterdir()) if path.is_dir() else path.read_text()
    print(json.dumps([str(path), names, describe_pin(weight)]))
except RewardError as error:
    print(json.dumps(str(error)))
"""


@pytest.fixture
def hub(tmp_path):
    """A hub, and a function that fetches from it in a fresh process, as the client reads its address once."""
    hub = Hub({"model.safetensors": b"weights", "config.json": b"{}", "pytorch_model.bin": b"pickle", "run.py": b"1"})
    server = serve(hub.handle)
    environment = {
        "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
        "HF_HOME": str(tmp_path / "hub"),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }

    def get(filename="", **variables):
        arguments = json.dumps({"source": "hf://them/model", "filename": filename})
        command = [sys.executable, "-c", SCRIPT, arguments]
        run = subprocess.run(
            command, capture_output=True, text=True, check=True, env={**os.environ, **environment, **variables}
        )
        return json.loads(run.stdout)

    def run(script, *arguments):
        command = [sys.executable, "-c", script, *arguments]
        return subprocess.run(
            command, capture_output=True, text=True, check=True, env={**os.environ, **environment}
        ).stdout.strip()

    get.run = run
    yield hub, get
    server.shutdown()
    server.server_close()


def test_a_file_of_the_hub_stays_the_one_of_the_first_download(hub, tmp_path):
    the_hub, get = hub
    path, content, pin = get("model.safetensors")
    assert content == "weights"
    assert pin.startswith(f"revision {'1' * 40}, sha256 {hashlib.sha256(b'weights').hexdigest()}, recorded here on 2")
    the_hub.commit("2" * 40, {"model.safetensors": b"retrained"})
    assert get("model.safetensors")[:2] == [path, "weights"]
    assert get("model.safetensors", HF_HUB_OFFLINE="1")[:2] == [path, "weights"]
    os.remove(os.path.realpath(path))
    the_hub.commits["1" * 40] = {"model.safetensors": b"rewritten history"}
    assert "as recorded on 2" in get("model.safetensors")


def test_of_a_repository_only_safe_files_at_its_top_are_downloaded(hub):
    the_hub, get = hub
    the_hub.commits["1" * 40]["onnx/config.json"] = b"{}"
    _, names, _ = get()
    assert names == ["config.json", "model.safetensors"]


def test_what_other_programs_put_beside_a_model_changes_nothing(hub):
    # The hub's snapshots are shared: whoever asks for the README next gets it in the same folder.
    _, get = hub
    path, _, pin = get()
    for name in ("README.md", "pytorch_model.bin", "onnx/model.safetensors"):
        file = Path(path) / name
        file.parent.mkdir(exist_ok=True)
        file.write_text("of another program")
    assert get()[::2] == [path, pin]
    (Path(path) / "config.json").unlink()
    (Path(path) / "config.json").write_text('{"changed": true}')
    assert "as recorded on 2" in get()


def test_a_name_without_an_owner_is_an_old_one_of_the_hub(hub):
    the_hub, get = hub
    the_hub.name = "roberta-large"
    script = (
        "from ddpo_rewards.weights import find_model; print(sorted(map(str, find_model('roberta-large').glob('*'))))"
    )
    assert "config.json" in get.run(script)


def test_a_published_model_is_pinned_where_it_is_asked_for_by_name(hub):
    _, get = hub
    script = (
        "import sys; from ddpo_rewards import RewardError, Weight; from ddpo_rewards.weights import find_model\n"
        "known = Weight(source='hf://them/model', sha256='0' * 64)\n"
        "try: print(find_model('them/model', published=known))\n"
        "except RewardError as error: print(error)\n"
        "print(find_model('them/model', '1' * 40, published=known).name)"
    )
    pinned, other_revision = get.run(script).splitlines()
    assert "as pinned" in pinned
    assert other_revision == "1" * 40


@pytest.mark.parametrize(
    ("ref", "weight"),
    [("llava_vqa", models.LLAVA), ("llava_bertscore?captioner=none", models.TEXT_ENCODER)],
)
def test_built_in_rewards_load_the_weights_that_their_description_lists(monkeypatch, ref, weight):
    # A pin in the description is worth nothing unless it is what loading asks for.
    asked = []

    def fetch(asked_for):
        asked.append(asked_for)
        raise RewardError("far away")

    monkeypatch.setattr("ddpo_rewards.weights.fetch", fetch)
    with pytest.raises(RewardError, match="far away"):
        get_reward(ref, device="cpu")
    assert asked == [weight]
    assert weight in list_rewards()[ref.partition("?")[0]].weights


def test_a_hash_is_computed_once_for_a_file_that_stays_as_it_is(address, cache):
    base, _, _ = address
    fetch(head_at(base, sha256=SHA))
    path = fetch(head_at(base, sha256=SHA))
    then = path.stat()
    path.write_bytes(bytes(reversed(HEAD)))  # of the same size; with the same time it passes for the same file
    os.utime(path, ns=(then.st_atime_ns, then.st_mtime_ns))
    assert fetch(head_at(base, sha256=SHA)) == path
    os.utime(path, ns=(then.st_atime_ns, then.st_mtime_ns + 1))
    with pytest.raises(RewardError, match="is damaged"):
        fetch(head_at(base, sha256=SHA))


def test_a_damaged_memory_of_hashes_is_only_forgotten(address, cache):
    base, _, _ = address
    for _ in range(2):
        fetch(head_at(base, sha256=SHA))
    (memory,) = cache.glob("digests*")
    memory.write_text("{")
    assert fetch(head_at(base, sha256=SHA)).read_bytes() == HEAD


def test_a_repository_without_safetensors_gives_its_torch_files(hub):
    the_hub, get = hub
    del the_hub.commits["1" * 40]["model.safetensors"]
    _, names, _ = get()
    assert names == ["config.json", "pytorch_model.bin"]


def test_a_hub_that_cannot_help_is_one_clear_line(hub):
    _, get = hub
    assert "them/model none.bin cannot be downloaded from the hub" in get("none.bin")
    offline = get("model.safetensors", HF_HUB_OFFLINE="1")
    assert "them/model model.safetensors is not in the hub's cache and HF_HUB_OFFLINE is set" in offline
