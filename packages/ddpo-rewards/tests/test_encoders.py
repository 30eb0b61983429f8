"""PickScore, HPS v2.1, SigLIP and DINOv2 on tiny models of their classes, against those models' own processors."""

import json

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch.nn.functional import normalize

from ddpo_rewards import RewardError, get_reward
from ddpo_rewards.models.encoders import load_encoder, resize_and_cut
from ddpo_rewards.specs import Weight
from ddpo_rewards.testing import assert_conforms, example_images

PROMPTS = ["a cat", "A Dog", "a cat and a dog", "a cat"]
WORDS = ["a", "cat", "dog", "and", "A", "Dog"]
VOCABULARY = {word: i for i, word in enumerate(["<pad>", "<s>", "</s>", "<unk>", *WORDS])}
PILLOW = "Pil" if hasattr(transformers, "CLIPImageProcessorPil") else ""  # transformers 5 has processors of two kinds


def noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def words_tokenizer(specials):
    base = Tokenizer(models.WordLevel(VOCABULARY, unk_token="<unk>"))
    base.pre_tokenizer = pre_tokenizers.Whitespace()
    base.post_processor = processors.TemplateProcessing(
        single=specials, special_tokens=[("<s>", VOCABULARY["<s>"]), ("</s>", VOCABULARY["</s>"])]
    )
    names = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=base, **names)


def save(folder, model, processor, tokenizer=None):
    torch.manual_seed(0)
    for parameter in model.parameters():  # larger than the default, so that scores depend on images and texts
        torch.nn.init.normal_(parameter, std=0.3)
    for part in filter(None, (model, processor, tokenizer)):
        part.save_pretrained(folder)
    return str(folder)


SMALL = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
EYE = {**SMALL, "image_size": 16, "patch_size": 8}
READER = {**SMALL, "vocab_size": len(VOCABULARY), "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    config = transformers.CLIPConfig(
        text_config={**READER, "max_position_embeddings": 8}, vision_config=EYE, projection_dim=12
    )
    processor = transformers.CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    model = transformers.CLIPModel(config)
    folder = save(tmp_path_factory.mktemp("clip"), model, processor, words_tokenizer("<s> $A </s>"))
    return folder


@pytest.fixture(scope="module")
def siglip_folder(tmp_path_factory):
    config = transformers.SiglipConfig(text_config={**READER, "max_position_embeddings": 6}, vision_config=EYE)
    processor = transformers.SiglipImageProcessor(size={"height": 16, "width": 16}, resample=2)
    model = transformers.SiglipModel(config)
    return save(tmp_path_factory.mktemp("siglip"), model, processor, words_tokenizer("$A </s>"))


@pytest.fixture(scope="module")
def dino_folder(tmp_path_factory):
    config = transformers.Dinov2Config(**{**EYE, "num_hidden_layers": 2})
    processor = transformers.BitImageProcessor(
        size={"shortest_edge": 20}, crop_size={"height": 16, "width": 16}, image_mean=[0.4] * 3, image_std=[0.3] * 3
    )
    return save(tmp_path_factory.mktemp("dino"), transformers.Dinov2Model(config), processor)


def own_pixels(folder, name, images):
    processor = getattr(transformers, f"{name}ImageProcessor{PILLOW}").from_pretrained(folder)
    return processor(images=[Image.fromarray(image) for image in images], return_tensors="pt")["pixel_values"]


def own_features(output):
    return normalize(output if isinstance(output, torch.Tensor) else output.pooler_output, dim=-1)


SIZES = [(16, 16), (32, 48), (51, 30), (17, 16), (19, 23), (20, 33), (7, 40), (1, 1), (256, 255)]


@pytest.mark.parametrize("shape", SIZES)
@pytest.mark.parametrize(("kind", "name"), [("clip", "CLIP"), ("siglip", "Siglip"), ("dinov2", "Bit")])
def test_preprocessing_is_that_of_the_models_own_processor(request, kind, name, shape):
    folder = request.getfixturevalue({"dinov2": "dino_folder"}.get(kind, f"{kind}_folder"))
    tower = load_encoder(folder, kind=kind, published=Weight(source="hf://none/none"), device="cpu")
    small = tower.prepare(Image.fromarray(noise(*shape)))
    assert tower.prepare(small) is small  # what was prepared scores the same
    prepared = np.asarray(small)
    start = (prepared.shape[0] - tower.image_size) // 2
    ours = (prepared[start : start + 16, start : start + 16] / 255 - np.array(tower.mean)) / np.array(tower.std)
    expected = own_pixels(folder, name, [noise(*shape)])[0].permute(1, 2, 0).numpy()
    assert ours == pytest.approx(expected, abs=1e-6)


