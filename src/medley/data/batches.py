"""Micro-batches: the plan's rows with their unique items, prepared once each and stacked per encoder."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from medley.data.histories import Histories
from medley.data.plan import Plan
from medley.data.pool import make_pool
from medley.data.prepared import PreparedData
from medley.data.reused_memory import ReusedMemory, flattened
from medley.encoders import Encoder, stack_inputs
from medley.schema import Batch, Pool

Stacked = tuple[dict[str, dict[str, Tensor]], dict[str, Tensor]]
"""Inputs per encoder over the items that have its modality (one dummy row when none has), and the presence masks over all of them."""


class ItemInputs(Protocol):
    """What encoders read, by item: a window's prepared items (below), or vectors of the whole catalogue (memory.py)."""

    def stack(self, item_index_U: np.ndarray, encoders: Mapping[str, Encoder]) -> Stacked:
        """The inputs of these items."""


@dataclass(frozen=True)
class Block:
    """One encoder's inputs of a window's items, all of one size: a row an item. Rows of items without the modality were never written."""

    row_of_item: Mapping[int, int]
    is_present_W: np.ndarray
    tensors: Mapping[str, Tensor]
    copies: Mapping[str, ReusedMemory]
    """where rows go that do not stand together"""

    def stack(self, item_index_U: np.ndarray) -> tuple[dict[str, Tensor], np.ndarray]:
        """Inputs of those of these items that have the modality, and which have. Rows that follow one another are a view, not a copy: other
        micro-batches may read the same memory, so nobody writes to it."""
        rows_U = np.array([self.row_of_item.get(item, -1) for item in item_index_U.tolist()])
        is_present_U = (rows_U >= 0) & self.is_present_W[rows_U]
        rows_P = rows_U[is_present_U]
        first = int(rows_P[0]) if len(rows_P) else 0
        if np.array_equal(rows_P, np.arange(first, first + len(rows_P))):
            return {name: tensor[first : first + len(rows_P)] for name, tensor in self.tensors.items()}, is_present_U
        return {name: self._copied(name, rows_P) for name in self.tensors}, is_present_U

    def _copied(self, name: str, rows_P: np.ndarray) -> Tensor:
        copy = self.copies[name].rows(len(rows_P))
        # "clip" writes straight into out; the rows are within the block.
        np.take(flattened(self.tensors[name]).numpy(), rows_P, axis=0, out=flattened(copy).numpy(), mode="clip")
        return copy


@dataclass(frozen=True)
class PreparedItems:
    """A window's prepared items."""

    items: dict[int, dict[str, Mapping[str, Tensor]]]
    """item index → encoder → input name → tensor, of the encoders that have no block"""
    blocks: dict[str, Block] = field(default_factory=dict)

    def stack(self, item_index_U: np.ndarray, encoders: Mapping[str, Encoder]) -> Stacked:
        """The inputs of these items; an item that is not here has no modality."""
        items = [self.items.get(item, {}) for item in item_index_U.tolist()]
        inputs, present = {}, {}
        for name, encoder in encoders.items():
            if name in self.blocks:
                stacked, is_present_U = self.blocks[name].stack(item_index_U)
                present[name] = torch.from_numpy(is_present_U)
                inputs[name] = stacked if is_present_U.any() else stack_inputs([encoder.dummy()])
            else:
                rows = [item[name] for item in items if name in item]
                present[name] = torch.tensor([name in item for item in items])
                inputs[name] = stack_inputs(rows or [encoder.dummy()])
        return inputs, present


