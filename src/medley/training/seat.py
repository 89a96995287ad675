"""This process among the ranks: which work is its own, and how ranks tell each other small things."""

from dataclasses import dataclass
from typing import Any

import torch.distributed as dist


@dataclass(frozen=True)
class Seat:
    """A rank of a training."""

    rank: int
    num_ranks: int

    def micro_batches(self, num_micro_batches: int) -> list[int]:
        """The micro-batches of every global batch that this rank computes."""
        assert num_micro_batches % self.num_ranks == 0
        return list(range(self.rank, num_micro_batches, self.num_ranks))

    def gather(self, value: Any) -> list[Any]:
        """What each rank says, by rank; every rank must call it. For small things: they are pickled."""
        if self.num_ranks == 1:
            return [value]
        values: list[Any] = [None] * self.num_ranks
        dist.all_gather_object(values, value)
        return values
