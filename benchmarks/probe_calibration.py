"""Are the verdicts of probes calibrated? Coverage of intervals, false alarms at the limit, and power, by simulation.

    python benchmarks/probe_calibration.py --sets 300

Scores are simulated, no pictures: a harmless reward whose every change is exactly at its limit (0.25 sd), 37 arms as in
the stress suite, whose noise shares 30 % of its variance. `shift` is the hardest harmless reward: every change raises
every score by the same 0.25 sd, so that only the sd is unknown. Where prompts repeat, half of every variance belongs to
the prompt. `text` is the family of the typographic suite: 16 lifts at 0.25 sd and a controlled win rate of 0.10.

- coverage: how often a 95 % interval of one change contains the truth;
- false alarms: how often any of the arms is called susceptible; at most 5 % is wanted, 2.5 % is aimed at;
- power: how often one arm that raises the score by 1 sd is found among 36 that lower it by 0.3, with noise of 1 sd and
  of 0.5 sd.
"""

import argparse
from collections.abc import Callable
from functools import cache

import numpy as np

from ddpo_rewards.probes import (
    Comparison,
    Resampling,
    Verdict,
    choose_unit,
    compare,
    judge,
    judge_cell,
    mean_of,
    resample,
)
from ddpo_rewards.probes.statistics import beats

ARMS, LIMIT, WIN_LIMIT, SHARED, OF_PROMPT, DRAWS = 37, 0.25, 0.10, 0.3, 0.5, 1000
DESIGNS = ((8, 8), (16, 16), (48, 48), (64, 64), (100, 5))  # pictures, prompts
Noise = Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]
NOISES: dict[str, Noise] = {  # mean 0, variance 1
    "normal": lambda generator, shape: generator.standard_normal(shape),
    "skewed up": lambda generator, shape: generator.exponential(size=shape) - 1,
    "skewed down": lambda generator, shape: 1 - generator.exponential(size=shape),
    "heavy tails (t, 3)": lambda generator, shape: generator.standard_t(3, shape) / 3**0.5,
}


def simulate(
    generator: np.random.Generator, noise: Noise, pictures: int, prompts: int
) -> tuple[np.ndarray, np.ndarray]:
    """Clean scores `[pictures]` and noise of every arm `[pictures, ARMS]`, all of mean 0 and variance 1."""
    owners = np.arange(pictures) * prompts // pictures
    share = OF_PROMPT if prompts < pictures else 0.0

    def draw(columns: int) -> np.ndarray:
        own = noise(generator, (pictures, columns))
        return (1 - share) ** 0.5 * own + share**0.5 * noise(generator, (prompts, columns))[owners]

    return draw(1)[:, 0], SHARED**0.5 * draw(1) + (1 - SHARED) ** 0.5 * draw(ARMS)


def cells_of(clean: np.ndarray, changes: np.ndarray, resampling: Resampling):
    """The cells of one simulated suite."""
    unit = choose_unit(clean, [])
    assert unit is not None
    comparisons = [
        Comparison("arm", str(arm), "clean", clean + change, change, LIMIT) for arm, change in enumerate(changes.T)
    ]
    return compare(comparisons, unit, resampling)[0]


def measure(noise: Noise, pictures: int, prompts: int, sets: int, seed: int) -> list[float]:
    """Coverage, false alarms of noisy arms and of a mere shift, and power at noise 1 and 0.5."""
    generator = np.random.default_rng([seed, pictures, prompts])
    resampling = resample([str(row * prompts // pictures) for row in range(pictures)], pictures, draws=DRAWS, seed=seed)
    found = np.zeros((sets, 5))
    for number in range(sets):
        clean, errors = simulate(generator, noise, pictures, prompts)
        cells = cells_of(clean, LIMIT + errors, resampling)
        covered = [cell.change.low <= LIMIT <= cell.change.high for cell in cells]
        found[number, :2] = np.mean(covered), _alarms(cells)
        found[number, 2] = _alarms(cells_of(clean, np.full((pictures, 1), LIMIT), resampling))
        for place, size in ((3, 1.0), (4, 0.5)):
            effects = np.where(np.arange(ARMS) == 0, 1.0, -0.3) + size * errors
            found[number, place] = judge_cell(cells_of(clean, effects, resampling)[0]) is Verdict.susceptible
    return [float(value) for value in found.mean(axis=0)]


def measure_text(pictures: int, prompts: int, sets: int, seed: int) -> float:
    """False alarms of lifts and win rate together, all at their limits."""
    generator = np.random.default_rng([seed, pictures, prompts])
    names = [str(row * prompts // pictures) for row in range(pictures)]
    resampling = resample(names, pictures, draws=DRAWS, seed=seed)
    alarms = 0
    for _ in range(sets):
        clean, errors = simulate(generator, NOISES["normal"], pictures, prompts)
        wrong = simulate(generator, NOISES["normal"], pictures, prompts)[0] - 1
        right = clean[_partners(names, generator)]
        wins = beats(wrong + 0.3 * errors[:, 0] + boost(), right) - beats(wrong + 0.3 * errors[:, 1], right)
        lifts = [Comparison("text", str(arm), "", clean, LIMIT + errors[:, arm], LIMIT) for arm in range(2, 18)]
        unit = choose_unit(clean, [])
        assert unit is not None
        cells, others = compare(lifts, unit, resampling, {"wins": (mean_of(wins), WIN_LIMIT)})
        rate = others["wins"]
        alarms += _alarms(cells) or judge(rate.effect, rate.limit, rate.q) is Verdict.susceptible
    return alarms / sets


@cache
def boost() -> float:
    """How much text has to add for a controlled win rate of `WIN_LIMIT`, by bisection on a large sample."""
    wrong, right, one, other = np.random.default_rng(0).standard_normal((4, 400_000))
    margin = wrong - 1 + 0.3 * one - right
    low, high = 0.0, 2.0
    while high - low > 1e-4:
        middle = (low + high) / 2
        gained = (margin + middle > 0).mean() - (wrong - 1 + 0.3 * other - right > 0).mean()
        low, high = (middle, high) if gained < WIN_LIMIT else (low, middle)
    return low


def _partners(names: list[str], generator: np.random.Generator) -> np.ndarray:
    from ddpo_rewards.probes.wording import mismatched

    return np.array(mismatched(names, seed=int(generator.integers(2**31))))


def _alarms(cells) -> bool:
    return any(judge_cell(cell) is Verdict.susceptible for cell in cells)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", type=int, default=300, help="simulated suites per line")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    print("| pictures | prompts | noise | coverage | false alarms | of a shift | power, noise 1 sd | 0.5 sd |")
    print("|---|---|---|---|---|---|---|---|")
    for pictures, prompts in DESIGNS:
        for name, noise in NOISES.items():
            values = measure(noise, pictures, prompts, arguments.sets, arguments.seed)
            shown = " | ".join(f"{100 * value:.1f} %" for value in values)
            print(f"| {pictures} | {prompts} | {name} | {shown} |", flush=True)
    print("\n| pictures | prompts | false alarms of the text suite |\n|---|---|---|")
    for pictures, prompts in DESIGNS:
        rate = measure_text(pictures, prompts, arguments.sets, arguments.seed)
        print(f"| {pictures} | {prompts} | {100 * rate:.1f} % |", flush=True)


if __name__ == "__main__":
    main()
