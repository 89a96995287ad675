"""Exact search whose answers do not depend on the batch: float32 products find candidates, float64 sums rank them; alone or fused over parts."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from medley.index.blend import NUM_CANDIDATES, Blend, fuse_ranks, rank_gain
from medley.index.search import top_k

SPARE_RESULTS = 32
"""Results beyond k that the float32 search fetches for the exact ranking; more are fetched where ties need them."""


class ExactSearch:
    """The best items of users by user · item over one matrix of columns.

    Float32 sums differ in their last digits between batch sizes; the few that may be among the best are scored again in float64, which makes
    the answer the same alone, in any batch and on any number of threads. Equal scores are ordered by item index.
    """

    def __init__(self, item_columns_ND: Tensor):
        self._item_columns_ND = item_columns_ND
        self._no_bias_N = torch.zeros(len(item_columns_ND))
        self._max_norm = float(item_columns_ND.norm(dim=1).max()) if len(item_columns_ND) else 0.0

    def best(self, users_BD: Tensor, k: int, excluded: Sequence[np.ndarray]) -> list[tuple[np.ndarray, np.ndarray]]:
        """For each user item indices and scores of the k best that are not excluded, best first, fewer where no more are left."""
        found = self._find(users_BD, k, excluded)
        return [self.among(user_D, indices, k) for user_D, indices in zip(users_BD, found, strict=True)]

    def among(self, user_D: Tensor, indices: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The k best of some items: indices and scores, best first."""
        scores = self.scores(user_D, indices)
        order = np.lexsort((indices, -scores))[:k]
        return indices[order], scores[order]

    def scores(self, user_D: Tensor, indices: np.ndarray) -> np.ndarray:
        """Dot products summed in float64, then rounded to float32, so that equal vectors have equal scores."""
        columns_KD = self._item_columns_ND[torch.from_numpy(indices)].numpy().astype(np.float64)
        return (columns_KD * user_D.numpy().astype(np.float64)).sum(axis=1).astype(np.float32)

    def gains(self, user_D: Tensor, indices: np.ndarray, excluded: np.ndarray, num_candidates: int) -> np.ndarray:
        """`rank_gain` of some items by their places among the catalogue without the excluded ones, float64; an excluded item has the place that it
        would have there. 0 past the candidates, and for all where the candidates score the same (`place_gains`)."""
        ((best, best_scores),) = self.best(user_D[None], num_candidates, [excluded])
        if not (best_scores != best_scores[:1]).any():
            return np.zeros(len(indices))
        own = self.scores(user_D, indices)[:, None]
        places = ((best_scores > own) | ((best_scores == own) & (best < indices[:, None]))).sum(axis=1)
        return rank_gain(torch.from_numpy(places), num_candidates).numpy()

    def _find(self, users_BD: Tensor, k: int, excluded: Sequence[np.ndarray]) -> list[np.ndarray]:
        """For each user the indices of a few more items than k, its k best in exact arithmetic surely among them."""
        pairs = np.repeat(np.arange(len(excluded)), [len(items) for items in excluded]), np.concatenate(excluded)
        num_items, dimension = self._item_columns_ND.shape
        k = min(k, num_items)
        # Bound of the rounding error of two float32 dot products: 2 D u |user| |item|, u = 2⁻²⁴ (Higham 2002, section 3.1).
        tolerance_B = 2 * dimension * 2.0**-24 * users_BD.norm(dim=1) * self._max_norm
        num_fetched = min(k + SPARE_RESULTS, num_items)
        while True:
            scores_BK, items_BK = top_k(users_BD, self._item_columns_ND, self._no_bias_N, num_fetched, pairs)
            last_B = scores_BK[:, -1]
            is_complete_B = torch.isneginf(last_B) | (last_B < scores_BK[:, k - 1] - tolerance_B)
            if num_fetched == num_items or bool(is_complete_B.all()):
                return [row_K[row_K >= 0] for row_K in items_BK.numpy()]
            num_fetched = min(4 * num_fetched, num_items)


