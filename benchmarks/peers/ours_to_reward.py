"""ddpo at the defaults of `ddpo train`, for so many seconds; leaves its LoRA behind. Started by `to_reward.py`."""

import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from work import jpeg_kilobytes

from ddpo_core import save_lora
from ddpo_core.runs.defaults import run_config
from ddpo_core.runs.events import Epoch
from ddpo_core.runs.loop import train
from ddpo_core.runs.parts import load_parts


def main(settings: str, folder: str, place: str, seed: int, seconds: float, every: float, reward: str) -> None:
    """Train until the time is over."""
    # The weights are those of `folder`; by its name the model brings its defaults.
    config = run_config({"epochs": 10_000, "seed": seed, "reward": [f"jpeg_{reward}"], "sample_every": 10_000})
    parts = load_parts(config)
    spent, due = 0.0, every
    with TemporaryDirectory() as run:
        for event in train(config, lambda *given: (jpeg_kilobytes(given[0], reward), {}), output=run, parts=parts):
            if not isinstance(event, Epoch):
                continue
            spent += event.seconds
            if spent >= due:
                due = spent + every
                _leave(Path(place, f"{spent:09.2f}"), event.state.params, parts.policy.lora_scale)
            if spent >= seconds:
                break


def _leave(path: Path, params: dict, scale: float) -> None:
    save_lora(path, params, scale=scale)
    next(path.iterdir()).rename(path.with_suffix(path.suffix + ".safetensors"))
    path.rmdir()


if __name__ == "__main__":
    main(*sys.argv[1:4], int(sys.argv[4]), float(sys.argv[5]), float(sys.argv[6]), sys.argv[7])
