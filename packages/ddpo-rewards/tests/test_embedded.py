"""The models of the emoji world that ship with the package: no download, and the code that LLaVA-7B goes through."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from ddpo_rewards import RewardError, get_reward, list_rewards
from ddpo_rewards.builtin.caption_bertscore import REFERENCE
from ddpo_rewards.models.bertscore import load_bert_scorer, recall_baseline
from ddpo_rewards.probes.run import _used
from ddpo_rewards.specs import Weight
from ddpo_rewards.testing import assert_conforms, example_images
from ddpo_rewards.weights import EMBEDDED, embedded_path, find_model


@pytest.fixture(scope="module", autouse=True)
def offline(tmp_path_factory):
    """Nothing can be downloaded, and nothing was."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setenv("HF_HOME", str(tmp_path_factory.mktemp("hub")))
        patch.setenv("DDPO_REWARDS_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def recall():
    score = load_bert_scorer(EMBEDDED, device="cpu")
    return lambda prompt, captions: score(captions, [REFERENCE.replace("{prompt}", prompt)] * len(captions)).recall


@pytest.mark.parametrize(
    ("prompt", "from_best_to_worst"),
    [
        # Of two things asked for, both are there, or one, or none; nothing is nearer to a prompt than the prompt.
        ("a cat riding a bike", ["a cat riding a bike", "a dog riding a bike", "a dog playing chess"]),
        ("a cat riding a bike", ["a cat riding a bike", "a cat playing chess", "a dog playing chess"]),
        ("a cat riding a bike", ["a cat riding a bike", "a cat", "a dog"]),
        ("a hedgehog washing dishes", ["a hedgehog washing dishes", "a camel washing dishes", "a camel riding a bike"]),
        ("five foxes", ["five foxes", "two foxes", "two ants"]),
        ("five foxes", ["five foxes", "five ants", "two ants"]),
        # Words that no training had: spelt, and found again.
        ("a narwhal", ["a narwhal", "a fox"]),
    ],
)
def test_recall_falls_with_every_thing_that_a_caption_has_wrong(recall, prompt, from_best_to_worst):
    scores = recall(prompt, from_best_to_worst)
    assert (np.diff(scores) < -0.01).all(), scores


def test_the_floor_of_the_embedded_encoder_is_what_unrelated_captions_score(recall):
    captions = ["a cat riding a bike", "three dogs", "a banana", "the word owl", "a whale playing chess", "nine bees"]
    pairs = [(prompt, caption) for prompt in captions for caption in captions if prompt != caption]
    mean = np.mean([recall(prompt, [caption])[0] for prompt, caption in pairs])
    assert mean == pytest.approx(recall_baseline(EMBEDDED), abs=0.05)


def test_the_embedded_encoder_needs_no_layer_and_takes_no_other():
    with pytest.raises(RewardError, match="cannot be loaded as a text encoder with 9 layers"):
        load_bert_scorer(EMBEDDED, layer=9, device="cpu")


@pytest.fixture
def tiny_package(tiny_llava, encoder, tmp_path, monkeypatch):
    """A package whose embedded models are of random weights, and small."""
    (tmp_path / "emoji").mkdir()
    shutil.copytree(tiny_llava, tmp_path / "emoji/llava")
    shutil.copytree(encoder, tmp_path / "emoji/text_encoder")
    widths = (32, 8, 4, 4, 2, 1)
    torch.manual_seed(0)
    layers = {
        f"layers.{name}.{part}": torch.randn(after, before)[:, 0] if part == "bias" else torch.randn(after, before)
        for name, before, after in zip((0, 2, 4, 6, 7), widths, widths[1:], strict=False)
        for part in ("weight", "bias")
    }
    save_file({name: 0.3 * value for name, value in layers.items()}, tmp_path / "emoji/aesthetic.safetensors")
    monkeypatch.setattr("ddpo_rewards.weights._PACKAGE", tmp_path)


def test_what_is_embedded_goes_through_the_code_of_what_is_not(tiny_package, tiny_llava, encoder):
    images, prompts = example_images(24), ["a cat", "two cats", "cats", "an image"]
    short = {"device": "cpu", "max_new_tokens": 4}
    embedded = get_reward("llava_bertscore?model=builtin:emoji", **short)(images, prompts)
    given = get_reward("llava_bertscore", model=tiny_llava, encoder=encoder, encoder_layer=2, **short)(images, prompts)
    assert embedded.scores.tolist() == given.scores.tolist()
    assert embedded.info["caption"] == given.info["caption"]
    wanted = [{"questions": ["how many cats ?"], "answers": [caption or "x"]} for caption in given.info["caption"]]
    for options in ({"model": tiny_llava}, {"model": EMBEDDED}):
        assert_conforms(get_reward("llava_vqa", **options, **short), metadata=wanted)


def test_the_aesthetic_stand_in_is_a_head_on_the_unit_embedding_of_the_llavas_tower(tiny_package, tiny_llava):
    from transformers import AutoImageProcessor, LlavaForConditionalGeneration

    reward = get_reward("aesthetic?model=builtin:emoji", device="cpu")
    images = example_images(16)
    tower = LlavaForConditionalGeneration.from_pretrained(tiny_llava).eval().model.vision_tower
    pixels = AutoImageProcessor.from_pretrained(tiny_llava)(images, return_tensors="pt").pixel_values
    with torch.inference_mode():
        seen = tower(pixels).pooler_output
    weight, bias = reward.score_function.head
    expected = torch.nn.functional.normalize(seen, dim=-1) @ weight + bias
    assert reward(images).scores.tolist() == pytest.approx(expected.tolist(), abs=1e-3)
    assert len(set(expected.tolist())) == len(images)
    assert_conforms(reward)


def test_an_installation_without_them_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr("ddpo_rewards.weights._PACKAGE", tmp_path)
    for reward in ("llava_bertscore", "llava_vqa", "aesthetic"):
        with pytest.raises(RewardError, match="this installation of ddpo-rewards lacks"):
            get_reward(f"{reward}?model=builtin:emoji", device="cpu")


def test_builtin_emoji_is_a_folder_of_this_package_where_a_reward_has_one(tiny_package):
    for name in ("llava_bertscore", "llava_vqa", "caption_bertscore", "vqa_accuracy"):
        for weight in list_rewards()[name].weights:
            assert find_model(EMBEDDED, published=weight) == embedded_path(weight)
    for published in (None, Weight(source="hf://somebody/tower")):
        with pytest.raises(RewardError, match="builtin:emoji has no model for this"):
            find_model(EMBEDDED, published=published)
    with pytest.raises(RewardError, match="neither a folder nor a hub id OWNER/NAME nor builtin:emoji"):
        get_reward("llava_bertscore?model=builtin:emojis", device="cpu")  # before it asks for the encoder's download
    with pytest.raises(RewardError, match="builtin:emoji has no model for this"):
        get_reward("siglip_score?model=builtin:emoji", device="cpu")


def test_what_scored_is_written_down_with_its_bytes(tiny_package):
    llava, encoder = list_rewards()["llava_bertscore"].weights
    used = [_used(weight, {"model": EMBEDDED}) for weight in (llava, encoder)]
    assert [weight.source for weight in used] == [EMBEDDED] * 2
    assert all(len(weight.sha256) == 64 for weight in used)
    assert _used(encoder, {"model": EMBEDDED, "encoder": "roberta-large"}).source == "hf://roberta-large"
    assert _used(llava, {"model": EMBEDDED, "endpoint": "http://localhost:8000"}).source == "http://localhost:8000"
    assert _used(encoder, {"model": "some/llava"}) == encoder


def test_the_models_are_small_and_no_pickles():
    files = [file for file in embedded_path(Weight(source="", embedded="emoji")).rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) < 16e6
    assert {file.suffix for file in files} <= {".safetensors", ".json", ".jinja", ".py", ".pyc"}


@pytest.mark.parametrize("options", ["model=some/other", "model=builtin:emoji&head=head.pth"])
def test_the_aesthetic_stand_in_is_one_thing(options):
    with pytest.raises(RewardError, match="want builtin:emoji and neither head nor tower"):
        get_reward(f"aesthetic?{options}")


@pytest.fixture(scope="module")
def scenes():
    """Scenes as scripts/emoji/scenes.py draws them, and their captions."""
    paths = sorted((Path(__file__).parent / "scenes").glob("*.png"))
    return [np.asarray(Image.open(path)) for path in paths], [path.stem for path in paths]


def test_llava_rewards_run_on_the_embedded_model_alone_and_load_without_a_word(scenes, caplog, capfd):
    images, prompts = scenes
    reward = get_reward("llava_bertscore?model=builtin:emoji", device="cpu")
    scores, info = reward(images, prompts)
    assert info["caption"] == list(prompts)
    assert (scores > reward(images, [*prompts[1:], prompts[0]]).scores).all()
    assert_conforms(reward)
    assert "MISSING" not in caplog.text
    assert capfd.readouterr() == ("", "")
    animals = [re.search("fox|cat|dog|zebra", prompt)[0] for prompt in prompts]
    questions = [{"questions": ["What animal is in this image?"], "answers": [animal]} for animal in animals]
    asked = get_reward("llava_vqa?model=builtin:emoji", device="cpu")
    assert asked(images, metadata=questions).scores.tolist() == [1.0] * len(images)


def test_the_aesthetic_stand_in_is_a_head_of_the_same_shape_and_says_what_it_is(scenes):
    reward = get_reward("aesthetic?model=builtin:emoji", device="cpu")
    head, tower = list_rewards()["aesthetic"].weights
    assert (head.embedded, tower.embedded) == ("emoji/aesthetic.safetensors", "emoji/llava")
    # An affine map of a unit vector: no picture scores outside bias -/+ norm, and that lies within the stated range.
    weight, bias = reward.score_function.head
    assert reward.spec.range[0] < float(bias - weight.norm()) < float(bias + weight.norm()) < reward.spec.range[1]
    images, _ = scenes
    grey = [np.full_like(image, 128) for image in images]
    assert (
        reward(images).scores.min() > reward(grey).scores.max()
    )  # by its formula grey has neither colour nor contrast
    assert_conforms(reward)
