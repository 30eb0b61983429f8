"""The README's Python runs, and it documents every hook and every built-in reward as they are."""

import inspect
import re
from pathlib import Path

from ddpo_rewards import load_registry, plugins

README = (Path(__file__).parents[1] / "README.md").read_text()


def test_the_examples_run(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)  # one example writes a report
    blocks = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    names = {}
    for block in blocks:
        exec(block, names)
    assert len(blocks) == 9


def test_a_function_from_the_readme_is_a_reward(tmp_path, monkeypatch):
    from ddpo_rewards import get_reward
    from ddpo_rewards.testing import assert_conforms

    (block,) = re.findall(r"```python\n(# my_rewards.py.*?)```", README, flags=re.DOTALL)
    (tmp_path / "my_rewards.py").write_text(block)
    monkeypatch.syspath_prepend(tmp_path)
    assert_conforms(get_reward("my_rewards:redness?strength=2"))


def test_every_hook_is_documented_with_its_signature():
    hooks = {name: f for name, f in vars(plugins).items() if hasattr(f, "ddpo_rewards_spec")}
    assert len(hooks) == 3
    for name, function in hooks.items():
        assert f"`{name}({', '.join(inspect.signature(function).parameters)})`" in README


def test_every_built_in_reward_is_documented():
    for name in load_registry(disabled=["*"]).list_rewards():
        assert f"| `{name}` |" in README
