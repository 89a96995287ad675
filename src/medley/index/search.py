"""Exact top-K over all items, seen items left out; `rank` decides the order in evaluation, in batch scoring and in serving alike."""

import numpy as np
import torch
from torch import Tensor


def top_k(
    user_vectors_BD: Tensor,
    item_vectors_ND: Tensor,
    item_bias_N: Tensor,
    k: int,
    excluded: tuple[np.ndarray, np.ndarray] | None = None,
) -> tuple[Tensor, Tensor]:
    """The k best items of each user by user · item + bias, best first; equal scores are ordered by item index.

    excluded: (row, item) pairs never returned.
    Returns scores_BK float32 and items_BK int64; where fewer than k items are left, scores are -inf and items -1.
    """
    scores_BN = user_vectors_BD @ item_vectors_ND.T + item_bias_N
    if excluded is not None:
        rows, items = (torch.from_numpy(np.asarray(part, dtype=np.int64)) for part in excluded)
        scores_BN[rows, items] = -torch.inf
    return rank(scores_BN, k)


def rank(scores_BN: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k highest scores of each row and their positions, best first, ties by position; -inf becomes item -1."""
    num_kept = min(k, scores_BN.shape[1])
    top = torch.topk(scores_BN, min(num_kept + 1, scores_BN.shape[1]), dim=1)
    items_BK = top.indices[:, :num_kept]
    # topk breaks ties as it likes. Where the next item has the k-th score too, the first of those that just reach it are taken.
    threshold_B1 = top.values[:, num_kept - 1 : num_kept]
    if (top.values[:, num_kept:] == threshold_B1).any():
        is_above_BN = scores_BN > threshold_B1
        is_tied_BN = ~(is_above_BN | (scores_BN < threshold_B1))
        num_open_B1 = num_kept - is_above_BN.sum(dim=1, keepdim=True)
        is_best_BN = is_above_BN | (is_tied_BN & (is_tied_BN.cumsum(dim=1, dtype=torch.int32) <= num_open_B1))
        items_BK = is_best_BN.nonzero()[:, 1].view(len(scores_BN), num_kept)
    else:
        items_BK = torch.sort(items_BK, dim=1).values
    scores_BK = scores_BN.gather(1, items_BK)
    order_BK = torch.sort(scores_BK, dim=1, descending=True, stable=True).indices
    scores_BK, items_BK = scores_BK.gather(1, order_BK), items_BK.gather(1, order_BK)
    items_BK = items_BK.masked_fill(scores_BK == -torch.inf, -1)
    if num_kept < k:
        scores_BK = torch.nn.functional.pad(scores_BK, (0, k - num_kept), value=-torch.inf)
        items_BK = torch.nn.functional.pad(items_BK, (0, k - num_kept), value=-1)
    return scores_BK, items_BK
