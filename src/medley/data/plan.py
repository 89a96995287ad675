"""Which training rows, in which order: decided by (seed, epoch) alone, the same for every world size.

A global batch is a fixed list of `num_micro_batches` micro-batches of fixed content. Everything that mixes rows stays inside a micro-batch,
so ranks may share the micro-batches out in any way. Every row comes exactly once per epoch; the last global batch holds what is left.
With popularity-aware sampling (sampling.py) each window of the shuffle holds as many rows, drawn out of its own by their weights.

The shuffle has two levels, so that memory and the way to any position do not grow with the rows: 1. rows are cut into blocks of
`ROWS_PER_BLOCK` and the blocks are permuted; 2. the rows of each `BLOCKS_PER_WINDOW` blocks that follow one another are permuted as one.
Up to a window of rows the order is a uniform permutation.
"""

import zlib
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from medley.data.sampling import PopularitySampling

ROWS_PER_BLOCK = 2**13
"""Rows that stay in one window; prepared rows stand in time order, so small blocks spread each moment over the epoch. 2 billion rows have 244,141 blocks."""

BLOCKS_PER_WINDOW = 128
"""A window of 2^20 rows takes 8 MB and about 30 ms to permute; four times as many leave the processor's cache and take ten times as long."""


def derive_seed(seed: int, *purpose: int | str) -> int:
    """A 63-bit seed for one purpose: the same on every machine and in every process, independent between purposes."""
    # As a spawn key, not as further entropy: short entropy is padded with zeros, so that ("x",) and ("x", 0) would give one seed.
    words = tuple(zlib.crc32(part.encode()) if isinstance(part, str) else part for part in purpose)
    return int(np.random.SeedSequence(seed, spawn_key=words).generate_state(1, np.uint64)[0] >> np.uint64(1))


@dataclass(frozen=True)
class Plan:
    """The order of `num_rows` training rows in epochs, global batches and micro-batches."""

    num_rows: int
    micro_batch_size: int
    num_micro_batches: int
    seed: int
    sampling: PopularitySampling | None = None
    """None: every row exactly once per epoch"""

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
        rows = shuffled_rows(self.num_rows, self.seed, epoch, start, start + self.num_rows_in(global_batch), self.sampling)
        return np.array_split(rows, self.num_micro_batches)[micro_batch]

    def uniform_draw(self, epoch: int, global_batch: int, num_candidates: int, num_drawn: int) -> np.ndarray:
        """`num_drawn` different numbers below `num_candidates` (all, where there are no more), sorted, int64: one draw for a whole global batch."""
        generator = _generator(self.seed, "uniform", epoch, global_batch)
        return np.sort(generator.choice(num_candidates, min(num_drawn, num_candidates), replace=False, shuffle=False))

    def expected_count_N(self, train_count_N: np.ndarray) -> np.ndarray:
        """How often each item is expected in an epoch: its train count where rows come once each."""
        return train_count_N if self.sampling is None else self.sampling.expected_count_N()

    def step_seed(self, epoch: int, global_batch: int, micro_batch: int) -> int:
        """The seed of every random draw in one micro-batch's step (dropouts)."""
        return derive_seed(self.seed, "step", epoch, global_batch, micro_batch)


def shuffled_rows(num_rows: int, seed: int, epoch: int, start: int, stop: int, sampling: PopularitySampling | None = None) -> np.ndarray:
    """The row numbers at positions start…stop of one epoch's order, int64 (read-only). Touches only the windows that hold them."""
    _, starts = _block_order(num_rows, seed, epoch)
    first, last = np.searchsorted(starts, [start, stop - 1], side="right") - 1
    windows = ((int(window), _window(num_rows, seed, epoch, int(window), sampling)) for window in range(first, last + 1))
    parts = [rows[max(start - starts[window], 0) : stop - starts[window]] for window, rows in windows]
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


@lru_cache(maxsize=2)
def _block_order(num_rows: int, seed: int, epoch: int) -> tuple[np.ndarray, np.ndarray]:
    """The blocks in their order, and the position at which each window starts; the last block may be short and stands anywhere."""
    num_blocks = -(-num_rows // ROWS_PER_BLOCK)
    blocks = _generator(seed, "blocks", epoch).permutation(num_blocks)
    stops = np.cumsum(np.minimum(ROWS_PER_BLOCK, num_rows - blocks * ROWS_PER_BLOCK))
    return blocks, np.concatenate([[0], stops[BLOCKS_PER_WINDOW - 1 : num_blocks - 1 : BLOCKS_PER_WINDOW]])


@lru_cache(maxsize=4)  # the batches' window and, ahead of it, the one whose items are being fetched; a global batch may stand in two
def _window(num_rows: int, seed: int, epoch: int, window: int, sampling: PopularitySampling | None) -> np.ndarray:
    """The rows of one window in their order (read-only)."""
    blocks = _block_order(num_rows, seed, epoch)[0][window * BLOCKS_PER_WINDOW : (window + 1) * BLOCKS_PER_WINDOW]
    rows = (np.sort(blocks)[:, None] * ROWS_PER_BLOCK + np.arange(ROWS_PER_BLOCK)).ravel()
    rows = rows[: np.searchsorted(rows, num_rows)]
    generator = _generator(seed, "order", epoch, window)
    generator.shuffle(rows)
    if sampling is not None:
        rows = sampling.draw(rows, generator)
    rows.setflags(write=False)
    return rows


def _generator(seed: int, *purpose: int | str) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(derive_seed(seed, *purpose)))
