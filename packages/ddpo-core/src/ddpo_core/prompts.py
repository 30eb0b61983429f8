"""Prompt sets: the paper's, their unseen relatives, and files of your own."""

import csv
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from io import StringIO
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from ddpo_core.emoji.words import ACTIVITIES, ANIMALS, UNSEEN_ACTIVITIES, UNSEEN_ANIMALS, UNSEEN_OBJECTS
from ddpo_core.errors import DDPOError


@dataclass(frozen=True)
class PromptSet:
    """Prompts with what a reward may want to know about each, and how often each is drawn; equally long.

    Raises:
        DDPOError: If they are not, or weights are not finite, at least 0 and above 0 in sum.

    Example:
        >>> len(PromptSet(("a cat", "a dog"), ({}, {}), weights=(3.0, 1.0)))
        2
    """

    prompts: tuple[str, ...]
    metadata: tuple[Mapping[str, Any], ...]
    weights: tuple[float, ...] | None = None
    """Relative to each other; left out: all are drawn alike."""

    def __post_init__(self) -> None:
        """Refuse what does not belong together."""
        counts = {len(self.prompts), len(self.metadata), len(self.prompts if self.weights is None else self.weights)}
        if len(counts) > 1:
            raise DDPOError(f"got {len(self.prompts)} prompts and another number of metadata or weights: want one each")
        if self.weights is not None and not (
            all(0 <= weight < math.inf for weight in self.weights) and 0 < sum(self.weights) < math.inf
        ):
            raise DDPOError(f"got the weights {self.weights!r}: want numbers at least 0, and one above 0")

    def __len__(self) -> int:
        """Count the prompts."""
        return len(self.prompts)


class KnownSet(NamedTuple):
    """A built-in prompt set, told without making it."""

    summary: str
    size: int
    """How many prompts it has."""
    make: Callable[[], PromptSet]


