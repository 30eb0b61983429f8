"""The public tests of a reward: what every trainer and scorer may rely on, and its published scores."""

from collections.abc import Callable, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

import numpy as np

from ddpo_rewards.errors import RewardError
from ddpo_rewards.reward import Metadata, Reward
from ddpo_rewards.specs import ReferenceScore, Weight
from ddpo_rewards.weights import fetch, tree_sha256

# Each quotes something: there are rewards that read what is quoted.
_PROMPTS = ('a cat and the word "cat"', 'a dog riding a bike, "no dogs"', 'five lions, "five"', 'an ant named "Ant"')
_DRAWN = "drawn:"


class Check(NamedTuple):
    """One property of a reward, whether it holds, and what was seen if not."""

    name: str
    passed: bool
    message: str


def check_reward(
    reward: Reward,
    *,
    images: Sequence[np.ndarray] | None = None,
    prompts: Sequence[str] | None = None,
    metadata: Metadata | None = None,
    tolerance: float = 1e-3,
) -> tuple[Check, ...]:
    """Test a reward: one finite score per image, its stated range, order, batch invariance, determinism, no mutation.

    Images default to four procedural pictures of 96 x 96 pixels, prompts and metadata to plausible ones. `tolerance`
    is a share of the largest score: half precision scores differ a little with the batch they are in.
    A reward with a running state (`standardise`) is not batch invariant, and fails that check rightly.

    Returns:
        Every check in order; where scoring itself fails, that one alone.

    Example:
        >>> from ddpo_rewards import get_reward
        >>> [check.name for check in check_reward(get_reward("jpeg_compressibility")) if check.passed]
        ['scores', 'range', 'determinism', 'order', 'batch invariance', 'images unchanged', 'tensor input']
    """
    pictures = list(images) if images is not None else example_images()
    texts = list(prompts) if prompts is not None else [_PROMPTS[i % len(_PROMPTS)] for i in range(len(pictures))]
    details = list(metadata) if metadata is not None else [plausible_metadata() for _ in pictures]
    before = [picture.copy() for picture in pictures]
    try:
        scores = reward(pictures, texts, details).scores
    except RewardError as error:
        return (Check("scores", False, str(error)),)

    def score(order: Sequence[int]) -> Any:
        return reward([pictures[i] for i in order], [texts[i] for i in order], [details[i] for i in order]).scores

    everything = range(len(pictures))
    backwards = everything[::-1]
    return (
        Check("scores", True, f"{len(scores)} finite scores from {scores.min():g} to {scores.max():g}"),
        _in_range(reward, scores),
        _compare("determinism", lambda: score(everything), scores, tolerance, "the same images score differently"),
        _compare("order", lambda: score(backwards)[::-1], scores, tolerance, "scores do not follow their images"),
        _compare(
            "batch invariance",
            lambda: np.concatenate([score([i]) for i in everything]),
            scores,
            tolerance,
            "an image alone scores differently from the same image in a batch",
        ),
        _unchanged(pictures, before),
        _tensor_input(reward, pictures, texts, details, scores, tolerance),
    )


def verify_reference_scores(reward: Reward, *, folder: Path | None = None) -> tuple[Check, ...]:
    """Score the images whose scores are known, and compare: do these weights and libraries score as they should?

    Args:
        reward: as `get_reward` builds it; what its description lists as `reference_scores` is checked.
        folder: where the images lie under the names they have in their addresses; without one they are downloaded.

    Returns:
        One check per known score, none where none is known. An image that cannot be had fails its check.

    Example:
        >>> from ddpo_rewards import get_reward
        >>> [check.passed for check in verify_reference_scores(get_reward("jpeg_compressibility"))]
        [True]
    """
    return tuple(_verify(reward, known, folder) for known in reward.spec.reference_scores)


def assert_conforms(reward: Reward, **options: Any) -> None:
    """Assert in a test that a reward passes `check_reward`.

    Raises:
        AssertionError: listing what failed and why.
    """
    failed = [f"{check.name}: {check.message}" for check in check_reward(reward, **options) if not check.passed]
    if failed:
        raise AssertionError(f"reward {reward.spec.name!r} does not conform: {'; '.join(failed)}")


