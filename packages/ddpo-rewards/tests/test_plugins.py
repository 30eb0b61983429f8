"""Plugins are found, loaded one by one, and kept apart; each plugin here is a real module on the import path."""

import sys
from importlib.metadata import EntryPoint

import pytest

from ddpo_rewards import Registry, RewardError
from ddpo_rewards.plugins import load_entry_points, load_plugins

GOOD = """
from ddpo_rewards import RewardSpec, hookimpl
@hookimpl
def register_rewards(register):
    register(RewardSpec(name={name!r}, factory="{module}:make"))
def make(*, scale: float = 1.0):
    return lambda images: [scale] * len(images)
"""
BUILTIN = EntryPoint("builtin", "ddpo_rewards.builtin", "ddpo_rewards")


class Distribution:
    """The one thing the loader asks of a distribution."""

    def __init__(self, name):
        self.name = name


@pytest.fixture
def write_plugin(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    written = []

    def write(module, code, distribution="their-dist", entry="plugin"):
        (tmp_path / f"{module}.py").write_text(code)
        written.append(module)
        point = EntryPoint(entry, module, "ddpo_rewards")
        vars(point)["dist"] = Distribution(distribution)
        return point

    yield write
    for module in written:
        sys.modules.pop(module, None)


def good(module, name):
    return GOOD.format(module=module, name=name)


@pytest.mark.parametrize(
    ("code", "complaint"),
    [
        ("import nothing_of_this_name", "ModuleNotFoundError"),
        ("1 / 0", "ZeroDivisionError"),
        ("def broken(:", "SyntaxError"),
        ("raise SystemExit(3)", "SystemExit"),
        ("from ddpo_rewards import hookimpl\n@hookimpl\ndef register_reward(register): ...", "unknown hook"),
        ("from ddpo_rewards import hookimpl\n@hookimpl\ndef register_rewards(registre): ...", "registre"),
        ("from ddpo_rewards import hookimpl\n@hookimpl\ndef register_rewards(register): 1 / 0", "ZeroDivision"),
        ("from ddpo_rewards import hookimpl\n@hookimpl\ndef register_rewards(register): register(3)", "RewardSpec"),
        (good("bad", "a b"), "name 'a b'"),
    ],
)
def test_a_broken_plugin_is_listed_with_its_error_and_breaks_nothing_else(write_plugin, code, complaint):
    entries = [
        write_plugin("first", good("first", "first"), "dist-a"),
        write_plugin("bad", code, "bad-dist"),
        write_plugin("last", good("last", "last"), "dist-b"),
    ]
    plugins = load_entry_points(entries)
    assert [spec.name for spec in plugins.rewards] == ["first", "last"]
    (failure,) = plugins.failures
    assert failure.plugin == "bad-dist:plugin"
    assert complaint in failure.error
    assert "\n" not in failure.error


def test_strictness_stops_at_the_first_failure(write_plugin):
    with pytest.raises(RewardError, match="plugin 'bad-dist:plugin' does not load: ZeroDivisionError"):
        load_entry_points([write_plugin("bad", "1 / 0", "bad-dist")], strict=True)


def test_the_environment_makes_loading_strict(monkeypatch, write_plugin):
    entry = write_plugin("bad", "1 / 0")
    monkeypatch.setattr("ddpo_rewards.plugins.entry_points", lambda group: [entry])
    assert len(load_plugins().failures) == 1
    monkeypatch.setenv("DDPO_REWARDS_STRICT", "1")
    with pytest.raises(RewardError, match="does not load"):
        load_plugins()


@pytest.mark.parametrize(
    "disabled", ["their-dist", "Their_Dist", "plugin", "their-dist:plugin", "*", "other,their.dist"]
)
def test_a_plugin_is_disabled_by_its_distribution_entry_or_both(monkeypatch, write_plugin, disabled):
    entry = write_plugin("mine", good("mine", "mine"))
    monkeypatch.setattr("ddpo_rewards.plugins.entry_points", lambda group: [entry])
    assert [spec.name for spec in load_plugins().rewards] == ["mine"]
    assert load_plugins(disabled=disabled.split(",")).rewards == ()
    monkeypatch.setenv("DDPO_REWARDS_DISABLE", disabled)
    assert load_plugins().rewards == ()


def test_disabling_everything_leaves_the_built_in_rewards():
    assert "jpeg_compressibility" in Registry(load_plugins(disabled=["*"])).list_rewards()


def test_two_distributions_with_the_same_entry_point_name_both_load(write_plugin):
    entries = [write_plugin("one", good("one", "one"), "dist-a"), write_plugin("two", good("two", "two"), "dist-b")]
    assert load_entry_points(entries).names == ("dist-a:plugin", "dist-b:plugin")


def test_two_rewards_of_one_name_are_an_error_that_names_both(write_plugin):
    registry = Registry(
        load_entry_points(
            [write_plugin("one", good("one", "sharp"), "dist-a"), write_plugin("two", good("two", "sharp"), "dist-b")]
        )
    )
    assert list(registry.list_rewards()) == ["dist-a/sharp", "dist-b/sharp"]
    with pytest.raises(RewardError, match="'dist-a/sharp' and 'dist-b/sharp'"):
        registry.get_reward("sharp")
    assert registry.get_reward("dist-b/sharp").spec.distribution == "dist-b"


def test_a_built_in_name_wins_over_a_plugin_of_that_name(write_plugin):
    vars(BUILTIN)["dist"] = Distribution("ddpo-rewards")
    plugin = write_plugin("mine", good("mine", "jpeg_compressibility"), "my-dist")
    registry = Registry(load_entry_points([plugin, BUILTIN]))
    assert registry.get_reward("jpeg_compressibility").spec.distribution == "ddpo-rewards"
    assert registry.get_reward("my-dist/jpeg_compressibility?scale=2").spec.distribution == "my-dist"
    assert "my-dist/jpeg_compressibility" in registry.list_rewards()


def test_a_plugin_that_failed_is_named_when_its_reward_is_asked_for(write_plugin):
    registry = Registry(load_entry_points([write_plugin("bad", "1 / 0", "sharp-dist")]))
    with pytest.raises(RewardError, match=r"'sharpness' is not installed.*sharp-dist:plugin failed: ZeroDivisionError"):
        registry.get_reward("sharpness")


RESOLVER = """
from ddpo_rewards import hookimpl
@hookimpl
def resolve_reward(ref, options):
    if ref.startswith("constant://"):
        return lambda images: [float(ref.removeprefix("constant://"))] * len(images)
    if ref.startswith("broken://"):
        raise OSError("no route")
"""


def test_a_plugin_resolves_its_own_scheme(write_plugin, pictures):
    registry = Registry(load_entry_points([write_plugin("resolver", RESOLVER)]))
    assert registry.get_reward("constant://2.5")(pictures).scores.tolist() == [2.5] * len(pictures)
    with pytest.raises(RewardError, match="no installed plugin resolves 'http'"):
        registry.get_reward("http://localhost")
    with pytest.raises(RewardError, match="cannot be resolved: OSError: no route"):
        registry.get_reward("broken://x")


def test_probes_are_registered_like_rewards(write_plugin):
    code = (
        "from ddpo_rewards import ProbeSpec, hookimpl\n"
        "@hookimpl\n"
        "def register_probes(register):\n"
        "    register(ProbeSpec(name='typo', factory='probes:make'))\n"
    )
    registry = Registry(load_entry_points([write_plugin("probes", code)]))
    assert registry.list_probes()["typo"].distribution == "their-dist"
