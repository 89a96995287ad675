"""Micro-batches: the plan's rows with their unique items, prepared once each and stacked per encoder."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from medley.data.histories import Histories
from medley.data.plan import Plan
from medley.data.prepared import PreparedData
from medley.encoders import Encoder, stack_inputs
from medley.schema import Batch

PreparedItem = Mapping[str, Mapping[str, Tensor]]
"""modality → input name → tensor, for the modalities the item has"""

Stacked = tuple[dict[str, dict[str, Tensor]], dict[str, Tensor]]
"""Inputs per encoder over the items that have its modality (one dummy row when none has), and the presence masks over all of them."""


class ItemInputs(Protocol):
    """What encoders read, by item: a window's prepared items (below), or vectors of the whole catalogue (memory.py)."""

    def stack(self, item_index_U: np.ndarray, encoders: Mapping[str, Encoder]) -> Stacked:
        """The inputs of these items."""


class PreparedItems(dict[int, PreparedItem]):
    """item index → prepared item."""

    def stack(self, item_index_U: np.ndarray, encoders: Mapping[str, Encoder]) -> Stacked:
        """Stacked item by item; an item that is not here has no modality."""
        items = [self.get(item, {}) for item in item_index_U.tolist()]
        inputs, present = {}, {}
        for name, encoder in encoders.items():
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

    @classmethod
    def create(cls, data: PreparedData, plan: Plan, *, history_length: int, attribute_columns: Sequence[str], whole_catalogue: bool) -> "BatchMaker":
        """history_length 0: no histories."""
        train = data.train
        histories = Histories.of_train(train.users, train.items, train.timestamps, data.num_users, history_length) if history_length else None
        attributes_V = {name: torch.from_numpy(data.user_categories(name)) for name in attribute_columns}
        return cls(data, plan, histories, attributes_V, whole_catalogue)

    def items_of(self, epoch: int, global_batch: int, micro_batches: Sequence[int]) -> np.ndarray:
        """Unique items of some micro-batches of a global batch, sorted."""
        if self.whole_catalogue:
            return np.arange(self.data.num_items)
        return np.unique(np.concatenate([self._items_in(self.plan.rows(epoch, global_batch, micro)) for micro in micro_batches]))

    def windows(
        self, epoch: int, start_global_batch: int, micro_batches: Sequence[int], max_global_batches: int, max_items: int
    ) -> Iterator[tuple[int, int, np.ndarray]]:
        """(first, past the last) global batch of each window of an epoch, and its unique items: as many global batches as both limits allow.

        A window has at least one global batch, and another one that brings no new item is never a reason to end it.
        """
        first, items = start_global_batch, np.zeros(0, dtype=np.int64)
        for number in range(start_global_batch, self.plan.num_global_batches):
            own = self.items_of(epoch, number, micro_batches)
            together = own if self.whole_catalogue else np.union1d(items, own)
            if number > first and (number - first >= max_global_batches or len(together) > max(max_items, len(items))):
                yield first, number, items
                first, together = number, own
            items = together
        if first < self.plan.num_global_batches:
            yield first, self.plan.num_global_batches, items

    def _items_in(self, rows: np.ndarray) -> np.ndarray:
        train = self.data.train
        items = train.items[rows]
        if self.histories is not None:
            items = np.concatenate([items, *self.histories.before_rows(rows, train.users[rows])])
        # A rank without rows still runs every encoder: on item 0, whose rows weigh nothing.
        return np.unique(items) if len(items) else np.zeros(1, dtype=np.int32)

    def batch(self, place: tuple[int, int, int], inputs: ItemInputs, encoders: Mapping[str, Encoder]) -> Batch:
        """The micro-batch at (epoch, global batch, micro-batch). inputs: of its unique items at least."""
        rows = self.plan.rows(*place)
        train = self.data.train
        users, items = train.users[rows].astype(np.int64), train.items[rows].astype(np.int64)
        item_index_U = np.arange(self.data.num_items) if self.whole_catalogue else self._items_in(rows).astype(np.int64)
        weights = train.weights[rows]
        values = np.nan_to_num(train.values[rows])
        histories = self.histories.before_rows(rows, users) if self.histories is not None else []
        if len(rows) == 0:  # one padding row of weight 0
            users, items, weights, values = np.zeros(1, dtype=np.int64), item_index_U[:1], np.zeros(1, dtype=np.float32), np.zeros(1, dtype=np.float32)
            histories = [np.zeros(0, dtype=np.int32)] if self.histories is not None else []
        known_rows, known_items = self.data.train_lists.pairs(users)
        return self.assemble(place, users, items, item_index_U, weights, values, (known_rows, known_items), histories, inputs, encoders)

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
