"""Batches of a catalogue whose vectors are all in memory: what the light trials of a search train on."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from medley.data.batches import BatchMaker, ItemInputs, Stacked
from medley.encoders import Encoder
from medley.schema import Batch


@dataclass(frozen=True)
class CatalogueVectors:
    """encoder → vectors (N, D) float32, and which items have them, (N,) bool. The arrays may be read-only: rows are copied out."""

    vectors_ND: Mapping[str, np.ndarray]
    present_mask_N: Mapping[str, np.ndarray]

    def stack(self, item_index_U: np.ndarray, encoders: Mapping[str, Encoder]) -> Stacked:
        """The vectors of these items as inputs of `features` encoders."""
        inputs, present_mask_U = {}, {}
        for name, encoder in encoders.items():
            is_present_U = self.present_mask_N[name][item_index_U]
            present_mask_U[name] = torch.from_numpy(is_present_U)
            rows_PD = self.vectors_ND[name][item_index_U[is_present_U]]
            inputs[name] = {"features": torch.from_numpy(rows_PD)} if len(rows_PD) else {key: row[None] for key, row in encoder.dummy().items()}
        return inputs, present_mask_U


class MemoryStream:
    """`BatchStream` without Ray, threads and windows."""

    def __init__(self, maker: BatchMaker, encoders: Mapping[str, Encoder], vectors: CatalogueVectors):
        self.maker = maker
        self.encoders = encoders
        self.vectors = vectors

    def close(self) -> None:
        """Nothing to end."""

    def global_batches(self, epoch: int, start_global_batch: int, micro_batches: Sequence[int]) -> Iterator[list[Batch]]:
        """The batches of `micro_batches` for every global batch of an epoch from `start_global_batch` on."""
        for number in range(start_global_batch, self.maker.plan.num_global_batches):
            yield [self.maker.batch((epoch, number, micro), self.vectors, self.encoders) for micro in micro_batches]

    def items(self, item_indices: Sequence[Any]) -> Iterator[ItemInputs]:
        """The whole catalogue, once for each array of item indices."""
        for _ in item_indices:
            yield self.vectors
