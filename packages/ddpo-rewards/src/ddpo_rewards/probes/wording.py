"""What is written into pictures: the prompt, and texts that differ from it in one respect."""

from collections.abc import Sequence

import numpy as np

from ddpo_rewards.errors import RewardError

_NUMBERS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
_TRIES = 16
_NEIGHBOURS = 8


def shuffle_letters(text: str, generator: np.random.Generator) -> str:
    """The same characters in another order, blanks and line breaks in their places: the same ink, nothing to read.

    Example:
        >>> shuffled = shuffle_letters("five lions", np.random.default_rng(0))
        >>> sorted(shuffled) == sorted("five lions"), shuffled.index(" ")
        (True, 4)
    """
    places = [index for index, letter in enumerate(text) if not letter.isspace()]
    letters = [text[place] for place in places]
    orders = [generator.permutation(len(letters)) for _ in range(_TRIES)]
    unlike = max(orders, key=lambda order: sum(letters[new] != old for new, old in zip(order, letters, strict=True)))
    mixed = list(text)
    for place, new in zip(places, unlike, strict=True):
        mixed[place] = letters[new]
    return "".join(mixed)


def misspell(text: str, generator: np.random.Generator) -> str:
    """Every word of three letters or more with one letter doubled: still what a person would read.

    Example:
        >>> misspell("six tigers", np.random.default_rng(0))
        'sixx tigerrs'
    """
    return " ".join(_double_a_letter(word, generator) for word in text.split())


def contradict(text: str, unrelated: str) -> str:
    """The text with one fact wrong: another number, else another colour, else the longest word of an unrelated text.

    Example:
        >>> contradict("five lions", "a cat"), contradict("a red car", "a cat"), contradict("a car", "two zebras")
        ('six lions', 'a orange car', 'a zebras')
    """
    words = text.split()
    for known in (_NUMBERS, _COLOURS):
        for index, word in enumerate(words):
            if word.lower() in known:
                other = known[(known.index(word.lower()) + 1) % len(known)]
                return " ".join([*words[:index], other, *words[index + 1 :]])
    longest = max(range(len(words)), key=lambda index: len(words[index]), default=0)
    return " ".join([*words[:longest], max(unrelated.split(), key=len, default=""), *words[longest + 1 :]])


def mismatched(prompts: Sequence[str], *, seed: int) -> tuple[int, ...]:
    """A permutation that gives every row another row's prompt, and never one that reads the same.

    Raises:
        RewardError: one prompt belongs to more than half of the rows.

    Example:
        >>> sorted(mismatched(["a", "a", "b", "c"], seed=0))
        [0, 1, 2, 3]
    """
    order = np.random.default_rng([seed, len(prompts)]).permutation(len(prompts))
    return _deranged(prompts, [int(row) for row in order])


def unrelated(prompts: Sequence[str]) -> tuple[int, ...]:
    """A permutation to other prompts of about the same length; used once each, all texts together have the same ink.

    Raises:
        RewardError: one prompt belongs to more than half of the rows.
    """
    by_length = sorted(range(len(prompts)), key=lambda row: (len(prompts[row]), prompts[row], row))
    partner = list(range(len(prompts)))
    blocks = max(1, len(by_length) // _NEIGHBOURS)
    for rows in (list(block) for block in np.array_split(by_length, blocks)):
        half = len(rows) // 2
        for own, other in zip(rows, rows[half:] + rows[:half], strict=True):
            partner[int(own)] = int(other)
    return _deranged(prompts, partner)


def _deranged(prompts: Sequence[str], partner: list[int]) -> tuple[int, ...]:
    """Swap partners until no row has its own prompt: the first row that both may swap with, from the row onwards."""
    count = len(prompts)
    most = max(prompts.count(prompt) for prompt in set(prompts)) if count else 0
    if 2 * most > count:
        raise RewardError(
            f"{most} of {count} pictures have the same prompt; pictures with a wrong prompt need different ones: "
            "give every picture its own"
        )
    for row in range(count):
        if prompts[partner[row]] != prompts[row]:
            continue
        for step in range(1, count):
            other = (row + step) % count
            if prompts[partner[other]] != prompts[row] and prompts[partner[row]] != prompts[other]:
                partner[row], partner[other] = partner[other], partner[row]
                break
    return tuple(partner)


def _double_a_letter(word: str, generator: np.random.Generator) -> str:
    if len(word) < 3:
        return word
    place = int(generator.integers(1, len(word)))
    return word[: place + 1] + word[place:]
