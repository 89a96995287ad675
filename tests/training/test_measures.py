"""What is reported of a split, by hand."""

import json

import numpy as np
import pytest
import torch

from medley.training.evaluate import EvaluateConfig, Ranked
from medley.training.measures import Catalogue, beyond_accuracy, compare, fairness, measure_slices, measure_split, values_of

CONFIG = EvaluateConfig(ks=(1, 2, 3), resamples=100)
CATALOGUE = Catalogue(torch.tensor([8, 4, 2, 0]), torch.tensor([7, 3, 1, 0]), 15, torch.eye(4))


def ranked(items: list[list[int]], relevant: list[list[bool]]) -> Ranked:
    """Everybody has two relevant items."""
    return Ranked(torch.tensor(items), torch.tensor(relevant), torch.full((len(items),), 2))


RANKED = {
    "model": {"all": ranked([[0, 1, 2], [1, 3, -1]], [[True, False, True], [False, False, False]])},
    "popularity": {"all": ranked([[0, 1, 2], [0, 1, 2]], [[False, False, False], [False, True, False]])},
}


def test_slices_are_means_over_their_users_at_the_middle_cut() -> None:
    # Users 4 and 9 of a table of ten were asked.
    masks = {"a": np.arange(10) < 5, "b": np.arange(10) >= 5, "nobody asked": np.arange(10) == 0}
    slices = measure_slices(values_of(RANKED, CONFIG), np.array([4, 9]), {"letter": masks}, CONFIG, seed=0)
    assert set(slices["letter"]) == {"a", "b"}
    recall = {group: {name: found["recall@2"]["mean"] for name, found in by_scorer.items()} for group, by_scorer in slices["letter"].items()}
    assert recall == {"a": {"model": 0.5, "popularity": 0.0}, "b": {"model": 0.0, "popularity": 0.5}}
    assert all(metric.endswith("@2") for metric in slices["letter"]["a"]["model"])


def test_comparisons_are_of_the_same_users() -> None:
    values = values_of(RANKED, CONFIG)
    compared = compare(values["model"], values["popularity"], CONFIG, seed=0)
    assert compared["all"]["recall@2"] == {"mean": 0.0, "low": -0.5, "high": 0.5, "num_users": 2, "p_value": 1.0}
    assert compare(values["model"], values["popularity"], EvaluateConfig(resamples=0), seed=0) == {}


def group_of(mean: float, num_users: int) -> dict[str, object]:
    return {"model": {"ndcg@2": {"mean": mean, "low": 0.0, "high": 1.0, "num_users": num_users}}}


def test_fairness_names_the_worst_and_the_best_group_and_leaves_out_small_ones() -> None:
    parts = {"a": group_of(0.3, 50), "b": group_of(0.1, 20), "c": group_of(0.5, 500), "tiny": group_of(0.0, 19)}
    found = fairness(parts, "ndcg@2")["model"]
    assert (found["worst"], found["best"]) == ("b", "c")
    assert found["gap"] == pytest.approx(0.4)
    assert fairness({"a": group_of(0.3, 50), "tiny": group_of(0.0, 19)}, "ndcg@2") == {}


def test_beyond_accuracy_of_two_lists() -> None:
    beyond = beyond_accuracy(torch.tensor([[0, 1], [1, 3]]), CATALOGUE, CONFIG, seed=0)
    # Shown 1, 2, 0, 1 times; bits 1, 2, 3, 4 of shares 8/16, 4/16, 2/16, 1/16; popularity 6 and 2; unit axes are all at right angles.
    assert beyond["coverage"] == 0.75
    assert beyond["gini"] == pytest.approx((-3 * 0 - 1 * 1 + 1 * 1 + 3 * 2) / (4 * 4))
    assert beyond["novelty_bits"]["mean"] == pytest.approx((1.5 + 3) / 2)
    assert beyond["mean_popularity"]["mean"] == pytest.approx(4)
    assert beyond["diversity"]["mean"] == pytest.approx(1)


def test_the_whole_report_is_json_even_for_nobody() -> None:
    nobody = {name: {"all": Ranked(torch.zeros(0, 3, dtype=torch.int64), torch.zeros(0, 3, dtype=torch.bool), torch.zeros(0))} for name in RANKED}
    for users, part in ((np.array([4, 9]), RANKED), (np.zeros(0, dtype=np.int64), nobody)):
        report = measure_split(part, values_of(part, CONFIG), users, {"all": {"everybody": np.ones(10, dtype=bool)}}, CATALOGUE, CONFIG, seed=0)
        assert "NaN" not in json.dumps(report)
        assert report["num_users"] == len(users)
