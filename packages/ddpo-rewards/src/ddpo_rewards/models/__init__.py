"""What rewards are made of: networks that look, read and compare, and where their published weights are.

Only a hash that somebody of this project computed stands here. The others are `None`: recorded at the first download
on a machine, checked ever after (see `weights`). A revision is a commit of the hub, read on the hub's own pages or in
several public projects that pin it; it fixes the bytes. Licences are those of the models' cards. Read were those of
PickScore, HPSv2, DINOv2, DeBERTa, the tower and (in copies) SigLIP 2 and LLaVA; that Qwen3-VL-2B is under Apache-2.0
say the cards of models made of it. Importing this imports no network.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from ddpo_rewards.specs import Weight

CLIP_TOWER = Weight(
    source="hf://timm/vit_large_patch14_clip_224.openai",
    filename="open_clip_model.safetensors",
    licence="Apache-2.0",  # of this copy; the repository of OpenAI, who trained it, is under MIT
    replaced_by=("tower",),
)
PICKSCORE = Weight(
    source="hf://yuvalkirstain/PickScore_v1",
    revision="a4e4367c6dfa7288a00c550414478f865b875800",
    licence="none stated on its card",
    replaced_by=("model",),
)
HPS = Weight(
    source="hf://xswu/HPSv2",
    filename="HPS_v2.1_compressed.pt",
    revision="697403c78157020a1ae59d23f111aa58ced35b0a",
    licence="Apache-2.0",
    replaced_by=("tower",),
)
SIGLIP = Weight(
    source="hf://google/siglip2-base-patch16-224",
    revision="75de2d55ec2d0b4efc50b3e9ad70dba96a7b2fa2",
    licence="Apache-2.0",
    replaced_by=("model",),
)
DINO = Weight(
    source="hf://facebook/dinov2-base",
    revision="f9e44c814b77203eaa57a6bdbbd535f21ede1415",
    licence="Apache-2.0",
    replaced_by=("model",),
)
CAPTIONER = Weight(
    source="hf://Qwen/Qwen3-VL-2B-Instruct",
    revision="89644892e4d85e24eaac8bacfd4f463576704203",
    licence="Apache-2.0",
    replaced_by=("endpoint", "model"),
    embedded="emoji/llava",
)
LLAVA = Weight(
    source="hf://llava-hf/llava-1.5-7b-hf",
    licence="Llama-2",
    replaced_by=("endpoint", "model"),
    embedded="emoji/llava",
)
TEXT_ENCODER = Weight(
    source="hf://microsoft/deberta-xlarge-mnli",
    licence="MIT",
    replaced_by=("encoder",),
    embedded="emoji/text_encoder",
)


@contextmanager
def quietly() -> Iterator[None]:
    """Keep the bars of transformers off the terminal, and its report of parts that nobody asks for, while it loads."""
    from transformers.utils import logging

    verbosity, shows_bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if shows_bars:
            logging.enable_progress_bar()
