"""A CLIP tokenizer for the captions: each word of the embedded world is one token, any other falls into letters."""

import json
from pathlib import Path

import inflect
from transformers import CLIPTokenizer

from ddpo_core.emoji.words import ACTIVITIES, ANIMALS, NUMBERS, UNSEEN_ACTIVITIES, UNSEEN_ANIMALS, UNSEEN_OBJECTS

MAX_LENGTH = 16
_END_OF_WORD = "</w>"
_LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789!\"#$%&'()*+,-./:;<=>?@[]^_`{|}~"


def build_tokenizer(folder: Path) -> CLIPTokenizer:
    """Write `vocab.json` and `merges.txt` for our words and return the tokenizer, also saved to `folder`."""
    merges = sorted({merge for word in _words() for merge in _merges(word)}, key=_merge_order)
    letters = [*_LETTERS, *(letter + _END_OF_WORD for letter in _LETTERS)]
    pieces = dict.fromkeys([*letters, *("".join(merge) for merge in merges), "<|startoftext|>", "<|endoftext|>"])
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({piece: index for index, piece in enumerate(pieces)}))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *(" ".join(merge) for merge in merges)]) + "\n")
    tokenizer = CLIPTokenizer(
        str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=MAX_LENGTH, pad_token="<|endoftext|>"
    )
    tokenizer.save_pretrained(folder)
    return tokenizer


def _words() -> set[str]:
    english, families = inflect.engine(), (*ANIMALS, *UNSEEN_ANIMALS, *UNSEEN_OBJECTS)
    phrases = (*families, *map(english.plural, families), *ACTIVITIES, *UNSEEN_ACTIVITIES, *NUMBERS, "a an the word")
    return {word for phrase in phrases for word in phrase.split()}


def _merges(word: str) -> list[tuple[str, str]]:
    """Merge a word from its end: f o x -> f ox</w> -> fox</w>. Suffixes are shared, so the merges stay few."""
    letters = [*word[:-1], word[-1] + _END_OF_WORD]
    return [(letters[at], "".join(letters[at + 1 :])) for at in range(len(letters) - 2, -1, -1)]


def _merge_order(merge: tuple[str, str]) -> tuple[int, tuple[str, str]]:
    """Put short suffixes first: a merge must come after those that make its parts."""
    return len(merge[1]), merge
