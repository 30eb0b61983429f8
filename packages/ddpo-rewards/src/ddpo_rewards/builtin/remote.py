"""`http://HOST/...`: a reward that another process or machine serves (`ddpo rewards serve`)."""

import json
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from ddpo_rewards.errors import RewardError

if TYPE_CHECKING:
    import numpy as np

    from ddpo_rewards.models.http import Server
    from ddpo_rewards.reward import Info, Metadata, Reward, RewardResult

SCHEMES = ("http://", "https://")


def remote_reward(
    ref: str,
    *,
    timeout: float = 120.0,
    retries: int = 8,
    concurrency: int = 4,
    batch_size: int = 8,
    pause: float = 0.5,
) -> "Reward":
    """The reward that is served at an address; images go there as lossless PNG.

    Metadata are sent where the reward needs them. The environment variable `DDPO_ENDPOINT_TOKEN` is sent to the host
    that `DDPO_ENDPOINT_HOST` names, as by endpoints. A server that is busy, breaks off or answers nonsense is asked
    again, after pauses that grow.

    Args:
        ref: the server's base address.
        timeout: seconds to wait for it to send something.
        retries: further tries.
        concurrency: requests under way at once.
        batch_size: images per request.
        pause: seconds before the first further try; doubled every time.

    Raises:
        RewardError: nothing is served there, or not by `ddpo rewards serve`.
    """
    from ddpo_rewards.models.http import ask_all, server_at
    from ddpo_rewards.reward import Reward, adapt
    from ddpo_rewards.specs import RewardSpec

    if batch_size < 1:
        raise RewardError(f"batch_size={batch_size!r} is not positive; want 1 or more")
    limits = {"timeout": timeout, "retries": retries, "concurrency": concurrency, "pause": pause}
    health = server_at(ref, "health", **limits)  # type: ignore[arg-type]
    (about,) = ask_all(health, [lambda: b"{}"], _about, threads=1)
    server = server_at(ref, "score", **limits)  # type: ignore[arg-type]

    def score(
        images: "Sequence[np.ndarray]", prompts: Sequence[str] | None = None, metadata: "Metadata | None" = None
    ) -> "RewardResult":
        sent = metadata if "metadata" in about["needs"] else None  # it may hold anything, so nobody gets it unasked
        slices = [slice(start, start + batch_size) for start in range(0, len(images), batch_size)]
        bodies = [
            partial(_body, images[part], prompts and list(prompts[part]), sent and list(sent[part])) for part in slices
        ]
        answers = ask_all(server, bodies, _scores, threads=concurrency)
        return _joined(answers, [len(images[part]) for part in slices], server)

    spec = RewardSpec(
        name=ref,
        factory="ddpo_rewards.builtin.remote:remote_reward",
        summary=f"{about.get('name')}, served at {ref}.",
        needs=frozenset(about.get("needs", ())),
        takes="arrays",
        unit=str(about.get("unit", "")),
    )
    return Reward(spec, adapt(score, ref))


def _body(images: "Sequence[np.ndarray]", prompts: Any, metadata: Any) -> bytes:
    from ddpo_rewards.models.endpoint import png_data_url

    encoded = [png_data_url(image).partition(",")[2] for image in images]
    try:
        return json.dumps({"images": encoded, "prompts": prompts, "metadata": metadata}).encode()
    except TypeError as error:
        raise RewardError(f"metadata cannot be sent to a server: {error}; want JSON values only") from error


def _about(content: bytes, server: "Server") -> Mapping[str, Any]:
    from ddpo_rewards.models.http import read_json

    about = read_json(content, server, want="what `ddpo rewards serve` says")
    if not isinstance(about, dict) or not isinstance(about.get("needs"), list):
        raise server.error("answered, but is no server of `ddpo rewards serve`")
    return about


def _scores(content: bytes, server: "Server") -> Mapping[str, Any]:
    from ddpo_rewards.models.http import read_json

    answer = read_json(content, server, want="scores")
    if not isinstance(answer, dict) or not isinstance(answer.get("scores"), list):
        raise server.error(f"answered {server.shown(repr(answer))}; want scores")
    wrong = next((error for error in answer.get("errors", ()) if error), None)
    if wrong is not None:
        raise server.error(f"could not read an image: {wrong}")
    return answer


def _joined(answers: Sequence[Mapping[str, Any]], sizes: Sequence[int], server: "Server") -> "RewardResult":
    import numpy as np

    from ddpo_rewards.reward import RewardResult

    scores: list[float] = []
    info: Info = {}
    for answer, size in zip(answers, sizes, strict=True):
        if len(answer["scores"]) != size:
            raise server.error(f"answered {len(answer['scores'])} scores for {size} images")
        for key, values in answer.get("info", {}).items():
            info.setdefault(key, [None] * len(scores)).extend(values)
        scores += answer["scores"]
        for values in info.values():
            values += [None] * (len(scores) - len(values))
    return RewardResult(np.asarray(scores, np.float32), info)
