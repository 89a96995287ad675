"""Popularity and content-kNN by hand and against a loop."""

import numpy as np
import pytest
import torch

from medley.data.item_lists import ItemLists
from medley.data.memory import CatalogueVectors
from medley.data.prepared import PreparedData
from medley.training.baselines import ContentKnn, popularity_scorer, read_feature_columns, unit_vectors


def test_popularity_is_the_train_count_for_everybody(hand_prepared: str) -> None:
    data = PreparedData.open(hand_prepared)
    scorer = popularity_scorer(data)
    scores_VN = scorer.user_vectors_VD @ scorer.item_vectors_ND.T + scorer.item_bias_N
    assert torch.equal(scores_VN, torch.tensor([1.0, 1.0, 0.0, 2.0, 2.0]).expand(3, -1))


def test_vectors_are_centred_on_the_train_items_and_each_modality_counts_the_same() -> None:
    content = CatalogueVectors(
        {"text": np.array([[1.0, 5.0], [3.0, 5.0], [2.0, 9.0]], dtype=np.float32), "image": np.array([[100.0], [300.0], [0.0]], dtype=np.float32)},
        {"text": np.array([True, True, True]), "image": np.array([True, True, False])},
    )
    units_ND = unit_vectors(content, np.array([1, 1, 0]))
    half = np.sqrt(0.5)
    # Text is centred on (2, 5), the mean of the train items 0 and 1, pictures on 200. Item 2 has no picture: text alone.
    assert units_ND.tolist() == [pytest.approx(row) for row in ([-half, 0, -half], [half, 0, half], [0, 1, 0])]


def knn_by_definition(units_ND: torch.Tensor, history: list[int], k: int) -> list[float]:
    """Mean of the k largest cosines of each item to the items of a history."""
    if not history:
        return [0.0] * len(units_ND)
    return [float(np.mean(sorted((float(units_ND[item] @ units_ND[had]) for had in history), reverse=True)[:k])) for item in range(len(units_ND))]


def test_content_knn_is_the_mean_cosine_to_the_most_similar_items_of_the_user() -> None:
    units_ND = torch.nn.functional.normalize(torch.randn(40, 6, generator=torch.Generator().manual_seed(0)), dim=1)
    histories = {0: [3, 9, 11, 20, 39], 1: [], 2: [7], 3: [0, 1, 2]}
    pairs = np.array([(user, item) for user, items in histories.items() for item in items])
    ranker = ContentKnn(units_ND, ItemLists.from_pairs(pairs[:, 0], pairs[:, 1], 4), 3)
    users = np.array([1, 3, 0, 2])
    for row, user in zip(ranker.scores(users).tolist(), users.tolist(), strict=True):
        assert row == pytest.approx(knn_by_definition(units_ND, histories[user], 3), abs=1e-6)


def test_what_a_new_user_is_given_counts_as_their_history(hand_prepared: str) -> None:
    data = PreparedData.open(hand_prepared)
    ranker = ContentKnn.of(torch.eye(5), data, ItemLists.from_pairs(np.array([2]), np.array([0]), 3), 1)
    assert ranker.history.of(2).tolist() == [0, 3]
    assert ranker.scores(np.array([2])).tolist() == [[1, 0, 0, 1, 0]]


def test_data_without_vectors_have_no_feature_columns(tiny_prepared: str) -> None:
    assert read_feature_columns(PreparedData.open(tiny_prepared)).vectors_ND == {}
