"""Find images that please a reward by spelling out their prompt: fuzzy overlap, a masked re-score."""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from ddpo_rewards.images import as_arrays, count_images
from ddpo_rewards.models.ocr import TextReader, blur_text, read_text
from ddpo_rewards.reward import Metadata, Reward

_LEAST_SIMILARITY = 0.7  # a word of three letters has to be there exactly, one of six may have one letter wrong
_WORD = re.compile(r"[^\W_]+")
_QUOTED = re.compile(
    r"""["“”„]([^"“”„]*)["“”]|«([^»]*)»
    |(?:^|(?<=\s))['\u2018]([^'\u2019]+)['\u2019](?=\W|$)  # no apostrophes""",
    re.VERBOSE,
)
_FILLERS = frozenset(
    {"a", "an", "and", "are", "at", "by", "for", "from", "in", "is", "of", "on", "or", "the", "to", "with"}
)
_ASKS = re.compile(
    r"""["“”«»„]|(?:^|\s)['\u2018][^'\u2019]+['\u2019](?=\W|$)  # quotes, but no apostrophes
    |\b(?:texts?|words?|letters?|lettering|signs?|signboard|says?|saying|reads|written|writing|writes?|captions?|captioned
    |label(?:s|led|ed)?|titled?|logos?|posters?|typograph\w*|calligraph\w*|fonts?|slogans?|spell(?:s|ing|ed)?|inscri\w+
    |graffiti|billboards?|headlines?|alphabet|monogram|subtitles?)\b""",
    re.VERBOSE | re.IGNORECASE,
)


def prompt_overlap(text: str, prompt: str) -> float:
    """How much of the prompt is spelt out in a text, 0 to 1, forgiving misspelt, split and joined words.

    `sum_w |w| s(w) / sum_w |w|` over the prompt's words w, without fillers such as "a" and "the", where
    `s(w) = 1 - d / |w|`, d the fewest letters to insert, delete or replace so that w, or a run of words of the prompt
    with w among them, is a run of whole words of the text (blanks, case and one last letter too many aside), and s
    counts as 0 below 0.7. Without words there is no overlap.

    Source: Sellers 1980, The theory and computation of evolutionary distances (d).

    Example:
        >>> prompt_overlap("sixx tiggers", "six tigers")  # six: 1; tigers, of six letters, has one amid them: 5/6
        0.8888888888888888
        >>> prompt_overlap("8 cm", "six tigers")
        0.0
    """
    every: list[str] = _WORD.findall(prompt.casefold())
    words = [word for word in every if word not in _FILLERS] or every
    written = _WORD.findall(text.casefold())
    total = sum(map(len, words))
    if not total or not written:
        return 0.0
    edits = [_fewest_edits(words, written), _fewest_edits(every, written)]  # written with the fillers, or without
    best = {word: 1 - min(found[word] for found in edits if word in found) / len(word) for word in words}
    return sum(len(word) * best[word] for word in words if best[word] >= _LEAST_SIMILARITY) / total


def asks_for_text(prompt: str) -> bool:
    """Whether an English prompt asks for writing: it quotes something, or speaks of text, words, letters, signs, ...

    Example:
        >>> [asks_for_text(prompt) for prompt in ("a sign that says stop", "a dog's ball", "a cake with 'Ann' on it")]
        [True, False, True]
    """
    return _ASKS.search(prompt) is not None


def quoted_texts(prompt: str) -> list[str]:
    """What stands in quotation marks and has a letter or digit in it, in order.

    Example:
        >>> quoted_texts('a sign that says "open late", and a cake with “Ann” on it')
        ['open late', 'Ann']
    """
    found = ["".join(match).strip() for match in _QUOTED.findall(prompt)]
    return [text for text in found if _WORD.search(text)]


