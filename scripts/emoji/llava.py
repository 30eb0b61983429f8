"""Train the small LLaVA of the embedded world: a CLIP vision tower and a Llama that looks at what it sees."""

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from torch import Tensor, nn
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from ddpo_core.emoji.words import NUMBERS
from loop import Recipe, train
from pictures import Pictures, distort
from questions import ACTIVITY_NAMES, NOUNS, Facts, draw_question, vocabulary
from scenes import SIZE

TOWER_RECIPE = Recipe(name="tower", num_steps=4_000, batch_size=64, learning_rate=1.2e-3, cooldown=0.15)
RECIPE = Recipe(name="llava", num_steps=2_000, batch_size=64, learning_rate=1e-3)
_WIDTH, _HEADS, _PATCH = 192, 6, 16
_EXTENT = 0.5  # of the distortions; scenes have their few places, and the tower learns these first
_SPECIAL = ("<pad>", "<s>", "</s>", "<unk>", "<image>")
_NO_NAME = -100
NAMES = {"number": NUMBERS, "noun": NOUNS, "activity": ("", *ACTIVITY_NAMES), "text": ("", *NUMBERS, *NOUNS)}
"""What the tower is taught to name in a picture, by kind."""
# As llava-hf/llava-1.5-7b-hf has it: the image, a new line, the question.
_TEMPLATE = (
    "{% for message in messages %}{{ message['role'].upper() + ': ' }}"
    "{% for part in message['content'] if part['type'] == 'image' %}{{ '<image>\\n' }}{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] + ' ' }}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)


class Tower(nn.Module):
    """The vision tower, and what names from its embeddings the facts of a picture: number, noun, activity, text.

    It starts from random weights, not from a CLIP. The names teach it to see before a language model listens, and make
    the pooled embedding one of what is seen, as CLIP's is. They are not kept.
    """

    def __init__(self) -> None:
        """Build both from random weights."""
        super().__init__()
        self.network = CLIPVisionModel(_vision_config())
        self.names = nn.Linear(_WIDTH, sum(map(len, NAMES.values())))


def build_processor() -> LlavaProcessor:
    """A tokenizer with one token per known word, characters for any other, and pictures of 64 pixels."""
    words = {word: index for index, word in enumerate([*_SPECIAL, *vocabulary()])}
    base = Tokenizer(models.WordPiece(words, unk_token="<unk>"))
    base.normalizer = normalizers.Lowercase()
    base.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    base.decoder = decoders.WordPiece()
    base.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", words["<s>"])])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=base,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        extra_special_tokens={"image_token": "<image>"},
        padding_side="left",
        model_max_length=512,
    )
    return LlavaProcessor(
        image_processor=CLIPImageProcessor(
            size={"shortest_edge": SIZE},
            crop_size={"height": SIZE, "width": SIZE},
            image_mean=[0.5] * 3,
            image_std=[0.5] * 3,
        ),
        tokenizer=tokenizer,
        patch_size=_PATCH,
        vision_feature_select_strategy="default",
        chat_template=_TEMPLATE,
        num_additional_image_tokens=1,
    )


def build_llava(num_tokens: int) -> LlavaForConditionalGeneration:
    """The untrained model; unlike LLaVA-1.5 it reads the tower's last layer, since no layer of it is to spare."""
    text = LlamaConfig(
        hidden_size=_WIDTH,
        num_attention_heads=_HEADS,
        intermediate_size=3 * _WIDTH,
        num_hidden_layers=3,
        vocab_size=num_tokens,
        max_position_embeddings=512,
        pad_token_id=_SPECIAL.index("<pad>"),
        bos_token_id=_SPECIAL.index("<s>"),
        eos_token_id=_SPECIAL.index("</s>"),
    )
    image = {"image_token_index": _SPECIAL.index("<image>"), "vision_feature_layer": -1}
    model = LlavaForConditionalGeneration(LlavaConfig(text_config=text, vision_config=_vision_config(), **image))
    model.set_attn_implementation("eager")
    return model


def train_tower(folder: Path, pictures: Pictures) -> Tower:
    """Train the tower alone to name what it sees, with resumable state in `folder`."""
    torch.manual_seed(0)

    def loss_fn(tower: Tower, rng: np.random.Generator) -> Tensor:
        chosen = rng.integers(0, len(pictures.pixels), TOWER_RECIPE.batch_size)
        with torch.autocast("cpu", torch.bfloat16):
            _, logits = _look(tower.network, tower.names, _pixels(pictures, chosen, rng))
        return _naming_error(logits, pictures, chosen)

    tower = Tower()
    tower.network.set_attn_implementation("eager")  # 1.6 times as fast as torch's own on a CPU, backward
    return train(tower, loss_fn, folder, TOWER_RECIPE)


