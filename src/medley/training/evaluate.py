"""Evaluation: the whole catalogue ranked for every user, exactly, seen items left out; all, warm and cold items; baselines beside it.

Groups: `all` ranks every item. `warm` ranks and counts only items with a train interaction, `cold` only those without.
Metrics are means over the users that have a relevant item in the group.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, PositiveInt
from torch import Tensor

from medley.data.item_lists import ItemLists
from medley.data.prepared import Interactions, PreparedData
from medley.index.fold_in import REGULARIZATION, UNSEEN_WEIGHT, FoldInPrior, fold_in
from medley.index.scorer import Scorer
from medley.index.search import top_k
from medley.metrics import mae, mean_over_users, ranking_metrics, rmse
from medley.schema import SPLITS

USERS_PER_BLOCK = 256
"""Fixed, so that a figure does not depend on who computed which block."""


class EvaluateConfig(BaseModel):
    """What is measured."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    ks: tuple[PositiveInt, ...] = Field(default=(5, 10, 20), min_length=1)
    """cuts of the ranked list"""
    splits: tuple[Literal["valid", "test"], ...] = ("valid", "test")
    """splits that jobs.evaluate measures"""
    given_share: float = Field(default=0.0, ge=0, lt=1)
    """share of the relevant items of users without train interactions that is given to the model as their history (the first ones by time);
    the rest is to be found. 0: such users are ranked by what the model knows without any history"""
    fold_in_unseen_weight: float = Field(default=UNSEEN_WEIGHT, ge=0)
    """how strongly a folded-in user keeps the mean user's scores of the whole catalogue; a bundle of the run serves with it"""
    fold_in_regularization: float = Field(default=REGULARIZATION, gt=0)
    """strength of the pull of a folded-in vector to the mean user's; a bundle of the run serves with it"""


@dataclass(frozen=True)
class Questions:
    """Whom to rank for: users (rows), what each should find, what is left out of the ranking, and histories of users to fold in."""

    users: np.ndarray
    targets: ItemLists
    excluded: ItemLists
    given: ItemLists

    @property
    def num_blocks(self) -> int:
        """Blocks of USERS_PER_BLOCK users."""
        return -(-len(self.users) // USERS_PER_BLOCK)


def rank_block(scorer: Scorer, questions: Questions, block: int, candidate_mask_N: Tensor, ks: Sequence[int], config: EvaluateConfig) -> dict[str, np.ndarray]:
    """Metric name → one value per user of a block (NaN for users with no relevant item among the candidates)."""
    users = questions.users[block * USERS_PER_BLOCK : (block + 1) * USERS_PER_BLOCK]
    item_columns_ND = scorer.item_columns_ND
    user_columns_BD = _user_columns(scorer, item_columns_ND, questions, users, config)
    no_bias_N = torch.zeros(len(item_columns_ND))
    excluded = questions.excluded.pairs(users)
    _, ranked_BK = top_k(user_columns_BD, item_columns_ND, no_bias_N, max(ks), excluded=excluded, candidate_mask_N=candidate_mask_N)
    rows, items = questions.targets.pairs(users)
    is_candidate = candidate_mask_N.numpy()[items]
    relevant_BN = torch.zeros(len(users), len(candidate_mask_N), dtype=torch.bool)
    relevant_BN[rows[is_candidate], items[is_candidate].astype(np.int64)] = True
    ranked_relevant_BK = relevant_BN.gather(1, ranked_BK.clamp(min=0)) & (ranked_BK >= 0)
    return {name: values.numpy() for name, values in ranking_metrics(ranked_relevant_BK, relevant_BN.sum(dim=1), ks).items()}


def _user_columns(scorer: Scorer, item_columns_ND: Tensor, questions: Questions, users: np.ndarray, config: EvaluateConfig) -> Tensor:
    """Trained users' vectors; for users with given items, their fold-in, as serving does it for users outside training."""
    columns_BD = scorer.user_columns_VD[torch.from_numpy(users.astype(np.int64))]
    lengths = questions.given.lengths[users]
    if lengths.any() and scorer.item_vectors_ND.any():
        gram_DD, prior = item_columns_ND.T @ item_columns_ND, FoldInPrior.of(scorer)
        for row in np.flatnonzero(lengths):
            history_LD = item_columns_ND[torch.from_numpy(questions.given.of(users[row]).astype(np.int64))]
            columns_BD[row] = fold_in(history_LD, gram_DD, prior, config.fold_in_unseen_weight, config.fold_in_regularization)
    return columns_BD


def summarise(blocks: Sequence[Mapping[str, np.ndarray]]) -> dict[str, float | None]:
    """Means over users in block order; None where no user has a relevant item."""
    if not blocks:
        return {}
    means = {name: mean_over_users(torch.from_numpy(np.concatenate([block[name] for block in blocks]))) for name in blocks[0]}
    return {name: None if math.isnan(value) else value for name, value in means.items()}


def group_masks(train_count_N: np.ndarray) -> dict[str, Tensor]:
    """all, warm, cold → bool mask over the items."""
    is_warm_N = torch.from_numpy(train_count_N > 0)
    return {"all": torch.ones_like(is_warm_N), "warm": is_warm_N, "cold": ~is_warm_N}


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
        is_given = np.isin(rows * data.num_items + items, given_users * data.num_items + given_items)
        targets = ItemLists.from_pairs(rows[~is_given], items[~is_given], data.num_users)
        known_rows, known_items = excluded.pairs(all_users)
        excluded = ItemLists.from_pairs(np.concatenate([known_rows, given_users]), np.concatenate([known_items, given_items]), data.num_users)
    return Questions(np.flatnonzero(targets.lengths), targets, excluded, given)


def _given(part: Interactions, targets: ItemLists, is_new_V: np.ndarray, given_share: float) -> tuple[np.ndarray, np.ndarray]:
    """(users, items) given as history: of each new user with two targets or more the earliest share, at least one item, never all."""
    num_given_V = np.where(is_new_V & (targets.lengths > 1), np.clip(np.round(given_share * targets.lengths), 1, targets.lengths - 1), 0)
    if given_share == 0 or not num_given_V.any():
        return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
    pairs: dict[tuple[int, int], None] = {}  # in time order, as the split is
    num_taken = np.zeros(len(num_given_V), dtype=np.int64)
    for user, item in zip(part.users.tolist(), part.items.tolist(), strict=True):
        if num_taken[user] < num_given_V[user] and (user, item) not in pairs and item in targets.of(user):
            pairs[user, item] = None
            num_taken[user] += 1
    users, items = np.array(list(pairs), dtype=np.int64).T
    return users, items


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
