"""Ask an OpenAI-compatible server (vLLM, SGLang, ...) about images: for its answer, or how probable an answer is."""

import base64
import io
import json
import math
import os
import re
import socket
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from queue import SimpleQueue
from typing import Any, TypeVar
from urllib.parse import SplitResult, unquote, urlsplit
from urllib.request import getproxies, proxy_bypass

import numpy as np
from jaxtyping import Float, UInt8

from ddpo_rewards.errors import RewardError

TOKEN_VARIABLE = "DDPO_ENDPOINT_TOKEN"
HOST_VARIABLE = "DDPO_ENDPOINT_HOST"
_MAX_ANSWER = 1 << 22  # bytes of a response; more is no caption
_MAX_PAUSE = 8.0  # seconds between two tries, where the server does not ask for more
_MAX_ASKED_PAUSE = 60.0
_MAX_CONNECT = 10.0  # seconds: until a connection stands, no interruption can end it
_TRY_AGAIN = (408, 425, 429)  # and 5xx: nothing is wrong with the request, only with the moment
_MOST_LOGPROBS = 20  # of one token; more is refused by OpenAI, and by vLLM unless it is told otherwise
_Answer = TypeVar("_Answer")


def endpoint_captioner(
    endpoint: str,
    *,
    model: str,
    max_new_tokens: int = 64,
    timeout: float = 120.0,
    retries: int = 3,
    concurrency: int = 16,
    pause: float = 0.5,
) -> Callable[[Sequence[np.ndarray], Sequence[str]], list[str]]:
    """Ask an OpenAI-compatible server (vLLM, SGLang, ...): images go as lossless PNG data URLs, sampling is greedy.

    The environment variable `DDPO_ENDPOINT_TOKEN` is sent as a bearer token to the host that `DDPO_ENDPOINT_HOST` names
    (`HOST` or `HOST:PORT`, as in the address) and to no other: no reference or configuration file can send it
    elsewhere, and a redirect is an error. Proxies are those of the environment, as `urllib` reads them.

    Args:
        endpoint: base address with its version, such as `http://localhost:8000/v1`.
        model: the name the server knows the model by.
        max_new_tokens: most tokens of an answer.
        timeout: seconds to wait for the server to send something.
        retries: further tries after a status 408, 425, 429 or 5xx, a time-out, or a connection that fails.
        concurrency: requests under way at once, each on a connection that is kept.
        pause: seconds before the first further try; doubled every time. A server's `Retry-After` counts where longer.

    Raises:
        RewardError: an address that is not http(s) or has credentials in it; a token that no header can carry, or that
            is for no host; and, when called, whatever the server does wrong. No error's text holds the token.
    """
    server = _server_at(endpoint, timeout=timeout, retries=retries, concurrency=concurrency, pause=pause)
    options = {"model": model, "max_tokens": max_new_tokens, "temperature": 0.0}

    def caption(images: Sequence[np.ndarray], questions: Sequence[str]) -> list[str]:
        pairs = list(zip(images, questions, strict=True))
        return _ask_all(server, pairs, options, _answer_in, threads=concurrency)

    return caption


def endpoint_probabilities(
    endpoint: str,
    *,
    model: str,
    answers: Sequence[str],
    timeout: float = 120.0,
    retries: int = 3,
    concurrency: int = 16,
    pause: float = 0.5,
) -> Callable[[Sequence[np.ndarray], Sequence[str]], Float[np.ndarray, "batch answers"]]:
    """Ask a server how probable it is that its answer begins with each of `answers`; otherwise as `endpoint_captioner`.

    It has to send `logprobs`, as vLLM and SGLang do. An answer that is not among the 20 most probable counts as 0.

    Raises:
        RewardError: as `endpoint_captioner`; and, when called, a server that sends no log-probabilities.
    """
    server = _server_at(endpoint, timeout=timeout, retries=retries, concurrency=concurrency, pause=pause)
    logprobs = {"logprobs": True, "top_logprobs": _MOST_LOGPROBS}
    options = {"model": model, "max_tokens": 1, "temperature": 0.0, **logprobs}

    def probabilities(images: Sequence[np.ndarray], questions: Sequence[str]) -> Float[np.ndarray, "batch answers"]:
        pairs = list(zip(images, questions, strict=True))
        found = _ask_all(server, pairs, options, _first_token_in, threads=concurrency)
        return np.asarray([[likely.get(answer, 0.0) for answer in answers] for likely in found], np.float32)

    return probabilities


