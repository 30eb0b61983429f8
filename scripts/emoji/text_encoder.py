"""Train the small text encoder of the embedded world, by which BERTScore compares captions: a BERT of masked words."""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import BertConfig, BertModel, BertTokenizerFast

from ddpo_core.emoji.words import NUMBERS
from loop import Recipe, train
from questions import ACTIVITY_NAMES, NOUNS, Facts, plural, vocabulary

RECIPE = Recipe(name="text_encoder", num_steps=350, batch_size=64, learning_rate=2e-3, cooldown=0.28)
_WIDTH, _LAYERS, _LENGTH = 128, 2, 64
_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_MASKED, _SWAPPED = 0.15, 0.03  # of the words
_TEMPERATURE = 0.1
_REFERENCES = ("{}", "{}", "The image contains {}", "The image contains {}", "There is {} in this image")


class Guesser(nn.Module):
    """The encoder, and a direction for each word that the states of that word should have; these are not kept.

    All words are guessed, hidden or not, by the cosine. A BERT that guesses hidden words by inner products alone tells
    a cat from a dog by a hair's breadth of an angle, since either may stand wherever the other does, and BERTScore sees
    nothing but angles.
    """

    def __init__(self, config: BertConfig) -> None:
        """Build both from random weights."""
        super().__init__()
        self.encoder = BertModel(config, add_pooling_layer=False)
        self.words = nn.Embedding(config.vocab_size, config.hidden_size)

    def forward(self, states: Tensor) -> Tensor:
        """Return the logits of all words for states [count, width]."""
        return F.linear(F.normalize(states, dim=-1), F.normalize(self.words.weight, dim=-1)) / _TEMPERATURE


def build_text_tokenizer(folder: Path) -> BertTokenizerFast:
    """Write `vocab.txt` and return the tokenizer: one token per known word, characters for any other."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join([*_SPECIAL, *vocabulary()]) + "\n")
    return BertTokenizerFast(vocab=str(folder / "vocab.txt"), do_lower_case=True, model_max_length=_LENGTH)


def train_text_encoder(folder: Path) -> BertModel:
    """Train with resumable state in `folder`; returns the moving average of the weights."""
    torch.manual_seed(0)
    tokenizer = build_text_tokenizer(folder / "text_tokenizer")
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=_WIDTH,
        intermediate_size=4 * _WIDTH,
        num_hidden_layers=_LAYERS,
        num_attention_heads=4,
        max_position_embeddings=_LENGTH,
        pad_token_id=tokenizer.pad_token_id,
    )

    def loss_fn(model: Guesser, rng: np.random.Generator) -> Tensor:
        batch = tokenizer([_sentence(rng) for _ in range(RECIPE.batch_size)], padding=True, return_tensors="pt")
        hidden = _hide(batch.input_ids, rng, tokenizer)
        states = model.encoder(input_ids=hidden, attention_mask=batch.attention_mask).last_hidden_state
        words = batch.input_ids >= len(_SPECIAL)
        return F.cross_entropy(model(states[words]), batch.input_ids[words])

    return train(Guesser(config), loss_fn, folder, RECIPE).encoder


def save_text_encoder(model: BertModel, folder: Path) -> None:
    """Write a folder that transformers loads: float32, since bert-score computes in what is stored."""
    model.save_pretrained(folder)
    build_text_tokenizer(folder).save_pretrained(folder)
    (folder / "vocab.txt").unlink()  # tokenizer.json has it


def _sentence(rng: np.random.Generator) -> str:
    """Draw what a caption of the embedded world may say, or a reference sentence of it; some words are spelt out."""
    noun = str(rng.choice(NOUNS)) if rng.random() < 0.95 else _letters(rng)
    match str(rng.choice(("single", "count", "activity", "word"), p=(0.2, 0.3, 0.4, 0.1))):
        case "count":
            number = str(rng.choice(NUMBERS))
            said = f"{number} {noun if number == 'one' else plural(noun)}"
        case "activity":
            said = f"{_article(noun)} {rng.choice(ACTIVITY_NAMES)}"
        case "word":
            said = Facts(written=noun).caption
        case _:
            said = _article(noun)
    return str(rng.choice(_REFERENCES)).format(said)


def _hide(ids: Tensor, rng: np.random.Generator, tokenizer: BertTokenizerFast) -> Tensor:
    """Hide some words, most of them by the mask, a few by another word."""
    chance = torch.from_numpy(rng.random(ids.shape))
    words = ids >= len(_SPECIAL)
    others = torch.from_numpy(rng.integers(len(_SPECIAL), len(tokenizer), ids.shape))
    hidden = torch.where(words & (chance < _MASKED), tokenizer.mask_token_id, ids)
    return torch.where(words & (chance > 1 - _SWAPPED), others, hidden)


def _letters(rng: np.random.Generator) -> str:
    return "".join(rng.choice(list("abcdefghijklmnopqrstuvwxyz"), rng.integers(3, 9)))


def _article(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' and noun != 'unicorn' else 'a'} {noun}"
