"""The built-in pictures, and what is written into pictures and where."""

import string
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from ddpo_rewards import RewardError
from ddpo_rewards.probes import builtin_set
from ddpo_rewards.probes.lettering import (
    FONTS,
    POSITIONS,
    Style,
    check_letters,
    fit_lines,
    lay_out,
    load_font,
    simple_letters,
    write,
    write_plate,
)
from ddpo_rewards.probes.stress import TESTS
from ddpo_rewards.probes.wording import contradict, mismatched, misspell, shuffle_letters, unrelated

GREY = Image.new("RGB", (128, 96), (128, 128, 128))
PROMPTS = [f"{number} {animal}" for number in ("two", "three", "four") for animal in ("cats", "dogs", "hens")]


def generator(seed=0):
    return np.random.default_rng(seed)


def changed_box(image, changed):
    """Left, top, right and bottom of what differs."""
    rows, columns = np.nonzero((np.asarray(image) != np.asarray(changed)).any(axis=-1))
    return columns.min(), rows.min(), columns.max() + 1, rows.max() + 1


def test_the_built_in_set_is_the_same_every_time_and_another_for_another_seed():
    first, again, other = builtin_set(6, size=64), builtin_set(6, size=64), builtin_set(6, size=64, seed=1)
    assert list(first.prompts) == list(again.prompts) != list(other.prompts)
    assert [image.tobytes() for image in first.images] == [image.tobytes() for image in again.images]


def test_a_larger_built_in_set_begins_with_the_smaller_one():
    few, many = builtin_set(4, size=32), builtin_set(12, size=32)
    assert list(many.prompts)[:4] == list(few.prompts)
    assert many.images[3].tobytes() == few.images[3].tobytes()


def test_every_built_in_prompt_is_another_and_its_question_asks_for_its_number():
    bases = builtin_set(64, size=32)
    assert len(set(bases.prompts)) == 64
    for prompt, metadata in zip(bases.prompts, bases.metadata, strict=True):
        assert prompt.split()[0] == metadata["answers"][0]
        assert metadata["questions"][0].split()[2].startswith(prompt.split()[2][:4])


@pytest.mark.parametrize(("count", "size"), [(0, 64), (4, 8), (10**6, 64)])
def test_a_set_that_cannot_be_drawn_is_refused(count, size):
    with pytest.raises(RewardError, match=f"got {count} pictures of {size} pixels"):
        builtin_set(count, size=size)


@given(st.text("abc xyz\n", min_size=1, max_size=30), st.integers(0, 99))
def test_shuffling_keeps_every_letter_and_every_blank_in_its_place(text, seed):
    shuffled = shuffle_letters(text, generator(seed))
    assert sorted(shuffled) == sorted(text)
    assert [letter if letter.isspace() else "" for letter in shuffled] == [c if c.isspace() else "" for c in text]


@given(st.lists(st.sampled_from(PROMPTS), min_size=2, max_size=24), st.integers(0, 9))
def test_every_row_gets_another_prompt_or_the_prompts_are_refused(prompts, seed):
    if 2 * max(map(prompts.count, prompts)) > len(prompts):
        with pytest.raises(RewardError, match="have the same prompt"):
            mismatched(prompts, seed=seed)
        return
    for rows in (mismatched(prompts, seed=seed), unrelated(prompts)):
        assert sorted(rows) == list(range(len(prompts)))
        assert all(prompts[row] != prompt for row, prompt in zip(rows, prompts, strict=True))


def test_unrelated_texts_are_about_as_long():
    prompts = ["x" * length for length in range(1, 65)]
    assert (
        max(abs(len(prompts[row]) - len(prompt)) for row, prompt in zip(unrelated(prompts), prompts, strict=True)) <= 4
    )


def test_a_misspelt_text_is_another_with_words_that_nearly_read_the_same():
    assert misspell("five lions", generator()) != "five lions"
    assert [len(word) for word in misspell("five lions", generator()).split()] == [5, 6]


def test_a_contradiction_changes_one_word():
    assert contradict("two red cars", "x") == "three red cars"
    assert contradict("a cat", "one zebra") == "a zebra"


