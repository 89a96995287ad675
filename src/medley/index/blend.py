"""Several scorers as one: their weighted sum, or their ranks fused; a scorer alone is a sum of one."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Self

import torch
from safetensors.torch import load, save
from torch import Tensor

from medley.index.scorer import Scorer
from medley.index.search import rank
from medley.manifest import read_bytes, write_bytes

RANK_OFFSET = 20
"""Place 0 weighs ln((20 + candidates) / 20): flat at the top, where the order of a part is mostly noise, and long in the tail."""
NUM_CANDIDATES = 200
"""Items that each part of a fusion by rank retrieves; more where more are asked for."""


@dataclass(frozen=True)
class Blend:
    """Parts over the same users and items. A user's columns are those of all parts behind one another (vector, then the 1 that meets the bias).

    Linear: score = Σ weight × score of the part. By rank: Σ weight × ln((RANK_OFFSET + candidates) / (RANK_OFFSET + place)) over the parts that
    have the item among their candidates, place from 0 among the items that are not left out. A part whose candidates all score the same abstains.
    """

    parts: dict[str, Scorer]
    weights: dict[str, float]
    by_rank: bool

    @classmethod
    def of(cls, scorer: "Scorer | Blend") -> "Blend":
        """A blend as it is; a scorer as the only part."""
        return scorer if isinstance(scorer, Blend) else Blend({"model": scorer}, {"model": 1.0}, by_rank=False)

    @property
    def user_columns_VD(self) -> Tensor:
        """Columns of every user, all parts."""
        return torch.cat([part.user_columns_VD for part in self.parts.values()], dim=1)

    @property
    def item_columns(self) -> list[Tensor]:
        """Columns of every item, (N, D) for each part, times the part's weight where they are summed."""
        return [part.item_columns_ND * (1.0 if self.by_rank else self.weights[name]) for name, part in self.parts.items()]

    @cached_property
    def widths(self) -> list[int]:
        """Columns of each part."""
        return [part.item_vectors_ND.shape[1] + 1 for part in self.parts.values()]

    @property
    def item_vectors_ND(self) -> Tensor:
        """Vectors whose cosine says how alike two items are: those of all parts by weight, of equal length per part where ranks are fused."""
        if not self.by_rank:
            return torch.cat([part.item_vectors_ND * self.weights[name] for name, part in self.parts.items()], dim=1)
        return torch.cat([torch.nn.functional.normalize(part.item_vectors_ND, dim=1) * self.weights[name] ** 0.5 for name, part in self.parts.items()], dim=1)

    @property
    def user_offset_V(self) -> Tensor:
        """What adds to every score of a user and ranks nothing; 0 where ranks are fused."""
        if self.by_rank:
            return torch.zeros(len(next(iter(self.parts.values())).user_vectors_VD))
        return torch.stack([(part.user_bias_V + part.global_bias) * self.weights[name] for name, part in self.parts.items()]).sum(dim=0)

    @property
    def is_trained_V(self) -> Tensor:
        """Users of whom any part knows something."""
        return torch.stack([part.user_vectors_VD.any(dim=1) for part in self.parts.values()]).any(dim=0)

    @property
    def is_telling_N(self) -> Tensor:
        """Items that say something of who had them: those with a direction in any part; the vectors of a popularity model have none."""
        vectors = (part.item_vectors_ND if part.history_vectors_ND is None else part.history_vectors_ND for part in self.parts.values())
        return torch.stack([vectors_ND.any(dim=1) for vectors_ND in vectors]).any(dim=0)

    def save(self, uri: str) -> None:
        """Write all parts as one safetensors file."""
        tensors = {f"{number}/{name}/{field}": value for number, (name, part) in enumerate(self.parts.items()) for field, value in part.tensors().items()}
        facts = {"weights": torch.tensor([self.weights[name] for name in self.parts], dtype=torch.float64), "by_rank": torch.tensor(self.by_rank)}
        write_bytes(uri, save(tensors | facts))

    @classmethod
    def _from_tensors(cls, tensors: dict[str, Tensor]) -> Self:
        by_rank, weights = bool(tensors.pop("by_rank")), tensors.pop("weights").tolist()
        fields_of: dict[tuple[int, str], dict[str, Tensor]] = {}
        for key, value in tensors.items():
            number, name, field = key.split("/")
            fields_of.setdefault((int(number), name), {})[field] = value
        parts = {name: Scorer(**fields_of[number, name]) for number, name in sorted(fields_of)}
        return cls(parts, dict(zip(parts, weights, strict=True)), by_rank)


def read_scorer(uri: str) -> Scorer | Blend:
    """What `Scorer.save` or `Blend.save` wrote."""
    tensors = load(read_bytes(uri))
    return Blend._from_tensors(tensors) if "by_rank" in tensors else Scorer(**tensors)


def rank_gain(place: int | Tensor, num_candidates: int) -> Tensor:
    """ln((RANK_OFFSET + candidates) / (RANK_OFFSET + place)), float64; 0 from the last candidate on."""
    place = torch.as_tensor(place, dtype=torch.float64)
    return (math.log(RANK_OFFSET + num_candidates) - torch.log(RANK_OFFSET + place)).clamp(min=0)


def place_gains(scores_BN: Tensor, num_candidates: int = NUM_CANDIDATES) -> Tensor:
    """What one part's places are worth, (B, N) float64: `rank_gain` of its best items, -inf for the others. Items of score -inf have no place.

    A part whose candidates of a user all score the same knows nothing of the user: 0, so that the order of the items' indices decides nothing.
    """
    best_BK, items_BK = rank(scores_BN, min(num_candidates, scores_BN.shape[1]))
    is_found_BK = items_BK >= 0
    differs_B1 = (is_found_BK & (best_BK != best_BK[:, :1])).any(dim=1, keepdim=True)
    gain_BK = torch.where(differs_B1, rank_gain(torch.arange(items_BK.shape[1]), num_candidates), 0.0).masked_fill(~is_found_BK, -torch.inf)
    gains_BN = torch.full(scores_BN.shape, -torch.inf, dtype=torch.float64)
    return gains_BN.scatter_reduce_(1, items_BK.clamp(min=0), gain_BK, "amax")


def fuse_ranks(scores: Sequence[Tensor], weights: Sequence[float], num_candidates: int = NUM_CANDIDATES) -> Tensor:
    """Fused scores (B, N) float32 of parts' scores (B, N), in which -inf items have no place; items that no part retrieves are -inf."""
    fused_BN = torch.zeros(scores[0].shape, dtype=torch.float64)
    is_candidate_BN = torch.zeros(scores[0].shape, dtype=torch.bool)
    for scores_BN, weight in zip(scores, weights, strict=True):
        gains_BN = place_gains(scores_BN, num_candidates)
        is_candidate_BN |= gains_BN > -torch.inf
        fused_BN += weight * gains_BN.clamp(min=0)
    return fused_BN.masked_fill(~is_candidate_BN, -torch.inf).float()
