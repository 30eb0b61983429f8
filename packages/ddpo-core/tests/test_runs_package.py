"""What the SDK of a run offers, and what looking at a run costs."""

import subprocess
import sys

import pytest

from ddpo_core import runs


def test_every_public_name_exists_and_none_is_hidden_by_a_module():
    assert runs.__all__ == dir(runs)
    found = {name: getattr(runs, name) for name in runs.__all__}
    assert [name for name, value in found.items() if type(value).__name__ == "module"] == []


def test_other_names_do_not():
    with pytest.raises(AttributeError, match="no attribute 'Trainer'"):
        runs.Trainer  # noqa: B018


def test_looking_at_runs_and_their_logs_imports_nothing_heavy():
    program = (
        "import sys\n"
        "from ddpo_core import runs\n"
        "runs.find_runs(); runs.read_metrics\n"
        "print([name for name in ('torch', 'diffusers', 'transformers', 'PIL') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
