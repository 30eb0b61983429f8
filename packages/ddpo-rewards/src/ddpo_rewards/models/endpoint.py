"""Ask an OpenAI-compatible server (vLLM, SGLang, ...) about images: for its answer, or how probable an answer is."""

import base64
import io
import json
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from ddpo_rewards.models.http import Server, ask_all, read_json, server_at

_PATH = "chat/completions"
_COMPLETION = "an OpenAI chat completion"
_MOST_LOGPROBS = 20  # of one token; more is refused by OpenAI, and by vLLM unless it is told otherwise


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
    server = server_at(endpoint, _PATH, timeout=timeout, retries=retries, concurrency=concurrency, pause=pause)
    options = {"model": model, "max_tokens": max_new_tokens, "temperature": 0.0}

    def caption(images: Sequence[np.ndarray], questions: Sequence[str]) -> list[str]:
        return ask_all(server, _bodies(images, questions, options), _answer_in, threads=concurrency)

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
    server = server_at(endpoint, _PATH, timeout=timeout, retries=retries, concurrency=concurrency, pause=pause)
    logprobs = {"logprobs": True, "top_logprobs": _MOST_LOGPROBS}
    options = {"model": model, "max_tokens": 1, "temperature": 0.0, **logprobs}

    def probabilities(images: Sequence[np.ndarray], questions: Sequence[str]) -> Float[np.ndarray, "batch answers"]:
        found = ask_all(server, _bodies(images, questions, options), _first_token_in, threads=concurrency)
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


def _bodies(
    images: Sequence[np.ndarray], questions: Sequence[str], options: Mapping[str, Any]
) -> list[Callable[[], bytes]]:
    pairs = zip(images, questions, strict=True)
    return [partial(_request_body, image, question, options) for image, question in pairs]


def _request_body(image: np.ndarray, question: str, options: Mapping[str, Any]) -> bytes:
    content = [
        {"type": "image_url", "image_url": {"url": png_data_url(image)}},
        {"type": "text", "text": question},
    ]
    return json.dumps({"messages": [{"role": "user", "content": content}], **options}).encode()


def _answer_in(response: bytes, server: Server) -> str:
    answer = read_json(response, server, want=_COMPLETION)
    try:
        text = answer["choices"][0]["message"]["content"]
    except (ValueError, LookupError, TypeError):
        start = server.shown(response.decode("utf-8", "replace"))
        raise server.error(f"answered {start!r}; want {_COMPLETION}") from None
    if not isinstance(text, str | None):
        raise server.error(f"answered with the content {server.shown(repr(text))}; want a text")
    return (text or "").strip()


def _first_token_in(response: bytes, server: Server) -> dict[str, float]:
    """The probabilities of the likeliest first tokens, those that differ only in blanks around them together."""
    answer = read_json(response, server, want=f"{_COMPLETION} with top_logprobs")
    try:
        likely = answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
        pairs = [(str(one["token"]).strip(), math.exp(min(0.0, float(one["logprob"])))) for one in likely]
    except (ValueError, LookupError, TypeError):
        start = server.shown(response.decode("utf-8", "replace"))
        raise server.error(f"answered {start!r}; want {_COMPLETION} with top_logprobs") from None
    together: dict[str, float] = {}
    for token, probability in pairs:
        together[token] = together.get(token, 0.0) + probability
    return together
