"""The published weights behind the built-in rewards: where they are, and how their bytes are pinned.

Only a hash that somebody of this project computed stands here. The others are `None`: recorded at the first download
on a machine, checked ever after (see `weights`).
"""

from ddpo_rewards.types import ReferenceScore, Weight

AESTHETIC_HEAD = Weight(
    source="https://github.com/christophschuhmann/improved-aesthetic-predictor/raw/main/"
    "sac%2Blogos%2Bava1-l14-linearMSE.pth",
    filename="sac+logos+ava1-l14-linearMSE.pth",
    sha256="21dd590f3ccdc646f0d53120778b296013b096a035a2718c9cb0d511bff0f1e0",
    size=3_714_759,
    licence="Apache-2.0",
)
CLIP_TOWER = Weight(
    source="hf://timm/vit_large_patch14_clip_224.openai", filename="open_clip_model.safetensors", licence="MIT"
)
LLAVA = Weight(source="hf://llava-hf/llava-1.5-7b-hf", licence="Llama-2")
TEXT_ENCODER = Weight(source="hf://microsoft/deberta-xlarge-mnli", licence="MIT")

ASTRONAUT = ReferenceScore(
    image="shunk031/simple-aesthetics-predictor: assets/a-photo-of-an-astronaut-riding-a-horse.png",
    score=5.7546,
    tolerance=0.58,
    source="shunk031/simple-aesthetics-predictor: tests/aesthetics_predictor_v2_test.py (10 % there)",
)