def png_data_url(image: UInt8[np.ndarray, "height width 3"]) -> str:
    """An image as a `data:` address, lossless.

    Example:
        >>> png_data_url(np.zeros((1, 1, 3), np.uint8))[:32]
        'data:image/png;base64,iVBORw0KGg'
    """
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG", compress_level=1)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


@dataclass(frozen=True, slots=True)
class _Server:
    """Where to ask, as whom, and how patiently."""

    address: SplitResult
    token: str | None = field(repr=False)
    timeout: float
    retries: int
    pause: float

    def shown(self, text: str) -> str:
        """The beginning of a text from there, without the token: a server may send back what it was sent."""
        without = text.replace(self.token, "***") if self.token else text
        return " ".join(without.split())[:200]

    def error(self, what: str) -> RewardError:
        return RewardError(f"{self.address.geturl()} {what}")


def _server_at(endpoint: str, *, timeout: float, retries: int, concurrency: int, pause: float) -> _Server:
    parts = urlsplit(endpoint)
    if "@" in parts.netloc:
        raise RewardError(f"the endpoint's address has credentials in it; set {TOKEN_VARIABLE} and {HOST_VARIABLE}")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise RewardError(f"endpoint={endpoint!r} is no address; want one like http://localhost:8000/v1")
    if retries < 0 or concurrency < 1 or timeout <= 0:
        raise RewardError(f"want retries >= 0, concurrency >= 1, timeout > 0; got {retries}, {concurrency}, {timeout}")
    address = urlsplit(f"{endpoint.rstrip('/')}/chat/completions")
    return _Server(address, _token_for(parts.netloc), timeout, retries, pause)


def _token_for(host: str) -> str | None:
    token, named = os.environ.get(TOKEN_VARIABLE), os.environ.get(HOST_VARIABLE)
    if not token:
        return None
    if not re.fullmatch(r"[\x21-\x7e]+", token):  # http.client would refuse it too, and print it
        raise RewardError(
            f"{TOKEN_VARIABLE} holds blanks, line breaks or letters beyond ASCII; set it to the token alone"
        )
    if not named:
        raise RewardError(
            f"{TOKEN_VARIABLE} is set, but not for which host: set {HOST_VARIABLE}={host} to send it there"
        )
    return token if named.lower() == host.lower() else None


def _ask_all(
    server: _Server,
    pairs: Sequence[tuple[np.ndarray, str]],
    options: Mapping[str, Any],
    read: "Callable[[bytes, _Server], _Answer]",
    *,
    threads: int,
) -> list[_Answer]:
    """Ask about every picture; whatever ends this early, Ctrl-C too, ends every request and every pause at once."""
    connections = [_connection_to(server) for _ in range(max(1, min(threads, len(pairs))))]
    idle: SimpleQueue[HTTPConnection] = SimpleQueue()
    for connection in connections:
        idle.put(connection)
    hung_up = threading.Event()

    def ask(image: np.ndarray, question: str) -> _Answer:
        connection = idle.get()
        try:
            return read(_post(server, connection, _request_body(image, question, options), hung_up), server)
        finally:
            idle.put(connection)

    pool = ThreadPoolExecutor(len(connections), thread_name_prefix="endpoint")
    try:
        futures = [pool.submit(ask, *pair) for pair in pairs]
        return [future.result() for future in futures]
    finally:
        hung_up.set()
        for connection in connections:
            with suppress(OSError, AttributeError):  # no socket, or closed by its thread in this moment
                connection.sock.shutdown(socket.SHUT_RDWR)
        pool.shutdown(cancel_futures=True)
        for connection in connections:
            connection.close()


def _request_body(image: np.ndarray, question: str, options: Mapping[str, Any]) -> bytes:
    content = [
        {"type": "image_url", "image_url": {"url": png_data_url(image)}},
        {"type": "text", "text": question},
    ]
    return json.dumps({"messages": [{"role": "user", "content": content}], **options}).encode()


