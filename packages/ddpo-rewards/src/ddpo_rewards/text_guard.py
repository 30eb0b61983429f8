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
    `s(w) = 1 - d / |w|`, d the fewest letters to insert, delete or replace so that w stands somewhere in the text
    (blanks and case aside), and s counts as 0 below 0.7. Without words there is no overlap.

    Source: Sellers 1980, The theory and computation of evolutionary distances (d).

    Example:
        >>> prompt_overlap("sixx tiggers", "six tigers")  # six: 1; tigers, of six letters, has one too many: 5/6
        0.8888888888888888
        >>> prompt_overlap("8 cm", "six tigers")
        0.0
    """
    words = _words(prompt)
    letters = "".join(_WORD.findall(text.casefold()))
    total = sum(map(len, words))
    return sum(len(word) * _similarity(word, letters) for word in words) / total if total else 0.0


def asks_for_text(prompt: str) -> bool:
    """Whether an English prompt asks for writing: it quotes something, or speaks of text, words, letters, signs, ...

    Example:
        >>> [asks_for_text(prompt) for prompt in ("a sign that says stop", "a dog's ball", "a cake with 'Ann' on it")]
        [True, False, True]
    """
    return _ASKS.search(prompt) is not None


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


def _words(prompt: str) -> list[str]:
    words: list[str] = _WORD.findall(prompt.casefold())
    return [word for word in words if word not in _FILLERS] or words


def _similarity(word: str, letters: str) -> float:
    similarity = 1 - _distance_within(word, letters) / len(word)
    return similarity if similarity >= _LEAST_SIMILARITY else 0.0


def _distance_within(word: str, letters: str) -> int:
    """The least edit distance of a word to any stretch of the letters; row i is that of its first i letters."""
    row = [0] * (len(letters) + 1)
    for i, wanted in enumerate(word, start=1):
        above, row = row, [i]
        for j, letter in enumerate(letters):
            row.append(min(above[j] + (wanted != letter), above[j + 1] + 1, row[j] + 1))
    return min(row)
