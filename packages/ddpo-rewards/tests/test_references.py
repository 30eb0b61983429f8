import pytest
from hypothesis import given
from hypothesis import strategies as st

from ddpo_rewards import RewardError, parse_reference
from ddpo_rewards.references import Reference

names = st.text("abcdefghijklmnopqrstuvwxyz_.:/-0123456789", min_size=1).filter(lambda name: not name.isspace())
values = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), max_size=20)
options = st.dictionaries(st.text("abcdefghijklmnopqrstuvwxyz_", min_size=1, max_size=8), values, max_size=3)


@given(names, st.floats(allow_nan=False, allow_infinity=False, width=16), options)
def test_a_reference_survives_being_written_and_read(name, weight, some_options):
    reference = Reference(name, weight, some_options)
    assert parse_reference(str(reference)) == reference


@given(st.text(max_size=40))
def test_any_text_is_a_reference_or_one_clear_line(text):
    try:
        message = parse_reference(text).ref
    except RewardError as error:
        message = str(error)
    assert message
    assert "\n" not in message


def test_a_weight_stands_before_the_star():
    assert parse_reference(" -0.5 * my_plugin:score ") == Reference("my_plugin:score", -0.5)


def test_a_star_in_an_option_is_no_weight():
    assert parse_reference("llava_vqa?question=2*3").options == {"question": "2*3"}


def test_an_endpoint_keeps_its_address():
    assert parse_reference("x?endpoint=http://h:1/v1").options == {"endpoint": "http://h:1/v1"}


def test_values_are_decoded_like_a_web_address():
    assert parse_reference("x?question=what+is%20this%26that").options == {"question": "what is this&that"}


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "names no reward"),
        ("2*", "names no reward"),
        ("two*x", "weight 'two'"),
        ("inf*x", "weight 'inf'"),
        ("*x", "weight ''"),
        ("a b", "has a blank in its name 'a b'"),
        ("x?quality", "unreadable options"),
        ("x?a=1&a=2", "an option twice"),
    ],
)
def test_a_wrong_reference_says_what_is_wrong(text, complaint):
    with pytest.raises(RewardError, match=complaint):
        parse_reference(text)
