"""Over a network that fails now and then nothing is lost, the order is kept, and no log has the token.

`DDPO_TEST_REQUESTS=10000` makes it that many requests to each server, instead of some hundreds.
"""

import asyncio
import base64
import io
import json
import logging
import os
import threading
import time

import numpy as np
import pytest
from PIL import Image
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route

from ddpo_rewards import Reward, RewardSpec, get_reward
from ddpo_rewards.models.endpoint import endpoint_captioner
from ddpo_rewards.serve import make_app

uvicorn = pytest.importorskip("uvicorn")

REQUESTS = int(os.environ.get("DDPO_TEST_REQUESTS", "280"))
KINDS = ("429", "500", "reset", "broken off", "slow", "silent", "malformed")
SHARE = 20  # one request of so many meets a fault, each kind in turn
SILENCE = 1.0  # seconds that a client waits for an answer
TOKEN = "s3cret-t0ken"
PATIENT = {"timeout": SILENCE, "retries": 30, "pause": 0.01}


class Faults:
    """An application of which every 20th request meets a fault on its way; errors repeat the token that was sent."""

    def __init__(self, app):
        self.app, self.requests, self.met, self.tokens = app, 0, dict.fromkeys(KINDS, 0), set()

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http" or scope["method"] != "POST" or scope["path"] == "/health":
            await self.app(scope, receive, send)
            return
        self.requests += 1
        token = dict(scope["headers"]).get(b"authorization", b"")
        self.tokens.add(token)
        if self.requests % SHARE:
            await self.app(scope, receive, send)
            return
        kind = KINDS[self.requests // SHARE % len(KINDS)]
        self.met[kind] += 1
        await {"slow": self.slow, "silent": self.silent, "reset": self.reset}.get(kind, self.answer)(
            kind, token, scope, receive, send
        )

    async def answer(self, kind, token, scope, receive, send):
        """Another answer than the application's, or a part of one."""
        body = b'{"scores": [1, 2' if kind == "malformed" else b"not now, " + token
        headers = [(b"content-length", str(len(body) + 9 * (kind == "broken off")).encode())]
        status = int(kind) if kind.isdecimal() else 200
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body, "more_body": kind == "broken off"})
        if kind == "broken off":
            raise ConnectionResetError

    async def slow(self, kind, token, scope, receive, send):
        """The application's answer, byte after byte at first."""

        async def trickle(message):
            body = message.get("body", b"")
            for index in range(min(4, len(body))):
                await send({**message, "body": body[index : index + 1], "more_body": True})
                await asyncio.sleep(0.02)
            await send({**message, "body": body[4:]} if body else message)

        await self.app(scope, receive, trickle)

    async def silent(self, kind, token, scope, receive, send):
        """Nothing, until the client has left."""
        while (await receive())["type"] != "http.disconnect":
            pass

    async def reset(self, kind, token, scope, receive, send):
        """The connection is cut off before an answer."""
        send.__self__.transport.abort()


@pytest.fixture
def network(monkeypatch, caplog, capfd):
    """Start an application behind `Faults`; its clients have a token, and what is logged anywhere may not hold it."""
    caplog.set_level(logging.DEBUG)
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access", "uvicorn.asgi"):
        # As they are before anyone has run a server in this process, which gives them handlers of their own.
        monkeypatch.setattr(logging.getLogger(name), "propagate", True)
        monkeypatch.setattr(logging.getLogger(name), "handlers", [])
    servers = []

    def start(app):
        faults = Faults(app)
        # Its logs as they are, at their most talkative, to pytest's handler.
        config = uvicorn.Config(faults, host="127.0.0.1", port=0, log_config=None, log_level="trace", access_log=True)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        servers.append((server, thread))
        while not server.started:
            time.sleep(0.01)
        host = f"127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
        monkeypatch.setenv("DDPO_ENDPOINT_TOKEN", TOKEN)
        monkeypatch.setenv("DDPO_ENDPOINT_HOST", host)
        return f"http://{host}", faults

    yield start
    for server, thread in servers:
        server.should_exit = True
        thread.join(30)
    formatter = logging.Formatter()  # with the tracebacks
    said = [formatter.format(record) for record in caplog.get_records("call")]
    assert any("POST /" in line for line in said), "the server logged its requests"
    assert any("ConnectionResetError" in line for line in said), "and what went wrong"
    assert TOKEN not in "\n".join([*said, *capfd.readouterr()])


def met_all(faults):
    assert faults.requests >= REQUESTS + sum(faults.met.values()) - faults.met["slow"]  # each but that asked again
    assert min(faults.met.values()) >= REQUESTS // SHARE // len(KINDS) >= 1
    assert faults.tokens == {f"Bearer {TOKEN}".encode()}
    print(f"\n{faults.requests} requests, of which {sum(faults.met.values())} met a fault: {faults.met}")


def levels():
    return np.random.default_rng(0).integers(0, 256, REQUESTS)


def plain(value):
    return np.full((4, 4, 3), value, np.uint8)


def test_a_served_reward_loses_nothing(network):
    def score(images, prompts, metadata):
        return [float(image.mean()) for image in images], {"words": list(prompts)}

    reward = Reward(RewardSpec(name="light", factory="x:x", takes="arrays", needs=frozenset({"prompts"})), score)
    address, faults = network(make_app(reward, token=TOKEN))
    remote = get_reward(address, batch_size=1, concurrency=8, **PATIENT)
    scores, info = remote([plain(level) for level in levels()], [f"{n}" for n in range(REQUESTS)])
    assert scores.tolist() == levels().tolist()
    assert info["words"] == [f"{n}" for n in range(REQUESTS)]
    met_all(faults)


def test_an_endpoint_loses_nothing(network):
    async def complete(request):
        picture, question = (await request.json())["messages"][0]["content"]
        encoded = base64.b64decode(picture["image_url"]["url"].partition(",")[2])
        value = np.asarray(Image.open(io.BytesIO(encoded)))[0, 0, 0]
        return JSONResponse({"choices": [{"message": {"content": json.dumps([int(value), question["text"]])}}]})

    address, faults = network(Starlette(routes=[Route("/v1/chat/completions", complete, methods=["POST"])]))
    ask = endpoint_captioner(f"{address}/v1", model="x", concurrency=8, **PATIENT)
    answers = ask([plain(level) for level in levels()], [f"{n}?" for n in range(REQUESTS)])
    assert [json.loads(answer) for answer in answers] == [[level, f"{n}?"] for n, level in enumerate(levels().tolist())]
    met_all(faults)