def test_half_a_pixel_is_cut_from_the_end():
    row = np.arange(5, dtype=np.uint8)  # of five columns the middle two are 1 and 2: one is cut before them, two after
    image = Image.fromarray(np.stack([row] * 2)[..., None].repeat(3, axis=-1))
    assert np.asarray(resize_and_cut(image, edge=2, resample=3))[0, :, 0].tolist() == [1, 2]


def test_a_pick_score_is_the_scaled_cosine_of_the_towers(clip_folder):
    images = [*example_images(24)[:3], noise(30, 20)]
    scores, info = get_reward("pickscore", model=clip_folder, device="cpu", batch_size=3)(images, PROMPTS)
    model = transformers.CLIPModel.from_pretrained(clip_folder).eval()
    tokens = transformers.AutoTokenizer.from_pretrained(clip_folder)(PROMPTS, padding=True, return_tensors="pt")
    with torch.inference_mode():
        seen = own_features(model.get_image_features(own_pixels(clip_folder, "CLIP", images)))
        read = own_features(model.get_text_features(tokens["input_ids"], tokens["attention_mask"]))
        cosines = (seen * read).sum(-1)
        expected = model.logit_scale.exp() * cosines
    assert scores.tolist() == pytest.approx(expected.tolist(), abs=1e-4)
    assert info["cosine"] == pytest.approx(cosines.tolist(), abs=1e-5)
    assert len(set(np.round(scores, 3))) == 4


def test_a_prompt_beyond_the_tokens_is_flagged(clip_folder):
    reward = get_reward("pickscore", model=clip_folder, device="cpu")
    prompts = ["a cat " * 3, "a cat " * 4, "a", "a cat"]  # six and eight words, of which six fit between the marks
    assert reward(example_images(16), prompts).info["prompt_cut_off"] == [False, True, False, False]


def test_a_siglip_score_is_the_cosine_and_its_probability_the_sigmoid(siglip_folder):
    images = example_images(24)
    reward = get_reward("siglip_score", model=siglip_folder, device="cpu", batch_size=3)
    scores, info = reward(images, PROMPTS)
    model = transformers.SiglipModel.from_pretrained(siglip_folder).eval()
    a, cat, dog, also, end = (VOCABULARY[word] for word in ("a", "cat", "dog", "and", "</s>"))
    # In lower case, with the end, filled up on the right to six tokens; "a cat and a dog" and its end are just six.
    tokens = torch.tensor([[a, cat, end, 0, 0, 0], [a, dog, end, 0, 0, 0], [a, cat, also, a, dog, end]])
    with torch.inference_mode():
        seen = own_features(model.get_image_features(own_pixels(siglip_folder, "Siglip", images)))
        read = own_features(model.get_text_features(tokens))[[0, 1, 2, 0]]
        cosines = (seen * read).sum(-1)
        probabilities = (model.logit_scale.exp() * cosines + model.logit_bias).sigmoid()
    assert scores.tolist() == pytest.approx(cosines.tolist(), abs=1e-5)
    assert info["probability"] == pytest.approx(probabilities.tolist(), abs=1e-5)
    assert reward(images, [prompt.upper() for prompt in PROMPTS]).scores.tolist() == scores.tolist()


