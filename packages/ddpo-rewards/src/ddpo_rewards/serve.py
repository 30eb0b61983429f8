"""A reward behind HTTP, for trainers that are elsewhere: batched across clients, bounded, and without pickle.

`POST /score` takes JSON: `images`, each the base64 of a PNG, JPEG or other file; `prompts` and `metadata`, one per
image, or null. It answers `scores` and `info`, as lists in order; an image that cannot be read has the score null and
its reason under `errors`. `GET /health` says which reward this is and what it needs, `GET /metrics` counts in
Prometheus' format.

Needs the extra `ddpo-rewards[serve]`.
"""

import asyncio
import base64
import binascii
import hmac
import json
import os
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np

from ddpo_rewards.errors import ImageError, RewardError
from ddpo_rewards.images import as_array
from ddpo_rewards.reward import Reward, RewardResult

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

TOKEN_VARIABLE = "DDPO_SERVE_TOKEN"
MAX_BYTES = 64 << 20
MAX_WAITING = 512
_GATHER = 0.003  # seconds that a call waits for other clients' images
_RETRY_AFTER = "1"


@dataclass
class Counts:
    """What was served since the start."""

    requests: int = 0
    refused: int = 0
    failed: int = 0
    images: int = 0
    calls: int = 0
    seconds: float = 0.0
    waiting: int = 0  # images that came and are not scored yet

    def text(self) -> str:
        """The counts in Prometheus' format."""
        gauges = {"waiting"}
        return "".join(
            f"# TYPE ddpo_reward_{name} {'gauge' if name in gauges else 'counter'}\nddpo_reward_{name} {value}\n"
            for name, value in vars(self).items()
        )


class Busy(Exception):
    """More images wait than the server takes."""


class TooLarge(RewardError):
    """A body of more bytes than the server takes."""


@dataclass(frozen=True)
class Job:
    """Images of one request, and where their result goes."""

    images: Sequence[Any]
    prompts: Sequence[str] | None
    metadata: Sequence[Mapping[str, Any]] | None
    done: "asyncio.Future[RewardResult]"


@dataclass(frozen=True)
class Batcher:
    """Joins the images of all clients to calls of what the reward runs at once."""

    reward: Reward
    most_waiting: int
    counts: Counts = field(default_factory=Counts)
    queue: "asyncio.Queue[Job]" = field(default_factory=asyncio.Queue)

    async def score(
        self, images: Sequence[Any], prompts: Sequence[str] | None, metadata: Sequence[Mapping[str, Any]] | None
    ) -> RewardResult:
        """Wait for the scores of these images.

        Raises:
            Busy: too many wait already; nothing was taken.
            RewardError: the reward refused them.
        """
        if self.counts.waiting and self.counts.waiting + len(images) > self.most_waiting:
            raise Busy
        job = Job(images, prompts, metadata, asyncio.get_running_loop().create_future())
        self.counts.waiting += len(images)
        try:
            self.queue.put_nowait(job)
            return await job.done
        finally:
            self.counts.waiting -= len(images)

    async def run(self) -> None:
        """Score what comes, for ever."""
        while True:
            jobs = [await self.queue.get()]
            await asyncio.sleep(_GATHER)
            while not self.queue.empty() and sum(len(job.images) for job in jobs) < self.reward.batch_size:
                jobs.append(self.queue.get_nowait())
            # Clients that pass prompts or metadata are no company for those that do not.
            kinds: dict[tuple[bool, bool], list[Job]] = {}
            for job in jobs:
                kinds.setdefault((job.prompts is None, job.metadata is None), []).append(job)
            for alike in kinds.values():
                await self._score_together(alike)

    async def _score_together(self, jobs: list[Job]) -> None:
        began = perf_counter()
        try:
            result = await asyncio.to_thread(_call, self.reward, jobs)
        except Exception as error:
            if len(jobs) == 1:
                _settle(jobs[0], error)
            else:  # one client's images are no reason to fail another's
                for job in jobs:
                    await self._score_together([job])
            return
        self.counts.calls += 1
        self.counts.seconds += perf_counter() - began
        start = 0
        for job in jobs:
            end = start + len(job.images)
            info = {key: values[start:end] for key, values in result.info.items()}
            _settle(job, RewardResult(result.scores[start:end], info))
            start = end


