"""Which training rows, in which order: decided by (seed, epoch) alone, the same for every world size.

A global batch is a fixed list of `num_micro_batches` micro-batches of fixed content. Everything that mixes rows stays inside a micro-batch,
so ranks may share the micro-batches out in any way. Every row comes exactly once per epoch; the last global batch holds what is left.
"""

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np


def derive_seed(seed: int, *purpose: int | str) -> int:
    """A 63-bit seed for one purpose: the same on every machine and in every process, independent between purposes."""
    words = [seed, *(zlib.crc32(part.encode()) if isinstance(part, str) else part for part in purpose)]
    return int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0] >> np.uint64(1))


@dataclass(frozen=True)
class Plan:
    """The order of `num_rows` training rows in epochs, global batches and micro-batches."""

    num_rows: int
    micro_batch_size: int
    num_micro_batches: int
    seed: int

    @property
    def global_batch_size(self) -> int:
        """Rows in a full global batch."""
        return self.micro_batch_size * self.num_micro_batches

    @property
    def num_global_batches(self) -> int:
        """Global batches of one epoch."""
        return -(-self.num_rows // self.global_batch_size)

    def num_rows_in(self, global_batch: int) -> int:
        """Rows of one global batch; fewer than full only in the last."""
        return min(self.global_batch_size, self.num_rows - global_batch * self.global_batch_size)

    def rows(self, epoch: int, global_batch: int, micro_batch: int) -> np.ndarray:
        """Row numbers of one micro-batch, int64. In a short last global batch the rows are shared out evenly; some may get none."""
        start = global_batch * self.global_batch_size
        rows = epoch_order(self.num_rows, self.seed, epoch)[start : start + self.num_rows_in(global_batch)]
        return np.array_split(rows, self.num_micro_batches)[micro_batch]

    def step_seed(self, epoch: int, global_batch: int, micro_batch: int) -> int:
        """The seed of every random draw in one micro-batch's step (dropouts)."""
        return derive_seed(self.seed, "step", epoch, global_batch, micro_batch)

    def windows(self, start_global_batch: int, window_global_batches: int) -> Iterator[tuple[int, int]]:
        """(first, past the last) global batch of each window of an epoch; a late start only shortens the first window."""
        first = start_global_batch
        while first < self.num_global_batches:
            last = min((first // window_global_batches + 1) * window_global_batches, self.num_global_batches)
            yield first, last
            first = last


@lru_cache(maxsize=2)
def epoch_order(num_rows: int, seed: int, epoch: int) -> np.ndarray:
    """The permutation of all rows in one epoch (read-only)."""
    order = np.random.Generator(np.random.Philox(derive_seed(seed, "order", epoch))).permutation(num_rows)
    order.setflags(write=False)
    return order
