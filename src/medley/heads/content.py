"""What items have in common by their content: cosines of tag lists and of feature columns, for closed forms."""

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from medley.heads.sparse import SparseRows


class ContentConfig(BaseModel):
    """Columns of the prepared items that are compared as one."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    columns: tuple[str, ...] = Field(min_length=1)
    """tag columns (their tags together are one multi-hot vector, weighted by idf) or feature columns (side by side, centred)"""
    weight: float = Field(default=20.0, gt=0)
    """EASE: how many users in common a cosine of 1 counts for; als: only the proportion between several entries matters"""


def tag_cosines(tags: Sequence[Sequence[str]]) -> Tensor:
    """(N, N) cosines of multi-hot vectors weighted by idf, ln(N / items that have the tag). An item without tags has 0 with all, itself included."""
    counts = Counter(tag for own in tags for tag in set(own))
    number_of_tag = {tag: number for number, tag in enumerate(sorted(counts))}
    entries = [(item, number_of_tag[tag], math.log(len(tags) / counts[tag])) for item, own in enumerate(tags) for tag in set(own)]
    if not entries:
        return torch.zeros(len(tags), len(tags))
    items, numbers, weights = (np.array(part) for part in zip(*entries, strict=True))
    norm_N = np.sqrt(np.bincount(items, weights=weights**2, minlength=len(tags)))
    weights = weights / np.maximum(norm_N[items], 1e-12)
    return SparseRows.from_pairs(numbers, items, weights, len(counts), len(tags)).gram()


def vector_cosines(vectors_ND: Tensor, present_mask_N: Tensor, is_warm_N: Tensor) -> Tensor:
    """(N, N) cosines of vectors centred on the mean of the items that training saw (uncentred ones of encoders are all alike).

    An item without a vector has 0 with all, itself included.
    """
    seen_mask_N = present_mask_N & is_warm_N
    centred_ND = vectors_ND - (vectors_ND[seen_mask_N].mean(dim=0) if seen_mask_N.any() else 0)
    unit_ND = torch.nn.functional.normalize(centred_ND, dim=1) * present_mask_N[:, None]
    return unit_ND @ unit_ND.T
