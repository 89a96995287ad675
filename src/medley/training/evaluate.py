"""Evaluation: the whole catalogue ranked for every user, exactly, seen items left out.

A split asks questions (whom to rank for, what each should find, what is left out); a ranker scores the catalogue for a block of users; the best
items of the whole catalogue and of groups of it (slices.py) are cut out of the same scores. Metrics are read off what was cut, for all users at
once; means are over the users that have a relevant item in the group.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, Self

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, PositiveInt
from torch import Tensor

from medley.data.item_lists import ItemLists
from medley.data.prepared import Interactions, PreparedData
from medley.index.blend import NUM_CANDIDATES, Blend, fuse_ranks
from medley.index.fold_in import REGULARIZATION, UNSEEN_WEIGHT, FoldIn
from medley.index.scorer import Scorer
from medley.index.search import rank
from medley.metrics.ranking import mae, mean_over_users, ranking_metrics, rmse
from medley.schema import SPLITS

USERS_PER_BLOCK = 256
"""Fixed, so that a figure does not depend on who computed which block."""


class EvaluateConfig(BaseModel):
    """What is measured."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    ks: tuple[PositiveInt, ...] = Field(default=(5, 10, 20), min_length=1)
    """cuts of the ranked list; the middle one is that of slices, of everything beyond accuracy and of the report's short tables"""
    splits: tuple[Literal["valid", "test"], ...] = ("valid", "test")
    """splits that jobs.evaluate measures"""
    resamples: int = Field(default=1000, ge=0)
    """resamples of the users behind every interval and p value of jobs.evaluate; 0: neither"""
    against: str | None = None
    """another finished run of the same data that jobs.evaluate compares this one with, user by user: its name in the same storage, or its folder"""
    content_neighbours: PositiveInt = 5
    """train items of a user, the most similar ones, that the content-kNN baseline scores an item by"""
    given_share: float = Field(default=0.0, ge=0, lt=1)
    """share of the relevant items of users without train interactions that is given to the model as their history (the first ones by time);
    the rest is to be found. 0: such users are ranked by what the model knows without any history"""
    fold_in_unseen_weight: float = Field(default=UNSEEN_WEIGHT, ge=0)
    """how strongly a folded-in user keeps the mean user's scores of the whole catalogue; a bundle of the run serves with it"""
    fold_in_regularization: float = Field(default=REGULARIZATION, gt=0)
    """strength of the pull of a folded-in vector to the mean user's; a bundle of the run serves with it"""

    @property
    def k(self) -> int:
        """The middle cut."""
        return self.ks[len(self.ks) // 2]


@dataclass(frozen=True)
class Questions:
    """Whom to rank for: users (rows), what each should find, what is left out of the ranking, and histories of users to fold in.

    train_count_N: what users of whom the model knows nothing are ranked by, as in serving.
    """

    users: np.ndarray
    targets: ItemLists
    excluded: ItemLists
    given: ItemLists
    train_count_N: np.ndarray

    @property
    def num_blocks(self) -> int:
        """Blocks of USERS_PER_BLOCK users; one without users where nobody has anything to find."""
        return max(1, -(-len(self.users) // USERS_PER_BLOCK))

    def block(self, number: int) -> np.ndarray:
        """The users of one block."""
        return self.users[number * USERS_PER_BLOCK : (number + 1) * USERS_PER_BLOCK]


class Ranker(Protocol):
    """What evaluation ranks with."""

    def scores(self, users: np.ndarray) -> Tensor:
        """(B, N) float32 scores of the whole catalogue, in memory that the caller may change."""


@dataclass(frozen=True)
class VectorRanker:
    """Ranks by a product of columns: vectors, and the item bias against a 1; train counts against a 1 for users of whom nothing is known."""

    user_columns_VD: Tensor
    item_columns_ND: Tensor

    @classmethod
    def of(cls, scorer: Scorer, questions: Questions, config: EvaluateConfig, is_known_V: Tensor | None = None) -> Self:
        """Trained users' vectors; for users with given items their fold-in, for users of whom nothing is known the train counts, as serving does it.

        is_known_V: `known_users` of the blend that the scorer is a part of; None: it stands alone.
        """
        if is_known_V is None:
            is_known_V = known_users(Blend.of(scorer), questions)
        user_columns_VD, item_columns_ND = scorer.user_columns_VD, scorer.item_columns_ND
        new_users = np.flatnonzero(questions.given.lengths)
        if len(new_users) and scorer.item_vectors_ND.any():
            fold_in = FoldIn(Blend.of(scorer), config.fold_in_unseen_weight, config.fold_in_regularization)
            # Longest first, so that a piece is filled up with few rows of zeros.
            new_users = new_users[np.argsort(-questions.given.lengths[new_users], kind="stable")]
            for start in range(0, len(new_users), USERS_PER_BLOCK):
                users = new_users[start : start + USERS_PER_BLOCK]
                histories = [torch.from_numpy(questions.given.of(user).astype(np.int64)) for user in users]
                user_columns_VD[torch.from_numpy(users)] = fold_in.columns_of_many(histories)
        if not is_known_V.all():
            user_columns_VD[~is_known_V] = 0
            user_columns_VD = torch.cat([user_columns_VD, (~is_known_V)[:, None].float()], dim=1)
            item_columns_ND = torch.cat([item_columns_ND, torch.from_numpy(questions.train_count_N).float()[:, None]], dim=1)
        return cls(user_columns_VD, item_columns_ND)

    def scores(self, users: np.ndarray) -> Tensor:
        """(B, N) float32."""
        return self.user_columns_VD[torch.from_numpy(users.astype(np.int64))] @ self.item_columns_ND.T


@dataclass(frozen=True)
class FusedRanker:
    """Fused places, as serving fuses them: each part ranks the items that are asked about, those left out of the ranking not among them."""

    parts: Sequence[Ranker]
    weights: Sequence[float]


def known_users(blend: Blend, questions: Questions) -> Tensor:
    """(V,) bool: users that were trained or have given items that say something. Everybody where no item does: popularity ranks as it is."""
    is_telling_N = blend.is_telling_N
    if not is_telling_N.any():
        return torch.ones(len(blend.is_trained_V), dtype=torch.bool)
    rows, items = _places(questions.given, np.flatnonzero(questions.given.lengths))
    new_users = torch.from_numpy(np.flatnonzero(questions.given.lengths))
    return blend.is_trained_V.index_fill(0, new_users[rows[is_telling_N[items]]], True)


@dataclass(frozen=True)
class Ranked:
    """What was ranked for some users: items_BK int64, best first, -1 past the last one; relevant_BK bool; num_relevant_B int64, before the cut."""

    items_BK: Tensor
    relevant_BK: Tensor
    num_relevant_B: Tensor

    @classmethod
    def join(cls, blocks: Sequence[Self]) -> Self:
        """The users of all blocks, in their order."""
        parts = zip(*((block.items_BK, block.relevant_BK, block.num_relevant_B) for block in blocks), strict=True)
        return cls(*(torch.cat(part) for part in parts))

    def metrics(self, ks: Sequence[int]) -> dict[str, np.ndarray]:
        """Metric name → one value per user, NaN for users with no relevant item."""
        return {name: values_B.numpy() for name, values_B in ranking_metrics(self.relevant_BK, self.num_relevant_B, ks).items()}


def rank_block(ranker: Ranker | FusedRanker, questions: Questions, block: int, groups: Mapping[str, np.ndarray], k: int) -> dict[str, Ranked]:
    """Group → the k best of its items for each user of a block; the relevant ones are those of the group. groups: name → item indices, ascending."""
    users = questions.block(block)
    parts, weights = (ranker.parts, ranker.weights) if isinstance(ranker, FusedRanker) else ([ranker], None)
    scores = [part.scores(users) for part in parts]
    num_items = scores[0].shape[1]
    for scores_BN in scores:
        scores_BN[_places(questions.excluded, users)] = -torch.inf
    rows, targets = _places(questions.targets, users)
    relevant_BN = torch.zeros(len(users), num_items, dtype=torch.bool)
    relevant_BN[rows, targets] = True
    ranked = {}
    for name, items in groups.items():
        items_G, is_in_N = torch.tensor(items), torch.zeros(num_items, dtype=torch.bool)
        is_in_N[items_G] = True
        asked = scores if len(items) == num_items else [scores_BN[:, items_G] for scores_BN in scores]
        scores_BG = asked[0] if weights is None or not len(items) else fuse_ranks(asked, weights, max(NUM_CANDIDATES, k))
        if len(items) == num_items:
            items_BK = rank(scores_BG, k)[1]
        else:
            places_BK = rank(scores_BG, k)[1]
            items_BK = torch.where(places_BK >= 0, items_G[places_BK.clamp(min=0)], -1) if len(items) else places_BK
        found_BK = relevant_BN.gather(1, items_BK.clamp(min=0)) & (items_BK >= 0)
        ranked[name] = Ranked(items_BK, found_BK, torch.bincount(rows[is_in_N[targets]], minlength=len(users)))
    return ranked


def rank_users(ranker: Ranker | FusedRanker, questions: Questions, groups: Mapping[str, np.ndarray], k: int) -> dict[str, Ranked]:
    """All blocks, in this process: group → the k best of its items for each of the questions' users."""
    blocks = [rank_block(ranker, questions, block, groups, k) for block in range(questions.num_blocks)]
    return {name: Ranked.join([block[name] for block in blocks]) for name in groups}


def _places(lists: ItemLists, users: np.ndarray) -> tuple[Tensor, Tensor]:
    rows, items = lists.pairs(users)
    return torch.from_numpy(rows), torch.from_numpy(items.astype(np.int64))


def summarise(values: Mapping[str, np.ndarray]) -> dict[str, float | None]:
    """Means over users; None where no user has a relevant item."""
    means = {name: mean_over_users(torch.from_numpy(values_V)) for name, values_V in values.items()}
    return {name: None if math.isnan(value) else value for name, value in means.items()}


def whole_catalogue(num_items: int) -> dict[str, np.ndarray]:
    """The one group that validation ranks."""
    return {"all": np.arange(num_items)}


def make_questions(data: PreparedData, split: str, config: EvaluateConfig) -> Questions:
    """What each user of a split should find, with the items of earlier splits left out of the ranking.

    With given_share > 0, users without train items get the earliest of their targets as history.
    """
    targets = data.targets(split)
    earlier = SPLITS[: SPLITS.index(split)]
    excluded = data.item_lists(*earlier)
    given_users, given_items = _given(data.interactions(split), targets, data.train_lists.lengths == 0, config.given_share)
    given = ItemLists.from_pairs(given_users, given_items, data.num_users)
    if len(given_users):
        all_users = np.arange(data.num_users)
        rows, items = targets.pairs(all_users)
        is_given = given.contain(rows, items)
        targets = ItemLists.from_pairs(rows[~is_given], items[~is_given], data.num_users)
        known_rows, known_items = excluded.pairs(all_users)
        excluded = ItemLists.from_pairs(np.concatenate([known_rows, given_users]), np.concatenate([known_items, given_items]), data.num_users)
    return Questions(np.flatnonzero(targets.lengths), targets, excluded, given, data.train_count_N)


def _given(part: Interactions, targets: ItemLists, is_new_V: np.ndarray, given_share: float) -> tuple[np.ndarray, np.ndarray]:
    """(users, items) given as history: of each new user with two targets or more the earliest share, at least one item, never all."""
    num_given_V = np.where(is_new_V & (targets.lengths > 1), np.clip(np.round(given_share * targets.lengths), 1, targets.lengths - 1), 0)
    if given_share == 0 or not num_given_V.any():
        return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
    is_asked = num_given_V[part.users] > 0
    users, items = part.users[is_asked].astype(np.int64), part.items[is_asked].astype(np.int64)  # in time order, as the split is
    is_target = targets.contain(users, items)
    users, items = users[is_target], items[is_target]
    first = np.sort(np.unique(users * (items.max() + 1) + items, return_index=True)[1])
    first = first[np.argsort(users[first], kind="stable")]
    users, items = users[first], items[first]
    starts = np.flatnonzero(np.diff(users, prepend=-1))
    place = np.arange(len(users)) - np.repeat(starts, np.diff(starts, append=len(users)))
    is_given = place < num_given_V[users]
    return users[is_given], items[is_given]


def rating_errors(scorer: Scorer, users: np.ndarray, items: np.ndarray, values: np.ndarray) -> dict[str, float]:
    """RMSE and MAE of predicted ratings over the rows that have a value; empty when none has."""
    has_value = np.isfinite(values)
    if not has_value.any():
        return {}
    user_B, item_B = (torch.from_numpy(part[has_value].astype(np.int64)) for part in (users, items))
    predicted_B = (scorer.user_vectors_VD[user_B] * scorer.item_vectors_ND[item_B]).sum(dim=1)
    predicted_B = predicted_B + scorer.user_bias_V[user_B] + scorer.item_bias_N[item_B] + scorer.global_bias
    value_B = torch.from_numpy(values[has_value])
    return {"rmse": float(rmse(predicted_B, value_B)), "mae": float(mae(predicted_B, value_B))}


def format_table(results: Mapping[str, Mapping[str, Mapping[str, Any]]], metric: str) -> str:
    """A plain table: one line per scorer, one column per group, of one metric. results: scorer → group → metric → value."""
    groups = ("all", "warm", "cold")
    lines = [f"{metric:<14}" + "".join(f"{group:>9}" for group in groups)]
    for name, by_group in results.items():
        cells = [by_group.get(group, {}).get(metric) for group in groups]
        lines.append(f"{name:<14}" + "".join(f"{'-' if cell is None else format(cell, '.4f'):>9}" for cell in cells))
    return "\n".join(lines)
