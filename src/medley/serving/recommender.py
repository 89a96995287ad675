"""Recommendations from a bundle in plain Python: known users, users known only by a history, and everybody else."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

import numpy as np
import torch
from torch import Tensor

from medley.bundle import Bundle, read_bundle
from medley.index.blend import Blend
from medley.index.exact import BlendSearch
from medley.index.fold_in import REGULARIZATION, UNSEEN_WEIGHT, FoldIn
from medley.index.search import rank
from medley.manifest import absolute_uri
from medley.schema import ITEM_ID, TITLE, USER_ID, InputError

MAX_K = 1000

Source = Literal["personal", "fold_in", "popular"]


class UnknownIdError(InputError):
    """The bundle does not hold this user or item; over HTTP a 404."""


@dataclass(frozen=True)
class Query:
    """One request for recommendations; the arguments are those of `Recommender.recommend`."""

    user_id: str | None = None
    k: int = 10
    history: Sequence[str] = ()
    exclude: Sequence[str] = ()
    candidates: Sequence[str] | None = None
    include_seen: bool = False

    def __post_init__(self) -> None:
        check_k(self.k)


@dataclass(frozen=True)
class RankedItem:
    """One recommended item. score: higher is better; its scale depends on the source (see `Recommendations`)."""

    item_id: str
    title: str | None
    score: float


@dataclass(frozen=True)
class Recommendations:
    """The best items first, fewer than k where no more are left.

    source: `personal` (the trained user vector; scores of the model), `fold_in` (a user vector solved from the history around the mean user;
    scores of the model without user bias and global bias) or `popular` (no knowledge of the user; scores are training interactions).
    unknown_items: ids of the request that the bundle does not hold; they were ignored.
    """

    items: Sequence[RankedItem]
    source: Source
    unknown_items: Sequence[str]
    model_version: str


@dataclass(frozen=True)
class ModelDescription:
    """What is served: version, counts, width of the vectors, test metrics, and the fingerprints and versions it was made from."""

    model_version: str
    num_items: int
    num_users: int
    dimension: int
    metrics: Mapping[str, Any]
    parents: Mapping[str, str]
    versions: Mapping[str, str]


@dataclass(frozen=True)
class _Plan:
    """A query in indices. user_vector_D is None where only popularity can answer."""

    query: Query
    source: Source
    user_vector_D: Tensor | None
    offset: float
    excluded: np.ndarray
    candidates: np.ndarray | None
    unknown_items: list[str]


class Recommender:
    """A bundle in memory, ready to answer. Safe to call from several threads: nothing changes after construction.

    unseen_weight, regularization: the fold-in's weight of items not in the history and its ridge term (index/fold_in.py, `fold_in`).
    None: the run's evaluate.fold_in_*, which the bundle holds, so that serving folds in as the evaluation of the run does.

    Ranking is exact (index/exact.py): an answer is the same alone, in any batch and on any number of threads. A blend ranks with all its parts.
    """

    def __init__(self, bundle: Bundle, *, unseen_weight: float | None = None, regularization: float | None = None):
        evaluated = bundle.config.get("evaluate", {})
        if unseen_weight is None:
            unseen_weight = float(evaluated.get("fold_in_unseen_weight", UNSEEN_WEIGHT))
        if regularization is None:
            regularization = float(evaluated.get("fold_in_regularization", REGULARIZATION))
        if unseen_weight < 0 or regularization <= 0:
            raise InputError(
                f"fold-in with unseen_weight {unseen_weight}, regularization {regularization}", "unseen_weight ≥ 0, regularization > 0", "correct them"
            )
        blend = Blend.of(bundle.scorer)
        item_vectors_ND = blend.item_vectors_ND
        assert bundle.items.num_rows == len(item_vectors_ND)
        assert bundle.users.num_rows == len(blend.is_trained_V)
        self.unseen_weight, self.regularization = unseen_weight, regularization
        self.model_version = bundle.version
        self._search = BlendSearch(blend)
        self._user_columns_VD = blend.user_columns_VD
        self._is_trained_V = blend.is_trained_V
        self._user_offset_V = blend.user_offset_V
        self._item_vectors_ND = item_vectors_ND
        self._item_norm_N = item_vectors_ND.norm(dim=1)
        self._fold_in = FoldIn(blend, unseen_weight, regularization)
        self._item_ids: list[str] = bundle.items[ITEM_ID].to_pylist()
        self._titles: list[str | None] = bundle.items[TITLE].to_pylist()
        self._item_index = {item_id: index for index, item_id in enumerate(self._item_ids)}
        self._user_index = {user_id: index for index, user_id in enumerate(bundle.users[USER_ID].to_pylist())}
        self._seen = bundle.seen
        self._train_count_N = bundle.items["train_count"].to_numpy()
        self._popular_order_N = np.argsort(-self._train_count_N.astype(np.int64), kind="stable")
        self.description = ModelDescription(
            model_version=bundle.version,
            num_items=len(self._item_ids),
            num_users=len(self._user_index),
            dimension=item_vectors_ND.shape[1],
            metrics=bundle.metrics,
            parents=bundle.manifest["parents"],
            versions=bundle.manifest["versions"],
        )

    @classmethod
    def load(cls, uri: str, *, unseen_weight: float | None = None, regularization: float | None = None) -> Self:
        """The recommender of a bundle folder; a missing, foreign or changed one is an InputError."""
        return cls(read_bundle(absolute_uri(uri)), unseen_weight=unseen_weight, regularization=regularization)

    def recommend(
        self,
        user_id: str | None = None,
        k: int = 10,
        *,
        history: Sequence[str] = (),
        exclude: Sequence[str] = (),
        candidates: Sequence[str] | None = None,
        include_seen: bool = False,
    ) -> Recommendations:
        """The k best items (1 to 1000) for a user.

        A user the model was trained on gets `personal` recommendations; a history then only says what else they have had. Anybody else
        gets `fold_in` from the known items of `history` (and what the bundle knows of them), or `popular` items without such. Items
        already had (in the bundle, or in `history`) are left out unless include_seen. Items of `exclude` never come back.
        candidates: rank only these (None: the whole catalogue).
        """
        return self.recommend_many([Query(user_id, k, history, exclude, candidates, include_seen)])[0]

    def recommend_many(self, queries: Sequence[Query]) -> list[Recommendations]:
        """Answers of many queries in one product; each is what `recommend` gives for it alone."""
        plans = [self._plan(query) for query in queries]
        searched = [row for row, plan in enumerate(plans) if plan.user_vector_D is not None and plan.candidates is None]
        found = self._find([plans[row] for row in searched]) if searched else []
        of_row = dict(zip(searched, found, strict=True))
        return [self._answer(plan, of_row.get(row)) for row, plan in enumerate(plans)]

    def score(self, user_id: str | None, item_ids: Sequence[str], history: Sequence[str] = ()) -> list[float]:
        """Scores of these items in their order, as `recommend` gives them for this user and history (a blend by rank: for a k up to 200); an item
        already had gets what its place would be worth.

        An unknown item, or a user of whom neither a vector nor a history says anything, is an UnknownIdError.
        """
        indices, user_vector_D, offset, had = self._ask(user_id, item_ids, history)
        return [float(score) + offset for score in self._search.scores(user_vector_D, indices, had)]

    def shares(self, user_id: str | None, item_ids: Sequence[str], history: Sequence[str] = ()) -> dict[str, list[float]]:
        """Part of the blend → what it adds to the score of each item (its weighted score, or by rank its weighted place); refuses as `score` does."""
        indices, user_vector_D, _, had = self._ask(user_id, item_ids, history)
        return {name: values.tolist() for name, values in self._search.shares(user_vector_D, indices, had).items()}

    def _ask(self, user_id: str | None, item_ids: Sequence[str], history: Sequence[str]) -> tuple[np.ndarray, Tensor, float, np.ndarray]:
        """Item indices, the user's vector and offset, and the items already had; what the bundle does not know is an UnknownIdError."""
        indices = np.array([self._index_of(item_id) for item_id in item_ids], dtype=np.int64)
        history_indices, _ = self._indices(history)
        _, user_vector_D, offset = self._user(user_id, history_indices)
        if user_vector_D is None:
            raise UnknownIdError(
                f"user {user_id!r} is not in bundle {self.model_version} and the history holds no known items",
                "a user of the bundle, or a history with at least one of its items",
                "send a history, or ask for popular items with recommend",
            )
        return indices, user_vector_D, offset, self._had(user_id, history_indices)

    def similar(self, item_id: str, k: int = 10) -> list[RankedItem]:
        """The k items (1 to 1000) whose vectors have the highest cosine with this item's, itself left out."""
        check_k(k)
        index = self._index_of(item_id)
        norms_N = (self._item_norm_N * self._item_norm_N[index]).clamp_min(torch.finfo(torch.float32).tiny)
        cosine_N = (self._item_vectors_ND @ self._item_vectors_ND[index] / norms_N).clamp(-1, 1)
        cosine_N[index] = -torch.inf
        scores_1K, items_1K = rank(cosine_N[None], min(k, len(self._item_ids)))
        return self._ranked_items((item, score) for item, score in zip(items_1K[0].tolist(), scores_1K[0].tolist(), strict=True) if item >= 0)

    def _plan(self, query: Query) -> _Plan:
        history, unknown = self._indices(query.history)
        excluded, unknown_excluded = self._indices(query.exclude)
        candidates, unknown_candidates = self._indices(query.candidates or ())
        source, user_vector_D, offset = self._user(query.user_id, history)
        if not query.include_seen:
            excluded = np.union1d(excluded, self._had(query.user_id, history))
        return _Plan(
            query=query,
            source=source,
            user_vector_D=user_vector_D,
            offset=offset,
            excluded=excluded,
            candidates=None if query.candidates is None else np.setdiff1d(candidates, excluded),
            unknown_items=list(dict.fromkeys([*unknown, *unknown_excluded, *unknown_candidates])),
        )

    def _had(self, user_id: str | None, history: np.ndarray) -> np.ndarray:
        """Items of the history and of what the bundle knows of the user, int64."""
        seen = self._seen.of(self._user_index[user_id]) if user_id in self._user_index else ()
        return np.union1d(history, np.asarray(seen, dtype=np.int64))

    def _user(self, user_id: str | None, history: np.ndarray) -> tuple[Source, Tensor | None, float]:
        """Where the knowledge of this user comes from, their float32 vector (bias column included) and what adds to every score."""
        index = self._user_index.get(user_id) if user_id is not None else None
        if index is not None and self._is_trained_V[index]:
            return "personal", self._user_columns_VD[index], float(self._user_offset_V[index])
        if index is not None:  # came after training: what they had by the time of the bundle is their history
            history = np.union1d(history, self._seen.of(index)).astype(np.int64)
        history_L = torch.from_numpy(history)
        if not self._fold_in.knows(history_L):
            return "popular", None, 0.0
        return "fold_in", self._fold_in.columns(history_L), 0.0

    def _find(self, plans: Sequence[_Plan]) -> list[tuple[np.ndarray, np.ndarray]]:
        """Indices and scores of each plan's best items of the whole catalogue."""
        users_BD = torch.stack([plan.user_vector_D for plan in plans if plan.user_vector_D is not None])
        return self._search.best(users_BD, [plan.query.k for plan in plans], [plan.excluded for plan in plans])

    def _answer(self, plan: _Plan, found: tuple[np.ndarray, np.ndarray] | None) -> Recommendations:
        if plan.user_vector_D is None:
            indices, scores = self._popular(plan)
        elif plan.candidates is not None:
            indices, scores = self._search.among(plan.user_vector_D, plan.candidates, plan.query.k)
        else:
            assert found is not None
            indices, scores = found
        ranked = [(int(index), float(score) + plan.offset) for index, score in zip(indices, scores, strict=True)]
        return Recommendations(self._ranked_items(ranked), plan.source, plan.unknown_items, self.model_version)

    def _popular(self, plan: _Plan) -> tuple[np.ndarray, np.ndarray]:
        """The items of most train interactions, and how many they have."""
        indices = plan.candidates
        if indices is None:
            indices = self._popular_order_N[: plan.query.k + len(plan.excluded)]
            indices = indices[~np.isin(indices, plan.excluded)]
        order = np.lexsort((indices, -self._train_count_N[indices].astype(np.int64)))[: plan.query.k]
        return indices[order], self._train_count_N[indices[order]]

    def _ranked_items(self, ranked: Iterable[tuple[int, float]]) -> list[RankedItem]:
        return [RankedItem(self._item_ids[index], self._titles[index], score) for index, score in ranked]

    def _indices(self, item_ids: Sequence[str]) -> tuple[np.ndarray, list[str]]:
        """Sorted unique indices of the known ids, and the unknown ids."""
        known = {self._item_index[item_id] for item_id in item_ids if item_id in self._item_index}
        return np.array(sorted(known), dtype=np.int64), [item_id for item_id in item_ids if item_id not in self._item_index]

    def _index_of(self, item_id: str) -> int:
        index = self._item_index.get(item_id)
        if index is None:
            raise UnknownIdError(f"item {item_id!r} is not in bundle {self.model_version}", "an item of the bundle", "check the id")
        return index


def check_k(k: int) -> None:
    """An InputError unless 1 ≤ k ≤ 1000."""
    if not 1 <= k <= MAX_K:
        raise InputError(f"k is {k}", f"a number of results from 1 to {MAX_K}", "ask for fewer or more items")
