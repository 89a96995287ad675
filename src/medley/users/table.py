"""Tables of learned rows, one row per user or item: how models ask for one, and the plain kind.

A table is a module: numbers of any shape → rows, the shape with the width behind it. Models take a maker, so that training can hand in tables
whose rows are shared out over its workers (`training/sharded_table.py`).
"""

from typing import Protocol

import torch
from torch import Tensor, nn


class MakeTable(Protocol):
    """Makes a table of `num_rows` rows."""

    def __call__(self, num_rows: int, width: int, deviation: float, is_random_N: Tensor | None = None) -> nn.Module:
        """deviation: standard deviation of the first values, 0 for zeros. is_random_N: rows outside it start at zero; None: all have random values."""


def dense_table(num_rows: int, width: int, deviation: float, is_random_N: Tensor | None = None) -> nn.Embedding:
    """The whole table in this process, a weight like any other."""
    table = nn.Embedding(num_rows, width)
    if deviation == 0:
        nn.init.zeros_(table.weight)
        return table
    nn.init.normal_(table.weight, std=deviation)
    if is_random_N is not None:
        with torch.no_grad():
            table.weight.mul_(is_random_N.unsqueeze(1))
    return table
