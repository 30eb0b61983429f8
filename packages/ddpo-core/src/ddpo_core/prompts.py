"""Prompt sets: the paper's, their unseen relatives, and files of your own."""

import csv
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from difflib import get_close_matches
from functools import cache
from io import StringIO
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from ddpo_core.emoji.words import ACTIVITIES, ANIMALS, UNSEEN_ACTIVITIES, UNSEEN_ANIMALS, UNSEEN_OBJECTS
from ddpo_core.errors import DDPOError


class PromptSet(NamedTuple):
    """Prompts with what a reward may want to know about each; equally long."""

    prompts: tuple[str, ...]
    metadata: tuple[Mapping[str, Any], ...]


def prompt_set(name: str) -> PromptSet:
    """Look up a prompt set by name, or read one from `file:PATH`.

    A `.txt` file holds one prompt per line; a `.csv` file a column `prompt`, the other columns becoming metadata; a
    `.jsonl` file one object with `"prompt"` per line, its other keys becoming metadata. Blank lines are skipped.

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
    return _SETS[name]()


def as_prompt_set(prompts: PromptSet | Sequence[str], *, count: int | None = None) -> PromptSet:
    """Give plain prompts empty metadata, and check that there are any (or exactly `count`).

    Raises:
        DDPOError: If there are none, or not as many as wanted.

    Example:
        >>> as_prompt_set(["a cat"]).metadata
        ({},)
    """
    checked = prompts if isinstance(prompts, PromptSet) else _plain(prompts)
    if not checked.prompts or count not in (None, len(checked.prompts)):
        raise DDPOError(f"got {len(checked.prompts)} prompts; want {'at least one' if count is None else count}")
    return checked


def pick_prompts(prompts: PromptSet, places: Sequence[int]) -> PromptSet:
    """Pick prompts with their metadata.

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


def _plain(prompts: Iterable[str]) -> PromptSet:
    listed = tuple(prompts)
    return PromptSet(listed, tuple({} for _ in listed))


def _named(nouns: Sequence[str]) -> PromptSet:
    return _plain(_english().a(noun) for noun in nouns)


def _acting(nouns: Sequence[str], activities: Sequence[str]) -> PromptSet:
    return _plain(f"{_english().a(noun)} {activity}" for noun, activity in product(nouns, activities))


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


_SETS: Mapping[str, Callable[[], PromptSet]] = {
    "simple_animals": lambda: _named(ANIMALS),
    "animals_activities": lambda: _acting(ANIMALS, ACTIVITIES),
    "counting": lambda: _counted(ANIMALS),
    "unseen_animals": lambda: _named(UNSEEN_ANIMALS),
    "unseen_objects": lambda: _named(UNSEEN_OBJECTS),
    "unseen_activities": lambda: _acting(ANIMALS, UNSEEN_ACTIVITIES),
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
    return PromptSet(prompts, tuple({key: row[key] for key in row if key != "prompt"} for row in rows))


def _take_prompt(row: Any, path: str) -> str:
    prompt = row.get("prompt") if isinstance(row, dict) else None
    if not isinstance(prompt, str) or not prompt.strip():
        raise DDPOError(f"prompt file {path!r}: got {row!r}, want a text under 'prompt' in every row")
    return prompt.strip()


def _read_txt(text: str) -> Iterable[dict[str, Any]]:
    return ({"prompt": line} for line in text.splitlines() if line.strip())


def _read_csv(text: str) -> Iterable[dict[str, Any]]:
    for row in csv.DictReader(StringIO(text), strict=True):
        if None in row or None in row.values():
            raise ValueError(f"row {row!r} does not have one value per column")
        yield row


def _read_jsonl(text: str) -> Iterable[dict[str, Any]]:
    return (json.loads(line) for line in text.splitlines() if line.strip())
