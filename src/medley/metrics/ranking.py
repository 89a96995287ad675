"""Metrics: pure functions of a user's ranked list (or of predicted ratings), one number per user in float64.

A ranking metric takes which of the best items are relevant, so the caller ranks the whole catalogue, hides the training items and cuts once;
every metric and every k is then read off the same (B, K) table. A k beyond the list's length reads the missing places as not relevant.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def recall_at_k(ranked_relevant_BK: Tensor, num_relevant_B: Tensor, k: int) -> Tensor:
    """Share of each user's relevant items found among the k best.

    ranked_relevant_BK: bool, best first. num_relevant_B: int, before any cut.
    Returns (B,) in [0, 1]; a user without relevant items gives NaN, so that averaging it in is a visible choice.
    """
    return _nan_without_relevant(_num_hits(ranked_relevant_BK, k) / num_relevant_B, num_relevant_B)


def precision_at_k(ranked_relevant_BK: Tensor, num_relevant_B: Tensor, k: int) -> Tensor:
    """Share of the k best that are relevant; the divisor is k even when the list is shorter.

    ranked_relevant_BK: bool, best first. num_relevant_B: int, before any cut.
    Returns (B,) in [0, 1]; NaN for a user without relevant items.
    """
    return _nan_without_relevant(_num_hits(ranked_relevant_BK, k) / k, num_relevant_B)


def f1_at_k(ranked_relevant_BK: Tensor, num_relevant_B: Tensor, k: int) -> Tensor:
    """Harmonic mean of each user's precision and recall at k, 2 × hits / (k + relevant); 0 without a hit.

    ranked_relevant_BK: bool, best first. num_relevant_B: int, before any cut.
    Returns (B,) in [0, 1]; NaN for a user without relevant items.
    """
    return _nan_without_relevant(2 * _num_hits(ranked_relevant_BK, k) / (k + num_relevant_B), num_relevant_B)


def hit_rate_at_k(ranked_relevant_BK: Tensor, num_relevant_B: Tensor, k: int) -> Tensor:
    """1 for a user with at least one relevant item among the k best, else 0.

    ranked_relevant_BK: bool, best first. num_relevant_B: int, before any cut.
    Returns (B,), 0 or 1; NaN for a user without relevant items.
    """
    return _nan_without_relevant((_num_hits(ranked_relevant_BK, k) > 0).double(), num_relevant_B)


def mrr_at_k(ranked_relevant_BK: Tensor, num_relevant_B: Tensor, k: int) -> Tensor:
    """Reciprocal of the place (from 1) of the first relevant item among the k best, 0 when none is (mean reciprocal rank once averaged).

    ranked_relevant_BK: bool, best first. num_relevant_B: int, before any cut.
    Returns (B,) in [0, 1]; NaN for a user without relevant items.
    """
    best_BK = ranked_relevant_BK[:, :k].double()
    place_K = torch.arange(1, best_BK.shape[1] + 1, dtype=torch.float64, device=best_BK.device)
    # A leading 0 gives the maximum something to find in an empty list.
    reciprocal_BK = torch.cat([best_BK.new_zeros(len(best_BK), 1), best_BK / place_K], dim=1)
    return _nan_without_relevant(reciprocal_BK.amax(dim=1), num_relevant_B)


def ndcg_at_k(ranked_relevant_BK: Tensor, num_relevant_B: Tensor, k: int) -> Tensor:
    """Binary normalised discounted cumulative gain (Järvelin and Kekäläinen 2002): Σ 1 / log2(place + 1) over the relevant items among the k best.

    Divided by the sum of the best possible list, which has min(k, number of relevant items) of them on top.
    ranked_relevant_BK: bool, best first. num_relevant_B: int, before any cut.
    Returns (B,) in [0, 1]; NaN for a user without relevant items.
    """
    discount_K = 1 / torch.arange(2, k + 2, dtype=torch.float64, device=ranked_relevant_BK.device).log2()
    best_BK = ranked_relevant_BK[:, :k].double()
    gain_B = best_BK @ discount_K[: best_BK.shape[1]]
    ideal_B = discount_K.cumsum(0)[num_relevant_B.clamp(min=1, max=k).long() - 1]
    return _nan_without_relevant(gain_B / ideal_B, num_relevant_B)


METRICS: dict[str, Callable[[Tensor, Tensor, int], Tensor]] = {
    "ndcg": ndcg_at_k,
    "recall": recall_at_k,
    "precision": precision_at_k,
    "f1": f1_at_k,
    "hit_rate": hit_rate_at_k,
    "mrr": mrr_at_k,
}
"""The ranking metrics by the name that stands before the @ in reports and objectives."""


def ranking_metrics(ranked_relevant_BK: Tensor, num_relevant_B: Tensor, ks: Sequence[int], names: Sequence[str] = tuple(METRICS)) -> dict[str, Tensor]:
    """Every named metric at every k, per user, with keys such as "ndcg@10".

    ranked_relevant_BK: bool, best first; K is at least the largest k unless the catalogue is smaller. num_relevant_B: int, before any cut.
    Each value is (B,) float64 with NaN for users without relevant items. Raises KeyError for a name that METRICS lacks.
    """
    return {f"{name}@{k}": METRICS[name](ranked_relevant_BK, num_relevant_B, k) for name in names for k in ks}


def mean_over_users(values_B: Tensor) -> float:
    """Mean over the users that are not NaN, in float64: users without relevant items do not count.

    Returns NaN when no user is left; the caller reports that as null, since JSON has no NaN.
    """
    return values_B.double().nanmean().item()


def rmse(predicted_B: Tensor, value_B: Tensor) -> Tensor:
    """Root of the mean squared error of predicted ratings, in the ratings' unit, over the B interactions: a float64 scalar, NaN for none."""
    return (predicted_B.double() - value_B.double()).square().mean().sqrt()


def mae(predicted_B: Tensor, value_B: Tensor) -> Tensor:
    """Mean absolute error of predicted ratings, in the ratings' unit, over the B interactions: a float64 scalar, NaN for none."""
    return (predicted_B.double() - value_B.double()).abs().mean()


def _num_hits(ranked_relevant_BK: Tensor, k: int) -> Tensor:
    """Relevant items among the k best, (B,) float64."""
    return ranked_relevant_BK[:, :k].sum(dim=1, dtype=torch.float64)


def _nan_without_relevant(values_B: Tensor, num_relevant_B: Tensor) -> Tensor:
    """NaN in place of the value of each user without relevant items."""
    return values_B.masked_fill(num_relevant_B == 0, float("nan"))
