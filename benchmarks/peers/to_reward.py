"""How long either trainer takes to the same gain of a reward on prompts and seeds that it was not trained on.

    python benchmarks/peers/to_reward.py runs/peers [--seeds 3] [--minutes 30] [--gain 0.10] [--trl defaults example]

`uv run nox -s peers -- --to-reward` makes TRL's environment as well. The embedded model, one reward (kilobytes of the
JPEG, more or fewer), one thread count: ddpo at the defaults of `ddpo train`, what is kept included; TRL's `DDPOTrainer`
at the defaults of `DDPOConfig` but for the steps, and at the numbers of its example script. Both leave their LoRA
behind every so many seconds, with the clock stopped. Each is then drawn here, as it was trained to draw (its steps, its
guidance), for the prompts of training on 64 seeds that neither saw, and compared with what the model drew so before.
Prints when the gain was reached and kept at the next look as well, and how many animals the judge recognises there. One
trainer at a time.
"""

import argparse
import json
import math
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from statistics import median

from work import TO_REWARD, TRL_SETTINGS, jpeg_kilobytes, model_folder

FIRST_SEED = 40_000


def main() -> None:
    """Run what is missing, and print the table."""
    options = _parse()
    folder = model_folder(options.results, "embedded")
    names = ["ours", *(f"trl-{settings}" for settings in options.trl)]
    for seed in range(options.seeds):
        for name in names if seed % 2 == 0 else names[::-1]:
            place = _place(options, name, seed)
            if not (place / "done").is_file():
                _train(name, seed, folder, place, options)
    print(_table(options, names, folder))


def _place(options: argparse.Namespace, name: str, seed: int) -> Path:
    return options.results / "to-reward" / f"{options.reward}-{name}-{seed}"


def _train(name: str, seed: int, folder: Path, place: Path, options: argparse.Namespace) -> None:
    place.mkdir(parents=True, exist_ok=True)
    is_ours = name == "ours"
    python = sys.executable if is_ours else str(options.results / "trl" / "bin" / "python")
    script = Path(__file__).with_name("ours_to_reward.py" if is_ours else "trl_to_reward.py")
    minutes = (is_ours and options.our_minutes) or options.minutes
    given = (name.removeprefix("trl-"), folder, place, seed, 60 * minutes, options.every, options.reward)
    environment = {**os.environ, "OMP_NUM_THREADS": str(options.threads), "HF_HUB_OFFLINE": "1"}
    print(f"{name}, seed {seed}: {minutes:g} minutes", file=sys.stderr, flush=True)
    with open(place / "log", "w", encoding="utf-8") as log:
        command = [python, script, *map(str, given)]
        done = subprocess.run(command, env=environment, stdout=log, stderr=log, check=False)
    if done.returncode:
        raise SystemExit(f"{name} failed: see {log.name}")
    (place / "done").touch()


def _look(name: str, place: Path, folder: Path, options: argparse.Namespace) -> list[dict]:
    """Draw with every LoRA that was left behind, and remember what came of it."""
    looks = []
    for lora in (None, *sorted(place.glob("*.safetensors"))):
        kept = place / f"{'base' if lora is None else lora.stem}.json"
        if not kept.is_file():
            kept.write_text(json.dumps(_draw(name, lora, folder, options)), encoding="utf-8")
        looks.append({"seconds": 0.0 if lora is None else float(lora.stem), **json.loads(kept.read_text("utf-8"))})
    return looks


def _draw(name: str, lora: Path | None, folder: Path, options: argparse.Namespace) -> dict[str, float]:
    from ddpo_core import NonFiniteError, evaluate, load_policy, prompt_set
    from ddpo_core.emoji.judge import recognised_share
    from ddpo_core.runs.compare import fixed_prompts

    steps, guidance = TO_REWARD["ours" if name == "ours" else "trl"]
    prompts = fixed_prompts(prompt_set("simple_animals"), options.samples)
    policy = load_policy(str(folder), lora=lora, guidance_scale=guidance, device="cpu")
    try:
        drawn = evaluate(
            policy,
            policy.params,
            lambda images, texts, metadata: (jpeg_kilobytes(images, options.reward), {}),
            prompts,
            num_steps=steps,
            seeds=range(FIRST_SEED, FIRST_SEED + options.samples),
            batch_size=16,
        )
    except NonFiniteError:  # what was trained has become NaN
        return {"reward": -math.inf, "recognised": 0.0}
    animals = [prompt.split(" ", 1)[1] for prompt in prompts.prompts]
    return {
        "reward": drawn.scores.double().mean().item(),
        "recognised": recognised_share(_judge(), drawn.images, animals),
    }


@cache
def _judge():
    from ddpo_core.emoji.judge import load_judge

    return load_judge()


def _reached(looks: list[dict], gain: float) -> dict | None:
    """Give the first look at which the gain is there, and at the next one still."""
    base = looks[0]["reward"]
    there = [look["reward"] - base >= gain * abs(base) for look in looks]
    for place, look in enumerate(looks):
        if all(there[place : place + 2]):
            return look
    return None


def _table(options: argparse.Namespace, names: list[str], folder: Path) -> str:
    lines = [
        f"| {options.reward}, {options.gain:+.0%} | seconds, each seed | recognised then | before | best gain |",
        "|---|---|---|---|---|",
    ]
    seconds: dict[str, list[float]] = {}
    for name in names:
        runs = [_look(name, _place(options, name, seed), folder, options) for seed in range(options.seeds)]
        found = [_reached(looks, options.gain) for looks in runs]
        seconds[name] = [look["seconds"] for look in found if look]
        told = ", ".join("not reached" if look is None else f"{look['seconds']:.0f}" for look in found)
        seen = ", ".join("" if look is None else f"{look['recognised']:.0%}" for look in found)
        before = runs[0][0]
        best = max((look["reward"] - before["reward"]) / abs(before["reward"]) for looks in runs for look in looks)
        lines.append(f"| {name} | {told} | {seen} | {before['recognised']:.0%} | {best:+.1%} |")
    ours = seconds.pop("ours")
    notes = [
        f"{name}: {median(others) / median(ours):.1f} times ours (median of those that reached it)"
        for name, others in seconds.items()
        if others and ours
    ]
    return "\n".join([*lines, "", *notes])


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, help="where models, the environment `trl` and the runs lie")
    parser.add_argument("--reward", choices=("compressibility", "incompressibility"), default="incompressibility")
    parser.add_argument("--gain", type=float, default=0.10, help="of the mean before training")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--minutes", type=float, default=30.0, help="of training, at most")
    parser.add_argument("--our-minutes", type=float, help="of ddpo, where fewer are enough; left out, as many")
    parser.add_argument("--every", type=float, default=10.0, help="seconds of training between two looks, at least")
    parser.add_argument("--samples", type=int, default=64, help="drawn at every look")
    parser.add_argument("--trl", nargs="+", choices=list(TRL_SETTINGS), default=list(TRL_SETTINGS))
    parser.add_argument("--threads", type=int, default=2)
    return parser.parse_args()


if __name__ == "__main__":
    main()
