"""What the recommended lists are beside relevant: how much of the catalogue they show, how evenly, how new and how varied the items are.

Lists are (B, K) item indices, best first, -1 where a list is shorter. Per-user values are NaN for an empty list.
"""

import numpy as np
import torch
from torch import Tensor


def coverage(shown_count_N: np.ndarray) -> float:
    """Share of the catalogue's items that stand in at least one list. shown_count_N: how many lists hold each item."""
    return float((shown_count_N > 0).mean())


def gini(shown_count_N: np.ndarray) -> float:
    """Gini coefficient of how often items are shown: 0 when all equally often, near 1 when one item has all places; NaN when nothing is shown."""
    in_order_N = np.sort(shown_count_N.astype(np.float64))
    num_items, total = len(in_order_N), in_order_N.sum()
    if total == 0:
        return float("nan")
    return float((2 * np.arange(1, num_items + 1) - num_items - 1) @ in_order_N / (num_items * total))


def novelty(lists_BK: Tensor, num_users_with_N: Tensor, num_users: int) -> Tensor:
    """Mean self-information of each list's items in bits, (B,) float64: −log2 of the share of users who had the item (Zhou et al. 2010).

    num_users_with_N: users with the item in train. One is added to both counts, so that an item nobody had is finite and the newest.
    """
    information_N = -torch.log2((num_users_with_N.double() + 1) / (num_users + 1))
    return _mean_of_lists(information_N, lists_BK)


def mean_popularity(lists_BK: Tensor, train_count_N: Tensor) -> Tensor:
    """Mean number of train interactions of each list's items, (B,) float64."""
    return _mean_of_lists(train_count_N.double(), lists_BK)


def diversity(lists_BK: Tensor, unit_vectors_ND: Tensor) -> Tensor:
    """Mean of 1 − cosine over the pairs of items in each list (intra-list diversity, Ziegler et al. 2005), (B,) float64; NaN below two items.

    unit_vectors_ND: of length 1, or zeros for an item without a vector, which leaves its pairs out.
    """
    is_known_BK = (lists_BK >= 0) & unit_vectors_ND.any(dim=1)[lists_BK.clamp(min=0)]
    vectors_BKD = unit_vectors_ND[lists_BK.clamp(min=0)].double() * is_known_BK.unsqueeze(-1)
    num_known_B = is_known_BK.sum(dim=1).double()
    # The squared length of the sum holds every pair's cosine twice, and each item's 1 with itself.
    cosines_B = vectors_BKD.sum(dim=1).square().sum(dim=1) - num_known_B
    return torch.where(num_known_B > 1, 1 - cosines_B / (num_known_B * (num_known_B - 1)), torch.nan)


def _mean_of_lists(values_N: Tensor, lists_BK: Tensor) -> Tensor:
    is_item_BK = lists_BK >= 0
    total_B = (values_N[lists_BK.clamp(min=0)] * is_item_BK).sum(dim=1)
    return total_B / is_item_BK.sum(dim=1)
