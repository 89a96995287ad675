"""Which rank owns which rows of a table, and the all-to-all that carries rows and gradients between those who read and those who own.

Rows are dealt out in blocks, in turn: rank r owns blocks r, r + R, … of R ranks. Neighbouring rows, such as the new ones of a grown catalogue, are
so the work of all ranks, and a block is one slice of a checkpoint. Gloo (torch 2.14) and NCCL both have all_to_all_single with uneven parts, for
the int64 and float32 that are sent here.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

MAX_BLOCK_ROWS = 8192
MIN_BLOCKS = 64
"""Of a table: smaller ones have smaller blocks, so that every rank owns some."""


@dataclass(frozen=True)
class RowOwners:
    """The blocks of a table of `num_rows` rows among `num_ranks` ranks, seen from `rank`. Blocks do not depend on the number of ranks."""

    num_rows: int
    rank: int
    num_ranks: int

    @property
    def block_rows(self) -> int:
        """Rows of a block; the last block may have fewer."""
        return min(MAX_BLOCK_ROWS, max(1, -(-self.num_rows // MIN_BLOCKS)))

    def blocks(self) -> Iterator[tuple[int, int, int]]:
        """This rank's blocks: number, first row, one past the last row. They stand behind each other in its memory."""
        for number in range(self.rank, -(-self.num_rows // self.block_rows), self.num_ranks):
            yield number, number * self.block_rows, min((number + 1) * self.block_rows, self.num_rows)

    @property
    def num_own(self) -> int:
        """Rows of this rank."""
        return sum(stop - start for _, start, stop in self.blocks())

    def owner_of(self, rows_P: Tensor) -> Tensor:
        """The rank of each row."""
        return rows_P // self.block_rows % self.num_ranks

    def place_of(self, rows_P: Tensor) -> Tensor:
        """Where its owner holds each row."""
        return rows_P // (self.block_rows * self.num_ranks) * self.block_rows + rows_P % self.block_rows


class Route:
    """The way from a rank's distinct rows to their owners and back; collective to make and to use, alone it costs nothing."""

    def __init__(self, owners: RowOwners, rows_P: Tensor):
        """rows_P: int64."""
        self.num_ranks = owners.num_ranks
        if self.num_ranks == 1:
            self.places = rows_P
            return
        rank_P = owners.owner_of(rows_P)
        self.order_P = torch.argsort(rank_P, stable=True)
        counts = torch.bincount(rank_P, minlength=self.num_ranks)
        asked = torch.empty_like(counts)
        dist.all_to_all_single(asked, counts)
        self.num_to, self.num_from = counts.tolist(), asked.tolist()
        self.places = owners.place_of(self.to_owners(rows_P))
        """rows that others, and this rank, ask this one for, as places in its memory; in the order of the ranks, each rank's rows once"""

    def to_owners(self, values: Tensor) -> Tensor:
        """Send one value (or row) per row asked for; returns those that this rank owns, beside `places`."""
        if self.num_ranks == 1:
            return values
        received = values.new_empty(sum(self.num_from), *values.shape[1:])
        dist.all_to_all_single(received, values[self.order_P], self.num_from, self.num_to)
        return received

    def from_owners(self, values: Tensor) -> Tensor:
        """Send back one row for each of `places`; returns those that this rank asked for, in its order."""
        if self.num_ranks == 1:
            return values
        received = values.new_empty(sum(self.num_to), *values.shape[1:])
        dist.all_to_all_single(received, values, self.num_to, self.num_from)
        return torch.empty_like(received).index_copy_(0, self.order_P, received)


def sum_by_row(rows: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Each row once, ascending, and the sum of its values."""
    distinct_P, places = torch.unique(rows, return_inverse=True)
    return distinct_P, values.new_zeros(len(distinct_P), values.shape[1]).index_add_(0, places, values)
