"""A reward with a known bias: what it should say, and a growing share of what it should not.

    score = (1 - share) gold + share sign bias,      both in units of their spread over the first samples

The share is 0 for `ONSET` epochs and reaches `FULL` in epoch `END`: what is gamed, and from when on, is known
beforehand. With a share of 0 for ever it is the honest half of a matched pair.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

ONSET, END, FULL = 3, 10, 0.8


class KnownBias:
    """Counts the samples that it is asked about, and so knows the epoch: for one run, from its beginning."""

    def __init__(
        self,
        gold: Callable[[Tensor, Sequence[str]], Tensor],
        bias: Callable[[Tensor], Tensor] | None,
        *,
        sign: int,
        samples_per_epoch: int,
    ):
        """Join two rewards; without a bias, the gold one is all."""
        self.gold, self.bias, self.sign, self.samples_per_epoch = gold, bias, sign, samples_per_epoch
        self.asked = 0
        self.units: dict[str, tuple[Tensor, Tensor]] = {}

    def __call__(
        self, images: Tensor, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]
    ) -> tuple[Tensor, dict[str, list[float]]]:
        """Score a batch of samples."""
        share = self.share()
        self.asked += len(images)
        gold = self._in_units("gold", self.gold(images, prompts))
        if self.bias is None:
            return gold, {}
        return (1 - share) * gold + share * self.sign * self._in_units("bias", self.bias(images)), {}

    def share(self) -> float:
        """Return the share of the bias in the epoch that is being sampled."""
        epoch = self.asked // self.samples_per_epoch
        return FULL * min(1.0, max(0.0, (epoch - ONSET) / (END - ONSET)))

    def _in_units(self, name: str, scores: Tensor) -> Tensor:
        mean, std = self.units.setdefault(name, (scores.mean(), scores.std()))
        return (scores - mean) / std