def spelling(text: str, wanted: str) -> float:
    """How well a text spells what is wanted, 0 to 1: `max(0, 1 - d / n)`, n the letters and digits that are wanted.

    d is the fewest letters to insert, delete or replace so that they are a run of whole words of the text; case, blanks
    and punctuation are free, which OCR reads badly.

    Source: Sellers 1980 (d).

    Example:
        >>> [spelling(text, "open late") for text in ("we are OPEN LATE today", "OPFN LATE", "")]
        [1.0, 0.875, 0.0]
    """
    letters = "".join(_WORD.findall(wanted.casefold()))
    written = _WORD.findall(text.casefold())
    if not letters or not written:
        return 0.0
    ends = np.cumsum([0, *map(len, written)])
    characters, row = np.array(list("".join(written))), _starts(ends)
    for letter in letters:
        row = _next_row(row, characters != letter)
    return max(0.0, 1 - int(row[ends[1:]].min()) / len(letters))


def masked_rescore(
    reward: Reward,
    images: Any,
    prompts: Sequence[str] | None = None,
    metadata: Metadata | None = None,
    *,
    reader: TextReader | None = None,
) -> Float[np.ndarray, " batch"]:
    """What each image's text is worth to a reward: `s(x) - s(x with its text blurred)`, exactly 0 without text.

    Positive where the writing raises the score. It needs no legible word, only that one is found; and it is the worth
    of the blurred pixels, so ink that was no text counts too.

    Args:
        reward: scores the images twice, those with text only.
        images: as in `Reward.__call__`.
        prompts: one per image, where the reward needs them.
        metadata: one mapping per image, where the reward needs them.
        reader: what `ocr.load_reader` returned; without one, it is loaded for this call.

    Raises:
        RewardError: as `Reward.__call__` and `ocr.read_text` do.

    Example:
        >>> from ddpo_rewards import get_reward
        >>> masked_rescore(get_reward("jpeg_incompressibility"), [np.zeros((64, 64, 3), np.uint8)])
        array([0.], dtype=float32)
    """
    differences = np.zeros(count_images(images), np.float32)
    arrays = as_arrays(images)
    readings = read_text(arrays, reader=reader)
    rows = [row for row, reading in enumerate(readings) if reading.boxes]
    if rows:
        texts = None if prompts is None else [prompts[row] for row in rows]
        details = None if metadata is None else [metadata[row] for row in rows]
        written = [arrays[row] for row in rows]
        blurred = blur_text(written, [readings[row].boxes for row in rows])
        differences[rows] = reward(written, texts, details).scores - reward(blurred, texts, details).scores
    return differences


def _fewest_edits(words: Sequence[str], written: Sequence[str]) -> dict[str, int]:
    """For each word, the least edit distance of a run of words with it to a run of whole written words.

    Row i of the distances is that of the run's first i letters to every stretch that ends at a letter of the text and
    begins where a written word does.
    """
    letters = np.array(list("".join(written)))
    ends = np.cumsum([0, *map(len, written)])
    fewest = dict.fromkeys(words, len(letters) + sum(map(len, words)))
    start = _starts(ends)
    for first in range(len(words)):
        row = start
        for last in range(first, len(words)):
            for letter in words[last]:
                row = _next_row(row, letters != letter)
            found = int(min(row[ends[1:]].min(), row[ends[1:] - 1].min()))
            for word in words[first : last + 1]:
                fewest[word] = min(fewest[word], found)
    return fewest


def _starts(ends: np.ndarray) -> np.ndarray:
    """Row 0 of the distances: nothing is wanted yet, and what stands after a word's start costs its letters."""
    places = np.arange(ends[-1] + 1)
    row = np.full(len(places), np.iinfo(np.int32).max // 2)
    row[ends] = 0
    return np.asarray(np.minimum.accumulate(row - places) + places)


def _next_row(row: np.ndarray, differs: np.ndarray) -> np.ndarray:
    """The row of one letter more: it is replaced or kept, left out, or letters of the text are inserted."""
    places = np.arange(len(row))
    changed = np.append(row[0] + 1, np.minimum(row[:-1] + differs, row[1:] + 1))
    return np.asarray(np.minimum.accumulate(changed - places) + places)
