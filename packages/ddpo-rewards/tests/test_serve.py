"""A served reward scores as the reward itself does, for many clients at once (over bad connections: test_faults)."""

import base64
import io
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import numpy as np
import pytest
from PIL import Image

from ddpo_rewards import Reward, RewardError, RewardSpec, combine, combine_standardised, get_reward
from ddpo_rewards.serve import make_app, serve
from ddpo_rewards.testing import assert_conforms, example_images

uvicorn = pytest.importorskip("uvicorn")


@pytest.fixture
def start():
    """Serve an application on a free port of the loopback; returns its address."""
    servers = []

    def run(app):
        server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="critical"))
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        servers.append((server, thread))
        while not server.started:
            time.sleep(0.01)
        return f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"

    yield run
    for server, thread in servers:
        server.should_exit = True
        thread.join(10)


def plain(value):
    return np.full((4, 4, 3), value, np.uint8)


def lightness(calls=None, needs=(), wait=0.0):
    def score(images, prompts, metadata):
        if calls is not None:
            calls.append(len(images))
        time.sleep(wait)
        if prompts and "boom" in prompts:
            raise ValueError("boom")
        means = [float(image.mean()) for image in images]
        return means, {"words": list(prompts or [None] * len(images)), "mean": np.array(means)}

    return Reward(RewardSpec(name="light", factory="x:x", takes="arrays", needs=frozenset(needs), unit="grey"), score)


def png(value):
    buffer = io.BytesIO()
    Image.fromarray(plain(value)).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def post(address, body, token=None):
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    try:
        with urlopen(Request(f"{address}/score", data, headers), timeout=30) as response:
            return response.status, json.loads(response.read())
    except HTTPError as error:
        with error:
            return error.code, json.loads(error.read())


def test_a_served_reward_scores_as_the_reward_itself(start):
    address = start(make_app(get_reward("jpeg_incompressibility")))
    remote = get_reward(address)
    local = get_reward("jpeg_incompressibility")(example_images())
    scores, info = remote(example_images())
    assert scores.tolist() == local.scores.tolist()
    assert info == local.info
    assert_conforms(remote)
    with urlopen(f"{address}/metrics") as response:
        counts = dict(line.split() for line in response.read().decode().splitlines() if line[0] != "#")
    assert float(counts["ddpo_reward_images"]) >= 4
    assert counts["ddpo_reward_waiting"] == "0"


def test_what_the_reward_needs_is_known_to_the_client(start):
    address = start(make_app(lightness(needs={"prompts"})))
    remote = get_reward(f"{address}?batch_size=2")
    assert remote.spec.needs == {"prompts"}
    with pytest.raises(RewardError, match="needs prompts"):
        remote([plain(1)])
    scores, info = remote([plain(level) for level in range(5)], list("abcde"))
    assert scores.tolist() == [0, 1, 2, 3, 4]
    assert info["words"] == list("abcde")


def test_metadata_go_where_they_are_needed_and_have_to_be_json(start):
    seen = []

    def score(images, prompts, metadata):
        seen.append(metadata)
        return [0.0] * len(images)

    for needs, expected in ((set(), None), ({"metadata"}, [{"k": 1}])):
        spec = RewardSpec(name="reads", factory="x:x", takes="arrays", needs=frozenset(needs))
        get_reward(start(make_app(Reward(spec, score))))([plain(1)], metadata=[{"k": 1}])
        assert seen.pop() == expected
    with pytest.raises(RewardError, match="metadata cannot be sent to a server"):
        get_reward(start(make_app(Reward(spec, score))))([plain(1)], metadata=[{"k": plain(1)}])


def test_images_of_many_clients_are_scored_together(start):
    calls = []
    address = start(make_app(lightness(calls, wait=0.05)))
    with ThreadPoolExecutor(8) as clients:
        answers = list(clients.map(lambda level: post(address, {"images": [png(level)]}), range(16)))
    assert [answer["scores"] for _, answer in answers] == [[level] for level in range(16)]
    assert sum(calls) == 16
    assert len(calls) < 16


def test_one_clients_failure_is_not_anothers(start):
    address = start(make_app(lightness(wait=0.05)))
    prompts = ["a", "boom", "b", "c"]
    with ThreadPoolExecutor(4) as clients:
        answers = list(clients.map(lambda p: post(address, {"images": [png(7)], "prompts": [p]}), prompts))
    assert [status for status, _ in answers] == [200, 422, 200, 200]
    assert "boom" in answers[1][1]["error"]