@pytest.fixture(scope="module")
def hps(tmp_path_factory):
    """A checkpoint as HPS's authors publish it, of a tiny architecture that open_clip is told of."""
    import open_clip

    folder = tmp_path_factory.mktemp("hps")
    config = {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
    }
    (folder / "tiny-hps.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder / "tiny-hps.json")
    torch.manual_seed(0)
    model = open_clip.create_model("tiny-hps").eval()
    torch.save({"epoch": 1, "state_dict": model.state_dict()}, folder / "hps.pt")
    return model, {"architecture": "tiny-hps", "tower": folder / "hps.pt", "device": "cpu"}


def test_a_human_preference_score_is_the_cosine_in_percent_of_the_whole_image(hps):
    import open_clip

    model, options = hps
    images = [noise(40, 60, seed) for seed in range(3)] + [noise(60, 25)]
    scores = get_reward("hps_v2", **options)(images, PROMPTS).scores

    def whole(image):  # 40 x 60 becomes 21 x 32 on a black 32 x 32, five and a half rows above
        height, width = image.shape[:2]
        scale = 32 / max(height, width)
        size = round(width * scale), round(height * scale)
        square = np.zeros((32, 32, 3), np.uint8)
        top, left = (32 - size[1]) // 2, (32 - size[0]) // 2
        square[top : top + size[1], left : left + size[0]] = Image.fromarray(image).resize(
            size, Image.Resampling.BICUBIC
        )
        return (torch.from_numpy(square).permute(2, 0, 1) / 255 - torch.tensor(
            open_clip.OPENAI_DATASET_MEAN
        ).view(3, 1, 1)) / torch.tensor(open_clip.OPENAI_DATASET_STD).view(3, 1, 1)  # fmt: skip

    with torch.inference_mode():
        seen = normalize(model.encode_image(torch.stack([whole(image) for image in images])), dim=-1)
        read = normalize(model.encode_text(open_clip.get_tokenizer("tiny-hps")(PROMPTS)), dim=-1)
    assert scores.tolist() == pytest.approx((100 * (seen * read).sum(-1)).tolist(), abs=1e-3)


def test_a_tower_with_quick_gelu_is_none_of_hps(hps):
    import open_clip

    _, options = hps
    (options["tower"].parent / "quick-hps.json").write_text(
        json.dumps({**open_clip.get_model_config("tiny-hps"), "quick_gelu": True})
    )
    open_clip.add_model_config(options["tower"].parent / "quick-hps.json")
    with pytest.raises(RewardError, match="has QuickGELU, but its weights need GELU"):
        get_reward("hps_v2", **{**options, "architecture": "quick-hps"})


def test_a_score_of_the_whole_image_has_no_gradient_of_the_cropped_one(hps):
    images = torch.rand(1, 3, 40, 40, requires_grad=True)
    with pytest.raises(RewardError, match="this one pads or squeezes them"):
        get_reward("hps_v2", **hps[1]).differentiable(images, ["a cat"])


def test_a_dino_similarity_is_the_mean_cosine_with_the_references(dino_folder, tmp_path):
    images = [*example_images(24)[:3], noise(30, 50)]
    files = [tmp_path / f"{index}.png" for index in range(2)]
    for file, seed in zip(files, (5, 6), strict=True):
        Image.fromarray(noise(40, 30, seed)).save(file)
    metadata = [
        {"references": str(files[0])},
        {"references": [files[0], str(files[1])]},
        {"references": [Image.open(files[1])]},
        {"references": [images[3]]},
    ]
    reward = get_reward("dino_similarity", model=dino_folder, device="cpu", batch_size=3)
    scores, info = reward(images, metadata=metadata)
    model = transformers.Dinov2Model.from_pretrained(dino_folder).eval()
    with torch.inference_mode():
        everything = [*images, noise(40, 30, 5), noise(40, 30, 6)]
        one, two, three, _, first, second = own_features(model(own_pixels(dino_folder, "Bit", everything)))
    similarities = [[one @ first], [two @ first, two @ second], [three @ second], [torch.tensor(1.0)]]
    assert scores.tolist() == pytest.approx([float(sum(own) / len(own)) for own in similarities], abs=1e-5)
    assert [len(own) for own in info["similarities"]] == [1, 2, 1, 1]
    assert reward(images, metadata=metadata).scores.tolist() == pytest.approx(scores.tolist(), abs=1e-6)


def test_a_reference_file_that_changes_is_looked_at_again(dino_folder, tmp_path):
    reward = get_reward("dino_similarity", model=dino_folder, device="cpu")
    image, file = noise(24, 24), tmp_path / "reference.png"
    Image.fromarray(noise(24, 24, 1)).save(file)
    before = reward([image], metadata=[{"references": [file]}]).scores[0]
    Image.fromarray(image).save(file)
    assert before < 0.999
    assert reward([image], metadata=[{"references": [file]}]).scores[0] == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize("references", [None, [], {}, 3])
def test_metadata_without_references_is_refused(dino_folder, references):
    reward = get_reward("dino_similarity", model=dino_folder, device="cpu")
    with pytest.raises(RewardError, match="metadata 0 has references="):
        reward([noise(8, 8)], metadata=[{"references": references}])
    with pytest.raises(RewardError, match=r"'gone.png' cannot be read"):
        reward([noise(8, 8)], metadata=[{"references": "gone.png"}])


def test_the_rewards_conform(clip_folder, siglip_folder, dino_folder, hps):
    local = {"device": "cpu", "batch_size": 3}
    assert_conforms(get_reward("pickscore", model=clip_folder, **local))
    assert_conforms(get_reward("siglip_score", model=siglip_folder, **local))
    assert_conforms(get_reward("dino_similarity", model=dino_folder, **local))
    assert_conforms(get_reward("hps_v2", **hps[1]))


def test_a_folder_of_another_kind_or_none_is_refused(clip_folder, dino_folder, tmp_path):
    with pytest.raises(RewardError, match="is a model of the kind 'dinov2'; want 'clip'"):
        get_reward("pickscore", model=dino_folder, device="cpu")
    with pytest.raises(RewardError, match="is a model of the kind 'clip'; want 'siglip'"):
        get_reward("siglip_score", model=clip_folder, device="cpu")
    with pytest.raises(RewardError, match="cannot be loaded as a dinov2 model"):
        get_reward("dino_similarity", model=str(tmp_path), device="cpu")
    with pytest.raises(RewardError, match="there is no checkpoint"):
        get_reward("hps_v2", tower=tmp_path / "none.pt")
