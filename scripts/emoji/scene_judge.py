"""Train the judge of scenes on the art itself, and measure it under distortions that training never used."""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.numpy import load_file, save_file
from torch import Tensor, nn

from art import Art
from ddpo_core.emoji.judge import CLASSES
from ddpo_core.emoji.scene_judge import ACTIVITY_CLASSES, MOST, build_scene_judge, split_logits
from ddpo_core.emoji.words import NUMBERS
from judge import distort_held_out, distorted_batch, to_tensor
from loop import Recipe, train
from scenes import (
    ALL_ANIMALS,
    SIZE,
    Layer,
    Scene,
    activity_layers,
    count_layers,
    draw_activity,
    draw_background,
    draw_count,
    draw_icon,
    draw_layers,
    draw_plate,
    draw_single,
    draw_word,
)

RECIPE = Recipe(name="scene_judge", num_steps=1_800, batch_size=64, learning_rate=2e-3)
_SCENES = 40_000
_NO_WORD = -100  # what cross entropy ignores

# The last two kinds are neither in prompts nor in the pretraining: without them, where the animal stands would tell the
# activity, and the activity that there is an animal.
_KINDS = {"single": 0.25, "count": 0.3, "activity": 0.3, "word": 0.03, "idle animal": 0.06, "activity alone": 0.06}
_PLATE_SHARE = 0.08

Labels = tuple[int, int, int]


def train_scene_judge(folder: Path, art: Art) -> nn.Module:
    """Train on scenes whose parts are moved and resized a little, distorted as a whole; resumable state in `folder`."""
    torch.manual_seed(0)
    pixels, labels = _labelled_scenes(folder, art)

    def loss_fn(model: nn.Module, rng: np.random.Generator) -> Tensor:
        chosen = rng.integers(0, len(pixels), RECIPE.batch_size)
        noisy = distorted_batch(pixels[chosen], rng)
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(noisy.contiguous(memory_format=torch.channels_last))
        wanted = torch.from_numpy(labels[chosen]).unbind(dim=1)
        heads = zip(split_logits(logits.float()), wanted, strict=True)
        losses = [F.cross_entropy(head, label, label_smoothing=0.05, ignore_index=_NO_WORD) for head, label in heads]
        return torch.stack(losses).sum()

    return train(build_scene_judge().train().to(memory_format=torch.channels_last), loss_fn, folder, RECIPE)


def held_out_scene_accuracy(model: nn.Module, art: Art, scenes_of_a_kind: int = 600) -> dict[str, float]:
    """Accuracies of each answer on new scenes of each kind, under the distortions that were held out."""
    rng, accuracies = np.random.default_rng(99), {}
    for kind in ("single", "activity", "count", "count, another number written"):
        scenes = [_held_out_scene(kind, art, rng) for _ in range(scenes_of_a_kind)]
        images = torch.stack([to_tensor(distort_held_out(scene.image, rng)) for scene in scenes])
        with torch.inference_mode():
            seen = [head.argmax(dim=1).tolist() for head in split_logits(model(images))]
        wanted = [(CLASSES.index(scene.word), ACTIVITY_CLASSES.index(scene.activity), scene.number) for scene in scenes]
        for answer, said, right in zip(("word", "activity", "number"), seen, zip(*wanted, strict=True), strict=True):
            accuracies[f"{kind}: {answer}"] = sum(map(int.__eq__, said, right)) / scenes_of_a_kind
    return accuracies


def _held_out_scene(kind: str, art: Art, rng: np.random.Generator) -> Scene:
    word = str(rng.choice(CLASSES if kind == "single" else ALL_ANIMALS))
    number = int(rng.integers(1, 6))
    match kind:
        case "single":
            return draw_single(art, rng, word)
        case "activity":
            return draw_activity(art, rng, word, str(rng.choice(ACTIVITY_CLASSES[1:])))
        case "count":
            return draw_count(art, rng, word, number)
        case _:
            others = [name for name in NUMBERS if name != NUMBERS[number - 1]]
            return draw_count(art, rng, word, number, str(rng.choice(others)))


def _labelled_scenes(folder: Path, art: Art) -> tuple[np.ndarray, np.ndarray]:
    path = folder / "scene_judge_scenes.safetensors"
    if not path.exists():
        drawn = [_labelled_scene(art, np.random.default_rng((8, index))) for index in range(_SCENES)]
        save_file(
            {
                "pixels": np.stack([np.asarray(image) for image, _ in drawn]),
                "labels": np.array([labels for _, labels in drawn]),
            },
            path,
        )
    loaded = load_file(path)
    return loaded["pixels"], loaded["labels"]


def _labelled_scene(art: Art, rng: np.random.Generator) -> tuple[Image.Image, Labels]:
    """Draw a scene from either art set with its class, activity and number; a written word says nothing about them."""
    kind = str(rng.choice(list(_KINDS), p=list(_KINDS.values())))
    if kind == "word":
        return draw_word(rng, str(rng.choice((*CLASSES, *NUMBERS)))).image, (_NO_WORD, 0, 0)
    word = str(rng.choice(CLASSES if kind == "single" else ALL_ANIMALS))
    icon, named = draw_icon(art, rng, word), CLASSES.index(word)
    activity = int(rng.integers(1, len(ACTIVITY_CLASSES)))
    number = int(rng.integers(1, MOST + 1) if rng.random() < 0.3 else rng.integers(1, 6))
    animal, *props = activity_layers(art, icon, ACTIVITY_CLASSES[activity])
    size = int(rng.integers(42, 61))
    middle = (SIZE - size) // 2
    layers, labels = {
        "single": ([Layer(icon, middle, middle, size)], (named, 0, 1)),
        "count": (count_layers(icon, number), (named, 0, number)),
        "activity": ([animal, *props], (named, activity, 1)),
        "idle animal": ([animal], (named, 0, 1)),
        "activity alone": (props, (_NO_WORD, activity, 0)),
    }[kind]
    canvas = draw_background(rng)
    draw_layers(canvas, [_moved(layer, rng) for layer in layers])
    if rng.random() < _PLATE_SHARE:
        draw_plate(canvas, str(rng.choice((*NUMBERS, *CLASSES))))
    return canvas, labels


def _moved(layer: Layer, rng: np.random.Generator) -> Layer:
    """Move a layer by up to 2 pixels either way, and resize it by up to a tenth."""
    left, top = rng.integers(-2, 3, 2).tolist()
    size = round(layer.size * rng.uniform(0.9, 1.1))
    return Layer(layer.icon, layer.left + left, layer.top + top, size)
