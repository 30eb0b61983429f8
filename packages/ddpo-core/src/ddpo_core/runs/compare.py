"""Comparing two models on the same prompts and seeds: base against finetuned, and how sure the difference is."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ddpo_core.evaluation import Evaluation, evaluate
from ddpo_core.prompts import PromptSet
from ddpo_core.rewards import score_images
from ddpo_core.runs.folder import (
    BASE,
    BEFORE_AFTER,
    EVALUATION,
    SAMPLES,
    SERIES,
    Scores,
    numbered_pictures,
    write_aside,
    write_text,
)
from ddpo_core.runs.log import decimals, plain
from ddpo_core.runs.pictures import before_after, save_animation, save_png, save_tiles, to_pil
from ddpo_core.types import Params, Policy, Progress, RewardFunction

CONFIDENCE = 0.95
RESAMPLES = 10_000
FRAMES = 60
SHOWN_PAIRS = 16

_AT_ONCE = 2_000_000  # drawn indices held in memory


class Interval(NamedTuple):
    """A mean with the bounds of its confidence interval."""

    mean: float
    low: float
    high: float


class Comparison(NamedTuple):
    """Two models on the same images: each one's mean score, and the mean of the differences."""

    base: Interval
    finetuned: Interval
    change: Interval
    improved: float
    """The share of images that score higher than before."""


class Pair(NamedTuple):
    """One prompt set drawn with both models."""

    name: str
    base: Evaluation
    finetuned: Evaluation


def fixed_prompts(prompts: PromptSet, count: int) -> PromptSet:
    """`count` prompts, spread evenly over a longer set, repeated in turn from a shorter one.

    Example:
        >>> fixed_prompts(PromptSet(("a", "b", "c", "d"), ({}, {}, {}, {})), 2).prompts
        ('a', 'c')
    """
    size = len(prompts.prompts)
    chosen = [index * size // count if count < size else index % size for index in range(count)]
    return PromptSet(tuple(prompts.prompts[i] for i in chosen), tuple(prompts.metadata[i] for i in chosen))


def with_others(reward_fn: RewardFunction, others: Mapping[str, RewardFunction]) -> RewardFunction:
    """Return a reward function that scores as `reward_fn`, with the scores of each of `others` in its info.

    One that is `reward_fn` itself is not asked twice.
    """

    def score(
        images: Tensor, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]
    ) -> tuple[Tensor, dict[str, list[Any]]]:
        scores, info = score_images(reward_fn, images, prompts, metadata)
        for name, other in others.items():
            scored = scores if other is reward_fn else score_images(other, images, prompts, metadata)[0]
            info = {**info, name: scored.tolist()}
        return scores, info

    return score


def draw_pairs(
    policy: Policy,
    finetuned: Params,
    rewards: Mapping[str, RewardFunction],
    sets: Mapping[str, PromptSet],
    *,
    num_steps: int,
    seed: int = 0,
    batch_size: int = 8,
    progress: Progress | None = None,
) -> Iterator[Pair]:
    """Draw every prompt set with the policy's own params and with `finetuned`, and score both.

    Args:
        policy: The model with its sampler; `policy.params` are the base.
        finetuned: The params to compare with them.
        rewards: What scores, by name, at least one; the evaluations' `scores` are those of the first.
        sets: One prompt per image, by the name of the set.
        num_steps: The number of denoising steps.
        seed: The first image's; each next has the next. Both models draw from the same noise.
        batch_size: How many samples are denoised at once.
        progress: Called as `("sampling", done, total)` for each model and set.
    """
    score = with_others(next(iter(rewards.values())), rewards)
    for name, prompts in sets.items():
        base, after = (
            evaluate(
                policy,
                params,
                score,
                prompts,
                num_steps=num_steps,
                seeds=range(seed, seed + len(prompts.prompts)),
                batch_size=batch_size,
                progress=progress,
            )
            for params in (policy.params, finetuned)
        )
        yield Pair(name, base, after)


