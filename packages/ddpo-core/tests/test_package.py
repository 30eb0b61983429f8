"""What importing the package costs, and that its list of names is true."""

import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

import ddpo_core
from ddpo_core import FitConfig, adamw, ddpo_is, fit, init, toy

HEAVY = ("torch", "diffusers", "transformers", "peft", "numpy", "pydantic", "inflect")


def _loaded_by(statement):
    program = f"{statement}\nimport sys\nprint([name for name in {HEAVY!r} if name in sys.modules])"
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.strip()


def test_importing_the_package_and_making_prompts_imports_nothing_heavy():
    prompts = "assert len(ddpo_core.prompt_set('animals_activities')) == 135"
    assert _loaded_by(f"import ddpo_core; dir(ddpo_core); {prompts}") == "[]"


def test_that_test_can_fail():
    assert _loaded_by("import ddpo_core; ddpo_core.compute_advantages") == "['torch', 'numpy']"


def test_every_public_name_exists_and_is_listed_once():
    assert list(ddpo_core.__all__) == dir(ddpo_core)
    assert all(getattr(ddpo_core, name) is not None for name in ddpo_core.__all__)
    stub = Path(ddpo_core.__file__).with_name("__init__.pyi").read_text()
    assert sorted(re.findall(r" as (\w+)$", stub, re.MULTILINE)) == dir(ddpo_core)


def test_no_public_name_is_that_of_a_module_which_would_take_its_place_once_imported():
    modules = {module.name for module in pkgutil.iter_modules(ddpo_core.__path__)}
    assert not modules & set(ddpo_core.__all__)


def test_an_epoch_enters_nine_files_each_for_one_subject():
    policy, optimizer, entered = toy.policy(), adamw(1e-3), []
    epochs = fit(
        init(policy, optimizer, seed=0),
        policy=policy,
        optimizer=optimizer,
        reward_fn=toy.reward,
        prompts=["left", "right"],
        objective=ddpo_is(),
        config=FitConfig(num_steps=4, samples_per_epoch=8, updates_per_epoch=2),
    )
    home = Path(ddpo_core.__file__).parent

    def note(frame, event, _):
        file = Path(frame.f_code.co_filename)
        if event == "call" and file.is_relative_to(home) and file.stem not in entered:
            entered.append(file.stem)

    sys.setprofile(note)
    try:
        next(epochs)
    finally:
        sys.setprofile(None)
    # The toy stands where a model and its reward would stand.
    model = {"toy", "ddim"}
    path = [name for name in entered if name not in model]
    assert path[0] == "training"
    assert set(path[1:]) == {
        "sampling", "objectives", "random", "prompts", "rewards", "advantages", "losses", "optim"
    }  # fmt: skip


def test_other_names_do_not():
    with pytest.raises(AttributeError, match="no attribute 'DDPOTrainer'"):
        ddpo_core.DDPOTrainer  # noqa: B018
