"""A new plugin is a package that builds, installs, is found, and passes its own tests."""

import os
import subprocess
import sys
import zipfile

import pytest

from ddpo_rewards import RewardError, new_plugin


def run(*command, folder, **variables):
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, env={**os.environ, **variables})
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_new_plugin_builds_installs_and_is_found(tmp_path):
    path = new_plugin("My-reward", tmp_path)
    run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", folder=path)
    (wheel,) = (path / "dist").glob("my_reward-*.whl")
    # A wheel of pure Python is installed by unpacking it where Python looks.
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    code = (
        "import ddpo_rewards as r, sys; spec = r.list_rewards()['my_reward']; "
        "assert 'torch' not in sys.modules; print(spec.distribution); "
        "from ddpo_rewards.testing import assert_conforms; assert_conforms(r.get_reward('my_reward?gamma=2.2'))"
    )
    out = run(sys.executable, "-c", code, folder=tmp_path, PYTHONPATH=str(tmp_path / "site"))
    assert out.strip() == "my-reward"


def test_the_tests_of_a_new_plugin_pass(tmp_path):
    path = new_plugin("fresh", tmp_path)
    out = run(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", folder=path)
    assert "3 passed" in out


@pytest.mark.parametrize("name", ["", "1st", "a b", "../up", "a/b", "class", "naïve", "end-", "-start", "a\n"])
def test_a_name_that_is_no_package_name_is_refused(tmp_path, name):
    with pytest.raises(RewardError, match="is no name for a package"):
        new_plugin(name, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_what_exists_is_left_alone(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "work.txt").write_text("precious")
    with pytest.raises(RewardError, match="exists already"):
        new_plugin("mine", tmp_path)
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["work.txt"]


def test_a_folder_that_cannot_be_written_is_one_clear_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RewardError, match="cannot be written"):
        new_plugin("mine", tmp_path / "file")
