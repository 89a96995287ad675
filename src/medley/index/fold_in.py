"""Fold-in: the vector of a user who was not in training, from the items they had: summed where the scorer sums histories, else solved around the
mean of the trained users."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from medley.index.blend import Blend
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

    history_LD: the history's rows of Scorer.item_columns_ND; several users at once as (B, L, D), shorter histories filled up with rows of zeros.
    item_gram_DD: Σ_i c_i c_iᵀ over the catalogue. Solved in float64.
    Returns (D,) or (B, D) float32; without a history the mean user.
    """
    history_LD = history_LD.double()
    ridge_DD = regularization * torch.eye(history_LD.shape[-1], dtype=torch.float64)
    normal_DD = history_LD.mT @ history_LD + unseen_weight * item_gram_DD.double() + ridge_DD
    missing_L1 = prior.own_score - history_LD @ prior.mean_user_D[:, None]
    return (prior.mean_user_D + torch.linalg.solve(normal_DD, history_LD.mT @ missing_L1).squeeze(-1)).float()


class FoldIn:
    """Folds users into a blend, part by part."""

    def __init__(self, blend: Blend, unseen_weight: float, regularization: float):
        """unseen_weight, regularization: those of `fold_in`."""
        self._settings = unseen_weight, regularization
        self._parts = list(blend.parts.values())
        self._is_telling_N = blend.is_telling_N
        self._columns = [part.item_columns_ND for part in self._parts]
        is_solved = [part.history_vectors_ND is None for part in self._parts]
        self._gram = [columns_ND.T @ columns_ND if solved else None for columns_ND, solved in zip(self._columns, is_solved, strict=True)]
        self._prior = [FoldInPrior.of(part) if solved else None for part, solved in zip(self._parts, is_solved, strict=True)]

    def knows(self, history_L: Tensor) -> bool:
        """Whether any of these items says something about a taste."""
        return bool(self._is_telling_N[history_L].any())

    def columns(self, history_L: Tensor) -> Tensor:
        """User columns, (D,) float32, of all parts behind one another. history_L: int64 item indices."""
        return self.columns_of_many([history_L])[0]

    def columns_of_many(self, histories: Sequence[Tensor]) -> Tensor:
        """(B, D) float32, one row per history; take histories of similar length together, since they are filled up to the longest."""
        return torch.cat([self._part_columns(place, histories) for place in range(len(self._parts))], dim=1)

    def _part_columns(self, place: int, histories: Sequence[Tensor]) -> Tensor:
        part, gram_DD, prior = self._parts[place], self._gram[place], self._prior[place]
        if part.history_vectors_ND is not None:
            vectors_BD = torch.stack([part.history_vectors_ND[history_L].sum(dim=0) for history_L in histories])
            return torch.cat([vectors_BD, torch.ones(len(histories), 1)], dim=1)
        assert gram_DD is not None
        assert prior is not None
        history_BLD = torch.nn.utils.rnn.pad_sequence([self._columns[place][history_L] for history_L in histories], batch_first=True)
        return fold_in(history_BLD, gram_DD, prior, *self._settings)
