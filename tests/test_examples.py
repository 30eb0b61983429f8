"""Every example runs as its reader would run it, and does what its first line says."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from ddpo_core.emoji import pipeline_path

EXAMPLES = Path(__file__).parents[1] / "examples"


def run_example(name: str, folder: Path) -> str:
    done = subprocess.run([sys.executable, EXAMPLES / name], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def rewards(output: str) -> list[float]:
    return [float(found) for found in re.findall(r"reward +(-?[\d.]+)", output)]


def test_the_toy_example_learns_to_go_to_its_target(tmp_path):
    # Both Gaussians lie sqrt(2) from the target and spread by 0.3 in two dimensions: -2 - 2 * 0.09 = -2.18 at first.
    seen = rewards(run_example("toy.py", tmp_path))
    assert seen[0] == pytest.approx(-2.18, abs=0.3)
    assert seen[-1] > -0.6


def test_the_custom_loop_learns_like_fit(tmp_path):
    seen = rewards(run_example("custom_loop.py", tmp_path))
    assert seen[0] == pytest.approx(-2.18, abs=0.3)
    assert seen[-1] > -1.0


def test_every_custom_objective_learns(tmp_path):
    seen = rewards(run_example("custom_objective.py", tmp_path))
    assert len(seen) == 3
    assert min(seen) > -1.6


@pytest.mark.skipif(not (pipeline_path() / "model_index.json").is_file(), reason="the embedded model is not built")
def test_the_stable_diffusion_example_writes_what_it_says(tmp_path):
    seen = rewards(run_example("stable_diffusion.py", tmp_path))
    assert len(seen) == 4
    assert {entry.name for entry in tmp_path.iterdir()} == {"before.png", "after.png", "lora"}


@pytest.mark.skipif(not (pipeline_path() / "model_index.json").is_file(), reason="the embedded model is not built")
def test_the_notebook_trains_plots_shows_and_scores(tmp_path):
    notebook = tmp_path / "notebook.ipynb"
    notebook.write_bytes((EXAMPLES / "notebook.ipynb").read_bytes())
    done = subprocess.run(
        [sys.executable, "-m", "jupyter", "execute", "--inplace", notebook],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    outputs = [cell["outputs"] for cell in json.loads(notebook.read_text())["cells"] if cell["cell_type"] == "code"]
    told = "".join("".join(output.get("text", "")) for output in outputs[1] if output.get("name") == "stdout")
    assert re.findall(r"^epoch (\d)  reward -[12]\.\d", told, re.MULTILINE) == ["1", "2"]
    assert re.search(r"before -[12]\.\d+, after -[12]\.\d+: notebook-run/lora", told)
    pictures = [["image/png" in output.get("data", {}) for output in outputs[cell]] for cell in (2, 3)]
    assert pictures == [[True, True, False], [True]]
    (shown,) = [output for output in outputs[2] if output["output_type"] == "execute_result"]
    assert "".join(shown["data"]["text/html"]).count("data:image/png;base64,") == 2  # the curve, and before and after
    bars = "".join("".join(output["text"]) for output in outputs[1] if output.get("name") == "stderr")
    assert all(phase in bars for phase in ("evaluating", "sampling", "training"))


def test_the_notebook_is_kept_short_and_without_outputs():
    cells = json.loads((EXAMPLES / "notebook.ipynb").read_text(encoding="utf-8"))["cells"]
    assert len(cells) == 10
    assert all(not cell.get("outputs") and cell.get("execution_count") is None for cell in cells)


@pytest.mark.parametrize("example", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.name)
def test_examples_are_short(example):
    assert len(example.read_text(encoding="utf-8").splitlines()) < 60