def make_app(
    reward: Reward, *, token: str | None = None, max_bytes: int = MAX_BYTES, max_waiting: int = MAX_WAITING
) -> "Starlette":
    """The server as an ASGI application.

    Args:
        reward: scores; not one that learns, which would learn from every client at once, nor one that reads files that
            metadata name, which would read those of this machine for whoever asks.
        token: what a client has to send as a bearer token; None lets everybody in who can reach the address.
        max_bytes: of a request's body.
        max_waiting: images that may wait; more are asked to come again in a second (503).

    Raises:
        RewardError: a reward that cannot be shared, limits below 1, or the extra is not installed.
    """
    try:
        from starlette.applications import Starlette
        from starlette.routing import Route
    except ImportError as error:
        raise RewardError("serving needs starlette and uvicorn: pip install 'ddpo-rewards[serve]'") from error
    if max_bytes < 1 or max_waiting < 1:
        raise RewardError(f"want max_bytes and max_waiting of 1 or more; got {max_bytes}, {max_waiting}")
    if callable(getattr(reward.score_function, "state", None)) and reward.state():
        raise RewardError(f"reward {reward.spec.name!r} learns from what it scores; it cannot be shared")
    if getattr(reward.score_function, "reads_files", False):
        raise RewardError(f"reward {reward.spec.name!r} reads files that clients would name; it cannot be shared")
    batcher = Batcher(reward, max_waiting)
    about = {"name": reward.spec.name, "needs": sorted(reward.spec.needs), "unit": reward.spec.unit,
             "range": [str(bound) for bound in reward.spec.range or ()], "batch_size": reward.batch_size}  # fmt: skip

    @asynccontextmanager
    async def running(_: Starlette) -> AsyncIterator[None]:
        task = asyncio.create_task(batcher.run())
        yield
        task.cancel()

    async def score(request: "Request") -> "Response":
        return await _answer(request, batcher, token, max_bytes)

    async def health(request: "Request") -> "Response":
        return _json(about) if _may(request, token) else _json({"error": "wrong token"}, 401)

    async def metrics(request: "Request") -> "Response":
        from starlette.responses import PlainTextResponse

        if not _may(request, token):
            return _json({"error": "wrong token"}, 401)
        return PlainTextResponse(batcher.counts.text())

    routes = [Route("/score", score, methods=["POST"]), Route("/health", health, methods=["GET", "POST"]),
              Route("/metrics", metrics)]  # fmt: skip
    return Starlette(routes=routes, lifespan=running)


async def _answer(request: "Request", batcher: Batcher, token: str | None, max_bytes: int) -> "Response":
    counts = batcher.counts
    counts.requests += 1
    if not _may(request, token):
        counts.refused += 1
        return _json({"error": "wrong token"}, 401)
    try:
        images, prompts, metadata = _parsed(await _body(request, max_bytes))
    except RewardError as error:
        counts.refused += 1
        return _json({"error": str(error)}, 413 if isinstance(error, TooLarge) else 400)
    arrays = await asyncio.to_thread(lambda: [_decoded(image, index) for index, image in enumerate(images)])
    good = [index for index, array in enumerate(arrays) if not isinstance(array, str)]
    errors: list[str | None] = [array if isinstance(array, str) else None for array in arrays]
    scores: list[float | None] = [None] * len(images)
    info: dict[str, list[Any]] = {}
    if good:
        try:
            result = await batcher.score(
                [arrays[index] for index in good],
                None if prompts is None else [prompts[index] for index in good],
                None if metadata is None else [metadata[index] for index in good],
            )
        except Busy:
            counts.refused += 1
            return _json({"error": "busy; come again"}, 503, {"Retry-After": _RETRY_AFTER})
        except RewardError as error:
            counts.failed += 1
            return _json({"error": str(error)}, 422)
        for place, index in enumerate(good):
            scores[index] = float(result.scores[place])
        for key, values in result.info.items():
            info[key] = [None] * len(images)
            for place, index in enumerate(good):
                info[key][index] = values[place]
    counts.images += len(good)
    return _json({"scores": scores, "info": info, "errors": errors})


