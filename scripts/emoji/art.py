"""Fetch the emoji art with npm and draw it once, as premultiplied-free RGBA pictures of 128 pixels."""

import hashlib
import io
import json
import subprocess
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image
from resvg_py import svg_to_bytes
from safetensors.numpy import load_file, save_file

from icons import ICONS, PROPS, SETS

PIXELS = 128
PACKAGES = {
    "noto": ("@iconify-json/noto@1.2.9", "3e918d88fc945c0bb3d468dbace6f88caef67f01c9f0e7bcae0915a042e8f1ad"),
    "fluent-emoji-flat": (
        "@iconify-json/fluent-emoji-flat@1.2.6",
        "7d064769dee690815f823bc5bcc511d957198caf9f5edd8dd9c1aa48a6aeb175",
    ),
    "fluent-emoji": (
        "@iconify-json/fluent-emoji@1.2.7",
        "8044210dbf11e016d4de85f15d01a243423bd832457e7e2491df1b751c0e272b",
    ),
}

_NAMESPACES = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'

Art = dict[str, np.ndarray]


def load_art(folder: Path) -> Art:
    """Return `{"set/icon": uint8 [128, 128, 4]}` for every icon in use; fetched and drawn on the first call."""
    drawn = folder / "art.safetensors"
    if not drawn.exists():
        folder.mkdir(parents=True, exist_ok=True)
        save_file({name: _draw(svg) for name, svg in _all_svgs(folder).items()}, drawn)
    return load_file(drawn)


def _all_svgs(folder: Path) -> dict[str, str]:
    names = sorted({icon for icons in ICONS.values() for icon in icons} | set(PROPS))
    return {f"{art_set}/{name}": svg for art_set in SETS for name, svg in _svgs(art_set, names, folder).items()}


def _svgs(art_set: str, names: list[str], folder: Path) -> dict[str, str]:
    collection = json.loads(_icons_json(art_set, folder))
    width, height = collection.get("width", 16), collection.get("height", 16)
    opening = f'<svg {_NAMESPACES} viewBox="0 0 {width} {height}">'
    icons = collection["icons"]
    return {name: f"{opening}{icons[name]['body']}</svg>" for name in names if name in icons}


def _icons_json(art_set: str, folder: Path) -> bytes:
    package, sha256 = PACKAGES[art_set]
    packed = subprocess.run(
        ["npm", "pack", "--silent", package], cwd=folder, check=True, capture_output=True, text=True
    )
    archive = folder / packed.stdout.split()[-1]
    got = hashlib.sha256(archive.read_bytes()).hexdigest()
    if got != sha256:
        raise ValueError(f"{package} has sha256 {got}, wanted {sha256}: the art changed, so would the model")
    with tarfile.open(archive) as files:
        return files.extractfile("package/icons.json").read()


def _draw(svg: str) -> np.ndarray:
    png = bytes(svg_to_bytes(svg_string=svg, width=PIXELS, height=PIXELS))
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGBA"))