class BlendSearch:
    """The best items of users by a blend: one product where it is linear; by rank, each part retrieves its candidates and their places are fused."""

    def __init__(self, blend: Blend):
        self._names, self._by_rank = list(blend.parts), blend.by_rank
        self._weights = [blend.weights[name] for name in self._names]
        self._widths = blend.widths
        columns = blend.item_columns
        self._parts = [ExactSearch(part_ND) for part_ND in columns] if len(columns) > 1 else []
        self._joined = None if blend.by_rank else ExactSearch(torch.cat(columns, dim=1))

    def best(self, users_BD: Tensor, ks: Sequence[int], excluded: Sequence[np.ndarray]) -> list[tuple[np.ndarray, np.ndarray]]:
        """For each user item indices and scores of the best that are not excluded, best first, as many as `ks` says for them."""
        if self._joined is not None:
            return [(indices[:k], scores[:k]) for k, (indices, scores) in zip(ks, self._joined.best(users_BD, max(ks), excluded), strict=True)]
        num_candidates = [max(NUM_CANDIDATES, k) for k in ks]
        parts = zip(self._parts, users_BD.split(self._widths, dim=1), strict=True)
        by_part = [search.best(part_BD, max(num_candidates), excluded) for search, part_BD in parts]
        return [self._fuse([(indices[:n], scores[:n]) for indices, scores in lists], n, k) for n, k, *lists in zip(num_candidates, ks, *by_part, strict=True)]

    def among(self, user_D: Tensor, indices: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The k best of some items; by rank, each part retrieves its candidates out of them, places are those among them."""
        if self._joined is not None:
            return self._joined.among(user_D, indices, k)
        num_candidates = max(NUM_CANDIDATES, k)
        lists = [search.among(part_D, indices, num_candidates) for search, part_D in zip(self._parts, user_D.split(self._widths), strict=True)]
        return self._fuse(lists, num_candidates, k)

    def scores(self, user_D: Tensor, indices: np.ndarray, excluded: np.ndarray) -> np.ndarray:
        """Scores of some items, float32, as `best` gives them for up to NUM_CANDIDATES results; excluded: what it leaves out."""
        if self._joined is not None:
            return self._joined.scores(user_D, indices)
        return np.sum(list(self.shares(user_D, indices, excluded).values()), axis=0).astype(np.float32)

    def shares(self, user_D: Tensor, indices: np.ndarray, excluded: np.ndarray) -> dict[str, np.ndarray]:
        """Part → what it adds to the scores of some items."""
        if not self._parts:
            return {self._names[0]: self.scores(user_D, indices, excluded)}
        by_part = zip(self._names, self._weights, self._parts, user_D.split(self._widths), strict=True)
        if self._by_rank:
            return {name: weight * part.gains(part_D, indices, excluded, NUM_CANDIDATES) for name, weight, part, part_D in by_part}
        return {name: part.scores(part_D, indices) for name, _, part, part_D in by_part}

    def _fuse(self, lists: Sequence[tuple[np.ndarray, np.ndarray]], num_candidates: int, k: int) -> tuple[np.ndarray, np.ndarray]:
        """lists: indices and scores of each part's candidates."""
        indices = np.unique(np.concatenate([own for own, _ in lists]))
        if not len(indices):
            return indices, np.zeros(0, dtype=np.float32)
        by_part = torch.full((len(lists), 1, len(indices)), -torch.inf)
        for scores_1C, (own, scores) in zip(by_part, lists, strict=True):
            scores_1C[0, np.searchsorted(indices, own)] = torch.from_numpy(scores)
        fused = fuse_ranks(list(by_part), self._weights, num_candidates)[0].numpy()
        order = np.lexsort((indices, -fused))[:k]
        return indices[order], fused[order]