def example_images(size: int = 96) -> list[np.ndarray]:
    """Four pictures `[size, size, 3]`, always the same: noise, a gradient, stripes and a disc."""
    rows, columns = np.mgrid[0:size, 0:size]
    noise = np.random.default_rng(0).integers(0, 256, (size, size, 3))
    gradient = np.stack([rows * 255 // size, columns * 255 // size, (rows + columns) * 127 // size], axis=-1)
    stripes = np.where((columns // 8 % 2)[..., None], (255, 255, 255), (30, 60, 160))
    is_disc = ((rows - size / 2) ** 2 + (columns - size / 2) ** 2 < (size / 3) ** 2)[..., None]
    return [picture.astype(np.uint8) for picture in (noise, gradient, stripes, np.where(is_disc, (220, 40, 30), 240))]


def drawn_image(name: str) -> np.ndarray:
    """The picture that `drawn:NAME` says: `noise`, `gradient`, `stripes` or `disc`, as `example_images` draws them.

    Raises:
        RewardError: there is none of this name.
    """
    drawn = dict(zip(("noise", "gradient", "stripes", "disc"), example_images(), strict=True))
    if name not in drawn:
        raise RewardError(f"no picture {name!r} is drawn here; there are {', '.join(drawn)}")
    return drawn[name]


def plausible_metadata() -> dict[str, Any]:
    """What the built-in rewards look for in metadata."""
    return {"questions": ["How many animals are there?"], "answers": ["one"], "references": example_images(32)[1:3]}


def _compare(name: str, run: Callable[[], Any], scores: np.ndarray, tolerance: float, failure: str) -> Check:
    try:
        again = run()
    except RewardError as error:
        return Check(name, False, str(error))
    difference = np.abs(again - scores)
    worst = int(np.argmax(difference))
    if difference[worst] > tolerance * np.abs(scores).max():
        return Check(name, False, f"{failure}: {again[worst]:g} instead of {scores[worst]:g} for image {worst}")
    return Check(name, True, f"largest difference {difference.max():.2g}")


def _verify(reward: Reward, known: ReferenceScore, folder: Path | None) -> Check:
    name = unquote(Path(urlsplit(known.image).path).name)
    try:
        picture = _known_picture(known, name, folder)
        score = float(reward([picture], None if known.prompt is None else [known.prompt]).scores[0])
    except RewardError as error:
        return Check(name, False, str(error))
    seen = f"scores {score:.4f}, published is {known.score:g} +/- {known.tolerance:g} ({known.source})"
    return Check(name, abs(score - known.score) <= known.tolerance, seen)


def _known_picture(known: ReferenceScore, name: str, folder: Path | None) -> Any:
    if known.image.startswith(_DRAWN):
        drawn = drawn_image(name)
        if sha256(drawn.tobytes()).hexdigest() != known.sha256:
            raise RewardError(f"{known.image} is not drawn here as it was scored; numpy {np.__version__} draws another")
        return drawn
    path = fetch(Weight(source=known.image, filename=name, sha256=known.sha256)) if folder is None else folder / name
    if not path.is_file() or tree_sha256(path) != known.sha256:
        raise RewardError(f"{str(path)!r} is not the image that was scored: want that of {known.image}")
    return path


def _in_range(reward: Reward, scores: np.ndarray) -> Check:
    low, high = reward.spec.range or (-np.inf, np.inf)
    slack = 1e-5 * float(np.abs(scores).max())
    outside = [float(score) for score in scores if not low - slack <= score <= high + slack]
    stated = f"[{low:g}, {high:g}]"
    return Check("range", not outside, f"{outside[0]:g} lies outside the stated {stated}" if outside else stated)


def _unchanged(pictures: Sequence[np.ndarray], before: Sequence[np.ndarray]) -> Check:
    changed = [i for i, (now, then) in enumerate(zip(pictures, before, strict=True)) if not np.array_equal(now, then)]
    return Check("images unchanged", not changed, f"wrote into images {changed}" if changed else "as they were")


def _tensor_input(
    reward: Reward, pictures: Sequence[np.ndarray], prompts: Any, metadata: Any, scores: np.ndarray, tolerance: float
) -> Check:
    """The trainer passes float tensors: they have to score as the files do."""
    import torch

    name = "tensor input"
    if len({picture.shape for picture in pictures}) > 1:
        return Check(name, True, "not tried: the images differ in size")
    tensor = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 255
    return _compare(
        name, lambda: reward(tensor, prompts, metadata).scores, scores, tolerance, "a float tensor scores differently"
    )
