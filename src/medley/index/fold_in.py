"""Fold-in: the vector of a user who was not in training, solved from the items they had, around the mean of the trained users."""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from medley.index.scorer import Scorer

UNSEEN_WEIGHT = 0.3
"""Default weight of items that are not in the history, in evaluation and in serving."""
REGULARIZATION = 1.0
"""Default ridge term, in evaluation and in serving."""
NUM_SCALE_USERS = 256
"""Trained users whose scores set the scale of the fold-in: enough for a mean, and no more memory than a block of ranked users."""


@dataclass(frozen=True)
class FoldInPrior:
    """What a scorer says of a user before any history, in its columns (vector, then bias): follows from the scorer alone.

    mean_user_D: mean of the trained users' columns, float64; its ranking is close to popularity.
    own_score: what an item that suits a user scores: the mean over trained users of their highest score.
    """

    mean_user_D: Tensor
    own_score: float

    @classmethod
    def of(cls, scorer: Scorer) -> Self:
        """The prior of a scorer. Where no user was trained: the zero user and own_score 1, the plain ridge of Hu et al."""
        is_trained_V = scorer.user_vectors_VD.any(dim=1)
        trained_columns_VD = scorer.user_columns_VD[is_trained_V]
        if not len(trained_columns_VD):
            return cls(torch.zeros(scorer.user_columns_VD.shape[1], dtype=torch.float64), 1.0)
        num_scale_users = min(NUM_SCALE_USERS, len(trained_columns_VD))
        sample_B = torch.arange(num_scale_users) * len(trained_columns_VD) // num_scale_users
        best_score_B = (trained_columns_VD[sample_B] @ scorer.item_columns_ND.T).amax(dim=1)
        return cls(trained_columns_VD.double().mean(dim=0), float(best_score_B.double().mean()))


def fold_in(history_LD: Tensor, item_gram_DD: Tensor, prior: FoldInPrior, unseen_weight: float, regularization: float) -> Tensor:
    """User columns of someone who had these items: the ridge solution around the mean user.

    θ = θ₀ + δ, δ = argmin Σ_{i ∈ history} (own_score − (θ₀ + δ)ᵀc_i)² + unseen_weight Σ_{i ∈ catalogue} (δᵀc_i)² + regularization ‖δ‖²
    (Hu, Koren, Volinsky 2008, the user half-step, moved from zero to θ₀ = prior.mean_user_D).

    history_LD: the history's rows of Scorer.item_columns_ND. item_gram_DD: Σ_i c_i c_iᵀ over the catalogue. Solved in float64.
    Returns (D,) float32; without a history the mean user.
    """
    history_LD = history_LD.double()
    ridge_DD = regularization * torch.eye(history_LD.shape[1], dtype=torch.float64)
    normal_DD = history_LD.T @ history_LD + unseen_weight * item_gram_DD.double() + ridge_DD
    missing_L = prior.own_score - history_LD @ prior.mean_user_D
    return (prior.mean_user_D + torch.linalg.solve(normal_DD, history_LD.T @ missing_L)).float()