def comparison_rows(pair: Pair, rewards: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Give one row per reward: means with their intervals, the change, and the share that improved."""
    for name in rewards:
        found = compare_scores(pair.base.info[name], pair.finetuned.info[name], clusters=pair.base.prompts.prompts)
        row = {"prompts": pair.name, "reward": name, "images": len(pair.base.seeds), "improved": found.improved}
        for part in ("base", "finetuned", "change"):
            interval: Interval = getattr(found, part)
            row |= {part: interval.mean, f"{part}_low": interval.low, f"{part}_high": interval.high}
        yield row


def compare_scores(
    base: Sequence[float], finetuned: Sequence[float], *, clusters: Sequence[str] | None = None, seed: int = 0
) -> Comparison:
    """Return both means and their difference with 95 % intervals by the paired bootstrap over the prompts.

    Prompts are drawn with replacement 10,000 times, each with all of its images: what one image of a prompt says is
    said in part by the next one too, so that images of one prompt count for less than as many of different prompts.
    Both scores of an image are drawn together, so that what makes a prompt easy or hard cancels out of the difference.
    The bounds are the 2.5th and 97.5th percentile of the means. Where all images have one prompt, images are drawn:
    then the interval is about that prompt.

    Args:
        base: One score per image.
        finetuned: The score of the other model on the same prompt and seed.
        clusters: The prompt of each image; left out, each has its own.
        seed: Of the draws.

    Example:
        >>> compare_scores([1.0, 2.0, 3.0], [2.0, 3.0, 4.0]).change
        Interval(mean=1.0, low=1.0, high=1.0)

    Source: Efron & Tibshirani 1993, chapter 13 (percentile intervals); Davison & Hinkley 1997, section 3.8 (clusters).
    """
    pairs = np.stack([np.asarray(base, np.float64), np.asarray(finetuned, np.float64)])
    values = np.concatenate([pairs, pairs[1:] - pairs[:1]])
    means = _resampled_means(values, _places(clusters, values.shape[1]), np.random.default_rng(seed))
    tail = 100 * (1 - CONFIDENCE) / 2
    low, high = np.percentile(means, (tail, 100 - tail), axis=1)
    base_interval, finetuned_interval, change = (
        Interval(*map(float, bounds)) for bounds in zip(values.mean(1), low, high, strict=True)
    )
    return Comparison(base_interval, finetuned_interval, change, improved=float((values[2] > 0).mean()))


def mean_score(evaluation: Evaluation) -> float:
    """Return the mean score."""
    return float(evaluation.scores.mean())


def percent(before: float, after: float) -> str:
    """Return the change from `before` to `after`, in percent of the size of `before`.

    Example:
        >>> percent(-2.0, -1.0), percent(2.0, 1.0), percent(0.0, 1.0)
        ('+50.0%', '-50.0%', 'from 0')
    """
    return f"{100 * (after - before) / abs(before):+.1f}%" if before else "from 0"


def captions(evaluation: Evaluation) -> list[str]:
    """Prompt and score of each image."""
    scores = evaluation.scores.tolist()
    return [f"{prompt}  {score:.4g}" for prompt, score in zip(evaluation.prompts.prompts, scores, strict=True)]


def save_samples(path: Path, evaluation: Evaluation, *, count: int) -> None:
    """Write the first `count` images with prompt and score below, which say in the file what they are.

    Prompt, seed, score, and what the rewards said of it (`save_tiles`).
    """
    images, rows = to_pil(evaluation.images[:count]), []
    for place, score in enumerate(decimals(evaluation.scores[:count])):
        info = {key: plain(values[place]) for key, values in evaluation.info.items()}
        row = {"prompt": evaluation.prompts.prompts[place], "seed": evaluation.seeds[place], "score": score}
        rows.append({**row, "info": info} if info else row)
    save_tiles(path, images, captions(evaluation)[: len(images)], described=rows)


def pair_sheet(before: Evaluation, after: Evaluation, *, titles: tuple[str, str]) -> Image.Image:
    """Return the first images of both, those before above those after, under `titles` with the mean rewards."""
    means = mean_score(before), mean_score(after)
    heads = f"{titles[0]}: reward {means[0]:.4g}", f"{titles[1]}: reward {means[1]:.4g} ({percent(*means)})"
    return before_after(
        to_pil(before.images[:SHOWN_PAIRS]),
        to_pil(after.images[:SHOWN_PAIRS]),
        captions=(captions(before)[:SHOWN_PAIRS], captions(after)[:SHOWN_PAIRS]),
        titles=heads,
    )


def save_pairs(
    folder: Path, pairs: Sequence[Pair], rows: Sequence[Mapping[str, Any]], *, described: Mapping[str, Any]
) -> None:
    """Write a grid per prompt set, and eval.json with what was compared (`described`), the rows and every score."""
    for pair in pairs:
        sheet = pair_sheet(pair.base, pair.finetuned, titles=("base", "finetuned"))
        save_png(sheet, folder / f"{_file_name(pair.name)}.png")
    scores = {
        pair.name: {
            "prompts": pair.base.prompts.prompts,
            "seeds": pair.base.seeds,
            "base": dict(pair.base.info),
            "finetuned": dict(pair.finetuned.info),
        }
        for pair in pairs
    }
    record = {**described, "confidence": CONFIDENCE, "resamples": RESAMPLES, "rows": rows, "scores": scores}
    write_text(folder / "eval.json", json.dumps(record, indent=1, ensure_ascii=False) + "\n")


def scores_of(before: Evaluation, after: Evaluation, *, epoch: int) -> Scores:
    """Return what evaluation.json says of two evaluations, where the model is that of `epoch`."""
    first, second = (tuple(evaluation.scores.tolist()) for evaluation in (before, after))
    return Scores(epoch, after.prompts.prompts, after.seeds, first, second)


def write_scores(run: Path, scores: Scores) -> None:
    """Write evaluation.json, which says that the run is finished."""
    record = {
        "epoch": scores.epoch,
        "prompts": scores.prompts,
        "seeds": scores.seeds,
        "scores": {"before": scores.before, "after": scores.after},
        "mean": {"before": fmean(scores.before), "after": fmean(scores.after)},
    }
    write_text(run / EVALUATION, json.dumps(record, indent=2) + "\n")


def write_series(run: Path) -> None:
    """Write the grids of the fixed prompts, at most 60 of them, as one moving picture, where there are two."""
    found = numbered_pictures(run, "epoch")
    if len(found) < 2:
        return
    epochs, frames = list(found), []
    for epoch in sorted({epochs[round(place * (len(epochs) - 1) / (FRAMES - 1))] for place in range(FRAMES)}):
        with Image.open(found[epoch]) as picture:
            frames.append((picture.convert("RGB"), f"after {epoch} epochs" if epoch else "before training"))
    save_animation(frames, run / SAMPLES / SERIES)


def write_before_after(run: Path, before: Evaluation, after: Evaluation, *, epoch: int) -> Path:
    """Write the first pairs of the fixed prompts as a picture; returns where."""
    path = run / SAMPLES / BEFORE_AFTER
    save_png(pair_sheet(before, after, titles=("before", f"after {epoch} epochs")), path)
    return path


def save_base(run: Path, evaluation: Evaluation, *, described: Mapping[str, Any]) -> None:
    """Keep what the model drew before training, so that a resumed run need not draw it again.

    Args:
        run: The folder of the run.
        evaluation: All scores are kept, and as many images as pictures show.
        described: Plain values that decide what is drawn and scored.
    """
    tensors = {"images": evaluation.images[:SHOWN_PAIRS].clamp(0, 1).mul(255).round().byte().contiguous()}
    tensors |= {"scores": evaluation.scores.contiguous()}
    told = {"described": json.dumps(described, sort_keys=True), "seeds": json.dumps(evaluation.seeds)}
    write_aside(run / BASE, lambda aside: save_file(tensors, aside, metadata=told))


def load_base(run: Path, prompts: PromptSet, *, described: Mapping[str, Any]) -> Evaluation | None:
    """Return what `save_base` kept, its info left out; None where it was drawn or scored otherwise, or is not there."""
    try:
        with safe_open(run / BASE, "pt") as file:
            told = file.metadata()
            images, scores = (file.get_tensor(name) for name in ("images", "scores"))
    except (OSError, SafetensorError):
        return None
    if told.get("described") != json.dumps(described, sort_keys=True) or len(scores) != len(prompts.prompts):
        return None
    return Evaluation(images.float() / 255, scores, {}, prompts, tuple(json.loads(told["seeds"])))


def _places(clusters: Sequence[str] | None, count: int) -> np.ndarray:
    """The cluster of each image; of a single one, each image is its own."""
    if clusters is None or len(set(clusters)) == 1:
        return np.arange(count)
    return np.unique(np.asarray(clusters), return_inverse=True)[1]


def _resampled_means(values: np.ndarray, places: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Means `[rows, RESAMPLES]` of clusters of columns drawn with replacement, the same for every row."""
    clusters = int(places.max()) + 1
    counts = np.bincount(places, minlength=clusters)
    sums = np.stack([np.bincount(places, weights=row, minlength=clusters) for row in values])
    step = max(1, _AT_ONCE // clusters)
    sizes = [min(step, RESAMPLES - start) for start in range(0, RESAMPLES, step)]
    drawn = (generator.integers(clusters, size=(size, clusters)) for size in sizes)
    return np.concatenate([sums[:, chosen].sum(2) / counts[chosen].sum(1) for chosen in drawn], axis=1)


def _file_name(prompts: str) -> str:
    return re.sub(r"[^A-Za-z0-9]+", "_", prompts.removeprefix("file:")).strip("_")