def prompt_set(name: str) -> PromptSet:
    """Look up a prompt set by name, or read one from `file:PATH`.

    A `.txt` file holds one prompt per line; a `.csv` file a column `prompt`, the other columns becoming metadata; a
    `.jsonl` file one object with `"prompt"` per line, its other keys becoming metadata; but `weight` says how often
    each is drawn, where every row has one. Blank lines are skipped.

    Raises:
        DDPOError: If the name is unknown, or the file cannot be read or holds no prompts.

    Example:
        >>> prompt_set("simple_animals").prompts[:3]
        ('a cat', 'a dog', 'a horse')
        >>> len(prompt_set("animals_activities").prompts)
        135
        >>> prompt_set("counting").metadata[1]
        {'questions': ['How many cats are there in this image?'], 'answers': ['two']}

    Source: Black et al. 2023, section 5 and appendix; ddpo-pytorch, `prompts.py`.
    """
    if name.startswith("file:"):
        return _read_file(Path(name.removeprefix("file:")))
    if name not in _SETS:
        close = get_close_matches(name, _SETS, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"want one of {', '.join(_SETS)} or file:PATH"
        if Path(name).is_file():
            hint = f"did you mean 'file:{name}'?"
        raise DDPOError(f"prompt set {name!r} is unknown; {hint}")
    return _SETS[name].make()


def as_prompt_set(prompts: PromptSet | Sequence[str], *, count: int | None = None) -> PromptSet:
    """Give plain prompts empty metadata, and check that there are any (or exactly `count`).

    Raises:
        DDPOError: If there are none, not as many as wanted, or a text instead of a list of texts.

    Example:
        >>> as_prompt_set(["a cat"]).metadata
        ({},)
    """
    if isinstance(prompts, str):
        raise DDPOError(f"got the text {prompts!r} as prompts: want a list, [{prompts!r}], or prompt_set({prompts!r})")
    checked = prompts if isinstance(prompts, PromptSet) else _plain(prompts)
    if not checked.prompts or count not in (None, len(checked.prompts)):
        raise DDPOError(f"got {len(checked.prompts)} prompts; want {'at least one' if count is None else count}")
    return checked


def pick_prompts(prompts: PromptSet, places: Sequence[int]) -> PromptSet:
    """Pick prompts with their metadata; they have no weights.

    Example:
        >>> pick_prompts(as_prompt_set(["a cat", "a dog"]), [1, 1]).prompts
        ('a dog', 'a dog')
    """
    return PromptSet(
        tuple(prompts.prompts[place] for place in places), tuple(prompts.metadata[place] for place in places)
    )


def list_prompt_sets() -> tuple[str, ...]:
    """List the names of the built-in prompt sets.

    Example:
        >>> "simple_animals" in list_prompt_sets()
        True
    """
    return tuple(_SETS)


def describe_prompt_sets() -> dict[str, KnownSet]:
    """Describe the built-in prompt sets by name.

    Example:
        >>> describe_prompt_sets()["simple_animals"].size
        45
    """
    return dict(_SETS)


def _plain(prompts: Iterable[str]) -> PromptSet:
    listed = tuple(prompts)
    return PromptSet(listed, tuple({} for _ in listed))


def _named(nouns: Sequence[str]) -> PromptSet:
    return _plain(_one(noun) for noun in nouns)


def _acting(nouns: Sequence[str], activities: Sequence[str]) -> PromptSet:
    return _plain(f"{_one(noun)} {activity}" for noun, activity in product(nouns, activities))


def _one(noun: str) -> str:
    # As inflect says of every word of the vocabulary; it takes longer to import than to train an epoch.
    return f"{'an' if noun[0] in 'aeiou' and noun != 'unicorn' else 'a'} {noun}"


def _counted(nouns: Sequence[str]) -> PromptSet:
    pairs = [(noun, number) for noun in nouns for number in range(1, 10)]
    words = [_english().number_to_words(number) for _, number in pairs]
    prompts = tuple(
        f"{word} {_english().plural(noun, number)}" for (noun, number), word in zip(pairs, words, strict=True)
    )
    metadata = tuple(
        {"questions": [f"How many {_english().plural(noun)} are there in this image?"], "answers": [word]}
        for (noun, _), word in zip(pairs, words, strict=True)
    )
    return PromptSet(prompts, metadata)


_SETS: Mapping[str, KnownSet] = {
    "simple_animals": KnownSet("the animals of the paper: a cat", 45, lambda: _named(ANIMALS)),
    "animals_activities": KnownSet(
        "these at three activities: a cat washing dishes", 135, lambda: _acting(ANIMALS, ACTIVITIES)
    ),
    "counting": KnownSet("one to nine of each, for llava_vqa: two cats", 405, lambda: _counted(ANIMALS)),
    "unseen_animals": KnownSet("animals in none of the above: a badger", 35, lambda: _named(UNSEEN_ANIMALS)),
    "unseen_objects": KnownSet("things: an airplane", 20, lambda: _named(UNSEEN_OBJECTS)),
    "unseen_activities": KnownSet(
        "at three other activities: a cat reading a book", 135, lambda: _acting(ANIMALS, UNSEEN_ACTIVITIES)
    ),
}


@cache
def _english() -> Any:
    import inflect

    return inflect.engine()


def _read_file(path: Path) -> PromptSet:
    readers = {".txt": _read_txt, ".csv": _read_csv, ".jsonl": _read_jsonl}
    if path.suffix not in readers:
        raise DDPOError(f"prompt file {str(path)!r}: want a name that ends in {', '.join(readers)}")
    try:
        rows = list(readers[path.suffix](path.read_text(encoding="utf-8-sig")))
    except OSError as error:
        raise DDPOError(f"prompt file {str(path)!r} cannot be read: {error.strerror}") from None
    except (ValueError, csv.Error) as error:
        raise DDPOError(f"prompt file {str(path)!r} is malformed: {error}") from None
    if not rows:
        raise DDPOError(f"prompt file {str(path)!r} holds no prompts")
    prompts = tuple(_take_prompt(row, str(path)) for row in rows)
    metadata = tuple({key: row[key] for key in row if key not in ("prompt", "weight")} for row in rows)
    return PromptSet(prompts, metadata, _take_weights(rows, str(path)))


def _take_prompt(row: Any, path: str) -> str:
    prompt = row.get("prompt") if isinstance(row, dict) else None
    if not isinstance(prompt, str) or not prompt.strip():
        raise DDPOError(f"prompt file {path!r}: got {row!r}, want a text under 'prompt' in every row")
    return prompt.strip()


def _take_weights(rows: Sequence[Mapping[str, Any]], path: str) -> tuple[float, ...] | None:
    if not any("weight" in row for row in rows):
        return None
    try:
        return tuple(float(row["weight"]) for row in rows)
    except (KeyError, TypeError, ValueError):
        raise DDPOError(f"prompt file {path!r}: want a number under 'weight' in every row, or in none") from None


def _read_txt(text: str) -> Iterable[dict[str, Any]]:
    return ({"prompt": line} for line in text.splitlines() if line.strip())


def _read_csv(text: str) -> Iterable[dict[str, Any]]:
    for row in csv.DictReader(StringIO(text), strict=True):
        if None in row or None in row.values():
            raise ValueError(f"row {row!r} does not have one value per column")
        yield row


def _read_jsonl(text: str) -> Iterable[dict[str, Any]]:
    return (json.loads(line) for line in text.splitlines() if line.strip())
