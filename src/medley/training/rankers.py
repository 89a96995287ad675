"""Rankers of blends, beside the one of a single scorer (evaluate.py)."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from medley.index.blend import Blend
from medley.index.scorer import Scorer
from medley.training.evaluate import EvaluateConfig, FusedRanker, Questions, Ranker, VectorRanker, known_users


@dataclass(frozen=True)
class LinearRanker:
    """Σ weight × score of the part."""

    parts: Sequence[Ranker]
    weights: Sequence[float]

    def scores(self, users: np.ndarray) -> Tensor:
        """(B, N) float32."""
        return torch.stack([part.scores(users) * weight for part, weight in zip(self.parts, self.weights, strict=True)]).sum(dim=0)


def ranker_of(scorer: Scorer | Blend, questions: Questions, config: EvaluateConfig) -> Ranker | FusedRanker:
    """The ranker of whatever a run ends in."""
    if isinstance(scorer, Scorer):
        return VectorRanker.of(scorer, questions, config)
    is_known_V, weights = known_users(scorer, questions), list(scorer.weights.values())
    parts = [VectorRanker.of(part, questions, config, is_known_V) for part in scorer.parts.values()]
    return FusedRanker(parts, weights) if scorer.by_rank else LinearRanker(parts, weights)
