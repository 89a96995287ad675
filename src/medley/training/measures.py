"""What is reported of one split, as plain JSON values: relevance with intervals, comparisons, slices, fairness, everything beyond accuracy.

Relevance and the rest stand side by side and are never mixed into one number. Estimates are {mean, low, high, num_users}, null where unknown.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from medley.data.prepared import PreparedData
from medley.metrics.beyond_accuracy import coverage, diversity, gini, mean_popularity, novelty
from medley.metrics.bootstrap import Estimate, compare_paired, estimate_means
from medley.training.evaluate import EvaluateConfig, Ranked
from medley.training.slices import UserGroups

MIN_GROUP_USERS = 20
"""users below which a group is too small to be called the worst or the best"""
USERS_PER_PIECE = 4096
"""whose lists' vectors are in memory at a time"""

Values = dict[str, dict[str, dict[str, np.ndarray]]]
"""scorer → item group → metric → one value per user of the questions"""
Plain = dict[str, Any]


@dataclass(frozen=True)
class Catalogue:
    """What the measures must know of the data. num_users_with_N: users who had each item in train. unit_vectors_ND: see baselines.unit_vectors."""

    train_count_N: Tensor
    num_users_with_N: Tensor
    num_users: int
    unit_vectors_ND: Tensor

    @classmethod
    def of(cls, data: PreparedData, unit_vectors_ND: Tensor) -> Self:
        """Of a prepared set."""
        num_users_with_N = np.bincount(data.train_lists.items, minlength=data.num_items)
        return cls(torch.from_numpy(data.train_count_N), torch.from_numpy(num_users_with_N), data.num_users, unit_vectors_ND)


def values_of(ranked: Mapping[str, Mapping[str, Ranked]], config: EvaluateConfig) -> Values:
    """Every metric of everything that was ranked."""
    return {name: {group: part.metrics(config.ks) for group, part in by_group.items()} for name, by_group in ranked.items()}


def measure_split(
    ranked: Mapping[str, Mapping[str, Ranked]], values: Values, users: np.ndarray, groups: UserGroups, catalogue: Catalogue, config: EvaluateConfig, seed: int
) -> Plain:
    """The whole report of a split. users: those of the questions, as the values are ordered."""
    slices = measure_slices(values, users, groups, config, seed)
    return {
        "num_users": len(users),
        "relevance": {name: estimates_of_groups(by_group, config, seed) for name, by_group in values.items()},
        "compared": {name: compare(values["model"], theirs, config, seed) for name, theirs in values.items() if name != "model"},
        "slices": slices,
        "fairness": {dimension: fairness(parts, f"ndcg@{config.k}") for dimension, parts in slices.items()},
        "beyond_accuracy": {name: beyond_accuracy(by_group["all"].items_BK[:, : config.k], catalogue, config, seed) for name, by_group in ranked.items()},
    }


def estimates_of_groups(by_group: Mapping[str, Mapping[str, np.ndarray]], config: EvaluateConfig, seed: int) -> Plain:
    columns = {(group, metric): values_V for group, by_metric in by_group.items() for metric, values_V in by_metric.items()}
    estimates = iter(_estimate(list(columns.values()), config, seed))
    return {group: {metric: next(estimates) for metric in by_metric} for group, by_metric in by_group.items()}


def compare(ours: Mapping[str, Mapping[str, np.ndarray]], theirs: Mapping[str, Mapping[str, np.ndarray]], config: EvaluateConfig, seed: int) -> Plain:
    """item group → metric → ours − theirs over the users that have both, with interval and p value; at the middle cut."""
    names = [(group, metric) for group in ours for metric in ours[group] if metric.endswith(f"@{config.k}")]
    if not config.resamples:
        return {}
    ours_VM, theirs_VM = (np.stack([values[group][metric] for group, metric in names], axis=1) for values in (ours, theirs))
    compared: Plain = {group: {} for group in ours}
    for (group, metric), difference in zip(names, compare_paired(ours_VM, theirs_VM, config.resamples, seed), strict=True):
        compared[group][metric] = plain(difference)
    return compared


def measure_slices(values: Values, users: np.ndarray, groups: UserGroups, config: EvaluateConfig, seed: int) -> Plain:
    """dimension → group of users → scorer → metric at the middle cut → estimate, of the ranking of all items; groups with nobody asked are left out."""
    columns = {(name, metric): v for name, by_group in values.items() for metric, v in by_group["all"].items() if metric.endswith(f"@{config.k}")}
    slices: Plain = {}
    for dimension, masks in groups.items():
        slices[dimension] = {}
        for group, mask_V in masks.items():
            is_in = mask_V[users]
            if not is_in.any():
                continue
            estimates = iter(_estimate([values_V[is_in] for values_V in columns.values()], config, seed))
            by_scorer: Plain = {name: {} for name in values}
            for name, metric in columns:
                by_scorer[name][metric] = next(estimates)
            slices[dimension][group] = by_scorer
    return slices


def fairness(parts: Mapping[str, Mapping[str, Plain]], metric: str) -> Plain:
    """scorer → metric, worst and best group, and the gap between their means; groups of fewer than MIN_GROUP_USERS users are left out.

    Empty where fewer than two groups are large enough. The gap of groups that are truly alike is not 0 but as wide as chance makes it.
    """
    found: Plain = {}
    for name in next(iter(parts.values()), {}):
        means = {group: by_scorer[name][metric]["mean"] for group, by_scorer in parts.items() if by_scorer[name][metric]["num_users"] >= MIN_GROUP_USERS}
        if len(means) > 1:
            worst, best = min(means, key=means.__getitem__), max(means, key=means.__getitem__)
            found[name] = {"metric": metric, "worst": worst, "worst_mean": means[worst], "best": best, "best_mean": means[best]}
            found[name]["gap"] = means[best] - means[worst]
    return found


def beyond_accuracy(lists_BK: Tensor, catalogue: Catalogue, config: EvaluateConfig, seed: int) -> Plain:
    """Of the first k places of everybody's list: coverage and gini as numbers, the others as estimates over users."""
    shown_count_N = np.bincount(lists_BK[lists_BK >= 0].numpy(), minlength=len(catalogue.train_count_N))
    pieces = lists_BK.split(USERS_PER_PIECE) if len(lists_BK) else (lists_BK,)
    per_user = {
        "novelty_bits": novelty(lists_BK, catalogue.num_users_with_N, catalogue.num_users),
        "diversity": torch.cat([diversity(piece_BK, catalogue.unit_vectors_ND) for piece_BK in pieces]),
        "mean_popularity": mean_popularity(lists_BK, catalogue.train_count_N),
    }
    estimates = dict(zip(per_user, _estimate([values_B.numpy() for values_B in per_user.values()], config, seed), strict=True))
    return {"coverage": coverage(shown_count_N), "gini": _or_none(gini(shown_count_N)), **estimates}


def _estimate(columns: list[np.ndarray], config: EvaluateConfig, seed: int) -> list[Plain]:
    return [plain(estimate) for estimate in estimate_means(np.stack(columns, axis=1), config.resamples, seed)]


def plain(estimate: Estimate) -> Plain:
    """An estimate for JSON, which has no NaN."""
    return {name: _or_none(value) for name, value in asdict(estimate).items()}


def _or_none(value: float) -> float | None:
    return None if math.isnan(value) else value