def train_llava(folder: Path, tower: Tower, pictures: Pictures) -> LlavaForConditionalGeneration:
    """Train projector and language model to answer through the tower, which stays as it is, as LLaVA's own does."""
    torch.manual_seed(0)
    processor = build_processor()
    llava = build_llava(len(processor.tokenizer))
    llava.model.vision_tower = tower.network.requires_grad_(False)

    def loss_fn(model: LlavaForConditionalGeneration, rng: np.random.Generator) -> Tensor:
        chosen = rng.integers(0, len(pictures.pixels), RECIPE.batch_size)
        asked = [draw_question(pictures.facts[index], pictures.texts[index], rng) for index in chosen]
        with torch.autocast("cpu", torch.bfloat16):
            seen = model.model.vision_tower(_pixels(pictures, chosen, rng), output_hidden_states=True)
            return _answering_error(model, seen.hidden_states[-1][:, 1:], asked, processor.tokenizer)

    return train(llava, loss_fn, folder, RECIPE)


def save_llava(model: LlavaForConditionalGeneration, folder: Path) -> None:
    """Write a folder that transformers loads as it loads LLaVA-1.5: safetensors in float16, and JSON."""
    model.half().save_pretrained(folder)
    build_processor().save_pretrained(folder)


def _vision_config() -> CLIPVisionConfig:
    return CLIPVisionConfig(
        hidden_size=_WIDTH,
        num_attention_heads=_HEADS,
        intermediate_size=4 * _WIDTH,
        num_hidden_layers=4,
        hidden_act="gelu",
        image_size=SIZE,
        patch_size=_PATCH,
        projection_dim=_WIDTH,
    )


def _pixels(pictures: Pictures, chosen: np.ndarray, rng: np.random.Generator) -> Tensor:
    images = torch.from_numpy(pictures.pixels[chosen]).permute(0, 3, 1, 2).float() / 255
    return 2 * distort(images, rng, extent=_EXTENT) - 1


def _look(network: nn.Module, names: nn.Module, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Return the patches' states, and the logits of the names by the pooled state and by the mean patch."""
    seen = network(pixels, output_hidden_states=True)
    patches = seen.hidden_states[-1][:, 1:]
    mean = network.post_layernorm(patches).mean(dim=1)
    return patches, names(torch.stack([seen.pooler_output, mean])).float()


def _naming_error(logits: Tensor, pictures: Pictures, chosen: np.ndarray) -> Tensor:
    """Cross-entropy of each kind of name [2, batch, names], where the picture has one of that kind."""
    errors = []
    for kind, part in zip(NAMES, logits.split([len(names) for names in NAMES.values()], dim=-1), strict=True):
        targets = torch.tensor([_name(kind, pictures.facts[index], pictures.texts[index]) for index in chosen])
        errors += [F.cross_entropy(part[view], targets, ignore_index=_NO_NAME, reduction="sum") for view in (0, 1)]
    return torch.stack(errors).sum() / (2 * len(chosen))


def _name(kind: str, facts: Facts, text: str) -> int:
    if kind == "text":
        name = text
    elif facts.written:
        return _NO_NAME
    else:
        name = {"number": facts.number or "one", "noun": facts.noun, "activity": facts.activity}[kind]
    return NAMES[kind].index(name) if name in NAMES[kind] else _NO_NAME


def _answering_error(
    model: LlavaForConditionalGeneration, patches: Tensor, asked: list[tuple[str, str]], tokenizer: Any
) -> Tensor:
    """Cross-entropy of the answers' tokens, given the picture and the question."""
    pieces = [_encode(tokenizer, *pair) for pair in asked]
    length = max(len(prompt) + len(answer) for prompt, answer in pieces)
    ids = torch.full((len(pieces), length), tokenizer.pad_token_id)
    targets = torch.full((len(pieces), length), -100)
    for row, (prompt, answer) in enumerate(pieces):
        ids[row, : len(prompt) + len(answer)] = torch.tensor(prompt + answer)
        targets[row, len(prompt) : len(prompt) + len(answer)] = torch.tensor(answer)
    features = model.model.multi_modal_projector(patches)
    embedded = model.model.language_model.embed_tokens(ids).to(features.dtype)
    embedded = embedded.masked_scatter((ids == _SPECIAL.index("<image>")).unsqueeze(-1), features)
    # Padded on the right, where causal attention never looks: no mask is needed.
    states = model.model.language_model(inputs_embeds=embedded, use_cache=False).last_hidden_state
    spoken = targets[:, 1:] != -100
    return F.cross_entropy(model.lm_head(states[:, :-1][spoken]).float(), targets[:, 1:][spoken])


@cache
def _encode(tokenizer: Any, question: str, answer: str) -> tuple[list[int], list[int]]:
    """The tokens of a question as the chat template puts it, the image's among them, and of its answer."""
    prompt = tokenizer(f"USER: {'<image>' * (SIZE // _PATCH) ** 2}\n{question} ASSISTANT:").input_ids
    return prompt, [*tokenizer(answer, add_special_tokens=False).input_ids, tokenizer.eos_token_id]
