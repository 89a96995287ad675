"""A frozen item-item graph of content (FREEDOM, Zhou and Shen 2023): beside its own free vector an item has the mean of those of similar items.

The graph is made once from the vectors of the whole catalogue, so those must be at hand: encoders with `cache: true`. Neighbours are items that
training sees, so an item that it does not see gets a free vector too, from those whose content is like its own.
"""

from collections.abc import Mapping

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

ROWS_PER_BLOCK = 1024
"""Items whose similarities to the whole catalogue are in memory at once."""


class NeighboursConfig(BaseModel):
    """The nearest items by content."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    num_neighbours: int = Field(default=10, ge=1)
    """similar items whose free vectors are averaged; also how many more rows of the table each item of a micro-batch reads"""


class NeighbourMean(nn.Module):
    """mean of e_j over the neighbours j of an item; zeros for an item without any. The graph is a buffer: a checkpoint holds it."""

    index_NK: Tensor

    def __init__(self, index_NK: Tensor):
        """index_NK: int32 item numbers, -1 where an item has fewer neighbours."""
        super().__init__()
        self.register_buffer("index_NK", index_NK)

    def forward(self, item_id: nn.Module, item_index_U: Tensor) -> Tensor:
        """(U, D)."""
        index_UK = self.index_NK[item_index_U]
        is_real_UK1 = (index_UK >= 0).unsqueeze(-1)
        vectors_UKD = item_id(index_UK.clamp(min=0)) * is_real_UK1
        return vectors_UKD.sum(dim=1) / is_real_UK1.sum(dim=1).clamp(min=1)


def nearest_items(vectors_ND: Mapping[str, np.ndarray], present_mask_N: Mapping[str, np.ndarray], is_warm_N: np.ndarray, num_neighbours: int) -> Tensor:
    """The warm items most like each item, (N, num_neighbours) int32, best first; -1 where there are fewer.

    Likeness is the sum of the cosines of each modality's vectors after the mean of the modality is taken away; a modality that one of the two
    lacks adds 0. An item is not its own neighbour, and one without any modality has none. Exact: N × N products of the whole width, in blocks.
    """
    units = torch.cat([_unit_vectors(vectors_ND[name], present_mask_N[name]) for name in sorted(vectors_ND)], dim=1)
    has_content_N = torch.from_numpy(np.stack(list(present_mask_N.values())).any(axis=0))
    candidates = (torch.from_numpy(is_warm_N) & has_content_N).nonzero().squeeze(1)
    index_NK = torch.full((len(units), num_neighbours), -1, dtype=torch.int32)
    num_kept = min(num_neighbours, len(candidates))
    for start in range(0, len(units), ROWS_PER_BLOCK):
        rows = torch.arange(start, min(start + ROWS_PER_BLOCK, len(units)))
        likeness = units[rows] @ units[candidates].T
        likeness = likeness.masked_fill(rows[:, None] == candidates, -torch.inf)
        best = likeness.topk(num_kept, dim=1)
        is_found = (best.values > -torch.inf) & has_content_N[rows][:, None]
        index_NK[rows, :num_kept] = torch.where(is_found, candidates[best.indices], -1).int()
    return index_NK


def _unit_vectors(vectors_ND: np.ndarray, present_mask_N: np.ndarray) -> Tensor:
    """Length 1 around the mean of the modality, (N, D); zeros for items without it."""
    present_N1 = torch.from_numpy(present_mask_N).unsqueeze(1)
    vectors = torch.tensor(vectors_ND, dtype=torch.float32)
    centred = (vectors - vectors[present_N1.squeeze(1)].mean(dim=0).nan_to_num()) * present_N1
    return nn.functional.normalize(centred, dim=1, eps=1e-12)
