"""Popularity-aware sampling: rows of popular items come less often than once an epoch, those of rare ones more often."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class PopularitySampling:
    """Rows are drawn with a probability in proportion to (train count of their item) ** -exponent.

    train_items: the item of every train row. train_count_N: train rows of each item. exponent: 0 draws rows alike, 1 items.
    Instances are compared by identity, so that a plan's cached windows need not compare arrays.
    """

    train_items: np.ndarray
    train_count_N: np.ndarray
    exponent: float

    def draw(self, rows: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """As many rows, out of these, in random order: systematic resampling (Kitagawa 1996), so that a row comes as often as it is expected to,
        to within less than one."""
        cumulative = np.cumsum(self.train_count_N[self.train_items[rows]].astype(np.float64) ** -self.exponent)
        places = (generator.random() + np.arange(len(rows))) * (cumulative[-1] / len(rows))
        drawn = rows[np.minimum(np.searchsorted(cumulative, places, side="right"), len(rows) - 1)]
        generator.shuffle(drawn)
        return drawn

    def expected_count_N(self) -> np.ndarray:
        """How often each item is expected in an epoch, float32: what stands for its train count in the sampling-bias correction."""
        is_warm_N = self.train_count_N > 0
        share_N = np.where(is_warm_N, np.maximum(self.train_count_N, 1.0) ** (1.0 - self.exponent), 0.0)
        return (share_N * (self.train_count_N.sum() / share_N.sum())).astype(np.float32)
