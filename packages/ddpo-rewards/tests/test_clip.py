"""CLIP and the aesthetic head against open_clip itself, on a tiny tower of the same class with random weights."""

import gc
import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from ddpo_rewards import Reward, RewardError, RewardSpec, combine, get_reward, iter_scores
from ddpo_rewards.builtin.aesthetic import HEAD, AestheticScore, AffineHead, apply_head, load_head
from ddpo_rewards.builtin.clip_score import ClipScore, clipscore
from ddpo_rewards.compute import BatchSize
from ddpo_rewards.models import CLIP_TOWER, clip
from ddpo_rewards.reward import adapt
from ddpo_rewards.stream import iter_scores_of_each
from ddpo_rewards.testing import assert_conforms

open_clip = pytest.importorskip("open_clip")

SIZE = 32
CONFIG = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": SIZE, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}


def write_tower(folder, quick_gelu):
    """A checkpoint folder as open_clip reads it; both activations get the very same random weights."""
    torch.manual_seed(0)
    config = CONFIG | {"quick_gelu": quick_gelu}
    model = open_clip.CLIP(**config)
    folder.mkdir()
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    settings = {"mean": open_clip.OPENAI_DATASET_MEAN, "std": open_clip.OPENAI_DATASET_STD}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": settings}))
    return f"local-dir:{folder}", model.eval()


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return write_tower(tmp_path_factory.mktemp("towers") / "quick", quick_gelu=True)


@pytest.fixture
def tower(tiny):
    return clip.load_tower(tiny[0], None, device="cpu")


@pytest.fixture
def head():
    return AffineHead(torch.randn(16, generator=torch.Generator().manual_seed(1)), torch.tensor(5.0))


def reward_of(score, needs=()):
    spec = RewardSpec(name="tiny", factory="tiny:tiny", takes="pil", needs=frozenset(needs))
    return Reward(spec, adapt(score, "tiny"))


def noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def picture(height, width, seed=0):
    return Image.fromarray(noise(height, width, seed))


@pytest.mark.parametrize(
    ("height", "width"),
    [(512, 512), (224, 224), (300, 500), (501, 300), (225, 224), (224, 225), (80, 100), (37, 1000), (223, 227), (1, 1)],
)
def test_preprocessing_is_that_of_open_clip_exactly(tower, height, width):
    reference = open_clip.image_transform(224, is_train=False)(picture(height, width))
    cropped = np.asarray(clip.resize_and_crop(picture(height, width), size=224))
    ours = clip.normalise(tower, torch.tensor(cropped)[None].permute(0, 3, 1, 2).float().div(255))
    assert torch.equal(ours[0], reference)


def test_embeddings_are_those_of_open_clip(tower, tiny):
    images = [picture(40, 60, seed) for seed in range(5)]
    transform = open_clip.image_transform(SIZE, is_train=False)
    with torch.inference_mode():
        raw = tiny[1].encode_image(torch.stack([transform(image) for image in images]))
        texts = tiny[1].encode_text(open_clip.get_tokenizer(tiny[0])(["a cat", "a dog"]))
    expected = raw / raw.norm(dim=-1, keepdim=True)
    torch.testing.assert_close(clip.embed_images(tower, images, batch_size=BatchSize(2)), expected, atol=1e-6, rtol=0)
    expected = texts / texts.norm(dim=-1, keepdim=True)
    torch.testing.assert_close(
        clip.embed_texts(tower, ["a cat", "a dog"], batch_size=BatchSize(1)), expected, atol=1e-6, rtol=0
    )


