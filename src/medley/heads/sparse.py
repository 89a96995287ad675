"""Interactions as a sparse matrix, the way closed forms read them."""

import warnings
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class SparseRows:
    """A matrix in compressed rows: row r has values[offsets[r]:offsets[r + 1]] in the columns of the same places, without repeats.

    offsets: (rows + 1,) int64. columns: int64. values: float32.
    """

    offsets: Tensor
    columns: Tensor
    values: Tensor
    num_columns: int

    @classmethod
    def from_pairs(cls, rows: np.ndarray, columns: np.ndarray, values: np.ndarray, num_rows: int, num_columns: int) -> Self:
        """From one entry per place; the values of equal places are added."""
        keys, place = np.unique(rows.astype(np.int64) * num_columns + columns, return_inverse=True)
        counts = np.bincount(keys // num_columns, minlength=num_rows)
        offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        summed = np.bincount(place, weights=values, minlength=len(keys)).astype(np.float32)
        return cls(torch.from_numpy(offsets), torch.from_numpy(keys % num_columns), torch.from_numpy(summed), num_columns)

    @property
    def num_rows(self) -> int:
        """Rows, empty ones included."""
        return len(self.offsets) - 1

    @property
    def lengths(self) -> Tensor:
        """Entries of each row, (rows,) int64."""
        return self.offsets.diff()

    @property
    def row_of_entry(self) -> Tensor:
        """Row of each entry, int64."""
        return torch.repeat_interleave(torch.arange(self.num_rows), self.lengths)

    def scale_rows(self, factors: Tensor) -> Self:
        """Each row times its factor."""
        return type(self)(self.offsets, self.columns, self.values * factors[self.row_of_entry], self.num_columns)

    def transpose(self) -> Self:
        """Columns as rows."""
        order = torch.sort(self.columns, stable=True).indices
        counts = torch.bincount(self.columns, minlength=self.num_columns)
        offsets = torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)])
        return type(self)(offsets, self.row_of_entry[order], self.values[order], self.num_rows)

    def csr(self) -> Tensor:
        """The same as a torch sparse CSR tensor."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta state")
            return torch.sparse_csr_tensor(self.offsets, self.columns, self.values, (self.num_rows, self.num_columns), check_invariants=False)

    def gram(self, columns_per_block: int = 256) -> Tensor:
        """Xᵀ X, dense (columns, columns); takes entries × columns multiplications and one dense block of rows × columns_per_block."""
        by_column, csr = self.transpose().csr(), self.csr()
        gram = torch.empty(self.num_columns, self.num_columns)
        for start in range(0, self.num_columns, columns_per_block):
            width = min(columns_per_block, self.num_columns - start)
            pick = torch.zeros(self.num_columns, width)
            pick[start + torch.arange(width), torch.arange(width)] = 1.0
            gram[:, start : start + width] = by_column @ (csr @ pick)
        return gram
