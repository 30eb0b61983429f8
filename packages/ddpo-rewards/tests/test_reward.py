"""What a reward accepts, and what a bare callable may return."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from ddpo_rewards import Reward, RewardError, RewardSpec, get_reward, iter_scores, load_registry
from ddpo_rewards.reward import check_companions
from ddpo_rewards.testing import check_reward

REGISTRY = load_registry(disabled=["*"])


@pytest.fixture
def reward_of(tmp_path, monkeypatch):
    """Write a module with a function `score` and name it as a user would."""
    monkeypatch.syspath_prepend(tmp_path)

    def write(code, ref="their_reward:score", **options):
        (tmp_path / "their_reward.py").write_text(code)
        sys.modules.pop("their_reward", None)
        return REGISTRY.get_reward(ref, **options)

    yield write
    sys.modules.pop("their_reward", None)


def as_tensor(pictures):
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 255


@pytest.mark.parametrize(
    "signature",
    [
        "images",
        "images, prompts",
        "images, prompts, metadata",
        "x, y, z",
        "prompts, images",
        "*, images, k=3",
        "*data",
        "images, *rest",
    ],
)
def test_every_order_and_number_of_arguments_is_called_rightly(reward_of, pictures, signature):
    body = "images" if "images" in signature else "data[0]" if "data" in signature else "x"
    reward = reward_of(f"def score({signature}):\n    return {body}.mean((1, 2, 3))")
    expected = [picture.mean() / 255 for picture in pictures]
    assert reward(pictures, ["p"] * 4, [{}] * 4).scores == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    "returned", ["s", "s.numpy()", "s.tolist()", "(s, {'k': s})", "dict(scores=s, k=s)", "list(s)"]
)
def test_every_shape_of_answer_is_understood(reward_of, pictures, returned):
    reward = reward_of(f"def score(images):\n    s = images.mean((1, 2, 3))\n    return {returned}")
    scores, info = reward(pictures)
    assert scores.dtype == np.float32
    assert scores == pytest.approx([picture.mean() / 255 for picture in pictures], rel=1e-5)
    assert info.get("k", scores.tolist()) == pytest.approx(scores.tolist())


@pytest.mark.parametrize(
    ("returned", "complaint"),
    [
        ("'high'", "returned 'high'"),
        ("None", "returned None"),
        ("['a'] * 4", "returned .'a'"),
        ("3.0", "returned 3.0|shape"),
        ("[1.0] * 3", r"shape \[3\]; want 4 finite numbers"),
        ("[[1.0]] * 4", r"shape \[4, 1\]"),
        ("[1.0, float('nan'), 1.0, 1.0]", "returned nan for image 1"),
        ("[1.0, 1.0, float('inf'), 1.0]", "returned inf for image 2"),
        ("[1e300] * 4", "for image 0"),
        ("[1j] * 4", "want 4 finite"),
        ("{'score': [1.0] * 4}", "want a key 'scores'"),
        ("([1.0] * 4, {'caption': 'a cat'})", r"info\['caption'\] = 'a cat'; want 4 values"),
        ("([1.0] * 4, {'caption': ['a']})", "want 4 values"),
        ("(x for x in images)", "want 4 finite"),
        ("undefined_name", r"raised NameError: .*their_reward.py:2\)"),
    ],
)
def test_a_wrong_answer_is_one_line_that_names_the_reward(reward_of, pictures, returned, complaint):
    reward = reward_of(f"def score(images):\n    return {returned}")
    with pytest.raises(RewardError, match=complaint) as caught:
        reward(pictures)
    assert "'their_reward:score'" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_complaint_of_several_lines_becomes_one(reward_of, pictures):
    reward = reward_of("def score(images):\n    raise ValueError('first\\nsecond')")
    with pytest.raises(RewardError, match="first second"):
        reward(pictures)


def test_a_reward_that_is_interrupted_is_interrupted(reward_of, pictures):
    reward = reward_of("def score(images):\n    raise KeyboardInterrupt")
    with pytest.raises(KeyboardInterrupt):
        reward(pictures)


@pytest.mark.parametrize(
    ("code", "ref", "complaint"),
    [
        ("", "their_reward:score", "has no 'score'"),
        ("score = 3", "their_reward:score", "is 3; want a function"),
        ("class score:\n    pass", "their_reward:score", r"is a class; say 'their_reward:score\(\)'"),
        ("def score(): return None", "their_reward:score", r"a factory is named with \(\)"),
        ("def score(a, b, c, d): return None", "their_reward:score", r"takes \(a, b, c, d\)"),
        ("def score(texts, images): return None", "their_reward:score", "name its parameters"),
        ("def score(images, *, k: int = 3): return None", "their_reward:score?k=x", "option k='x' is not of type int"),
        ("def score(images, *, k: int = 3): return None", "their_reward:score?images=x", "no option 'images'"),
        ("def score(images, *, k): return None", "their_reward:score", "needs the option 'k'"),
        ("def score(k: int): return None", "their_reward:score()", "needs the option 'k'"),
        ("def score(): raise OSError('disk')", "their_reward:score()", "cannot be built: OSError: disk"),
        ("def score(): return 3", "their_reward:score()", "is 3; want a function"),
        ("import no_such_module", "their_reward:score", "raised ModuleNotFoundError: No module named 'no_such_module'"),
        ("raise SystemExit", "their_reward:score", "raised SystemExit"),
        ("def score(:", "their_reward:score", "raised SyntaxError"),
        ("", "no_such_module:score", "no module 'no_such_module'"),
        ("", ":score", "not of the form"),
        ("", "their_reward:", "not of the form"),
    ],
)
def test_a_reference_that_cannot_be_built_says_why(reward_of, code, ref, complaint):
    with pytest.raises(RewardError, match=complaint):
        reward_of(code, ref)


def test_a_module_in_the_current_folder_is_hinted_at(tmp_path, monkeypatch):
    (tmp_path / "local_reward.py").write_text("score = len")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RewardError, match="lies in the current folder"):
        REGISTRY.get_reward("local_reward:score")


def test_options_reach_a_factory_and_a_function_typed(reward_of, pictures):
    code = (
        "def make(scale: float, *, names: list[str] | None = None, on: bool = False):\n"
        "    assert on is True and isinstance(scale, float)\n"
        "    return lambda images: [scale] * len(images)\n"
        "def score(images, *, power: int = 1):\n"
        "    return [float(power)] * len(images)\n"
    )
    assert reward_of(code, "their_reward:make()?scale=2&on=true")(pictures).scores.tolist() == [2.0] * 4
    assert reward_of(code, "their_reward:score?power=3")(pictures).scores.tolist() == [3.0] * 4
    assert reward_of(code, "their_reward:score", power=4)(pictures).scores.tolist() == [4.0] * 4


@pytest.mark.parametrize("header", ["from __future__ import annotations", ""])
def test_options_are_typed_beside_annotations_for_type_checkers_only(reward_of, pictures, header):
    code = (
        f"{header}\n"
        "from typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n"
        "    from nowhere import Thing\n"
        "def make(*, scale: 'float' = 1.0, thing: 'Thing' = 3, other: 'Thing | None' = None) -> 'Thing':\n"
        "    assert thing == 4 and other == 'x'\n"
        "    return lambda images: [scale + 0.5] * len(images)\n"
    )
    reward = reward_of(code, "their_reward:make()?scale=2&thing=4&other=x")
    assert reward(pictures).scores.tolist() == [2.5] * 4


@pytest.mark.parametrize(
    ("forward", "needs"),
    [
        ("self, x", []),
        ("self, images", []),
        ("self, x, ref=None", []),
        ("self, images, prompts", ["prompts"]),
        ("self, prompts, images", ["prompts"]),
    ],
)
def test_a_module_is_called_as_its_forward_asks(reward_of, pictures, forward, needs):
    # torch's Module.__call__ takes (*args, **kwargs), whatever forward takes; hooks run only through __call__.
    image = "images" if "images" in forward else "x"
    code = (
        "import torch\n"
        "class Net(torch.nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.gain = torch.nn.Parameter(torch.ones(()))\n"
        "        self.register_forward_hook(lambda module, inputs, output: 2 * output)\n"
        f"    def forward({forward}):\n"
        f"        return self.gain * {image}.mean((1, 2, 3))\n"
        "net = Net()\n"
    )
    for ref in ("their_reward:net", "their_reward:Net()"):
        reward = reward_of(code, ref)
        assert sorted(reward.spec.needs) == needs
        expected = [2 * picture.mean() / 255 for picture in pictures]
        assert reward(pictures, ["p"] * 4).scores == pytest.approx(expected, rel=1e-5)


def test_a_reward_scores_without_autograd_and_the_callers_is_left_as_it_was(reward_of, pictures):
    code = "import torch\ndef score(images):\n    return [float(torch.is_grad_enabled())] * len(images)"
    assert reward_of(code)(pictures).scores.tolist() == [0.0] * 4
    assert torch.is_grad_enabled()


@pytest.mark.parametrize(
    ("signature", "needs"),
    [
        ("images", set()),
        ("images, prompts", {"prompts"}),
        ("images, prompts=None", set()),
        ("images, prompts, metadata", {"prompts", "metadata"}),
        ("images, *, metadata", {"metadata"}),
        ("x, texts", {"prompts"}),
        ("x, texts, facts=None", {"prompts"}),
        ("*data", set()),
    ],
)
def test_what_a_function_cannot_do_without_is_needed(reward_of, pictures, signature, needs):
    reward = reward_of(f"def score({signature}):\n    return [1.0] * 4")
    assert reward.spec.needs == needs
    for word in sorted(needs):
        given = {"prompts": ["p"] * 4, "metadata": [{}] * 4}
        given.pop(word)
        with pytest.raises(RewardError, match=f"needs {word}: pass one per image"):
            reward(pictures, **given)


@pytest.mark.parametrize(
    ("facts", "complaint"),
    [
        ({"needs": {"prompt"}}, r"needs 'prompt', which is neither prompts nor metadata; did you mean 'prompts'"),
        ({"needs": {"captions"}}, "needs 'captions'"),
        ({"range": (1.0, 0.0)}, r"range \(1.0, 0.0\)"),
        ({"range": (float("nan"), 0.0)}, "range"),
        ({"name": ""}, "has no name"),
        ({"factory": ""}, "has no factory"),
    ],
)
def test_a_description_that_makes_no_sense_is_refused(facts, complaint):
    with pytest.raises(RewardError, match=complaint):
        RewardSpec(**{"name": "x", "factory": "module:make", **facts})


def test_a_misspelt_form_of_images_is_refused_where_nothing_checks_types():
    code = "from ddpo_rewards import RewardSpec; RewardSpec(name='x', factory='a:b', takes='tensors')"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "reward 'x' takes 'tensors'; want tensor, arrays, pil or any" in run.stderr


def test_needs_may_be_any_set():
    assert RewardSpec(name="x", factory="module:make", needs={"prompts"}).needs == frozenset({"prompts"})


def test_images_of_several_sizes_come_back_in_order(reward_of, pictures):
    reward = reward_of("def score(images, prompts):\n    return images.mean((1, 2, 3)), {'p': prompts}")
    mixed = [pictures[0], pictures[1][:16], pictures[2], pictures[3][:16]]
    scores, info = reward(mixed, ["a", "b", "c", "d"])
    assert scores == pytest.approx([picture.mean() / 255 for picture in mixed], rel=1e-5)
    assert info == {"p": ["a", "b", "c", "d"]}


def test_every_form_of_image_scores_alike(pictures, tmp_path):
    reward = get_reward("jpeg_incompressibility")
    paths = [tmp_path / f"{i}.png" for i in range(len(pictures))]
    for path, picture in zip(paths, pictures, strict=True):
        Image.fromarray(picture).save(path)
    expected = reward(pictures).scores.tolist()
    forms = [
        np.stack(pictures),
        [Image.fromarray(picture) for picture in pictures],
        paths,
        [str(path) for path in paths],
        as_tensor(pictures),
        list(as_tensor(pictures)),
        as_tensor(pictures).double(),
        as_tensor(pictures).mul(255).byte(),
        list(as_tensor(pictures).mul(255).byte()),
    ]
    assert [reward(form).scores.tolist() for form in forms] == [expected] * len(forms)


def test_a_reward_of_pil_images_gets_them_whatever_the_caller_has(pictures, tmp_path):
    def corners(images, prompts, metadata):
        assert {image.mode for image in images} == {"RGB"}
        return [float(sum(image.getpixel((0, 0)))) for image in images]

    reward = Reward(RewardSpec(name="corners", factory="-:-", takes="pil"), corners)
    paths = [tmp_path / f"{i}.png" for i in range(len(pictures))]
    for path, picture in zip(paths, pictures, strict=True):
        Image.fromarray(picture).save(path)
    expected = [float(picture[0, 0].sum()) for picture in pictures]
    for form in (list(pictures), [Image.fromarray(picture) for picture in pictures], paths, as_tensor(pictures)):
        assert reward(form).scores.tolist() == expected
        if isinstance(form, list):
            assert [scored.score for scored in iter_scores(form, reward)] == expected
    many = paths * 40  # more than are read at once
    assert reward(many).scores.tolist() == expected * 40


@pytest.mark.parametrize("takes", ["tensor", "any"])
def test_bytes_reach_a_reward_of_tensors_as_floats(pictures, takes):
    spec = RewardSpec(name="bright", factory="-:-", takes=takes)
    reward = Reward(spec, lambda images, prompts, metadata: images.mean((1, 2, 3)))
    expected = [picture.mean() / 255 for picture in pictures]
    assert reward(as_tensor(pictures).mul(255).byte()).scores == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("takes", ["tensor", "arrays", "pil", "any"])
def test_whatever_a_reward_takes_a_wrong_tensor_is_refused(takes):
    spec = RewardSpec(name="bright", factory="-:-", takes=takes)
    reward = Reward(spec, lambda images, prompts, metadata: [0.0] * len(images))
    with pytest.raises(RewardError, match=r"if that is \[-1, 1\]"):
        reward(torch.zeros(2, 3, 8, 8) - 1)
    with pytest.raises(RewardError, match="permute"):
        reward(torch.zeros(2, 8, 8, 3))


@pytest.mark.parametrize(
    ("images", "complaint"),
    [
        ([], "there are no images"),
        (torch.zeros(0, 3, 8, 8), "there are no images"),
        (torch.zeros(3, 8, 8), r"one image is images\[None\]"),
        (torch.zeros(2, 8, 8, 3), r"images.permute\(0, 3, 1, 2\)"),
        (torch.zeros(2, 4, 8, 8), r"shape \[2, 4, 8, 8\]"),
        (torch.zeros(2, 3, 8, 0), r"shape \[2, 3, 8, 0\]"),
        (torch.zeros(2, 3, 8, 8).long(), "torch.int64"),
        (torch.zeros(2, 3, 8, 8) - 1, r"if that is \[-1, 1\]"),
        (torch.full((2, 3, 8, 8), 255.0), r"if that is \[0, 255\]"),
        (torch.full((2, 3, 8, 8), 1.1), "lie in"),
        (torch.full((2, 3, 8, 8), -300.0), r"images.clamp\(0, 1\)"),
        (torch.full((2, 3, 8, 8), float("nan")), "NaN or infinity"),
        (torch.full((2, 3, 8, 8), float("inf")), "NaN or infinity"),
        (np.zeros((8, 8, 3), np.uint8), r"one image is images\[None\]"),
        (np.zeros((2, 3, 8, 8), np.uint8), r"image.transpose\(1, 2, 0\)"),
        (np.zeros((2, 8, 8, 3), np.float32), "array of float32"),
        ([np.zeros((8, 8), np.uint8)], r"shape \[8, 8\]"),
        ([None], "NoneType"),
        ("a.png", "pass a list"),
        (Image.new("RGB", (8, 8)), "pass a list"),
        (7, "of type int"),
        (["no_such_file.png"], "'no_such_file.png' cannot be read"),
    ],
)
def test_wrong_images_are_refused_with_advice(images, complaint):
    with pytest.raises(RewardError, match=complaint):
        get_reward("jpeg_compressibility")(images)


@pytest.mark.parametrize(
    ("prompts", "metadata", "complaint"),
    [
        (["a"], None, "got 1 prompts for 4 images"),
        ("a cat", None, "want a list with one item per image"),
        ([1, 2, 3, 4], None, "want strings only"),
        (None, [{}], "got 1 metadata for 4 images"),
        (None, {}, "want a list with one item per image"),
        (None, ["a"] * 4, "want mappings only"),
    ],
)
def test_prompts_and_metadata_have_to_match_the_images(pictures, prompts, metadata, complaint):
    with pytest.raises(RewardError, match=complaint):
        check_companions(get_reward("jpeg_compressibility").spec, len(pictures), prompts, metadata)


def test_gradients_are_not_lost_in_silence(pictures):
    images = as_tensor(pictures).requires_grad_()
    with pytest.raises(RewardError, match="differentiable"):
        get_reward("jpeg_compressibility")(images)
    with pytest.raises(RewardError, match="has no differentiable path"):
        get_reward("jpeg_compressibility").differentiable(images)


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
def test_the_conformance_test_is_as_strict_at_every_scale(scale):
    # Scores a hundredth apart from what the same images score in a batch: wrong in whatever unit they are.
    spec = RewardSpec(name="bright", factory="-:-", range=(0.0, 0.4 * scale))
    reward = Reward(spec, lambda images, prompts, metadata: scale * (images.mean((1, 2, 3)) + 0.01 * len(images)))
    failed = {check.name for check in check_reward(reward) if not check.passed}
    assert failed == {"range", "batch invariance"}


@pytest.mark.parametrize("returned", [[0.0] * 4, torch.zeros(()), torch.zeros(4, 1)])
def test_differentiable_scores_are_one_per_image_too(pictures, returned):
    class Flat:
        def __call__(self, images, prompts, metadata):
            return [0.0] * 4

        def differentiable(self, images, prompts, metadata):
            return returned

    with pytest.raises(RewardError, match="want a tensor of 4 scores"):
        Reward(RewardSpec(name="flat", factory=Flat), Flat()).differentiable(as_tensor(pictures))


def test_a_plain_reward_keeps_no_state():
    reward = get_reward("jpeg_compressibility")
    assert reward.state() == {}
    reward.load_state({})
    with pytest.raises(RewardError, match="keeps no state"):
        reward.load_state({"count": 1})


@pytest.mark.parametrize("name", ["jpeg_compressibility", "jpeg_incompressibility"])
def test_the_jpeg_rewards_conform(name):
    assert all(check.passed for check in check_reward(get_reward(name)))


def test_the_conformance_test_holds_a_reward_to_its_stated_range():
    spec = RewardSpec(name="bright", factory="-:-", range=(0.0, 0.5))
    reward = Reward(spec, lambda images, prompts, metadata: images.mean((1, 2, 3)))
    (check,) = [check for check in check_reward(reward) if not check.passed]
    assert check.name == "range"
    assert "lies outside the stated [0, 0.5]" in check.message


@pytest.mark.parametrize(
    ("body", "failing"),
    [
        ("return [1.0]", "scores"),
        ("return range(len(images))", "order"),
        ("return images.mean((1, 2, 3)) - images.mean()", "batch invariance"),
        ("calls.append(0); return images.mean((1, 2, 3)) + len(calls)", "determinism"),
        ("return [1.0] * len(images) if len(images) > 1 else 'no'", "batch invariance"),
    ],
)
def test_the_conformance_test_finds_what_is_wrong(reward_of, body, failing):
    reward = reward_of(f"calls = []\ndef score(images):\n    {body}")
    failed = [check.name for check in check_reward(reward) if not check.passed]
    assert failing in failed
