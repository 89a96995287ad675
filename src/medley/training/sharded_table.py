"""A table whose rows are shared out over the ranks: it stands outside the engine, has no dense gradient, and no process holds it whole.

A look-up: 1. the distinct rows of the micro-batch; 2. their numbers to the owners, their values back (all-to-all); 3. the values become a leaf of
the graph, whose gradient is that of the rows read. Once a step: 4. the gradients of the rank's micro-batches are summed by row and sent to the
owners; 5. the owners sum what they got and update these rows alone (`row_update.py`). Only 2 and 4 talk to other ranks, and never within a
backward pass, where the engine talks. Every rank must call a table equally often and in the same order.
"""

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from medley.data.plan import derive_seed
from medley.training.row_exchange import Route, RowOwners, sum_by_row
from medley.training.row_update import ROW_STATES, RowOptimizer, update_rows
from medley.users.table import MakeTable


@dataclass(frozen=True)
class RowSlice:
    """Rows [first_row, first_row + len(values)) of a table's weight or of one of its states, float32. state: None for the weight."""

    state: str | None
    first_row: int
    values: Tensor


class ShardedTable(nn.Module):
    """`nn.Embedding` by rows. Its weight is float32 and no parameter: engines neither cast nor shard nor average it."""

    def __init__(
        self,
        owners: RowOwners,
        width: int,
        deviation: float,
        is_random_N: Tensor | None,
        *,
        optimizer: RowOptimizer,
        seed: int,
        device: torch.device,
        dtype: torch.dtype,
    ):
        """deviation, is_random_N: see `MakeTable`. First values follow from seed and row, not from the number of ranks. dtype: of what look-ups give."""
        super().__init__()
        self.owners = owners
        self.width = width
        self.optimizer = optimizer
        self.dtype = dtype
        self.weight_own = torch.zeros(owners.num_own, width, device=device)
        self.states_own = {name: torch.zeros(owners.num_own, 1 if is_one else width, device=device) for name, is_one in ROW_STATES[optimizer].items()}
        self.pending: list[tuple[Tensor, Tensor]] = []
        """rows read since the last step and the leaf with their values, one per look-up"""
        self.gradient: tuple[Tensor, Tensor] | None = None
        """between `collect` and `update`: places of own rows and their gradient"""
        if deviation > 0:
            self._randomise(deviation, is_random_N, seed)

    def _randomise(self, deviation: float, is_random_N: Tensor | None, seed: int) -> None:
        for (number, start, stop), own in zip(self.owners.blocks(), self._own_blocks(self.weight_own), strict=True):
            values = torch.empty(stop - start, self.width).normal_(std=deviation, generator=torch.Generator().manual_seed(derive_seed(seed, number)))
            own.copy_(values if is_random_N is None else values * is_random_N[start:stop].unsqueeze(1))

    def _own_blocks(self, tensor: Tensor) -> tuple[Tensor, ...]:
        return tensor.split([stop - start for _, start, stop in self.owners.blocks()])

    def forward(self, index: Tensor) -> Tensor:
        """Rows of any shape of numbers: its shape with the width behind it."""
        rows_P, places = torch.unique(index.long(), return_inverse=True)
        with torch.no_grad():
            route = Route(self.owners, rows_P)
            values_PD = route.from_owners(self.weight_own[route.places])
        if self.training and torch.is_grad_enabled():
            values_PD.requires_grad_()
            self.pending.append((rows_P, values_PD))
        return nn.functional.embedding(places, values_PD).to(self.dtype)

    @torch.no_grad()
    def collect(self, scale: float) -> Tensor:
        """End of a step: bring the gradients of all look-ups, times `scale` and summed over ranks, to the owners. Returns the sum of the squares of
        this rank's part, a scalar."""
        read = [(rows_P, values_PD.grad) for rows_P, values_PD in self.pending if values_PD.grad is not None]
        self.pending.clear()
        rows = torch.cat([rows_P for rows_P, _ in read]) if read else torch.zeros(0, dtype=torch.int64, device=self.weight_own.device)
        gradients = torch.cat([gradient_PD for _, gradient_PD in read]) if read else self.weight_own.new_zeros(0, self.width)
        rows_P, gradient_PD = sum_by_row(rows, gradients)
        route = Route(self.owners, rows_P)
        places, gradient = sum_by_row(route.places, route.to_owners(gradient_PD))
        self.gradient = places, gradient.mul_(scale)
        return gradient.square().sum()

    @torch.no_grad()
    def update(self, *, clip: float, learning_rate: float, weight_decay: float, num_steps: int) -> None:
        """Move the rows of the last `collect`, their gradient times `clip`."""
        assert self.gradient is not None, "collect first"
        places, gradient = self.gradient
        self.gradient = None
        values = {"learning_rate": learning_rate, "weight_decay": weight_decay}
        update_rows(self.optimizer, self.weight_own, self.states_own, places, gradient.mul_(clip), num_steps=num_steps, **values)

    def slices(self) -> Iterator[RowSlice]:
        """What this rank owns, block by block; views, so copy what must outlive the next step. All ranks' slices together are the whole table."""
        for state, tensor in ((None, self.weight_own), *self.states_own.items()):
            for (_, start, _), values in zip(self.owners.blocks(), self._own_blocks(tensor), strict=True):
                yield RowSlice(state, start, values)

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        """The whole weight in a world of one, as a dense table would have it; nothing where ranks hold parts."""
        if self.owners.num_ranks == 1:
            destination[prefix + "weight"] = self.weight_own

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *_: Any) -> None:
        """Own rows of a whole weight where there is one; from a checkpoint each rank reads its own slices instead (`engine_state.py`)."""
        if prefix + "weight" in state_dict:
            self.load_rows(state_dict[prefix + "weight"])

    def load_rows(self, weight: Tensor) -> None:
        """Take over the first len(weight) rows of a whole table; rows behind them stay as they are."""
        assert weight.shape[1] == self.width
        assert len(weight) <= self.owners.num_rows
        for own in self.slices():
            if own.state is None:
                part = weight[own.first_row : own.first_row + len(own.values)]
                own.values[: len(part)].copy_(part)


def make_sharded(optimizer: RowOptimizer, seed: int, rank: int, num_ranks: int, device: torch.device, dtype: torch.dtype) -> MakeTable:
    """A maker of the sharded tables of one model; their first values follow from the seed and from which of them is made first, second, …"""
    numbers = itertools.count()

    def make(num_rows: int, width: int, deviation: float, is_random_N: Tensor | None = None) -> ShardedTable:
        owners, own_seed = RowOwners(num_rows, rank, num_ranks), derive_seed(seed, "table", next(numbers))
        return ShardedTable(owners, width, deviation, is_random_N, optimizer=optimizer, seed=own_seed, device=device, dtype=dtype)

    return make
