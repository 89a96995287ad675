"""Vectors of the whole catalogue in memory: batches of cached encoders, beside a stream for those that run."""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from medley.data.batches import BatchMaker, ItemInputs, Stacked
from medley.data.stream import BatchStream, one_ahead
from medley.encoders import Encoder
from medley.schema import Batch


@dataclass(frozen=True)
class CatalogueVectors:
    """encoder → vectors (N, D) float32, and which items have them, (N,) bool. The arrays may be read-only: rows are copied out."""

    vectors_ND: Mapping[str, np.ndarray]
    present_mask_N: Mapping[str, np.ndarray]

    @property
    def widths(self) -> dict[str, int]:
        """encoder → D."""
        return {name: int(vectors_ND.shape[1]) for name, vectors_ND in self.vectors_ND.items()}

    def stack(self, item_index_U: np.ndarray, encoders: Mapping[str, Encoder]) -> Stacked:
        """The vectors of these items as inputs of `CachedEncoder`s."""
        inputs, present_mask_U = {}, {}
        for name, encoder in encoders.items():
            is_present_U = self.present_mask_N[name][item_index_U]
            present_mask_U[name] = torch.from_numpy(is_present_U)
            rows_PD = self.vectors_ND[name][item_index_U[is_present_U]]
            inputs[name] = {"vector": torch.from_numpy(rows_PD)} if len(rows_PD) else {key: row[None] for key, row in encoder.dummy().items()}
        return inputs, present_mask_U


@dataclass(frozen=True)
class WithVectors:
    """Some encoders' inputs as the stream prepared them, the others' vectors out of the catalogue's."""

    prepared: ItemInputs
    vectors: CatalogueVectors

    def stack(self, item_index_U: np.ndarray, encoders: Mapping[str, Encoder]) -> Stacked:
        """The inputs of these items."""
        running = {name: encoder for name, encoder in encoders.items() if name not in self.vectors.vectors_ND}
        cached = {name: encoder for name, encoder in encoders.items() if name in self.vectors.vectors_ND}
        prepared, vectors = self.prepared.stack(item_index_U, running), self.vectors.stack(item_index_U, cached)
        return prepared[0] | vectors[0], prepared[1] | vectors[1]


class MemoryStream:
    """`BatchStream` of a model with cached encoders. streamed: feeds the encoders that run; None: there are none, and so no windows."""

    def __init__(self, maker: BatchMaker, encoders: Mapping[str, Encoder], vectors: CatalogueVectors, streamed: BatchStream | None = None):
        self.maker = maker
        self.encoders = encoders
        self.vectors = vectors
        self.streamed = streamed

    def close(self) -> None:
        """End the threads."""
        if self.streamed is not None:
            self.streamed.close()

    def global_batches(self, epoch: int, start_global_batch: int, micro_batches: Sequence[int]) -> Iterator[list[Batch]]:
        """The batches of `micro_batches` for every global batch of an epoch from `start_global_batch` on."""
        if self.streamed is not None:
            for batches in self.streamed.global_batches(epoch, start_global_batch, micro_batches):
                yield [self._with_vectors(batch) for batch in batches]
            return
        # The next global batch is put together while this one is trained on: it takes about a third of the time of a step on vectors alone.
        with ThreadPoolExecutor(1, thread_name_prefix="batch") as thread:
            yield from one_ahead(self._from_memory(epoch, start_global_batch, micro_batches), thread)

    def _from_memory(self, epoch: int, start_global_batch: int, micro_batches: Sequence[int]) -> Iterator[list[Batch]]:
        pins_memory = torch.cuda.is_available()
        for number in range(start_global_batch, self.maker.plan.num_global_batches):
            batches = [self.maker.batch((epoch, number, micro), self.vectors, self.encoders) for micro in micro_batches]
            yield [batch.pin_memory() for batch in batches] if pins_memory else batches

    def _with_vectors(self, batch: Batch) -> Batch:
        cached = {name: encoder for name, encoder in self.encoders.items() if name in self.vectors.vectors_ND}
        inputs, present_mask_U = self.vectors.stack(batch.item_index_U.numpy(), cached)
        return replace(batch, inputs={**batch.inputs, **inputs}, present_mask_U={**batch.present_mask_U, **present_mask_U})

    def items(self, item_indices: Sequence[Any]) -> Iterator[ItemInputs]:
        """What encoders read, for each array of item indices."""
        if self.streamed is not None:
            yield from (WithVectors(prepared, self.vectors) for prepared in self.streamed.items(item_indices))
            return
        for _ in item_indices:
            yield self.vectors
