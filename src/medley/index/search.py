"""Exact top-K over all items, seen items left out; the same function ranks in evaluation, in batch scoring and in serving."""

import numpy as np
import torch
from torch import Tensor


def top_k(
    user_vectors_BD: Tensor,
    item_vectors_ND: Tensor,
    item_bias_N: Tensor,
    k: int,
    excluded: tuple[np.ndarray, np.ndarray] | None = None,
    candidate_mask_N: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The k best items of each user by user · item + bias, best first; equal scores are ordered by item index.

    excluded: (row, item) pairs never returned. candidate_mask_N: False items are never returned.
    Returns scores_BK float32 and items_BK int64; where fewer than k items are left, scores are -inf and items -1.
    """
    scores_BN = user_vectors_BD @ item_vectors_ND.T + item_bias_N
    if candidate_mask_N is not None:
        scores_BN.masked_fill_(~candidate_mask_N, -torch.inf)
    if excluded is not None:
        rows, items = (torch.from_numpy(np.asarray(part, dtype=np.int64)) for part in excluded)
        scores_BN[rows, items] = -torch.inf
    return rank(scores_BN, k)


def rank(scores_BN: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k highest scores of each row and their positions, best first, ties by position; -inf becomes item -1."""
    num_kept = min(k, scores_BN.shape[1])
    threshold_B1 = torch.topk(scores_BN, num_kept, dim=1).values[:, -1:]
    # A stable order of ties needs more than topk: take all that reach the k-th score, sort them stably by position.
    num_candidates = max((scores_BN >= threshold_B1).sum(dim=1).tolist(), default=num_kept)
    if num_candidates == num_kept:
        scores_BK, items_BK = torch.topk(scores_BN, num_kept, dim=1)
        items_BK, by_item_BK = torch.sort(items_BK, dim=1)
        scores_BK = scores_BK.gather(1, by_item_BK)
    else:
        scores_BK, items_BK = scores_BN, torch.arange(scores_BN.shape[1]).expand_as(scores_BN)
    order_BK = torch.sort(scores_BK, dim=1, descending=True, stable=True).indices[:, :num_kept]
    scores_BK, items_BK = scores_BK.gather(1, order_BK), items_BK.gather(1, order_BK)
    items_BK = items_BK.masked_fill(scores_BK == -torch.inf, -1)
    if num_kept < k:
        scores_BK = torch.nn.functional.pad(scores_BK, (0, k - num_kept), value=-torch.inf)
        items_BK = torch.nn.functional.pad(items_BK, (0, k - num_kept), value=-1)
    return scores_BK, items_BK