def test_a_tower_with_plain_gelu_is_refused_for_it_would_score_otherwise(tmp_path, tiny):
    name, plain = write_tower(tmp_path / "plain", quick_gelu=False)
    with pytest.raises(RewardError, match="has GELU, but its weights need QuickGELU"):
        clip.load_tower(name, None, device="cpu")
    images = torch.rand(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert not torch.allclose(plain.encode_image(images), tiny[1].encode_image(images), atol=1e-4)


def test_open_clips_name_of_the_real_tower_has_quick_gelu():
    assert open_clip.get_model_config(clip.VIT_L_14)["quick_gelu"] is True
    assert not open_clip.get_model_config("ViT-L-14").get("quick_gelu", False)
    repository = open_clip.get_pretrained_cfg(clip.VIT_L_14, "openai")["hf_hub"].rstrip("/")
    assert CLIP_TOWER.source == f"hf://{repository}"


def test_one_tower_serves_both_rewards_and_goes_with_the_last(tiny, head):
    first = clip.load_tower(tiny[0], None, device="cpu")
    assert clip.load_tower(tiny[0], None, device="cpu") is first
    assert clip.load_tower(tiny[0], None, device="cpu", dtype="bfloat16") is not first
    key = (tiny[0], None, torch.device("cpu"), torch.float32)
    assert key in clip._TOWERS
    del first
    gc.collect()
    assert key not in clip._TOWERS


def test_half_precision_moves_an_embedding_little(tiny, tower):
    half = clip.load_tower(tiny[0], None, device="cpu", dtype="bfloat16")
    images = [picture(40, 60, seed) for seed in range(3)]
    fine, coarse = (clip.embed_images(t, images, batch_size=BatchSize(3)) for t in (tower, half))
    assert coarse.dtype == torch.float32
    torch.testing.assert_close(coarse, fine, atol=0.03, rtol=0)


def test_the_rewards_conform(tower, head):
    assert_conforms(reward_of(AestheticScore(tower, head, BatchSize(3))))
    assert_conforms(reward_of(ClipScore(tower, BatchSize(3)), needs=["prompts"]))


def test_a_clip_score_is_the_cosine_of_image_and_prompt(tower, pictures):
    prompts = ["a cat", "a dog", "a cat", "word " * 100]
    scores, info = reward_of(ClipScore(tower, BatchSize(2), describe=clipscore), needs=["prompts"])(pictures, prompts)
    images = clip.embed_images(tower, [Image.fromarray(one) for one in pictures], batch_size=BatchSize(4))
    texts = clip.embed_texts(tower, prompts, batch_size=BatchSize(4))
    assert scores == pytest.approx((images * texts).sum(-1).tolist(), abs=1e-6)
    assert info["clipscore"] == pytest.approx([2.5 * max(score, 0) for score in scores.tolist()], abs=1e-5)
    assert info["prompt_cut_off"] == [False, False, False, True]


def test_gradients_reach_the_images_and_are_the_slope_of_the_score(tower, head):
    reward = reward_of(AestheticScore(tower, head, BatchSize(4)))
    images = torch.rand(2, 3, 40, 48, generator=torch.Generator().manual_seed(0)).requires_grad_()
    direction = torch.randn(images.shape, generator=torch.Generator().manual_seed(1))
    (gradient,) = torch.autograd.grad(reward.differentiable(images).sum(), images)
    step = 1e-3
    with torch.no_grad():
        rise = reward.differentiable((images + step * direction).clamp(0, 1)).sum()
        fall = reward.differentiable((images - step * direction).clamp(0, 1)).sum()
    moved = ((images + step * direction).clamp(0, 1) - (images - step * direction).clamp(0, 1)).detach()
    assert float(rise - fall) == pytest.approx(float((gradient * moved).sum()), rel=0.05)


def test_a_cosine_is_differentiable_on_a_cpu_too(tower):
    reward = reward_of(ClipScore(tower, BatchSize(4)), needs=["prompts"])
    images = torch.rand(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0)).requires_grad_()
    scores = reward.differentiable(images, ["a cat", "a dog"])
    (gradient,) = torch.autograd.grad(scores.sum(), images)
    assert float(gradient.abs().max()) > 0
    # At the tower's own size nothing is resized, so both paths score alike but for the rounding to 8 bits.
    expected = reward(images.detach(), ["a cat", "a dog"]).scores
    assert scores.tolist() == pytest.approx(expected.tolist(), abs=5e-3)


