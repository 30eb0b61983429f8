"""`import ddpo_rewards` and listing stay light: a subprocess looks at what they import."""

import subprocess
import sys

import pytest

HEAVY = ("torch", "open_clip", "transformers", "bert_score", "matplotlib", "numpy", "PIL", "pydantic", "diffusers")


def imported_by(code):
    probe = f"import sys; {code}; print([m for m in {HEAVY!r} if m in sys.modules])"
    return subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True).stdout.strip()


def test_importing_the_package_imports_nothing_heavy():
    assert imported_by("import ddpo_rewards") == "[]"


def test_listing_rewards_and_parsing_a_reference_import_nothing_heavy():
    code = "import ddpo_rewards as r; assert r.list_rewards(); r.parse_reference('2*x?y=1')"
    assert imported_by(code) == "[]"


def test_scoring_jpeg_files_imports_no_torch(tmp_path):
    path = tmp_path / "a.png"
    code = (
        "import ddpo_rewards as r; from PIL import Image; "
        f"Image.new('RGB', (8, 8)).save({str(path)!r}); "
        f"assert r.get_reward('jpeg_compressibility')([{str(path)!r}]).scores[0] < 0"
    )
    assert "torch" not in imported_by(code)


@pytest.mark.parametrize("module", ["numpy", "PIL"])
def test_the_isolation_test_can_fail(module):
    assert imported_by(f"import {module}") != "[]"


def test_every_public_name_can_be_loaded():
    import ddpo_rewards

    assert all(getattr(ddpo_rewards, name) is not None for name in ddpo_rewards.__all__)
    assert set(ddpo_rewards.__all__) <= set(dir(ddpo_rewards))
    with pytest.raises(AttributeError, match="no attribute 'get_rewards'"):
        _ = ddpo_rewards.get_rewards