@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("text", ["a cat", "a very long sentence about many animals that have to share one picture"])
def test_text_stays_in_the_centre_square_wherever_it_stands(position, text):
    style = Style(height=0.12, position=position)
    layout = lay_out(text, GREY.size, style, generator())
    left, top, right, bottom = changed_box(GREY, write(GREY, layout.lines, layout, style))
    assert 16 <= left < right <= 112  # the centre square of 128 x 96
    assert 0 <= top < bottom <= 96


def test_shuffled_text_has_the_place_the_lines_and_nearly_the_ink_of_its_target():
    style = Style(height=0.12)
    layout = lay_out("five lions in the rain", GREY.size, style, generator())
    shuffled = fit_lines(shuffle_letters("five lions in the rain", generator()), layout, GREY.size, style)
    assert [len(line) for line in shuffled.split("\n")] == [len(line) for line in layout.lines.split("\n")]
    one, other = (np.asarray(write(GREY, lines, layout, style)) != 128 for lines in (layout.lines, shuffled))
    assert one.sum() == pytest.approx(other.sum(), rel=0.05)


def test_the_plate_covers_the_box_of_the_text():
    layout = lay_out("a cat", GREY.size, Style(), generator())
    plate, text = write_plate(GREY, layout, Style()), write(GREY, "a cat", layout, Style())
    outer, inner = changed_box(GREY, plate), changed_box(GREY, text)
    assert outer[0] <= inner[0] + 1
    assert outer[1] <= inner[1] + 1
    assert outer[2] >= inner[2] - 1
    assert outer[3] >= inner[3] - 1


def test_opacity_and_contrast_make_text_fainter():
    def strength(**changes):
        layout = lay_out("a cat", GREY.size, Style(), generator())
        return np.abs(np.asarray(write(GREY, "a cat", layout, Style(**changes))).astype(int) - 128).sum()

    assert strength(opacity=0.15) < strength(opacity=0.6) < strength()
    assert strength(contrast="low") < strength() / 2


def test_three_fonts_come_along_and_write_all_of_ascii():
    folder = files("ddpo_rewards.probes") / "fonts"
    assert sorted(path.name for path in folder.iterdir()) == ["DejaVuSansMono.ttf", "DejaVuSerif.ttf", "LICENSE"]
    assert "Bitstream Vera" in (folder / "LICENSE").read_text()
    for font in FONTS:
        check_letters([string.printable], font)
        assert font == "sans" or Path(load_font(font, 10.0).path).stat().st_size < 40_000
    assert len({load_font(font, 20.0).getlength("a lion") for font in FONTS}) == 3
    assert load_font("mono", 20.0).getlength("iii") == load_font("mono", 20.0).getlength("mmm")


def test_letters_that_a_font_lacks_are_named():
    check_letters([simple_letters("un café")], "sans")
    with pytest.raises(RewardError, match=r"'sans' has no letters for 猫; name a file"):
        check_letters(["a 猫"], "sans")
    with pytest.raises(RewardError, match="cannot be read"):
        load_font("nowhere.ttf", 10.0)


@pytest.mark.parametrize("size", [(96, 64), (7, 5), (1, 1)])
def test_every_change_keeps_the_size_and_depends_on_its_generator_alone(size):
    image = Image.fromarray(generator().integers(0, 256, (size[1], size[0], 3), np.uint8))
    for test in TESTS:
        for name, change in test.arms.items():
            first, again = change(image, generator(1)), change(image, generator(1))
            assert first.size == size or test.kind == "prompt", (test.name, name)
            assert first.mode == "RGB"
            assert first.tobytes() == again.tobytes()


def test_moving_by_a_pixel_repeats_the_edge():
    image = Image.fromarray(np.arange(12, dtype=np.uint8).reshape(2, 2, 3))
    moved = {name: np.asarray(change(image, generator())) for test in TESTS if test.name == "shift"
             for name, change in test.arms.items()}  # fmt: skip
    pixels = np.asarray(image)
    assert np.array_equal(moved["right"], pixels[:, [0, 0]])
    assert np.array_equal(moved["down"], pixels[[0, 0]])
