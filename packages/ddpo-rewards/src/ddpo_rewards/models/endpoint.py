"""Ask an OpenAI-compatible server (vLLM, SGLang, ...) about images."""

import base64
import io
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from http.client import HTTPException, HTTPMessage
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

import numpy as np
from jaxtyping import UInt8

from ddpo_rewards.compute import map_in_threads
from ddpo_rewards.errors import RewardError

TOKEN_VARIABLE = "DDPO_ENDPOINT_TOKEN"
_MAX_ANSWER = 1 << 22  # bytes of a response; more is no caption
_MAX_PAUSE = 8.0  # seconds between two tries


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

    The environment variable `DDPO_ENDPOINT_TOKEN`, where set, is sent as a bearer token. A redirect is an error, so
    that it goes to no other host.

    Args:
        endpoint: base address with its version, such as `http://localhost:8000/v1`.
        model: the name the server knows the model by.
        max_new_tokens: most tokens of an answer.
        timeout: seconds to wait for the server to send something.
        retries: further tries after a 5xx status; other failures are final.
        concurrency: requests under way at once.
        pause: seconds before the first further try; doubled every time.

    Raises:
        RewardError: an address that is not http(s); and, when called, whatever the server does wrong.
    """
    parts = urlsplit(endpoint)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise RewardError(f"endpoint={endpoint!r} is no address; want one like http://localhost:8000/v1")
    if retries < 0 or concurrency < 1 or timeout <= 0:
        raise RewardError(f"want retries >= 0, concurrency >= 1, timeout > 0; got {retries}, {concurrency}, {timeout}")
    address = f"{endpoint.rstrip('/')}/chat/completions"

    def ask(pair: tuple[np.ndarray, str]) -> str:
        body = _request_body(*pair, model=model, max_new_tokens=max_new_tokens)
        return _answer_in(_post(address, body, timeout=timeout, retries=retries, pause=pause), address)

    def caption(images: Sequence[np.ndarray], questions: Sequence[str]) -> list[str]:
        return map_in_threads(ask, list(zip(images, questions, strict=True)), workers=concurrency)

    return caption


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


def _request_body(image: np.ndarray, question: str, *, model: str, max_new_tokens: int) -> bytes:
    content = [
        {"type": "image_url", "image_url": {"url": png_data_url(image)}},
        {"type": "text", "text": question},
    ]
    messages = [{"role": "user", "content": content}]
    return json.dumps({"model": model, "messages": messages, "max_tokens": max_new_tokens, "temperature": 0.0}).encode()


class _NoRedirect(HTTPRedirectHandler):
    """A redirect would carry images and the token to a host that nobody named."""

    def redirect_request(self, req: Request, fp: Any, code: int, msg: str, headers: HTTPMessage, newurl: str) -> None:
        return None


def _post(address: str, body: bytes, *, timeout: float, retries: int, pause: float) -> bytes:
    headers = {"Content-Type": "application/json"}
    if token := os.environ.get(TOKEN_VARIABLE):
        headers["Authorization"] = f"Bearer {token}"
    for attempt in range(retries + 1):
        try:
            with build_opener(_NoRedirect).open(Request(address, body, headers), timeout=timeout) as response:
                answer: bytes = response.read(_MAX_ANSWER)
                return answer
        except HTTPError as error:
            with error:
                detail = " ".join(error.read(500).decode("utf-8", "replace").split())
            if error.code < 500 or attempt == retries:
                tries = f" after {attempt + 1} tries" if attempt else ""
                raise RewardError(f"{address} answered {error.code} {error.reason}{tries}: {detail[:200]}") from error
            time.sleep(min(pause * 2**attempt, _MAX_PAUSE))
        except (URLError, TimeoutError, HTTPException, OSError) as error:
            reason = getattr(error, "reason", None) or error or type(error).__name__
            raise RewardError(f"{address} cannot be asked: {reason}; is the server running there?") from error
    raise AssertionError("the last try returns or raises")


def _answer_in(response: bytes, address: str) -> str:
    try:
        answer: Mapping[str, Any] = json.loads(response)
        text = answer["choices"][0]["message"]["content"]
    except (ValueError, LookupError, TypeError) as error:
        start = response[:120].decode("utf-8", "replace")
        raise RewardError(f"{address} answered {start!r}; want an OpenAI chat completion") from error
    if not isinstance(text, str | None):
        raise RewardError(f"{address} answered with the content {text!r}; want a text")
    return (text or "").strip()
