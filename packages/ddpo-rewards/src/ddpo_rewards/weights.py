"""Download weights once, pin their bytes for ever.

A known sha256 is checked. Where none is known, the sha256 (and the commit of a hub repository) is recorded at the
first download and checked at every later use, so that weights cannot change under a result. Records are one JSON file
in the cache folder: `DDPO_REWARDS_CACHE`, else `$XDG_CACHE_HOME/ddpo-rewards`, else `~/.cache/ddpo-rewards`.
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ddpo_rewards.compute import map_in_threads
from ddpo_rewards.errors import RewardError
from ddpo_rewards.specs import Weight

_HUB = "hf://"
_TRUE = {"1", "on", "yes", "true"}
_SAFE_FILES = ("*.json", "*.jinja", "*.txt", "*.model", "*.safetensors")
_TORCH_FILES = ("pytorch_model*.bin",)  # transformers reads these with weights_only=True, never as a pickle
_TIMEOUT = 60.0


def fetch(weight: Weight) -> Path:
    """Return a local path of these weights: a file, or a folder where `filename` is empty.

    Raises:
        RewardError: offline and not cached, unreachable, or with other bytes than pinned or recorded.
    """
    record = read_records().get(record_key(weight), {})
    get: Callable[[Weight, str | None], tuple[Path, str | None]]
    if not weight.source.startswith(_HUB):
        get = _fetch_address
    else:
        get = _fetch_file if weight.filename else _fetch_repository
    path, revision = get(weight, weight.revision or record.get("revision"))
    digest = weight.sha256 if get is _fetch_address and weight.sha256 else tree_sha256(path)
    wanted = weight.sha256 or record.get("sha256")
    if wanted is None:
        _write_record(record_key(weight), {"revision": revision, "sha256": digest, "recorded": _now()})
    elif digest != wanted:
        origin = "pinned" if weight.sha256 else f"recorded on {record['recorded']} in {records_path()}"
        raise RewardError(f"{path} has the sha256 {digest}, not {wanted} as {origin}; delete it and download it anew")
    return path


def find_model(model: str, revision: str | None = None) -> Path:
    """The local folder of a model: the one given, or a hub repository's snapshot, downloaded and pinned.

    Raises:
        RewardError: a folder that does not exist, or weights that cannot be had.
    """
    if Path(model).is_dir():
        return Path(model)
    if model.startswith((".", "/", "~")) or model.count("/") != 1:
        raise RewardError(f"model {model!r} is neither a folder nor a hub id OWNER/NAME")
    return fetch(Weight(source=f"hf://{model}", revision=revision))


def describe_pin(weight: Weight) -> str:
    """How the bytes of these weights are pinned on this machine, for a person.

    Example:
        >>> describe_pin(Weight(source="https://example.org/head.pth", sha256="21dd"))
        'sha256 21dd'
    """
    record = read_records().get(record_key(weight))
    if weight.sha256 or record is None:
        return weight.pin
    revision = f"revision {record['revision']}, " if record.get("revision") else ""
    return f"{revision}sha256 {record['sha256']}, recorded here on {record['recorded']}"


def cache_folder() -> Path:
    """Where downloads that are not the hub's, and all records, are kept."""
    chosen = os.environ.get("DDPO_REWARDS_CACHE")
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(chosen) if chosen else base / "ddpo-rewards"


def records_path() -> Path:
    """The file of recorded hashes and revisions."""
    return cache_folder() / "recorded.json"


def read_records() -> dict[str, dict[str, Any]]:
    """The recorded hashes and revisions, by weight.

    Raises:
        RewardError: the file is damaged; guessing on would forget what was pinned.
    """
    try:
        records: dict[str, dict[str, Any]] = json.loads(records_path().read_text())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise RewardError(f"{records_path()} cannot be read ({error}); repair or delete it") from error
    return records


