"""Ask a server over HTTP, patiently: connections that are kept, further tries, a token for one host, Ctrl-C at once."""

import base64
import json
import os
import random
import re
import socket
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from queue import SimpleQueue
from typing import Any, TypeVar
from urllib.parse import SplitResult, unquote, urlsplit
from urllib.request import getproxies, proxy_bypass

from ddpo_rewards.errors import RewardError

TOKEN_VARIABLE = "DDPO_ENDPOINT_TOKEN"
HOST_VARIABLE = "DDPO_ENDPOINT_HOST"
_MAX_ANSWER = 1 << 26  # bytes of a response; more is nobody's answer
_MAX_PAUSE = 8.0  # seconds between two tries, where the server does not ask for more
_MAX_ASKED_PAUSE = 60.0
_MAX_CONNECT = 10.0  # seconds: until a connection stands, no interruption can end it
_JITTER = 0.25  # share of a pause that chance adds, so that many clients do not come back together
_TRY_AGAIN = (408, 425, 429)  # and 5xx: nothing is wrong with the request, only with the moment
_Answer = TypeVar("_Answer")


class Garbled(RewardError):
    """An answer that is no JSON: it broke on its way, so it is asked for again."""


@dataclass(frozen=True, slots=True)
class Server:
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
        """What is wrong there."""
        return RewardError(f"{self.address.geturl()} {what}")


def server_at(endpoint: str, path: str, *, timeout: float, retries: int, concurrency: int, pause: float) -> Server:
    """Where to ask: `path` below the base address.

    Raises:
        RewardError: an address that is not http(s) or has credentials in it, limits that make no sense, or a token that
            no header can carry, or that is for no host.
    """
    parts = urlsplit(endpoint)
    if "@" in parts.netloc:
        raise RewardError(f"the endpoint's address has credentials in it; set {TOKEN_VARIABLE} and {HOST_VARIABLE}")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise RewardError(f"endpoint={endpoint!r} is no address; want one like http://localhost:8000/v1")
    if retries < 0 or concurrency < 1 or timeout <= 0:
        raise RewardError(f"want retries >= 0, concurrency >= 1, timeout > 0; got {retries}, {concurrency}, {timeout}")
    address = urlsplit(f"{endpoint.rstrip('/')}/{path}")
    return Server(address, _token_for(parts.netloc), timeout, retries, pause)


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


def ask_all(
    server: Server, bodies: Sequence[Callable[[], bytes]], read: "Callable[[bytes, Server], _Answer]", *, threads: int
) -> list[_Answer]:
    """Post every body, and read every answer; in order. The first error is raised, and ends all requests at once.

    So does Ctrl-C. An answer that `read` raises `Garbled` for is asked for again.

    Args:
        server: from `server_at`.
        bodies: are called for what to post when its turn comes, so that few lie in memory.
        read: turns a response's content into an answer.
        threads: requests under way at once, each on a connection that is kept.
    """
    connections = [_connection_to(server) for _ in range(max(1, min(threads, len(bodies))))]
    idle: SimpleQueue[HTTPConnection] = SimpleQueue()
    for connection in connections:
        idle.put(connection)
    hung_up = threading.Event()

    def ask(body_of: Callable[[], bytes]) -> _Answer:
        connection = idle.get()
        try:
            return _post(server, connection, body_of(), hung_up, read)
        finally:
            idle.put(connection)

    pool = ThreadPoolExecutor(len(connections), thread_name_prefix="endpoint")
    try:
        futures = [pool.submit(ask, body_of) for body_of in bodies]
        return [future.result() for future in futures]
    finally:
        hung_up.set()
        for connection in connections:
            with suppress(OSError, AttributeError):  # no socket, or closed by its thread in this moment
                connection.sock.shutdown(socket.SHUT_RDWR)
        pool.shutdown(cancel_futures=True)
        for connection in connections:
            connection.close()


def read_json(content: bytes, server: Server, *, want: str) -> Any:
    """The JSON of an answer.

    Raises:
        Garbled: it is none.
    """
    try:
        return json.loads(content)
    except ValueError:
        start = server.shown(content.decode("utf-8", "replace"))
        raise Garbled(f"{server.address.geturl()} answered {start!r}; want {want}") from None


def _post(
    server: Server,
    connection: HTTPConnection,
    body: bytes,
    hung_up: threading.Event,
    read: "Callable[[bytes, Server], _Answer]",
) -> _Answer:
    for attempt in range(server.retries + 1):
        tries = f" after {attempt + 1} tries" if attempt else ""
        pause = min(server.pause * 2**attempt, _MAX_PAUSE) * (1 + random.uniform(0, _JITTER))
        try:
            response, content = _exchange(server, connection, body, hung_up)
        except (OSError, HTTPException) as error:
            connection.close()
            reason = server.shown(str(error)) or type(error).__name__
            failure = server.error(f"cannot be asked{tries}: {reason}; is the server running there?")
        else:
            if 200 <= response.status < 300:
                try:
                    return read(content, server)
                except Garbled as error:
                    if attempt == server.retries or hung_up.wait(pause):
                        raise RewardError(f"{error}{tries}") from None
                    continue
            status = f"{response.status} {server.shown(response.reason)}"
            failure = server.error(f"answered {status}{tries}: {server.shown(content.decode('utf-8', 'replace'))}")
            if response.status < 500 and response.status not in _TRY_AGAIN:
                raise failure
            pause = max(pause, _asked_pause(response))
        if attempt == server.retries or hung_up.wait(pause):
            raise failure
    raise AssertionError("the last try returns or raises")


def _exchange(
    server: Server, connection: HTTPConnection, body: bytes, hung_up: threading.Event
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


def _connection_to(server: Server) -> HTTPConnection:
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
