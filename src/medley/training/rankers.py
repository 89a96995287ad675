"""Rankers of blends, beside the one of a single scorer (evaluate.py)."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from medley.index.blend import Blend, fuse_ranks
from medley.index.scorer import Scorer
from medley.training.evaluate import EvaluateConfig, Questions, Ranker, VectorRanker


@dataclass(frozen=True)
class LinearRanker:
    """Σ weight × score of the part."""

    parts: Sequence[Ranker]
    weights: Sequence[float]

    def scores(self, users: np.ndarray) -> Tensor:
        """(B, N) float32."""
        return torch.stack([part.scores(users) * weight for part, weight in zip(self.parts, self.weights, strict=True)]).sum(dim=0)


@dataclass(frozen=True)
class FusedRanker:
    """Fused places, as serving fuses them: each part ranks the items that the question does not leave out."""

    parts: Sequence[Ranker]
    weights: Sequence[float]
    questions: Questions

    def scores(self, users: np.ndarray) -> Tensor:
        """(B, N) float32, -inf for items that no part retrieves."""
        rows, items = (torch.from_numpy(part.astype(np.int64)) for part in self.questions.excluded.pairs(users))
        by_part = [part.scores(users) for part in self.parts]
        for scores_BN in by_part:
            scores_BN[rows, items] = -torch.inf
        return fuse_ranks(by_part, self.weights)


def ranker_of(scorer: Scorer | Blend, questions: Questions, config: EvaluateConfig) -> Ranker:
    """The ranker of whatever a run ends in."""
    if isinstance(scorer, Scorer):
        return VectorRanker.of(scorer, questions, config)
    parts, weights = [VectorRanker.of(part, questions, config) for part in scorer.parts.values()], list(scorer.weights.values())
    return FusedRanker(parts, weights, questions) if scorer.by_rank else LinearRanker(parts, weights)
