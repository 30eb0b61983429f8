"""What importing the package costs, and that its list of names is true."""

import pkgutil
import subprocess
import sys

import pytest

import ddpo_core

HEAVY = ("torch", "diffusers", "transformers", "peft", "numpy", "pydantic", "inflect")


def _loaded_by(statement):
    program = f"{statement}\nimport sys\nprint([name for name in {HEAVY!r} if name in sys.modules])"
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.strip()


def test_importing_the_package_imports_nothing_heavy():
    assert _loaded_by("import ddpo_core; dir(ddpo_core); ddpo_core.prompt_set") == "[]"


def test_that_test_can_fail():
    assert _loaded_by("import ddpo_core; ddpo_core.compute_advantages") == "['torch', 'numpy']"


def test_every_public_name_exists_and_is_listed_once():
    assert list(ddpo_core.__all__) == dir(ddpo_core)
    assert all(getattr(ddpo_core, name) is not None for name in ddpo_core.__all__)
    assert sorted(ddpo_core._HOMES) == dir(ddpo_core)


def test_no_public_name_is_that_of_a_module_which_would_take_its_place_once_imported():
    modules = {module.name for module in pkgutil.iter_modules(ddpo_core.__path__)}
    assert not modules & set(ddpo_core.__all__)


def test_other_names_do_not():
    with pytest.raises(AttributeError, match="no attribute 'DDPOTrainer'"):
        ddpo_core.DDPOTrainer  # noqa: B018
