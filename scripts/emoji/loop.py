"""One resumable training loop for the autoencoder, the denoiser and the judge."""

import json
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

Model = TypeVar("Model", bound=nn.Module)
_SAVE_EVERY, _LOG_EVERY = 250, 50


@dataclass(frozen=True)
class Recipe:
    """How long and how fast; the rate warms up, stays, and falls to zero over the last `cooldown` of the steps."""

    name: str
    num_steps: int
    batch_size: int
    learning_rate: float
    cooldown: float = 0.3
    average_decay: float = 0.998


def train(model: Model, loss_fn: Callable[[Model, np.random.Generator], Tensor], folder: Path, recipe: Recipe) -> Model:
    """Minimise `loss_fn` with AdamW, saving state to `folder`; a later call goes on from it.

    The batches of step n come from seed (1, n), so an interrupted training repeats nothing and skips nothing.
    Returns the model with the exponential moving average of its weights.
    """
    trained = [leaf for leaf in model.parameters() if leaf.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=recipe.learning_rate, betas=(0.9, 0.95), weight_decay=1e-4, fused=True)
    average = {name: value.detach().clone() for name, value in model.state_dict().items()}
    first = _load(folder / recipe.name, model, optimizer, average)
    started = time.monotonic()
    for step in range(first, recipe.num_steps):
        _set_rate(optimizer, recipe.learning_rate * _rate(step, recipe))
        torch.manual_seed(step)
        loss = loss_fn(model, np.random.default_rng((1, step)))
        loss.backward()
        nn.utils.clip_grad_norm_(trained, 5.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        _update_average(average, model, min(recipe.average_decay, (step + 1) / (step + 10)))
        if (step + 1) % _LOG_EVERY == 0:
            _log(folder / f"{recipe.name}.log", step + 1, loss.item(), time.monotonic() - started)
        if (step + 1) % _SAVE_EVERY == 0 or step + 1 == recipe.num_steps:
            _save(folder / recipe.name, model, optimizer, average, step + 1)
    model.load_state_dict(average)
    return model.eval()


def _rate(step: int, recipe: Recipe) -> float:
    left = (recipe.num_steps - step) / (recipe.cooldown * recipe.num_steps)
    return min(1.0, (step + 1) / 100, left)


def _set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate


@torch.no_grad()
def _update_average(average: dict[str, Tensor], model: nn.Module, decay: float) -> None:
    for name, value in model.state_dict().items():
        if value.is_floating_point():
            average[name].lerp_(value, 1 - decay)


def _save(
    folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, average: dict[str, Tensor], step: int
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    moments = {
        f"{kind}.{index}": state[kind].contiguous()
        for index, state in optimizer.state_dict()["state"].items()
        for kind in ("exp_avg", "exp_avg_sq")
    }
    for name, tensors in (("model", model.state_dict()), ("average", average), ("moments", moments)):
        save_file({key: value.contiguous() for key, value in tensors.items()}, folder / f"{name}.{step}.safetensors")
    aside = folder / "step.json.part"
    aside.write_text(json.dumps(step))
    os.replace(aside, folder / "step.json")
    for old in folder.glob("*.safetensors"):
        if f".{step}." not in old.name:
            old.unlink()


def _load(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, average: dict[str, Tensor]) -> int:
    if not (folder / "step.json").exists():
        return 0
    step = json.loads((folder / "step.json").read_text())
    model.load_state_dict(load_file(folder / f"model.{step}.safetensors"))
    average.update(load_file(folder / f"average.{step}.safetensors"))
    moments, state = load_file(folder / f"moments.{step}.safetensors"), optimizer.state_dict()
    count = sum(len(group["params"]) for group in state["param_groups"])
    state["state"] = {
        index: {"step": torch.tensor(float(step))}
        | {kind: moments[f"{kind}.{index}"] for kind in ("exp_avg", "exp_avg_sq")}
        for index in range(count)
    }
    optimizer.load_state_dict(state)
    return step


def _log(path: Path, step: int, loss: float, seconds: float) -> None:
    if not math.isfinite(loss):
        raise FloatingPointError(f"the loss of {path.stem} is {loss} at step {step}")
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as log:
        log.write(json.dumps({"step": step, "loss": round(loss, 5), "seconds": round(seconds, 1)}) + "\n")
