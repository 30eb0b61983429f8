"""Prompt sets: the paper's numbers, and files that people write."""

import pytest

from ddpo_core import DDPOError, list_prompt_sets, prompt_set


def test_the_sizes_are_those_of_the_paper():
    sizes = {name: len(prompt_set(name).prompts) for name in list_prompt_sets()}
    assert sizes["simple_animals"] == 45
    assert sizes["animals_activities"] == 45 * 3
    assert sizes["counting"] == 45 * 9


@pytest.mark.parametrize("name", list_prompt_sets())
def test_prompts_are_unique_and_have_metadata(name):
    prompts, metadata = prompt_set(name)
    assert len(set(prompts)) == len(prompts) == len(metadata)


def test_articles_and_plurals_are_english():
    assert {"an ant", "a bee"} <= set(prompt_set("simple_animals").prompts)
    assert {"an octopus", "a unicorn"} <= set(prompt_set("unseen_animals").prompts)
    assert "a cat washing dishes" in prompt_set("animals_activities").prompts
    assert {"one mouse", "two mice", "nine foxes", "three wolves"} <= set(prompt_set("counting").prompts)


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
