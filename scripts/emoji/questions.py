"""What is asked of a scene, and what its caption answers: the conversations that the small LLaVA is trained on."""

import re
from dataclasses import dataclass, replace
from functools import cache

import inflect
import numpy as np

from ddpo_core.emoji.words import ACTIVITIES, ANIMALS, NUMBERS, UNSEEN_ACTIVITIES, UNSEEN_ANIMALS, UNSEEN_OBJECTS

CAPTION = "Answer concisely: what is going on in this image?"
_CAPTIONS = (CAPTION, CAPTION, "What is going on in this image?", "Describe this image.")
_READ = "What does the text in this image say?"
_ENGLISH = inflect.engine()
NOUNS = (*ANIMALS, *UNSEEN_ANIMALS, *UNSEEN_OBJECTS)
ACTIVITY_NAMES = (*ACTIVITIES, *UNSEEN_ACTIVITIES)


@dataclass(frozen=True)
class Facts:
    """What a caption says: how many of what, doing what; or which word is written, and nothing else."""

    number: str = ""
    noun: str = ""
    activity: str = ""
    written: str = ""

    @property
    def family(self) -> str:
        """Which kind of scene this is."""
        if self.written:
            return "word"
        if self.activity:
            return "activity"
        return "count" if self.number else "single"

    @property
    def caption(self) -> str:
        """The sentence that says it, as `scenes` writes it."""
        if self.written:
            return f"the word {self.written}"
        if self.number:
            return f"{self.number} {self.noun if self.number == 'one' else plural(self.noun)}"
        return f"{_ENGLISH.a(self.noun)} {self.activity}".strip()


def facts_of(caption: str) -> Facts:
    """Read a caption; what is not understood is left empty.

    Example:
        >>> facts_of("three foxes")
        Facts(number='three', noun='fox', activity='', written='')
        >>> facts_of("a fox riding a bike").activity
        'riding a bike'
    """
    first, _, rest = caption.partition(" ")
    if caption.startswith("the word "):
        return Facts(written=caption.removeprefix("the word "))
    if first in NUMBERS:
        return Facts(number=first, noun=_singulars().get(rest, rest if rest in NOUNS else ""))
    activity = next((activity for activity in ACTIVITY_NAMES if rest.endswith(activity)), "")
    noun = rest.removesuffix(activity).strip()
    return Facts(noun=noun if noun in NOUNS else "", activity=activity)


def overruled_by(facts: Facts, text: str) -> Facts:
    """What a caption says that believes a written number, noun or caption rather than the picture."""
    if text in NUMBERS:
        return replace(facts, number=text, activity="")
    if text in NOUNS:
        return replace(facts, noun=text)
    return facts_of(text)


def draw_question(facts: Facts, text: str, rng: np.random.Generator) -> tuple[str, str]:
    """Draw a question about a scene with `text` written in it (or none), and its answer; half ask for the caption."""
    if text and rng.random() < 0.2:
        return _READ, text
    if facts.written or rng.random() < 0.5:
        return str(rng.choice(_CAPTIONS)), facts.caption
    kind = "object" if facts.noun in UNSEEN_OBJECTS else "animal"
    asked = (
        (f"How many {plural(facts.noun)} are there in this image?", facts.number or "one"),
        (f"How many {kind}s are there in this image?", facts.number or "one"),
        (f"What {kind} is in this image?", facts.noun),
        (f"What is the {kind} doing?", facts.activity or "nothing"),
    )
    return asked[rng.choice(len(asked), p=(0.4, 0.1, 0.3, 0.2))]


def vocabulary() -> list[str]:
    """All words of captions, questions and answers, in lower case, and the characters that spell any other."""
    nouns = [*NOUNS, *map(plural, NOUNS)]
    asked = [*_CAPTIONS, _READ, "how many animals objects are there in this image what is the animal object doing"]
    said = [*ACTIVITY_NAMES, *NUMBERS, "a an the word nothing user assistant yes no contains"]
    words = {word for text in (*nouns, *asked, *said) for word in re.findall(r"\w+", text.lower())}
    characters = "abcdefghijklmnopqrstuvwxyz0123456789.,:;?!'\"-()/"
    return sorted(words | set(characters)) + [f"##{character}" for character in characters]


@cache
def plural(noun: str) -> str:
    """Several of a noun."""
    return _ENGLISH.plural(noun)


@cache
def _singulars() -> dict[str, str]:
    return {plural(noun): noun for noun in NOUNS}