def tree_sha256(path: Path) -> str:
    """The sha256 of a file, or of a folder: that of its sorted lines `sha256  name`."""
    if path.is_file():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    files = sorted(file for file in path.rglob("*") if file.is_file())
    digests = map_in_threads(tree_sha256, files)
    lines = [f"{digest}  {file.relative_to(path).as_posix()}\n" for digest, file in zip(digests, files, strict=True)]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def record_key(weight: Weight) -> str:
    """The name under which these weights are recorded."""
    revision = f"@{weight.revision}" if weight.revision else ""
    return f"{weight.source}{revision}/{weight.filename}"


def _fetch_file(weight: Weight, revision: str | None) -> tuple[Path, str | None]:
    from huggingface_hub import hf_hub_download

    repository = weight.source.removeprefix(_HUB)
    path = _from_hub(weight, lambda: hf_hub_download(repository, weight.filename, revision=revision))
    return path, path.parents[len(Path(weight.filename).parts) - 1].name


def _fetch_repository(weight: Weight, revision: str | None) -> tuple[Path, str | None]:
    from huggingface_hub import snapshot_download

    def download(patterns: Sequence[str], commit: str | None) -> Path:
        repository = weight.source.removeprefix(_HUB)
        return _from_hub(weight, lambda: snapshot_download(repository, revision=commit, allow_patterns=list(patterns)))

    path = download(_SAFE_FILES, revision)
    if not any(path.glob("*.safetensors")):
        path = download((*_SAFE_FILES, *_TORCH_FILES), path.name)
    return path, path.name


def _from_hub(weight: Weight, download: Callable[[], str]) -> Path:
    try:
        return Path(download())
    # The hub's client raises its own errors, those of its HTTP library and OSErrors; all mean "no weights".
    except Exception as error:
        offline = os.environ.get("HF_HUB_OFFLINE", "").lower() in _TRUE
        what = f"{weight.source.removeprefix(_HUB)} {weight.filename}".strip()
        if offline:
            raise RewardError(f"{what} is not in the hub's cache and HF_HUB_OFFLINE is set; unset it once") from error
        why = str(error).strip().splitlines()
        raise RewardError(
            f"{what} cannot be downloaded from the hub: {type(error).__name__}: {why[0] if why else ''}"
        ) from error


def _fetch_address(weight: Weight, _: str | None) -> tuple[Path, None]:
    """Download aside, check, then rename: a file under its final name is whole, but is checked again all the same."""
    target = cache_folder() / (weight.sha256 or _digest_of(weight.source))[:16] / weight.filename
    if not target.exists():
        if os.environ.get("HF_HUB_OFFLINE", "").lower() in _TRUE:
            raise RewardError(
                f"{weight.filename} is not at {target} and HF_HUB_OFFLINE is set; "
                f"unset it once, or put the file of {weight.source} there"
            )
        _download(weight, target)
    elif weight.sha256 and tree_sha256(target) != weight.sha256:
        raise RewardError(f"{target} is damaged: its sha256 is not {weight.sha256}; delete it to download it anew")
    return target, None


def _download(weight: Weight, target: Path) -> None:
    from urllib.request import urlopen

    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=target.parent, delete=False) as part:
        partial = Path(part.name)
    try:
        with urlopen(weight.source, timeout=_TIMEOUT) as response, partial.open("wb") as file:
            limit = (weight.size or 1 << 40) + 1
            while (block := response.read(1 << 20)) and file.tell() < limit:
                file.write(block)
        digest = tree_sha256(partial)
        if weight.sha256 and digest != weight.sha256:
            raise RewardError(f"{weight.source} has the sha256 {digest}, not {weight.sha256} as pinned; not used")
        partial.replace(target)
    except OSError as error:  # no route, no such host, 404, disk full
        raise RewardError(f"{weight.source} cannot be downloaded to {target}: {error}") from error
    finally:
        partial.unlink(missing_ok=True)


def _write_record(key: str, record: Mapping[str, Any]) -> None:
    path = records_path()
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({**read_records(), key: dict(record)}, indent=2, sort_keys=True)
    with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as part:
        part.write(text)
    Path(part.name).replace(path)


def _digest_of(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
