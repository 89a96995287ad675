"""A window's items from encoded bytes to what encoders read, each once, in threads."""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import numpy as np
from torch import Tensor

from medley.data.batches import Block, PreparedItems
from medley.data.reused_memory import ReusedMemory
from medley.encoders import Encoder, PreparesInto, PreparesMany

MIN_PIECE_ITEMS = 8
"""Threads take a window in pieces of an eighth of what is left (guided self-scheduling: Polychronopoulos and Kuck 1987), so that they end together;
one hand-over an item took a tenth of the time of decoding it."""


class ValueSource(Protocol):
    """Where encoded values come from: mapped shards (shards.py) or rows that a task fetched (fetching.py)."""

    def values(self, item_indices: np.ndarray, column: str) -> list[Any]:
        """A column's values of these items in this order, None where an item has none."""


class ItemPreparer:
    """Decodes and tokenises in threads. Encoders whose inputs are of one size write straight into the window's memory, which is used again."""

    def __init__(self, encoders: Mapping[str, Encoder], columns: Mapping[str, str], threads: ThreadPoolExecutor):
        """columns: encoder name → the shard column it reads."""
        self.encoders = encoders
        self.column_of = columns
        self.threads = threads
        self.rows_of = {name: encoder.dummy() for name, encoder in encoders.items() if isinstance(encoder, PreparesInto)}
        self.window_memory = self._memory()
        self.batch_memory = self._memory()

    def _memory(self) -> dict[str, dict[str, ReusedMemory]]:
        return {name: {key: ReusedMemory(row) for key, row in rows.items()} for name, rows in self.rows_of.items()}

    @property
    def columns(self) -> list[str]:
        """The shard columns that any encoder reads."""
        return sorted(set(self.column_of.values()))

    def prepare(self, items_W: np.ndarray, source: ValueSource) -> PreparedItems:
        """items_W: the window's items, those that stand together in a micro-batch side by side, so that the micro-batch is a view."""
        row_of_item = {item: row for row, item in enumerate(items_W.tolist())}
        window = PreparedItems({item: {} for item in row_of_item})
        for name, memory in self.window_memory.items():
            tensors = {key: rows.rows(len(items_W)) for key, rows in memory.items()}
            window.blocks[name] = Block(row_of_item, np.zeros(len(items_W), dtype=bool), tensors, self.batch_memory[name])
        list(self.threads.map(lambda piece: self._prepare_piece(window, items_W, source, *piece), pieces_of(len(items_W))))
        return window

    def _prepare_piece(self, window: PreparedItems, items_W: np.ndarray, source: ValueSource, start: int, stop: int) -> None:
        items = items_W[start:stop]
        for name, encoder in self.encoders.items():
            values = source.values(items, self.column_of[name])
            places = [place for place, value in enumerate(values) if value is not None]
            if not places:
                continue
            present = [values[place] for place in places]
            if isinstance(encoder, PreparesInto):
                block = window.blocks[name]
                block.is_present_W[start:stop][places] = True
                _prepare_rows(encoder, present, {key: rows[start:stop] for key, rows in block.tensors.items()}, places)
            else:
                prepared = encoder.prepare_many(present) if isinstance(encoder, PreparesMany) else [encoder.prepare(value) for value in present]
                for place, inputs in zip(places, prepared, strict=True):
                    window.items[int(items[place])][name] = inputs


def pieces_of(num_items: int) -> Iterator[tuple[int, int]]:
    """(first, past the last) of each piece."""
    start = 0
    while start < num_items:
        stop = min(start + max(MIN_PIECE_ITEMS, (num_items - start) // 8), num_items)
        yield start, stop
        start = stop


def _prepare_rows(encoder: PreparesInto, values: list[Any], rows: Mapping[str, Tensor], places: list[int]) -> None:
    if len(places) == len(next(iter(rows.values()))):
        encoder.prepare_into(values, rows)
    else:
        for place, value in zip(places, values, strict=True):
            encoder.prepare_into([value], {key: tensor[place : place + 1] for key, tensor in rows.items()})


def in_order_of_use(parts: Sequence[np.ndarray]) -> np.ndarray:
    """Every item of the parts once, where it first stands."""
    items, first_places = np.unique(np.concatenate(parts), return_index=True)
    return items[np.argsort(first_places)]