def test_an_image_that_was_prepared_before_scores_the_same(tower, head):
    images = [noise(40, 60, seed) for seed in range(3)]
    for function in (AestheticScore(tower, head, BatchSize(3)), ClipScore(tower, BatchSize(3))):
        prompts = ["a cat"] * 3
        reward = reward_of(function, needs=["prompts"])
        prepared = [function.prepare(Image.fromarray(image)) for image in images]
        assert {image.size for image in prepared} == {(SIZE, SIZE)}
        assert reward(prepared, prompts).scores.tolist() == reward(images, prompts).scores.tolist()
        assert function.batch_size == 3
    assert ClipScore(tower, BatchSize(3)).prepare == AestheticScore(tower, head, BatchSize(3)).prepare  # done once


def test_rewards_with_one_tower_embed_an_image_once(tower, head, monkeypatch):
    images = [noise(40, 60, seed) for seed in range(5)]
    prompts = ["a cat", "a dog", "a cat", "a fox", "a cat"]
    rewards = [
        reward_of(AestheticScore(tower, head, BatchSize(8))),
        reward_of(ClipScore(tower, BatchSize(8), describe=clipscore), needs=["prompts"]),
    ]
    alone = [list(iter_scores(images, reward, prompts=prompts, batch_size=3)) for reward in rewards]
    embedded, encode = [], tower.model.encode_image
    monkeypatch.setattr(tower.model, "encode_image", lambda pixels: embedded.append(len(pixels)) or encode(pixels))
    together = list(iter_scores_of_each(images, rewards, prompts=prompts, batch_size=3))
    assert embedded == [3, 2]
    for scored, *own in zip(together, *alone, strict=True):
        assert [one.score for one in scored] == [one.score for one in own]
        assert [one.info for one in scored] == [one.info for one in own]
    broken = reward_of(ClipScore(tower, BatchSize(8), describe=lambda cosines: 1 / 0), needs=["prompts"])
    with pytest.raises(RewardError, match="'tiny' raised ZeroDivisionError"):
        list(iter_scores(images, broken, prompts=prompts))
    with pytest.raises(RewardError, match="'tiny' needs prompts"):
        list(iter_scores(images, rewards[1]))


def test_embeddings_may_take_part_in_a_gradient(tower):
    scale = torch.ones((), requires_grad=True)
    (scale * clip.embed_images(tower, [picture(40, 60)], batch_size=BatchSize(1))).sum().backward()
    assert scale.grad is not None


def test_the_differentiable_path_deviates_as_little_as_it_says(tower, test_data):
    astronaut = Image.open(test_data / "astronaut.png").convert("RGB")
    float_path = torch.tensor(np.asarray(astronaut))[None].permute(0, 3, 1, 2).float() / 255
    resized = torch.nn.functional.interpolate(float_path, (224, 224), mode="bicubic", antialias=True).clamp(0, 1)
    pillow = torch.tensor(np.asarray(clip.resize_and_crop(astronaut, size=224)))[None].permute(0, 3, 1, 2).float() / 255
    deviation = (clip.normalise(tower, resized) - clip.normalise(tower, pillow)).abs().max()
    assert 0 < float(deviation) <= 0.045


def test_a_sum_of_differentiable_rewards_is_differentiable(tower, head, pictures):
    part = reward_of(AestheticScore(tower, head, BatchSize(4)))
    images = torch.rand(2, 3, 40, 40).requires_grad_()
    total = combine((2.0, part)).differentiable(images)
    torch.testing.assert_close(total, 2 * part.differentiable(images))
    with pytest.raises(RewardError, match="has no differentiable path"):
        combine(part, "jpeg_compressibility").differentiable(images)


