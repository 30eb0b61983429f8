"""Where rewards and trainer meet: the one place that knows both packages."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Any, NamedTuple

from ddpo_cli.errors import CLIError
from ddpo_rewards import Reward, combine, load_registry, parse_reference

if TYPE_CHECKING:
    from torch import Tensor

    from ddpo_core import EpochInfo, Monitor, Processes, TrainState
    from ddpo_core.runs.config import RunConfig

TEXT_SAMPLES = 8


@dataclass(frozen=True)
class RewardFunction:
    """A reward as the trainer calls it: `(images, prompts, metadata) -> (scores as a float32 tensor, info)`."""

    reward: Reward

    def __call__(
        self, images: "Tensor", prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]
    ) -> tuple["Tensor", Mapping[str, Sequence[Any]]]:
        """Score a batch."""
        import torch

        scores, info = self.reward(images, prompts, metadata)
        return torch.from_numpy(scores), info

    def state(self) -> dict[str, Any]:
        """Return what the reward has learnt, which is saved with the checkpoints."""
        return self.reward.state()

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Let the reward go on from what it had learnt."""
        self.reward.load_state(state)


class Judges(NamedTuple):
    """What a run is scored, judged and measured with."""

    reward_fn: RewardFunction
    held_out: Mapping[str, RewardFunction]
    """By reference; one that is the optimised reward is the same function, so that it is paid once."""
    kept: Mapping[str, RewardFunction]
    """What must not fall, likewise."""
    monitors: "tuple[Monitor, ...]"


def judges(config: "RunConfig") -> Judges:
    """Build the rewards and monitors that `config` names.

    Raises:
        RewardError: an unknown reward, options that it does not take, or an extra that is not installed.
        CLIError: a reward that reads metadata, which the prompts do not have.
    """
    from ddpo_core.runs.config import references

    reward_fn = RewardFunction(build_reward(config.reward))
    functions = {reference: reward_fn for reference in config.reward if len(config.reward) == 1}
    named = dict.fromkeys([*config.held_out, *references(config.keep)])
    functions |= {name: RewardFunction(build_reward([name])) for name in named if name not in functions}
    _check_metadata(config.prompts, [reward_fn, *functions.values()])
    held_out, kept = ({name: functions[name] for name in part} for part in (config.held_out, references(config.keep)))
    return Judges(reward_fn, held_out, kept, (text_monitor(),) if config.watch_text else ())


def build_reward(references: Sequence[str]) -> Reward:
    """Return the reward that `references` name: the one itself, or their weighted sum.

    Raises:
        RewardError: an unknown reward, or options that it does not take.
    """
    allow_local_modules(references)
    registry = load_registry()
    if len(references) == 1 and parse_reference(references[0]).weight == 1.0:
        return registry.get_reward(references[0])
    return combine(*references, registry=registry)


def allow_local_modules(references: Sequence[str]) -> None:
    """Let `module:attr` name a file in the working directory; last on the path, so that it shadows nothing."""
    refs = [parse_reference(text).ref for text in references]
    if any(":" in ref and "://" not in ref for ref in refs) and "" not in sys.path:
        sys.path.append("")


def text_monitor() -> "Monitor":
    """Measure the share of the first samples of an epoch that writing covers, and how much of the prompt it spells.

    Raises:
        RewardError: the extra `ddpo-rewards[ocr]` is not installed.
    """
    from ddpo_rewards.models.ocr import load_reader, read_text, text_area
    from ddpo_rewards.text_guard import prompt_overlap

    reader = load_reader()

    def measure(state: "TrainState", info: "EpochInfo", processes: "Processes") -> dict[str, float | None]:
        first = [place for place, index in enumerate(info.indices) if index < TEXT_SAMPLES]
        images, prompts = info.images[first], [info.prompts[place] for place in first]
        height, width = images.shape[2:]
        readings = read_text(images, reader=reader)
        areas = [text_area(reading.boxes, height=height, width=width) for reading in readings]
        overlaps = [prompt_overlap(reading.text, prompt) for reading, prompt in zip(readings, prompts, strict=True)]
        parts = processes.gather_json([areas, overlaps])
        everyones = ([value for part in parts for value in part[column]] for column in (0, 1))
        return dict(zip(("text_area", "text_overlap"), map(fmean, everyones), strict=True))

    return measure


def _check_metadata(prompts: str, functions: Sequence[RewardFunction]) -> None:
    from ddpo_core import list_prompt_sets, prompt_set

    needy = [function.reward.spec.name for function in functions if "metadata" in function.reward.spec.needs]
    if needy and not all(prompt_set(prompts).metadata):
        able = ", ".join(name for name in list_prompt_sets() if all(prompt_set(name).metadata))
        raise CLIError(
            f"reward {needy[0]!r} reads metadata, which the prompts {prompts!r} do not have; give --prompts {able}, or "
            "--prompts file:PATH of a .csv or .jsonl with further columns beside the prompt"
        )
