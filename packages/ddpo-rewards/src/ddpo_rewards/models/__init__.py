"""What rewards are made of: networks that look, read and compare, and where their published weights are.

Only a hash that somebody of this project computed stands here. The others are `None`: recorded at the first download
on a machine, checked ever after (see `weights`). Importing this imports no network.
"""

from ddpo_rewards.specs import Weight

CLIP_TOWER = Weight(
    source="hf://timm/vit_large_patch14_clip_224.openai",
    filename="open_clip_model.safetensors",
    licence="MIT",
    replaced_by=("tower",),
)
LLAVA = Weight(source="hf://llava-hf/llava-1.5-7b-hf", licence="Llama-2", replaced_by=("endpoint", "model"))
TEXT_ENCODER = Weight(source="hf://microsoft/deberta-xlarge-mnli", licence="MIT", replaced_by=("encoder",))
