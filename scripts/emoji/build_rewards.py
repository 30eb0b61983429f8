"""Build what scores the embedded world's pictures: a small LLaVA, a text encoder for BERTScore, an aesthetic head.

    uv run --group pretrain python scripts/emoji/build_rewards.py [WORK_FOLDER]

Every stage keeps its state in the work folder (default `build/emoji`) and goes on from it when called again.
"""

import json
import sys
from pathlib import Path

import torch

from aesthetic import fit_head
from art import load_art
from ddpo_rewards.models import LLAVA
from ddpo_rewards.models.encoders import load_encoder
from ddpo_rewards.weights import EMBEDDED
from llava import save_llava, train_llava, train_tower
from pictures import load_pictures
from text_encoder import save_text_encoder, train_text_encoder

PACKAGE = Path(__file__).parents[2] / "packages/ddpo-rewards/src/ddpo_rewards/emoji"
_PICTURES, _SEED = 36_000, 3


def build(folder: Path) -> None:
    """Run every stage."""
    save_text_encoder(train_text_encoder(folder), PACKAGE / "text_encoder")
    pictures = load_pictures(folder, load_art(folder), count=_PICTURES, seed=_SEED)
    save_llava(train_llava(folder, train_tower(folder, pictures), pictures), PACKAGE / "llava")
    tower = load_encoder(EMBEDDED, kind="llava", published=LLAVA, device="cpu")
    print(json.dumps(fit_head(tower, pictures, PACKAGE / "aesthetic.safetensors")))


if __name__ == "__main__":
    torch.set_num_threads(1)
    build(Path(sys.argv[1] if len(sys.argv) > 1 else "build/emoji"))
