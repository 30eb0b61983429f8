"""How training reaches across processes: two collective functions, and the identity for one process."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Processes(NamedTuple):
    """The processes of a run as seen from one of them.

    - `average(tensors)`: the mean of each tensor over the processes.
    - `gather(tensor)`: the tensors of all processes, stacked along a new first axis in order of rank.
    """

    rank: int
    size: int
    average: Callable[[Sequence[Tensor]], Sequence[Tensor]]
    gather: Callable[[Tensor], Tensor]

    def owned(self, samples: int, updates: int) -> tuple[int, ...]:
        """List the global sample indices of this process: its equal share of every update, in order.

        Example:
            >>> SINGLE._replace(rank=1, size=2).owned(8, 2)
            (2, 3, 6, 7)
        """
        share = samples // (updates * self.size)
        return tuple(
            update * share * self.size + self.rank * share + place
            for update in range(updates)
            for place in range(share)
        )

    def collect(self, local: Tensor, updates: int) -> Tensor:
        """Put values of `owned` samples from all processes in global sample order.

        Example:
            >>> SINGLE.collect(torch.arange(4), 2)
            tensor([0, 1, 2, 3])
        """
        return self.gather(local.view(updates, -1)).transpose(0, 1).flatten()


SINGLE = Processes(0, 1, lambda tensors: tensors, lambda tensor: torch.unsqueeze(tensor, 0))
"""One process: nothing to average, nothing to gather."""
