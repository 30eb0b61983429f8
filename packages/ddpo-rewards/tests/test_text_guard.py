import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageFont

from ddpo_rewards import Reward, RewardError, RewardResult, RewardSpec, combine, get_reward
from ddpo_rewards.testing import assert_conforms
from ddpo_rewards.text_guard import asks_for_text, masked_rescore, prompt_overlap, quoted_texts, spelling

WORDS = st.text("abcdefgh", min_size=1, max_size=8)


def written(word, size=64):
    image = Image.new("RGB", (size, size), "white")
    font = ImageFont.load_default(14)
    ImageDraw.Draw(image).text((size / 2, size / 2), word, font=font, anchor="mm", fill="black")
    return np.asarray(image)


def reward_of(score, name):
    return Reward(RewardSpec(name=name, factory=score, takes="arrays"), score)


def constant(value):
    return reward_of(lambda images, prompts, metadata: np.full(len(images), value, np.float32), "constant")


def black_ink():
    """Reward the share of black pixels: what writing adds in black on white."""
    return reward_of(
        lambda images, prompts, metadata: RewardResult(
            np.array([(image.max(axis=-1) < 64).mean() for image in images], np.float32), {}
        ),
        "ink",
    )


@pytest.mark.parametrize(
    ("text", "prompt", "expected"),
    [
        ("a tiger", "a tiger", 1.0),
        ("TIGER!", "a tiger", 1.0),
        ("ti ger", "a tiger", 1.0),  # split
        ("blackcat", "a black cat", 1.0),  # joined
        ("tigr", "a tiger", 4 / 5),  # one letter of five is missing
        ("tyger", "a tiger", 4 / 5),  # one is another
        ("cat", "a black cat", 3 / 8),  # 3 of the 5 + 3 letters
        ("cot", "a black cat", 0.0),  # 1 - 1/3 is below 0.7
        ("RESTAURANT", "an ant", 0.0),  # a word within another is not spelt out
        ("elephants", "an ant", 0.0),
        ("pancake", "a pan", 0.0),
        ("tigers", "a tiger", 1.0),  # but one last letter is forgiven
        ("want", "an ant", 0.0),
        ("anant", "an ant", 1.0),  # joined to other words of the prompt
        ("blakcat", "a black cat", 5 / 8 * 4 / 5),  # joined and misspelt: one of 5 letters; one of 3 is too many
        ("", "a tiger", 0.0),
        ("tiger", "", 0.0),
        ("to be", "to be", 2 / 2),  # only the filler "to" is left out, so "be" is all there is
        ("the", "the", 1.0),  # nothing but fillers: they count
    ],
)
def test_overlap_is_the_share_of_letters_spelt_out(text, prompt, expected):
    assert prompt_overlap(text, prompt) == pytest.approx(expected)


@given(st.lists(WORDS, min_size=1, max_size=5), st.text(max_size=12), st.text(max_size=12))
def test_a_prompt_spelt_out_overlaps_wholly_whatever_stands_around_it(words, before, after):
    prompt = " ".join(words)
    assert prompt_overlap(f"{before} {prompt} {after}", prompt) == 1


@given(st.text(max_size=30), st.text(max_size=30))
def test_overlap_lies_between_0_and_1(text, prompt):
    assert 0 <= prompt_overlap(text, prompt) <= 1


@pytest.mark.parametrize(
    "prompt",
    [
        'a sign that says "stop"',
        "a cake with “Ann” on it",
        "a mug labelled 'tea'",
        "the word love in gold",
        "A Poster for a film",
        "colourful letters",
        "a shirt with text",
        "graffiti on a wall",
    ],
)
def test_a_prompt_that_asks_for_text_is_known(prompt):
    assert asks_for_text(prompt)


@pytest.mark.parametrize("prompt", ["a tiger", "six tigers", "the dog's and the cats' ball", "a swordfish", "texture"])
def test_a_prompt_of_things_asks_for_no_text(prompt):
    assert not asks_for_text(prompt)


def test_spelling_the_prompt_out_costs_the_overlap_above_the_threshold():
    images = [written("tiger"), written("tiger"), written("")]
    prompts = ["a tiger", "a striped tiger", "a tiger"]
    scores, info = get_reward("text_penalty?threshold=0.2")(images, prompts)
    # Overlaps 1, 5 of 12 letters and 0; each less 0.2, and nothing below 0.
    assert info["ocr_overlap"] == pytest.approx([1, 5 / 12, 0])
    assert scores.tolist() == pytest.approx([-0.8, -(5 / 12 - 0.2), 0], abs=1e-6)
    assert [text.lower() for text in info["ocr_text"]] == ["tiger", "tiger", ""]
    assert info["text_area"][0] == info["text_area"][1] > 0.05
    assert info["text_area"][2] == 0


