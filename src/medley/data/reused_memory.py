"""Memory for batches that is used again: the first touch of new memory can cost more than decoding into it (up to 2 ms a megabyte)."""

import weakref

import numpy as np
import torch
from torch import Tensor


class ReusedMemory:
    """Hands out tensors whose memory comes back by itself once nothing refers to it any more, no view and no autograd graph either.

    One thread at a time may ask for memory; it may come back from any thread. About as much stays allocated as was ever in use at once.
    """

    def __init__(self, like: Tensor):
        """like: shape, type and layout in memory of a row."""
        self.like = like
        self._free: list[np.ndarray] = []

    def rows(self, num_rows: int) -> Tensor:
        """Uninitialised, (num_rows, *like.shape)."""
        size_bytes = num_rows * self.like.nbytes
        fitting = [place for place, memory in enumerate(self._free) if len(memory) >= size_bytes]
        if fitting:
            memory = self._free.pop(fitting[0])
        else:
            # What is too small now goes; an eighth more, so that the next request, which may be a little larger, finds room.
            self._free = []
            memory = np.empty(size_bytes + size_bytes // 8 + 1, dtype=np.uint8)
        lent = memory[:size_bytes]
        # A tensor's storage holds the array it was made from, so the array ends with the last tensor that shares the storage.
        weakref.finalize(lent, self._take_back, memory).atexit = False
        return laid_out(torch.from_numpy(lent).view(self.like.dtype).view(num_rows, -1), self.like)

    def _take_back(self, memory: np.ndarray) -> None:
        self._free.append(memory)


def laid_out(flat_PE: Tensor, like: Tensor) -> Tensor:
    """Rows of E elements as rows that have the shape and the layout of `like`, which fills its memory without gaps."""
    return flat_PE.as_strided((len(flat_PE), *like.shape), (like.numel(), *like.stride()), flat_PE.storage_offset())


def flattened(rows: Tensor) -> Tensor:
    """The other way: (rows, elements) in the order of memory, a view."""
    return rows.as_strided((len(rows), rows[0].numel()), (rows.stride(0), 1), rows.storage_offset())
