"""Prompt sets: the paper's numbers, and files that people write."""

import inflect
import pytest

from ddpo_core import (
    DDPOError,
    PromptSet,
    as_prompt_set,
    describe_prompt_sets,
    draw_prompts,
    generator,
    list_prompt_sets,
    prompt_set,
)


def test_the_sizes_are_those_of_the_paper():
    sizes = {name: len(prompt_set(name).prompts) for name in list_prompt_sets()}
    assert sizes["simple_animals"] == 45
    assert sizes["animals_activities"] == 45 * 3
    assert sizes["counting"] == 45 * 9


@pytest.mark.parametrize("name", list_prompt_sets())
def test_prompts_are_unique_and_have_metadata(name):
    chosen = prompt_set(name)
    assert len(set(chosen.prompts)) == len(chosen.prompts) == len(chosen.metadata) == len(chosen)


def test_articles_and_plurals_are_english():
    assert {"an ant", "a bee"} <= set(prompt_set("simple_animals").prompts)
    assert {"an octopus", "a unicorn"} <= set(prompt_set("unseen_animals").prompts)
    assert "a cat washing dishes" in prompt_set("animals_activities").prompts
    assert {"one mouse", "two mice", "nine foxes", "three wolves"} <= set(prompt_set("counting").prompts)


@pytest.mark.parametrize("name", ["simple_animals", "unseen_animals", "unseen_objects"])
def test_articles_are_those_of_inflect(name):
    prompts = prompt_set(name).prompts
    assert prompts == tuple(inflect.engine().a(prompt.split(maxsplit=1)[1]) for prompt in prompts)


def test_training_and_unseen_prompts_do_not_meet():
    seen = {prompt for name in ("simple_animals", "animals_activities") for prompt in prompt_set(name).prompts}
    unseen = {prompt for name in list_prompt_sets() if "unseen" in name for prompt in prompt_set(name).prompts}
    assert not seen & unseen


def test_an_unknown_name_suggests_the_right_one():
    with pytest.raises(DDPOError, match="did you mean 'simple_animals'"):
        prompt_set("simple_animal")
    with pytest.raises(DDPOError, match=r"want one of simple_animals, .* or file:PATH"):
        prompt_set("xyz")


@pytest.mark.parametrize(
    ("name", "content", "metadata"),
    [
        ("p.txt", "\ufeffa cat\n\n  a dog \n", [{}, {}]),
        ("p.csv", 'prompt,count\na cat,1\n" a dog",2\n', [{"count": "1"}, {"count": "2"}]),
        ("p.jsonl", '{"prompt": "a cat", "n": 1}\n\n{"prompt": "a dog"}\n', [{"n": 1}, {}]),
    ],
)
def test_files_are_read(tmp_path, name, content, metadata):
    (tmp_path / name).write_text(content, encoding="utf-8")
    read = prompt_set(f"file:{tmp_path / name}")
    assert read.prompts == ("a cat", "a dog")
    assert list(read.metadata) == metadata


def test_a_file_may_say_how_often_each_is_drawn(tmp_path):
    (tmp_path / "p.csv").write_text("prompt,weight,n\na cat,3,x\na dog,1,y\n", encoding="utf-8")
    read = prompt_set(f"file:{tmp_path / 'p.csv'}")
    assert read.weights == (3.0, 1.0)
    assert read.metadata == ({"n": "x"}, {"n": "y"})


def test_weights_decide_how_often_each_is_drawn():
    chosen = PromptSet(("a", "b", "c", "d"), ({"n": 0}, {"n": 1}, {"n": 2}, {"n": 3}), (0.0, 3.0, 1.0, 0.0))
    drawn = draw_prompts(chosen, seed=0, epoch=0, indices=range(1000))
    # 1000 draws at 3/4: 750, give or take 4 standard deviations of sqrt(1000 * 3/16) = 13.7.
    assert abs(drawn.prompts.count("b") - 750) < 55
    assert set(drawn.prompts) == {"b", "c"}
    assert all(
        row["n"] == chosen.prompts.index(prompt) for prompt, row in zip(drawn.prompts, drawn.metadata, strict=True)
    )
    # A prompt is a function of seed, epoch and index alone.
    assert draw_prompts(chosen, seed=0, epoch=0, indices=[7]).prompts == drawn.prompts[7:8]


def test_without_weights_the_draws_are_what_they_always_were():
    numbers = as_prompt_set([str(number) for number in range(100)])
    drawn = draw_prompts(numbers, seed=3, epoch=2, indices=range(5)).prompts
    assert drawn == tuple(str(generator(3, "prompt", 2, index).integers(100)) for index in range(5))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: as_prompt_set("a cat"), r"got the text 'a cat' as prompts: want a list, \['a cat'\], or prompt_set"),
        (lambda: PromptSet(("a",), ()), "got 1 prompts and another number of metadata or weights"),
        (lambda: PromptSet(("a",), ({},), (1.0, 2.0)), "another number"),
        (lambda: PromptSet(("a",), ({},), (float("nan"),)), "want numbers at least 0, and one above 0"),
        (lambda: PromptSet(("a", "b"), ({}, {}), (-1.0, 2.0)), "want numbers at least 0"),
        (lambda: PromptSet(("a",), ({},), (0.0,)), "and one above 0"),
    ],
)
def test_what_cannot_be_prompts_is_one_clear_line(make, message):
    with pytest.raises(DDPOError, match=message):
        make()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.txt", b"", "holds no prompts"),
        ("p.txt", b"\xff\xfe\x00", "is malformed"),
        ("p.json", b"[]", "want a name that ends in .txt, .csv, .jsonl"),
        ("p.csv", b"text\na cat\n", "want a text under 'prompt'"),
        ("p.csv", b"prompt,n\na cat\n", "does not have one value per column"),
        ("p.csv", b"prompt\na cat,2\n", "does not have one value per column"),
        ("p.jsonl", b'{"prompt": 3}\n', "want a text under 'prompt'"),
        ("p.jsonl", b'["a cat"]\n', "want a text under 'prompt'"),
        ("p.jsonl", b"{\n", "is malformed"),
        ("p.csv", b"prompt,weight\na cat,often\n", "want a number under 'weight' in every row, or in none"),
        ("p.jsonl", b'{"prompt": "a cat", "weight": 1}\n{"prompt": "a dog"}\n', "want a number under 'weight'"),
        ("p.csv", b"prompt,weight\na cat,0\n", "want numbers at least 0, and one above 0"),
    ],
)
def test_bad_files_are_one_clear_line(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DDPOError, match=message) as caught:
        prompt_set(f"file:{tmp_path / name}")
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_one_clear_line(tmp_path):
    with pytest.raises(DDPOError, match="cannot be read: No such file"):
        prompt_set(f"file:{tmp_path / 'absent.txt'}")


@pytest.mark.parametrize("name", list_prompt_sets())
def test_what_is_said_of_a_set_is_so(name):
    known = describe_prompt_sets()[name]
    assert known.size == len(prompt_set(name))
    assert known.summary.rpartition(": ")[2] in prompt_set(name).prompts