def _call(reward: Reward, jobs: Sequence[Job]) -> RewardResult:
    images = [image for job in jobs for image in job.images]
    prompts = None if jobs[0].prompts is None else [prompt for job in jobs for prompt in job.prompts or ()]
    metadata = None if jobs[0].metadata is None else [item for job in jobs for item in job.metadata or ()]
    return reward(images, prompts, metadata)


def _settle(job: Job, outcome: "RewardResult | Exception") -> None:
    if job.done.done():  # the client has left
        return
    if isinstance(outcome, RewardError):
        job.done.set_exception(outcome)
    elif isinstance(outcome, Exception):
        job.done.set_exception(RewardError(f"{type(outcome).__name__}: {outcome}"))
    else:
        job.done.set_result(outcome)


def _may(request: "Request", token: str | None) -> bool:
    given = request.headers.get("Authorization", "")
    return token is None or hmac.compare_digest(given.encode(), f"Bearer {token}".encode())


async def _body(request: "Request", most: int) -> bytes:
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > most:
            raise TooLarge(f"the body has more than {most} bytes; send fewer images at once")
        parts.append(part)
    return b"".join(parts)


def _parsed(body: bytes) -> tuple[list[Any], list[str] | None, list[dict[str, Any]] | None]:
    try:
        asked = json.loads(body)
    except ValueError as error:
        raise RewardError(f"the body is no JSON: {error}") from error
    if not isinstance(asked, dict) or not isinstance(asked.get("images"), list) or not asked["images"]:
        raise RewardError('want {"images": [base64, ...], "prompts": [...], "metadata": [...]}')
    images = asked["images"]
    columns = []
    for name, kind in (("prompts", str), ("metadata", dict)):
        values = asked.get(name)
        is_right = isinstance(values, list) and len(values) == len(images)
        if values is not None and not (is_right and all(isinstance(value, kind) for value in values)):
            raise RewardError(f"{name} has to be null, or one {kind.__name__} per image ({len(images)})")
        columns.append(values)
    return images, columns[0], columns[1]


def _decoded(image: Any, index: int) -> "np.ndarray | str":
    """The pixels of an image, or why there are none."""
    try:
        return as_array(base64.b64decode(image, validate=True), index)
    except (ImageError, binascii.Error, TypeError, ValueError) as error:
        return str(error)


def _json(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> "Response":
    from starlette.responses import Response

    text = json.dumps(value, default=_plain)
    return Response(text, status, headers=dict(headers or {}), media_type="application/json")


def _plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else str(value)


def token_for(host: str) -> str | None:
    """The token that clients have to send: of `DDPO_SERVE_TOKEN`, or none where only this machine reaches the address.

    Raises:
        RewardError: others can reach it, and there is no token.
    """
    token = os.environ.get(TOKEN_VARIABLE) or None
    if token is None and host not in ("127.0.0.1", "::1", "localhost"):
        raise RewardError(f"host={host!r} can be reached by others: set {TOKEN_VARIABLE} to a secret first")
    return token


def serve(
    reward: Reward,
    *,
    host: str = "127.0.0.1",
    port: int = 8085,
    max_bytes: int = MAX_BYTES,
    max_waiting: int = MAX_WAITING,
) -> None:
    """Serve a reward until Ctrl-C; the bearer token is the environment variable `DDPO_SERVE_TOKEN`.

    Raises:
        RewardError: an address that others can reach, without a token; the extra is not installed; or as `make_app`.
    """
    app = make_app(reward, token=token_for(host), max_bytes=max_bytes, max_waiting=max_waiting)
    try:
        import uvicorn
    except ImportError as error:
        raise RewardError("serving needs uvicorn: pip install 'ddpo-rewards[serve]'") from error
    uvicorn.run(app, host=host, port=port, log_level="warning", access_log=False)