def test_an_image_that_cannot_be_read_has_its_error_and_the_others_their_score(start):
    status, answer = post(start(make_app(lightness())), {"images": [png(3), "AAAA", "not base64!", 5, png(9)]})
    assert status == 200
    assert answer["scores"] == [3, None, None, None, 9]
    assert [error is None for error in answer["errors"]] == [True, False, False, False, True]
    assert answer["info"]["mean"] == [3, None, None, None, 9]


@pytest.mark.parametrize(
    ("body", "complaint"),
    [
        (b"{", "is no JSON"),
        ([], "want"),
        ({"images": []}, "want"),
        ({"images": "x"}, "want"),
        ({"images": ["AAAA"], "prompts": ["a", "b"]}, "one str per image"),
        ({"images": ["AAAA"], "prompts": [1]}, "one str per image"),
        ({"images": ["AAAA"], "metadata": "x"}, "one dict per image"),
    ],
)
def test_a_malformed_request_is_told_what_was_wanted(start, body, complaint):
    status, answer = post(start(make_app(lightness())), body)
    assert status == 400
    assert complaint in answer["error"]


def test_a_body_beyond_the_limit_is_refused(start):
    status, answer = post(start(make_app(lightness(), max_bytes=1000)), {"images": ["A" * 2000]})
    assert status == 413
    assert "more than 1000 bytes" in answer["error"]


def test_who_has_not_the_token_is_refused_everywhere(start, monkeypatch):
    address = start(make_app(lightness(), token="secret"))
    assert post(address, {"images": [png(1)]})[0] == 401
    assert post(address, {"images": [png(1)]}, token="wrong")[0] == 401
    assert post(address, {"images": [png(1)]}, token="secret")[0] == 200
    for path in ("health", "metrics"):
        with pytest.raises(HTTPError, match="401") as refused:
            urlopen(f"{address}/{path}")
        refused.value.close()
    with pytest.raises(RewardError, match="answered 401"):
        get_reward(address)
    monkeypatch.setenv("DDPO_ENDPOINT_TOKEN", "secret")
    monkeypatch.setenv("DDPO_ENDPOINT_HOST", address.removeprefix("http://"))
    assert get_reward(address)([plain(5)]).scores.tolist() == [5]


def test_a_busy_server_asks_to_come_again_and_clients_do(start):
    address = start(make_app(lightness(wait=0.1), max_waiting=1))
    with ThreadPoolExecutor(4) as clients:
        statuses = list(clients.map(lambda level: post(address, {"images": [png(level)]})[0], range(4)))
    assert 503 in statuses
    scores = get_reward(address, batch_size=1, concurrency=2, retries=20)([plain(level) for level in range(3)]).scores
    assert scores.tolist() == [0, 1, 2]


def test_what_is_no_reward_server_is_refused(start):
    async def other(scope, receive, send):
        if scope["type"] == "lifespan":
            return
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"{}"})

    with pytest.raises(RewardError, match="is no server of `ddpo rewards serve`"):
        get_reward(start(other))
    with pytest.raises(RewardError, match="cannot be asked"):
        get_reward("http://127.0.0.1:9?retries=0")


class ReadsFiles:
    reads_files = True

    def __call__(self, images, prompts, metadata):
        return [0.0] * len(images)


def test_what_may_not_be_served_is_refused(monkeypatch):
    with pytest.raises(RewardError, match="learns from what it scores"):
        make_app(combine_standardised("jpeg_compressibility", "jpeg_incompressibility"))
    reads = Reward(RewardSpec(name="reads", factory="x:x"), ReadsFiles())
    for reward in (reads, combine("jpeg_compressibility", reads)):
        with pytest.raises(RewardError, match="reads files that clients would name"):
            make_app(reward)
    with pytest.raises(RewardError, match="max_bytes and max_waiting of 1 or more"):
        make_app(lightness(), max_waiting=0)
    monkeypatch.delenv("DDPO_SERVE_TOKEN", raising=False)
    with pytest.raises(RewardError, match=r"host='0.0.0.0' can be reached by others: set DDPO_SERVE_TOKEN"):
        serve(lightness(), host="0.0.0.0")