def test_the_weight_of_a_sum_is_the_strength_of_the_penalty():
    reward = combine(constant(5.0), "3*text_penalty?threshold=0.25")
    scores, info = reward([written("tiger"), written("")], ["a tiger", "a tiger"])
    assert scores.tolist() == pytest.approx([5 - 3 * 0.75, 5])
    assert info["text_penalty"] == [-0.75, 0]
    assert info["text_penalty.ocr_overlap"] == [1, 0]


def test_a_prompt_that_asks_for_text_costs_nothing():
    scores, info = get_reward("text_penalty")([written("tiger")] * 2, ["the word tiger", "a tiger"])
    assert scores.tolist() == pytest.approx([0, -0.7])
    assert info["asks_for_text"] == [True, False]


def test_the_penalty_keeps_the_contract_of_rewards():
    assert_conforms(get_reward("text_penalty"), images=[written(word) for word in ("cat", "", "five lions", "dog")])


@pytest.mark.parametrize("threshold", ["-0.1", "1.5", "nan"])
def test_a_threshold_that_is_no_share_is_refused(threshold):
    with pytest.raises(RewardError, match=r"want 0 to 1"):
        get_reward(f"text_penalty?threshold={threshold}")


def test_the_penalty_needs_prompts(pictures):
    with pytest.raises(RewardError, match="needs prompts"):
        get_reward("text_penalty")(pictures)


def test_blurring_the_text_lowers_a_reward_that_text_raises():
    differences = masked_rescore(black_ink(), [written(""), written("tiger"), written("horse")])
    assert differences[0] == 0
    assert (differences[1:] > 0.005).all()
    # The same ink, all of it gone: nothing of a thin letter is left black once it is blurred.
    assert differences[1:] == pytest.approx(black_ink()([written("tiger"), written("horse")]).scores)


def test_a_rescore_hands_on_the_prompts_of_the_images_that_are_rescored():
    seen = []

    def score(images, prompts, metadata):
        seen.append((list(prompts), list(metadata)))
        return np.zeros(len(images), np.float32)

    images, prompts = [written(""), written("tiger")], ["nothing", "a tiger"]
    masked_rescore(reward_of(score, "recorder"), images, prompts, [{"id": 0}, {"id": 1}])
    assert seen == [(["a tiger"], [{"id": 1}])] * 2


def test_a_constant_reward_owes_nothing_to_text():
    assert masked_rescore(constant(2.0), [written("tiger"), written("")]).tolist() == [0, 0]


@pytest.mark.parametrize(
    ("prompt", "quoted"),
    [
        ("a cat", []),
        ('a sign that says "open"', ["open"]),
        ('"one" and "two"', ["one", "two"]),
        ("a dog's ball and a cat's", []),
        ("a cake with 'Ann' on it", ["Ann"]),
        ("“open late”, «zu», „gut“", ["open late", "zu", "gut"]),
        ('an empty "" or a blank "  " or "!"', []),
        ('one mark " only', []),
    ],
)
def test_what_stands_in_quotation_marks_is_quoted(prompt, quoted):
    assert quoted_texts(prompt) == quoted


@pytest.mark.parametrize(
    ("text", "wanted", "expected"),
    [
        ("STOP", "stop", 1.0),
        ("please st op!", "STOP.", 1.0),  # blanks, case and punctuation are free
        ("stp", "stop", 3 / 4),
        ("shop", "stop", 3 / 4),
        ("stopping", "stop", 0.0),  # four letters too many; words count whole
        ("open late", "open", 1.0),
        ("oren lafe", "open late", 6 / 8),
        ("x", "stop", 0.0),
        ("", "stop", 0.0),
    ],
)
def test_spelling_counts_wrong_letters_by_hand(text, wanted, expected):
    assert spelling(text, wanted) == pytest.approx(expected)


@given(st.lists(WORDS, min_size=1, max_size=3), st.lists(WORDS, max_size=3))
def test_a_text_that_holds_what_is_wanted_spells_it(wanted, around):
    assert spelling(" ".join([*around, *wanted, *around]), " ".join(wanted)) == 1.0
    assert 0 <= spelling(" ".join(around), " ".join(wanted)) <= 1


def test_ocr_match_rewards_what_is_spelt_of_the_quotes():
    reward = get_reward("ocr_match")
    images = [written("tiger"), written("tiger"), written(""), written("tiger")]
    prompts = ['the word "Tiger"', 'the word "lion"', 'the word "tiger"', '"tiger" and "xyz"']
    scores, info = reward(images, prompts)
    # From tiger to lion: t, g and e are replaced and r goes, so d = 4 of 4 letters. Nothing of xyz is there.
    assert scores.tolist() == pytest.approx([1.0, 0.0, 0.0, 0.5])
    assert info["quoted"] == [["Tiger"], ["lion"], ["tiger"], ["tiger", "xyz"]]
    assert [text.lower() for text in info["ocr_text"]] == ["tiger", "tiger", "", "tiger"]
    assert_conforms(reward, images=images, prompts=prompts)
    assert_conforms(reward)
    with pytest.raises(RewardError, match="prompt 1, 'a cat', quotes no text"):
        reward(images[:2], [prompts[0], "a cat"])