@dataclass(frozen=True)
class BatchMaker:
    """Makes Batches from the plan: what is recomputed from the plan by the consumer, and what comes with the items."""

    data: PreparedData
    plan: Plan
    histories: Histories | None
    attributes_V: Mapping[str, Tensor]
    whole_catalogue: bool
    """True: every micro-batch holds all items (full softmax)"""
    num_uniform_negatives: int = 0
    """items that training sees, drawn uniformly by the plan for each global batch and put into all its micro-batches"""
    num_pooled_ranks: int = 1
    """ranks whose micro-batches share their items as negatives; 1: none do"""

    @classmethod
    def create(
        cls,
        data: PreparedData,
        plan: Plan,
        *,
        history_length: int,
        attribute_columns: Sequence[str],
        whole_catalogue: bool,
        num_uniform_negatives: int = 0,
        num_pooled_ranks: int = 1,
    ) -> "BatchMaker":
        """history_length 0: no histories."""
        train = data.train
        histories = Histories.of_train(train.users, train.items, train.timestamps, data.num_users, history_length) if history_length else None
        attributes_V = {name: torch.from_numpy(data.user_categories(name)) for name in attribute_columns}
        return cls(data, plan, histories, attributes_V, whole_catalogue, num_uniform_negatives, num_pooled_ranks)

    @cached_property
    def everything_N(self) -> np.ndarray:
        """All items."""
        return np.arange(self.data.num_items)

    @cached_property
    def warm_items(self) -> np.ndarray:
        """The items that training sees, sorted, int32: drawing others as negatives would let the split into training."""
        return np.flatnonzero(self.data.train_count_N > 0).astype(np.int32)

    def uniform_negatives(self, epoch: int, global_batch: int) -> np.ndarray:
        """The plan's draw for a global batch: items, sorted, int32."""
        if not self.num_uniform_negatives:
            return np.zeros(0, dtype=np.int32)
        return self.warm_items[self.plan.uniform_draw(epoch, global_batch, len(self.warm_items), self.num_uniform_negatives)]

    def windows(
        self, epoch: int, start_global_batch: int, micro_batches: Sequence[int], max_global_batches: int, max_items: int
    ) -> Iterator[tuple[int, int, list[np.ndarray]]]:
        """(first, past the last) global batch of each window of an epoch, and the unique items of each of its micro-batches, sorted, global batch by
        global batch: as many global batches as both limits allow, max_items of all together.

        A window has at least one global batch, and another one that brings no new item is never a reason to end it.
        """
        first, items, parts = start_global_batch, np.zeros(0, dtype=np.int64), list[np.ndarray]()
        for number in range(start_global_batch, self.plan.num_global_batches):
            own = [self.items_of(epoch, number, micro) for micro in micro_batches]
            together = self.everything_N if self.whole_catalogue else np.unique(np.concatenate([items, *own]))
            if number > first and (number - first >= max_global_batches or len(together) > max(max_items, len(items))):
                yield first, number, parts
                first, parts, together = number, [], self.everything_N if self.whole_catalogue else np.unique(np.concatenate(own))
            items = together
            parts += own
        if first < self.plan.num_global_batches:
            yield first, self.plan.num_global_batches, parts

    def items_of(self, epoch: int, global_batch: int, micro_batch: int) -> np.ndarray:
        """Unique items of a micro-batch, sorted."""
        if self.whole_catalogue:
            return self.everything_N
        return self._items_in(self.plan.rows(epoch, global_batch, micro_batch), self.uniform_negatives(epoch, global_batch))

    def _items_in(self, rows: np.ndarray, negatives: np.ndarray) -> np.ndarray:
        train = self.data.train
        items = np.concatenate([train.items[rows], negatives])
        if self.histories is not None:
            items = np.concatenate([items, *self.histories.before_rows(rows, train.users[rows])])
        # A rank without rows still runs every encoder: on item 0, whose rows weigh nothing.
        return np.unique(items) if len(items) else np.zeros(1, dtype=np.int32)

    def batch(self, place: tuple[int, int, int], inputs: ItemInputs, encoders: Mapping[str, Encoder]) -> Batch:
        """The micro-batch at (epoch, global batch, micro-batch). inputs: of its unique items at least."""
        rows = self.plan.rows(*place)
        train = self.data.train
        users, items = train.users[rows].astype(np.int64), train.items[rows].astype(np.int64)
        negatives = self.uniform_negatives(*place[:2])
        item_index_U = self.everything_N if self.whole_catalogue else self._items_in(rows, negatives).astype(np.int64)
        weights = train.weights[rows]
        values = train.values[rows]
        histories = self.histories.before_rows(rows, users) if self.histories is not None else []
        if len(rows) == 0:  # one padding row of weight 0
            users, items, weights, values = np.zeros(1, dtype=np.int64), item_index_U[:1], np.zeros(1, dtype=np.float32), np.zeros(1, dtype=np.float32)
            histories = [np.zeros(0, dtype=np.int32)] if self.histories is not None else []
        known_rows, known_items = self.data.train_lists.pairs(users)
        batch = self.assemble(place, users, items, item_index_U, weights, values, (known_rows, known_items), histories, inputs, encoders)
        if len(negatives):
            batch = replace(batch, uniform_negative_mask_U=torch.from_numpy(np.isin(item_index_U, negatives)))
        return replace(batch, pool=self._pool(place, items, item_index_U, known_rows, known_items)) if self.num_pooled_ranks > 1 else batch

    def _pool(self, place: tuple[int, int, int], items: np.ndarray, item_index_U: np.ndarray, known_rows: np.ndarray, known_items: np.ndarray) -> Pool:
        """The pool of the micro-batches that the ranks compute together: every num_pooled_ranks of the plan's that follow one another."""
        epoch, global_batch, micro_batch = place
        rank, negatives = micro_batch % self.num_pooled_ranks, self.uniform_negatives(epoch, global_batch)
        together = range(micro_batch - rank, micro_batch - rank + self.num_pooled_ranks)
        drawn = [np.union1d(self.data.train.items[self.plan.rows(epoch, global_batch, each)], negatives) for each in together]
        return make_pool(drawn, rank, items, item_index_U, known_rows, known_items)

    def user_batch(self, users: np.ndarray, inputs: ItemInputs, encoders: Mapping[str, Encoder]) -> Batch:
        """These users after training, with their last train items as histories: what evaluation scores."""
        histories = self.histories.at_end(users) if self.histories is not None else []
        item_index_U = np.unique(np.concatenate([np.zeros(1, dtype=np.int64), *histories])).astype(np.int64)
        num_rows, nothing = len(users), np.zeros(0, dtype=np.int64)
        zeros = np.zeros(num_rows, dtype=np.float32)
        targets = np.full(num_rows, item_index_U[0])
        return self.assemble((0, 0, 0), users.astype(np.int64), targets, item_index_U, zeros, zeros, (nothing, nothing), histories, inputs, encoders)

    def assemble(
        self,
        place: tuple[int, int, int],
        users: np.ndarray,
        items: np.ndarray,
        item_index_U: np.ndarray,
        weights: np.ndarray,
        values: np.ndarray,
        known: tuple[np.ndarray, np.ndarray],
        histories: Sequence[np.ndarray],
        inputs: ItemInputs,
        encoders: Mapping[str, Encoder],
    ) -> Batch:
        """Put the arrays of one micro-batch together; item_index_U is sorted and holds every item that the others name."""
        known_mask_BU = torch.zeros(len(users), len(item_index_U), dtype=torch.bool)
        known_rows, known_items = known
        place_N = np.full(self.data.num_items, -1, dtype=np.int32)
        place_N[item_index_U] = np.arange(len(item_index_U))
        places = place_N[known_items]
        is_here = places >= 0
        known_mask_BU.numpy()[known_rows[is_here], places[is_here]] = True
        history_position_BL, history_mask_BL = pad_histories(histories, item_index_U, len(users))
        stacked, present_mask_U = inputs.stack(item_index_U, encoders)
        user_index_B = torch.from_numpy(users)
        return Batch(
            place=place,
            user_index_B=user_index_B,
            item_position_B=torch.from_numpy(np.searchsorted(item_index_U, items)),
            row_weight_B=torch.from_numpy(np.ascontiguousarray(weights)),
            value_B=torch.from_numpy(np.ascontiguousarray(values)),
            item_index_U=torch.from_numpy(item_index_U),
            inputs=stacked,
            present_mask_U=present_mask_U,
            known_positive_mask_BU=known_mask_BU,
            history_position_BL=history_position_BL,
            history_mask_BL=history_mask_BL,
            attributes_B={name: values_V[user_index_B] for name, values_V in self.attributes_V.items()},
        )


def pad_histories(histories: Sequence[np.ndarray], item_index_U: np.ndarray, num_rows: int) -> tuple[Tensor, Tensor]:
    """Positions among U and their mask, (B, L) with L the longest history here (at least 1)."""
    length = max([1, *(len(history) for history in histories)])
    positions_BL = np.zeros((num_rows, length), dtype=np.int64)
    mask_BL = np.zeros((num_rows, length), dtype=bool)
    for row, history in enumerate(histories):
        positions_BL[row, : len(history)] = np.searchsorted(item_index_U, history)
        mask_BL[row, : len(history)] = True
    return torch.from_numpy(positions_BL), torch.from_numpy(mask_BL)
