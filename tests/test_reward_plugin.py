"""The example plugins, built as wheels and installed into a fresh environment, are found by the command line."""

import json
import os
import site
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

EXAMPLES = [Path(__file__).parents[1] / "examples" / name for name in ("reward-plugin", "pyiqa-bridge")]


def run(*command, **options):
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def python(tmp_path_factory):
    """The interpreter of a new environment that has the examples' wheels and sees the packages of this one."""
    folder = tmp_path_factory.mktemp("fresh")
    venv.create(folder / "env", with_pip=False, symlinks=True)
    interpreter = folder / "env" / "bin" / "python"
    packages = Path(run(interpreter, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    ours = [path for path in site.getsitepackages() if Path(path).is_dir()]
    lines = [f"import site; site.addsitedir({path!r})\n" for path in ours]
    (packages / "ours.pth").write_text("".join(lines))
    for example in EXAMPLES:
        run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder, cwd=example)
    # A wheel of pure Python is installed by unpacking it: no network and no installer needed.
    wheels = list(folder.glob("*.whl"))
    assert len(wheels) == len(EXAMPLES)
    for wheel in wheels:
        zipfile.ZipFile(wheel).extractall(packages)
    return interpreter


def test_the_example_plugin_is_listed(python):
    listed = json.loads(run(python, "-m", "ddpo_cli", "rewards", "list", "--format", "json"))
    names = {reward["name"]: reward for reward in listed}
    assert {"colourfulness", "sharpness", "jpeg_compressibility"} <= set(names)
    assert names["colourfulness"]["distribution"] == "ddpo-photo-rewards"


def test_the_example_plugin_scores(python):
    code = (
        "import numpy as np; from ddpo_rewards import combine; "
        "reward = combine('colourfulness', '0.1*sharpness?size=16'); "
        "print(reward([np.full((32, 32, 3), 128, np.uint8)]).scores.tolist())"
    )
    assert json.loads(run(python, "-c", code)) == pytest.approx([0.0], abs=1e-3)


def test_the_example_plugin_can_be_disabled(python):
    environment = {**os.environ, "DDPO_REWARDS_DISABLE": "ddpo-photo-rewards"}
    listed = json.loads(run(python, "-m", "ddpo_cli", "rewards", "list", "--format", "json", env=environment))
    assert "colourfulness" not in {reward["name"] for reward in listed}


def test_a_scheme_reaches_the_plugin_that_resolves_it(python):
    code = (
        "from ddpo_rewards import RewardError, get_reward\n"
        "try: get_reward('pyiqa://musiq')\n"
        "except RewardError as error: print(error)"
    )
    # pyiqa itself is not installed here: its licence is for whoever wants it to accept.
    assert "reward 'pyiqa://musiq' needs pyiqa: pip install pyiqa" in run(python, "-c", code)


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_the_tests_of_an_example_plugin_pass(example):
    out = run(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", cwd=example)
    assert "passed" in out
