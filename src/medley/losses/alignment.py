"""Contrastive alignment between modalities: two of one item are near, two of different items are far (InfoNCE; Radford et al. 2021, CLIP)."""

from itertools import combinations

import torch
from torch import Tensor
from torch.nn import functional


def alignment_loss(tokens_UMD: Tensor, present_UM: Tensor, temperature: float) -> Tensor:
    """Mean over the pairs of modalities of the symmetric InfoNCE among the items that have both; a scalar.

    tokens_UMD: any length, they are brought to length 1. A pair that fewer than two items have adds 0, as does an item without the pair;
    with one modality, or none, the loss is 0. Masks, no indexing: a GPU need not wait to learn how many items have a pair.
    """
    units_UMD = functional.normalize(tokens_UMD.float(), dim=-1, eps=1e-6)
    pairs = list(combinations(range(tokens_UMD.shape[1]), 2))
    total = units_UMD.sum() * 0.0
    for first, second in pairs:
        has_both_U = present_UM[:, first] & present_UM[:, second]
        logits_UU = units_UMD[:, first] @ units_UMD[:, second].T / temperature
        total = total + _cross_entropy(logits_UU, has_both_U) + _cross_entropy(logits_UU.T, has_both_U)
    return total / max(1, 2 * len(pairs))


def _cross_entropy(logits_UU: Tensor, counted_U: Tensor) -> Tensor:
    """Mean over the counted rows of the cross entropy of the diagonal among the counted columns."""
    logits_UU = logits_UU.masked_fill(~counted_U, torch.finfo(logits_UU.dtype).min)
    entropy_U = torch.logsumexp(logits_UU, dim=1) - logits_UU.diagonal()
    return entropy_U.masked_fill(~counted_U, 0.0).sum() / counted_U.sum().clamp(min=1)