def layered(state, embeddings):
    for i in (0, 2, 4, 6, 7):
        embeddings = embeddings @ state[f"layers.{i}.weight"].double().T + state[f"layers.{i}.bias"].double()
    return embeddings[:, 0]


def test_the_published_head_equals_its_layers_in_float64(test_data):
    path = test_data / HEAD.filename
    assert hashlib.sha256(path.read_bytes()).hexdigest() == HEAD.sha256
    assert path.stat().st_size == HEAD.size
    state = torch.load(path, map_location="cpu", weights_only=True)
    directions = torch.randn(2000, 768, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    unit = directions / directions.norm(dim=-1, keepdim=True)
    ours = apply_head(load_head(path), unit.float())
    assert (ours.double() - layered(state, unit)).abs().max() < 4e-6
    # rewards.md: the norm of the weight is 17.9956 and the bias 5.2366, hence the range that the spec states.
    head = load_head(path)
    low, high = 5.2366 - 17.9956, 5.2366 + 17.9956
    assert (float(head.bias), float(head.weight.norm())) == pytest.approx((5.2366, 17.9956), abs=1e-4)
    assert get_spec("aesthetic").range == pytest.approx((low, high), abs=0.01)


def get_spec(name):
    from ddpo_rewards import list_rewards

    return list_rewards()[name]


def test_a_safetensors_copy_of_the_head_is_the_same_head(test_data, tmp_path):
    path = test_data / HEAD.filename
    save_file(torch.load(path, map_location="cpu", weights_only=True), tmp_path / "head.safetensors")
    assert torch.equal(load_head(tmp_path / "head.safetensors").weight, load_head(path).weight)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [(b"", "cannot be read as weights"), (b"text", "cannot be read as weights"), (None, "there is no file")],
)
def test_a_file_that_is_no_head_is_refused(tmp_path, content, complaint):
    path = tmp_path / "head.pth"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(RewardError, match=complaint):
        get_reward("aesthetic", head=path)


def test_a_pickle_in_the_place_of_a_head_is_not_run(tmp_path):
    class Trap:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    torch.save({"layers.0.weight": Trap()}, tmp_path / "head.pth")
    with pytest.raises(RewardError, match="cannot be read as weights"):
        get_reward("aesthetic", head=tmp_path / "head.pth")
    assert not (tmp_path / "ran").exists()


def test_other_layers_are_no_head(tmp_path):
    save_file({"linear.weight": torch.zeros(1, 768)}, tmp_path / "head.safetensors")
    with pytest.raises(RewardError, match="is no aesthetic head"):
        load_head(tmp_path / "head.safetensors")


def test_a_device_may_be_torchs_own(tower, tiny):
    assert clip.load_tower(tiny[0], None, device=torch.device("cpu"), dtype=torch.float32) is tower
    with pytest.raises(RewardError, match="no CLIP checkpoint"):  # the options are read before the file is
        get_reward("clip_score", device=torch.device("cpu"), tower=Path("none.safetensors"))


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"device": "toaster"}, "device='toaster' cannot be used"),
        ({"device": "cuda:99"}, "device='cuda:99' cannot be used"),
        ({"dtype": "int8", "device": "cpu"}, "dtype='int8' is not known"),
    ],
)
def test_a_wrong_device_or_dtype_is_refused_before_weights_are_read(tiny, options, complaint):
    with pytest.raises(RewardError, match=complaint):
        clip.load_tower(tiny[0], None, **options)


def test_a_checkpoint_that_does_not_exist_or_fit_is_refused(tmp_path, tiny):
    with pytest.raises(RewardError, match="no CLIP checkpoint"):
        get_reward("clip_score", tower=tmp_path / "none.safetensors")
    name, _ = write_tower(tmp_path / "other", quick_gelu=True)
    save_file({"x": torch.zeros(1)}, tmp_path / "other" / "open_clip_model.safetensors")
    with pytest.raises(RewardError, match="is no checkpoint for the CLIP tower"):
        clip.load_tower(name, None, device="cpu")
