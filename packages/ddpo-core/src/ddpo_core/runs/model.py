"""Which model is the run's, and which epoch is the best by what is not optimised."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from statistics import fmean

from ddpo_core.checkpoint import list_checkpoints
from ddpo_core.gaming.measures import EVIDENCE, FAMILIARITY
from ddpo_core.gaming.rule import Observation, noise
from ddpo_core.runs.folder import CHECKPOINTS, find_checkpoint, find_run, read_model_record


def judged_epoch(observation: Observation) -> int:
    """Return the epoch whose model an observation speaks for.

    Held-out rewards are measured on the model after an epoch. What the initial policy sees are the samples of the
    epoch, which the model of the epoch before has drawn.

    Example:
        >>> judged_epoch(Observation(3, 0.0, {"judge": 0.5}, {}))
        3
        >>> judged_epoch(Observation(3, 0.0, {"prompt_evidence": 0.5, "familiarity": 2.0}, {}))
        2
    """
    return observation.epoch - (observation.held_out.keys() <= {EVIDENCE, FAMILIARITY})


def best_epoch(history: Sequence[Observation], *, saved: Collection[int] | None = None) -> int | None:
    """Return the best epoch by what is not optimised, as it was known at each moment; None where nothing was judged.

    What speaks for an epoch is the sum of its held-out rewards, or without any the evidence for the prompt. Epoch by
    epoch, the one that is judged is the best from then on, if it is no more than the noise below the highest so far:
    of epochs that noise cannot tell apart it is the last, the most trained. Decided in this order, the best is always
    one that could be saved when it was judged. The model before training is no candidate.

    Args:
        history: What was seen of the run; what was measured of other rewards than the latest is not compared.
        saved: Where given, only these epochs can be the best: those that have a checkpoint.

    Example:
        >>> seen = [Observation(i, 0.0, {"judge": value}, {}) for i, value in enumerate((0.4, 0.9, 0.5, 0.6, 0.0), 1)]
        >>> best_epoch(seen)
        2

    Source: Breiman et al. 1984, section 3.4.3 (the one-standard-error rule). Deviation: one standard deviation of the
        noise, and in order.
    """
    judging = [observation for observation in history if observation.held_out and judged_epoch(observation) > 0]
    alike = [seen for seen in judging if seen.held_out.keys() == judging[-1].held_out.keys()]
    best, values, errors = None, [], []
    for seen in alike:
        epoch, is_evidence = judged_epoch(seen), judged_epoch(seen) < seen.epoch
        values.append(seen.held_out[EVIDENCE] if is_evidence else _sum_of_rewards(seen.held_out))
        errors.append(seen.errors.get(EVIDENCE, 0.0))
        tolerance = fmean(errors) if is_evidence else noise(values) if len(values) > 1 else 0.0
        if values[-1] >= max(values) - tolerance and (saved is None or epoch in saved):
            best = epoch
    return best


def find_model(target: Path | None) -> tuple[Path, Path]:
    """Return a run and the checkpoint that is its model: `target` itself, or what model.json says of a run.

    Of a run that has not ended it is the last checkpoint.

    Raises:
        DDPOError: There is none.
    """
    if target is not None and target.absolute().parent.name == CHECKPOINTS:
        return find_checkpoint(target)
    run = find_run(target)
    epoch, saved = read_model_record(run).epoch, list_checkpoints(run)
    return (run, saved[epoch]) if epoch in saved else find_checkpoint(run)


def _sum_of_rewards(held_out: Mapping[str, float]) -> float:
    return sum(value for name, value in held_out.items() if name not in (EVIDENCE, FAMILIARITY))
