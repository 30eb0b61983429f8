"""A pool of scenes drawn once: pixels and captions, from a fixed seed."""

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from art import load_art
from scenes import caption_as_found, draw_scene

SCENES = 60_000


def load_pool(folder: Path) -> tuple[np.ndarray, list[str]]:
    """Return (uint8 [scenes, 64, 64, 3], captions as found); drawn on the first call, scene i from seed (0, i)."""
    pixels, captions = folder / "scenes.safetensors", folder / "captions.json"
    if not captions.exists():
        art = load_art(folder)
        drawn = [draw_scene(art, np.random.default_rng((0, index))) for index in range(SCENES)]
        save_file({"pixels": np.stack([np.asarray(scene.image) for scene in drawn])}, pixels)
        found = [caption_as_found(scene, np.random.default_rng((1, index))) for index, scene in enumerate(drawn)]
        captions.write_text(json.dumps(found))
    return load_file(pixels)["pixels"], json.loads(captions.read_text())
