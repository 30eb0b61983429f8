"""The judge of scenes: what prompts ask for, and how what is seen is compared with it."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from ddpo_core.emoji.judge import CLASSES
from ddpo_core.emoji.scene_judge import (
    ACTIVITY_CLASSES,
    MOST,
    Seen,
    agreement,
    described_by,
    load_scene_judge,
    recognise_scenes,
    split_logits,
)
from ddpo_core.emoji.words import ACTIVITIES, ANIMALS, UNSEEN_ACTIVITIES
from ddpo_core.prompts import prompt_set


class Says(nn.Module):
    """A judge that says the same of any pictures, one answer for each."""

    def __init__(self, *seen: Seen) -> None:
        super().__init__()
        self.seen = seen

    def forward(self, images):
        logits = torch.zeros(len(images), len(CLASSES) + len(ACTIVITY_CLASSES) + MOST + 1)
        for row, (word, activity, number) in zip(logits, self.seen, strict=True):
            row[CLASSES.index(word)] = 1
            row[len(CLASSES) + ACTIVITY_CLASSES.index(activity)] = 1
            row[len(CLASSES) + len(ACTIVITY_CLASSES) + number] = 1
        return logits


def pictures(count):
    return torch.zeros(count, 3, 64, 64)


@pytest.mark.parametrize(
    ("prompt", "asked_for"),
    [
        ("an octopus", Seen("octopus", None, 1)),
        ("a guitar", Seen("guitar", None, 1)),
        ("an ant washing dishes", Seen("ant", "washing dishes", 1)),
        ("a penguin flying a kite", Seen("penguin", "flying a kite", 1)),
        ("one fox", Seen("fox", None, 1)),
        ("five mice", Seen("mouse", None, 5)),
        ("nine sheep", Seen("sheep", None, 9)),
    ],
)
def test_a_prompt_says_what_is_wanted(prompt, asked_for):
    assert described_by(prompt) == asked_for


@pytest.mark.parametrize("name", ["simple_animals", "animals_activities"])
def test_every_prompt_of_the_emoji_presets_can_be_judged(name):
    wanted = [described_by(prompt) for prompt in prompt_set(name).prompts]
    assert {seen.word for seen in wanted} == set(ANIMALS)
    assert {seen.activity for seen in wanted} <= {None, *ACTIVITIES, *UNSEEN_ACTIVITIES}


@given(st.text())
def test_any_other_prompt_is_refused_with_what_was_wanted(prompt):
    with pytest.raises(ValueError, match="wanted a word, an animal with an activity or a number of animals"):
        described_by(prompt)


def test_each_answer_is_counted_by_itself_and_all_three_together():
    judge = Says(
        Seen("fox", "riding a bike", 1),  # all right
        Seen("wolf", "riding a bike", 1),  # the word is wrong
        Seen("fox", None, 3),  # all right
        Seen("dog", "playing chess", 2),  # everything is wrong
    )
    prompts = ["a fox riding a bike", "a fox riding a bike", "three foxes", "five cats"]
    assert agreement(judge, pictures(4), prompts) == (2 / 4, 3 / 4, 3 / 4, 2 / 4)


def test_the_answers_are_read_where_they_stand():
    seen = [Seen(CLASSES[-1], ACTIVITY_CLASSES[-1], MOST), Seen(CLASSES[0], None, 0)]
    assert recognise_scenes(Says(*seen), pictures(2)) == seen


@pytest.mark.parametrize(("images", "prompts"), [(2, ["a fox"]), (1, ["a fox", "a fox"]), (0, [])])
def test_pictures_and_prompts_come_in_pairs(images, prompts):
    with pytest.raises(ValueError, match=f"got {len(prompts)} prompts for {images} images"):
        agreement(load_scene_judge(), pictures(images), prompts)


def test_the_shipped_judge_is_frozen_and_says_the_same_of_a_picture_in_any_batch():
    judge = load_scene_judge()
    assert not any(leaf.requires_grad for leaf in judge.parameters())
    images = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(judge(images)[:1], judge(images[:1]))
    words, activities, numbers = split_logits(judge(images))
    assert (words.shape, activities.shape, numbers.shape) == ((3, 100), (3, 7), (3, 10))
