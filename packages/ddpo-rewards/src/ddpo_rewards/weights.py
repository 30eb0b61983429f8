"""Download weights once, pin their bytes for ever.

A known sha256 is checked. Where none is known, the sha256 (and the commit of a hub repository) is recorded at the
first download and checked at every later use, so that weights cannot change under a result. Of a repository the files
count that are loaded from it, not what other programs put beside them. As hashing 17 GB takes a minute, a file is
hashed again only when its size or its time of modification has changed.

Records are two JSON files in the cache folder: `DDPO_REWARDS_CACHE`, else `$XDG_CACHE_HOME/ddpo-rewards`, else
`~/.cache/ddpo-rewards`.
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any

from ddpo_rewards.compute import map_in_threads
from ddpo_rewards.errors import RewardError
from ddpo_rewards.specs import Weight

EMBEDDED = "builtin:emoji"
"""The model that ships with this package: trained on emoji scenes alone, so it knows no other pictures."""
_PACKAGE = Path(str(files("ddpo_rewards")))
_HUB = "hf://"
_TRUE = {"1", "on", "yes", "true"}
_SAFE_FILES = ("*.json", "*.jinja", "*.txt", "*.model", "*.safetensors")
_TORCH_FILES = ("pytorch_model*.bin",)  # transformers reads these with weights_only=True, never as a pickle
_IN_FOLDERS = "*/*"  # for other programs than ours (onnx/, original/): no loader of ours looks there
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
    digest = _remembered_sha256(path)
    wanted = weight.sha256 or record.get("sha256")
    if wanted is None:
        _write_record(record_key(weight), {"revision": revision, "sha256": digest, "recorded": _now()})
    elif digest != wanted:
        origin = "pinned" if weight.sha256 else f"recorded on {record['recorded']} in {records_path()}"
        raise RewardError(f"{path} has the sha256 {digest}, not {wanted} as {origin}; delete it to download it anew")
    return path


def find_model(model: str, revision: str | None = None, *, published: Weight | None = None) -> Path:
    """The local folder of a model: the one given, or a hub repository's snapshot, downloaded and pinned.

    Args:
        model: a folder, the id of a repository on the hub, or `builtin:emoji`, which is part of this package.
        revision: commit of the repository; recorded at the first download otherwise.
        published: what is known of one repository; its pins hold where that one is asked for.

    Raises:
        RewardError: a folder that does not exist, or weights that cannot be had.
    """
    if model == EMBEDDED:
        if published is None or not published.embedded:
            raise RewardError(f"{model} has no model for this; it looks and answers (llava_bertscore, llava_vqa)")
        return embedded_path(published)
    if Path(model).is_dir():
        return Path(model)
    if model.startswith((".", "/", "~")) or model.count("/") > 1 or ":" in model:
        raise RewardError(f"model {model!r} is neither a folder nor a hub id OWNER/NAME nor {EMBEDDED}")
    if published is not None and published.source == f"hf://{model}" and revision in (None, published.revision):
        return fetch(published)
    return fetch(Weight(source=f"hf://{model}", revision=revision))


def embedded_path(weight: Weight) -> Path:
    """Where in this package lies what `model=builtin:emoji` takes in the place of these weights.

    Raises:
        RewardError: it is not there.

    Example:
        >>> from ddpo_rewards.models import TEXT_ENCODER
        >>> (embedded_path(TEXT_ENCODER) / "config.json").exists()
        True
    """
    path = _PACKAGE / weight.embedded
    if not path.exists():
        raise RewardError(f"this installation of ddpo-rewards lacks {path}; scripts/emoji/build_rewards.py builds it")
    return path


def find_cached(weight: Weight) -> Path | None:
    """Where these weights are on this machine, nothing checked; None where `fetch` would have to download them.

    Example:
        >>> find_cached(Weight(source="https://example.org/nothing", filename="head.pth"))
    """
    if not weight.source.startswith(_HUB):
        return path if (path := _address_path(weight)).exists() else None
    from huggingface_hub import constants, try_to_load_from_cache

    repository = weight.source.removeprefix(_HUB)
    if weight.filename:
        found = try_to_load_from_cache(repository, weight.filename, revision=weight.revision)
        return Path(found) if isinstance(found, str) else None
    snapshots = Path(constants.HF_HUB_CACHE) / f"models--{repository.replace('/', '--')}" / "snapshots"
    return next(snapshots.glob(weight.revision or "*"), None)


def is_offline() -> bool:
    """Whether `HF_HUB_OFFLINE` forbids downloads."""
    return os.environ.get("HF_HUB_OFFLINE", "").lower() in _TRUE


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


def is_recorded(weight: Weight) -> bool:
    """Whether these weights were had on this machine before."""
    return record_key(weight) in read_records()


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
    return _joined(dict(zip([file.relative_to(path).as_posix() for file in files], digests, strict=True)))


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

    get = partial(snapshot_download, ignore_patterns=[_IN_FOLDERS])

    def download(patterns: Sequence[str], commit: str | None) -> Path:
        repository = weight.source.removeprefix(_HUB)
        return _from_hub(weight, lambda: get(repository, revision=commit, allow_patterns=list(patterns)))

    path = download(_SAFE_FILES, revision)
    if not any(path.glob("*.safetensors")):
        path = download((*_SAFE_FILES, *_TORCH_FILES), path.name)
    return path, path.name


def _from_hub(weight: Weight, download: Callable[[], str]) -> Path:
    try:
        return Path(download())
    # The hub's client raises its own errors, those of its HTTP library and OSErrors; all mean "no weights".
    except Exception as error:
        offline = is_offline()
        what = f"{weight.source.removeprefix(_HUB)} {weight.filename}".strip()
        if offline:
            raise RewardError(f"{what} is not in the hub's cache and HF_HUB_OFFLINE is set; unset it once") from error
        why = str(error).strip().splitlines()
        raise RewardError(
            f"{what} cannot be downloaded from the hub: {type(error).__name__}: {why[0] if why else ''}"
        ) from error


def _fetch_address(weight: Weight, _: str | None) -> tuple[Path, None]:
    """Download aside, check, then rename: a file under its final name is whole, but is checked again all the same."""
    target = _address_path(weight)
    if not target.exists():
        if is_offline():
            raise RewardError(
                f"{weight.filename} is not at {target} and HF_HUB_OFFLINE is set; "
                f"unset it once, or put the file of {weight.source} there"
            )
        _download(weight, target)
    elif weight.sha256 and _remembered_sha256(target) != weight.sha256:
        raise RewardError(f"{target} is damaged: its sha256 is not {weight.sha256}; delete it to download it anew")
    return target, None


def _address_path(weight: Weight) -> Path:
    return cache_folder() / (weight.sha256 or _digest_of(weight.source))[:16] / weight.filename


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


def _remembered_sha256(path: Path) -> str:
    """`tree_sha256` of a file, or of those files of a folder that are loaded; each is hashed once while it stays."""
    if path.is_file():
        return _remembered_digests([path])[0]
    patterns = _SAFE_FILES if any(path.glob("*.safetensors")) else (*_SAFE_FILES, *_TORCH_FILES)
    files = sorted({file for pattern in patterns for file in path.glob(pattern) if file.is_file()})
    return _joined(dict(zip([file.name for file in files], _remembered_digests(files), strict=True)))


def _remembered_digests(files: Sequence[Path]) -> list[str]:
    memory = cache_folder() / "digests.json"
    try:
        known: dict[str, list[Any]] = json.loads(memory.read_text())
    except (OSError, ValueError):  # nothing is lost but time
        known = {}
    stamps = {str(file.resolve()): [file.stat().st_size, file.stat().st_mtime_ns] for file in files}
    new = [name for name, stamp in stamps.items() if known.get(name, [])[:2] != stamp]
    if new:
        digests = map_in_threads(tree_sha256, [Path(name) for name in new])
        known |= {name: [*stamps[name], digest] for name, digest in zip(new, digests, strict=True)}
        with suppress(OSError):  # a cache that cannot be written is slow, not wrong
            _write_json(memory, known)
    return [known[str(file.resolve())][2] for file in files]


def _joined(digests: Mapping[str, str]) -> str:
    """The sha256 of sorted lines `sha256  name`."""
    return _digest_of("".join(f"{digest}  {name}\n" for name, digest in digests.items()))


def _write_record(key: str, record: Mapping[str, Any]) -> None:
    _write_json(records_path(), {**read_records(), key: dict(record)})


def _write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as part:
        part.write(json.dumps(value, indent=2, sort_keys=True))
    Path(part.name).replace(path)


def _digest_of(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