def _post(server: _Server, connection: HTTPConnection, body: bytes, hung_up: threading.Event) -> bytes:
    for attempt in range(server.retries + 1):
        tries = f" after {attempt + 1} tries" if attempt else ""
        pause = min(server.pause * 2**attempt, _MAX_PAUSE)
        try:
            response, content = _exchange(server, connection, body, hung_up)
        except (OSError, HTTPException) as error:
            connection.close()
            reason = server.shown(str(error)) or type(error).__name__
            failure = server.error(f"cannot be asked{tries}: {reason}; is the server running there?")
        else:
            if 200 <= response.status < 300:
                return content
            status = f"{response.status} {server.shown(response.reason)}"
            failure = server.error(f"answered {status}{tries}: {server.shown(content.decode('utf-8', 'replace'))}")
            if response.status < 500 and response.status not in _TRY_AGAIN:
                raise failure
            pause = max(pause, _asked_pause(response))
        if attempt == server.retries or hung_up.wait(pause):
            raise failure
    raise AssertionError("the last try returns or raises")


def _exchange(
    server: _Server, connection: HTTPConnection, body: bytes, hung_up: threading.Event
) -> tuple[HTTPResponse, bytes]:
    if connection.sock is None:
        connection.connect()
    connection.sock.settimeout(server.timeout)
    # Only now: a connection that stands by the time of hanging up is shut down there.
    if hung_up.is_set():
        raise ConnectionAbortedError
    headers = {"Content-Type": "application/json"}
    if server.token:
        headers["Authorization"] = f"Bearer {server.token}"
    target, proxy = server.address.path, _proxy_of(server.address)
    if proxy is not None and server.address.scheme == "http":
        target = server.address.geturl()
        headers |= _proxy_headers(proxy)
    connection.request("POST", target, body, headers)
    response = connection.getresponse()
    content = response.read(_MAX_ANSWER)
    if not response.isclosed():  # the rest of it would pass for the next answer
        connection.close()
    return response, content


def _connection_to(server: _Server) -> HTTPConnection:
    """A connection that is made at its first use, to the server or to the environment's proxy."""
    kind = HTTPSConnection if server.address.scheme == "https" else HTTPConnection
    proxy = _proxy_of(server.address)
    via = proxy or server.address
    connection = kind(via.hostname or "", via.port, timeout=min(server.timeout, _MAX_CONNECT))
    if proxy is not None and server.address.scheme == "https":
        connection.set_tunnel(server.address.hostname or "", server.address.port, headers=_proxy_headers(proxy))
    return connection


def _proxy_of(address: SplitResult) -> SplitResult | None:
    proxy = getproxies().get(address.scheme)
    if not proxy or proxy_bypass(address.netloc):
        return None
    return urlsplit(proxy if "://" in proxy else f"http://{proxy}")


def _proxy_headers(proxy: SplitResult) -> dict[str, str]:
    if proxy.username is None:
        return {}
    credentials = f"{unquote(proxy.username)}:{unquote(proxy.password or '')}"
    return {"Proxy-Authorization": f"Basic {base64.b64encode(credentials.encode()).decode('ascii')}"}


def _asked_pause(response: HTTPResponse) -> float:
    """What the server asks for in seconds; the other form of the header, a date, is left to the doubling pause."""
    asked = response.headers.get("Retry-After", "")
    return min(float(asked), _MAX_ASKED_PAUSE) if asked.isdecimal() else 0.0


def _answer_in(response: bytes, server: _Server) -> str:
    try:
        answer: Mapping[str, Any] = json.loads(response)
        text = answer["choices"][0]["message"]["content"]
    except (ValueError, LookupError, TypeError):
        start = server.shown(response.decode("utf-8", "replace"))
        raise server.error(f"answered {start!r}; want an OpenAI chat completion") from None
    if not isinstance(text, str | None):
        raise server.error(f"answered with the content {server.shown(repr(text))}; want a text")
    return (text or "").strip()


def _first_token_in(response: bytes, server: _Server) -> dict[str, float]:
    """The probabilities of the likeliest first tokens, those that differ only in blanks around them together."""
    try:
        answer: Mapping[str, Any] = json.loads(response)
        likely = answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
        pairs = [(str(one["token"]).strip(), math.exp(min(0.0, float(one["logprob"])))) for one in likely]
    except (ValueError, LookupError, TypeError):
        start = server.shown(response.decode("utf-8", "replace"))
        raise server.error(f"answered {start!r}; want an OpenAI chat completion with top_logprobs") from None
    together: dict[str, float] = {}
    for token, probability in pairs:
        together[token] = together.get(token, 0.0) + probability
    return together
