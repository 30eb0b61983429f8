"""Configuration mistakes are one readable line."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ddpo_core import DDPOError, FitConfig, parse_config


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"num_stesp": 10}, "'num_stesp' is not an option; did you mean 'num_steps'"),
        ({"zzz": 10}, "'zzz' is not an option; the options are num_steps, "),
        ({"num_steps": 0}, "num_steps=0: input should be greater than 0"),
        ({"num_steps": "many"}, "num_steps='many': input should be a valid integer"),
        ({"reward_workers": -1}, "reward_workers=-1: input should be greater than or equal to 0"),
        ({"samples_per_epoch": 10}, "updates_per_epoch=4 does not divide samples_per_epoch=10"),
        ({"samples_per_prompt": 5}, "samples_per_prompt=5 does not divide samples_per_epoch=64"),
        ({"num_steps": 0, "max_grad_norm": -1}, "num_steps=0: .*; max_grad_norm=-1: "),
    ],
)
def test_mistakes_are_one_clear_line(values, message):
    with pytest.raises(DDPOError, match=message) as caught:
        parse_config(FitConfig, values)
    assert "\n" not in str(caught.value)


KEYS = st.sampled_from([*FitConfig.model_fields, "other"])


# Hypothesis builds its table of characters on the first text that it draws, which is slow on a busy machine.
@settings(suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(KEYS, st.none() | st.text() | st.integers() | st.floats()))
def test_any_input_is_a_configuration_or_one_line(values):
    try:
        parse_config(FitConfig, values)
    except DDPOError as error:
        message = str(error)
    else:
        message = "a configuration"
    assert len(message.splitlines()) == 1


def test_every_option_is_described():
    assert all(field.description for field in FitConfig.model_fields.values())
