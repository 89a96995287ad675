"""Evaluation by hand: three users, five items, item 2 cold (the set is described at `hand_prepared`)."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from medley.data.item_lists import ItemLists
from medley.data.prepared import PreparedData
from medley.index.fold_in import FoldInPrior, fold_in
from medley.index.scorer import Scorer
from medley.training.evaluate import (
    EvaluateConfig,
    Questions,
    VectorRanker,
    format_table,
    make_questions,
    rank_users,
    rating_errors,
    summarise,
    whole_catalogue,
)
from medley.training.slices import item_groups

CONFIG = EvaluateConfig(ks=(1, 2))
SECOND = 1 / math.log2(3)
"""the discount of the second place"""


@pytest.fixture(scope="module")
def data(hand_prepared: str) -> PreparedData:
    return PreparedData.open(hand_prepared)


@pytest.fixture(scope="module")
def scorer() -> Scorer:
    """Every user ranks the items 4 3 2 1 0."""
    return Scorer.of_items(torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0]), num_users=3)


def values_of(
    scorer: Scorer, questions: Questions, items: np.ndarray, ks: tuple[int, ...] = CONFIG.ks, config: EvaluateConfig = CONFIG
) -> dict[str, np.ndarray]:
    """Metric → one value per user of the questions, of the ranking of these items."""
    return rank_users(VectorRanker.of(scorer, questions, config), questions, {"these": items}, max(ks))["these"].metrics(ks)


def test_a_user_should_find_what_is_new_in_the_split(data: PreparedData) -> None:
    questions = make_questions(data, "valid", CONFIG)
    # (1, 0) is in valid too, but user 1 had item 0 in train.
    assert [questions.targets.of(user).tolist() for user in range(3)] == [[2], [1], []]
    assert [questions.excluded.of(user).tolist() for user in range(3)] == [[1, 3, 4], [0, 4], [3]]
    assert questions.users.tolist() == [0, 1]
    assert questions.num_blocks == 1
    assert questions.given.lengths.tolist() == [0, 0, 0]


def test_what_valid_held_is_left_out_of_the_test_ranking(data: PreparedData) -> None:
    questions = make_questions(data, "test", CONFIG)
    assert [sorted(questions.excluded.of(user).tolist()) for user in range(3)] == [[1, 2, 3, 4], [0, 1, 4], [3]]
    assert questions.users.tolist() == [2]


def test_items_had_in_train_are_not_ranked_and_the_rest_keeps_its_order(data: PreparedData, scorer: Scorer) -> None:
    questions = make_questions(data, "valid", CONFIG)
    values = values_of(scorer, questions, np.arange(5))
    # User 0 may get 2, 0: the target stands first. User 1 may get 3, 2, 1: the target stands third.
    assert values["ndcg@1"].tolist() == [1.0, 0.0]
    assert values["ndcg@2"].tolist() == [1.0, 0.0]
    assert values["recall@2"].tolist() == [1.0, 0.0]
    values = values_of(scorer, questions, np.arange(5), ks=(3,))
    assert values["ndcg@3"].tolist() == [1.0, 0.5]
    assert values["mrr@3"].tolist() == [1.0, pytest.approx(1 / 3)]


def test_a_second_place_is_worth_its_discount(data: PreparedData) -> None:
    questions = make_questions(data, "valid", CONFIG)
    scorer = Scorer.of_items(torch.tensor([9.0, 3.0, 8.0, 4.0, 5.0]), num_users=3)
    values = values_of(scorer, questions, np.arange(5))
    assert values["ndcg@2"].tolist() == [pytest.approx(SECOND), 0.0]


def test_warm_and_cold_items_are_ranked_apart(data: PreparedData, scorer: Scorer) -> None:
    questions, groups = make_questions(data, "valid", CONFIG), item_groups(data.train_count_N, {})
    warm, cold = (values_of(scorer, questions, groups[name]) for name in ("warm", "cold"))
    # User 1's warm candidates are 3 and 1. User 0 has no warm target, user 1 no cold one: they do not count there.
    assert np.isnan(warm["ndcg@2"]).tolist() == [True, False]
    assert warm["ndcg@2"][1] == pytest.approx(SECOND)
    assert cold["ndcg@2"][0] == 1.0
    assert np.isnan(cold["ndcg@2"][1])


def test_means_are_over_the_users_that_have_something_to_find() -> None:
    assert summarise({"ndcg@1": np.array([1.0, np.nan, 0.5])}) == {"ndcg@1": 0.75}
    assert summarise({"ndcg@1": np.array([np.nan])}) == {"ndcg@1": None}


def test_nobody_and_no_items_can_be_ranked(data: PreparedData, scorer: Scorer) -> None:
    asked = make_questions(data, "valid", CONFIG)
    nobody = Questions(np.zeros(0, dtype=np.int64), asked.targets, asked.excluded, asked.given, asked.train_count_N)
    assert summarise(values_of(scorer, nobody, np.arange(5)))["ndcg@2"] is None
    assert summarise(values_of(scorer, asked, np.arange(0)))["ndcg@2"] is None


def prepared_of(
    tmp_path_factory: pytest.TempPathFactory, train: list[tuple[int, int]], valid: list[tuple[int, int]], test: list[tuple[int, int]]
) -> PreparedData:
    """A set of 2 users and 6 items with these (user, item) rows, oldest first."""
    import pyarrow as pa

    from medley.data.prepare import PREPARED_KIND
    from medley.manifest import staged_folder, write_parquet
    from medley.schema import PREPARED_INTERACTIONS_SCHEMA

    uri = str(tmp_path_factory.mktemp("set") / "prepared")
    counts = np.bincount([item for _, item in train], minlength=6)
    with staged_folder(uri) as stage:
        for name, pairs in {"train": train, "valid": valid, "test": test}.items():
            rows = [
                {"user_index": user, "item_index": item, "timestamp": place, "value": 1.0, "weight": 1.0, "is_target": True}
                for place, (user, item) in enumerate(pairs)
            ]
            write_parquet(stage.path(name, "part-00000.parquet"), pa.Table.from_pylist(rows, PREPARED_INTERACTIONS_SCHEMA))
        write_parquet(stage.path("item_facts.parquet"), pa.table({"item_id": list("abcdef"), "train_count": pa.array(counts, pa.int64())}))
        stage.commit(PREPARED_KIND, "feedc0ffee123456", parents={}, counts={"num_items": 6, "num_users": 2, "columns": []}, config={})
    return PreparedData.open(uri)


@pytest.fixture(scope="module")
def new_user_data(tmp_path_factory: pytest.TempPathFactory) -> PreparedData:
    """User 1 has no train rows; their four valid items by time are 5, 2, 4, 0 (5 comes twice)."""
    return prepared_of(tmp_path_factory, [(0, 0), (0, 1)], [(1, 5), (0, 2), (1, 5), (1, 2), (1, 4), (1, 0)], [(0, 3)])


@pytest.mark.parametrize(("share", "given"), [(0.01, [5]), (0.5, [2, 5]), (0.99, [2, 4, 5])])
def test_a_new_user_gives_the_earliest_share_of_the_items_as_history(new_user_data: PreparedData, share: float, given: list[int]) -> None:
    questions = make_questions(new_user_data, "valid", EvaluateConfig(given_share=share))
    assert sorted(questions.given.of(1).tolist()) == given
    assert sorted(questions.targets.of(1).tolist()) == sorted({0, 2, 4, 5} - set(given))
    assert sorted(questions.excluded.of(1).tolist()) == given
    # The other user has train items: nothing of theirs is given away.
    assert questions.targets.of(0).tolist() == [2]
    assert questions.given.of(0).tolist() == []


def test_a_given_history_decides_the_ranking_of_a_new_user(new_user_data: PreparedData) -> None:
    # Items 5 and 2 point along one axis with 4; the others along another.
    item_vectors_ND = torch.tensor([[0.0, 1.0], [0.0, 1.0], [1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 0.0]])
    scorer = Scorer(torch.zeros(2, 2), item_vectors_ND, torch.zeros(2), torch.tensor([0.0, 0.1, 0.0, 0.0, 0.0, 0.0]), torch.zeros(()))
    config = EvaluateConfig(given_share=0.5)
    ranked = rank_users(VectorRanker.of(scorer, questions := make_questions(new_user_data, "valid", config), config), questions, whole_catalogue(6), 1)
    # With 5 and 2 given, item 4 scores about 2 / (2 + 0.1 × 3 + 1) = 0.6; by the bias alone it were item 1, by train counts item 0.
    assert ranked["all"].items_BK[1].tolist() == [4]


def test_users_folded_in_together_get_the_vectors_they_get_alone() -> None:
    generator = torch.Generator().manual_seed(0)
    scorer = Scorer(torch.zeros(5, 3), torch.randn(6, 3, generator=generator), torch.zeros(5), torch.randn(6, generator=generator), torch.zeros(()))
    given = ItemLists.from_pairs(np.array([1, 1, 1, 3]), np.array([0, 2, 5, 4]), 5)
    questions = Questions(np.arange(5), given, given, given, np.ones(6))
    columns_VD = VectorRanker.of(scorer, questions, CONFIG, torch.ones(5, dtype=torch.bool)).user_columns_VD
    items_ND = scorer.item_columns_ND
    for user in (1, 3):
        history_LD = items_ND[torch.from_numpy(given.of(user).astype(np.int64))]
        alone_D = fold_in(history_LD, items_ND.T @ items_ND, FoldInPrior.of(scorer), CONFIG.fold_in_unseen_weight, CONFIG.fold_in_regularization)
        assert columns_VD[user].tolist() == pytest.approx(alone_D.tolist(), abs=1e-6)
    assert torch.equal(columns_VD[[0, 2, 4]], scorer.user_columns_VD[[0, 2, 4]])


def test_users_of_whom_nothing_is_known_are_ranked_by_train_counts(new_user_data: PreparedData) -> None:
    item_vectors_ND = torch.tensor([[0.0, 1.0], [0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 0.0]])
    scorer = Scorer(torch.tensor([[1.0, 2.0], [0.0, 0.0]]), item_vectors_ND, torch.zeros(2), torch.arange(6.0), torch.zeros(()))
    for share, is_popular in ((0.0, True), (0.5, False)):
        config = EvaluateConfig(given_share=share)
        scores_BN = VectorRanker.of(scorer, make_questions(new_user_data, "valid", config), config).scores(np.array([0, 1]))
        assert (scores_BN[1].tolist() == new_user_data.train_count_N.tolist()) is is_popular
        assert scores_BN[0].tolist() == [2.0, 1.0, 3.0, 5.0, 5.0, 6.0]
    nothing_said = dataclasses.replace(scorer, item_vectors_ND=torch.zeros(6, 2))
    questions = make_questions(new_user_data, "valid", EvaluateConfig())
    assert VectorRanker.of(nothing_said, questions, EvaluateConfig()).scores(np.array([1])).tolist() == [[0.0, 1.0, 2.0, 3.0, 4.0, 5.0]]


def test_an_item_that_valid_already_held_is_no_target_of_test(tmp_path_factory: pytest.TempPathFactory) -> None:
    data = prepared_of(tmp_path_factory, [(0, 0), (1, 1)], [(0, 2)], [(0, 2), (0, 3)])
    questions = make_questions(data, "test", CONFIG)
    # Item 2 is left out of the ranking, so nobody could find it.
    assert questions.excluded.of(0).tolist() == [0, 2]
    assert questions.targets.of(0).tolist() == [3]


def test_rating_errors_by_hand() -> None:
    scorer = Scorer(torch.tensor([[1.0], [2.0]]), torch.tensor([[1.0], [3.0]]), torch.tensor([0.5, 0.0]), torch.tensor([0.0, -1.0]), torch.tensor(1.0))
    # Predictions: (0, 0) 1 + 0.5 + 0 + 1 = 2.5; (1, 1) 6 + 0 - 1 + 1 = 6; the row without a value does not count.
    users, items = np.array([0, 1, 1], dtype=np.int32), np.array([0, 1, 0], dtype=np.int32)
    errors = rating_errors(scorer, users, items, np.array([1.5, 9.0, np.nan], dtype=np.float32))
    assert errors == {"rmse": pytest.approx(math.sqrt(5)), "mae": pytest.approx(2.0)}
    assert rating_errors(scorer, users[2:], items[2:], np.array([np.nan], dtype=np.float32)) == {}


def test_the_table_has_a_dash_where_there_is_no_figure() -> None:
    table = format_table({"model": {"all": {"ndcg@10": 0.25}, "cold": {"ndcg@10": None}}}, "ndcg@10")
    assert table.splitlines() == ["ndcg@10             all     warm     cold", "model            0.2500        -        -"]


@pytest.mark.parametrize("values", [{"splits": ["tests"]}, {"splits": ["train"]}, {"ks": []}, {"ks": [0]}])
def test_cuts_and_splits_that_do_not_exist_are_refused_at_the_door(values: dict[str, list[object]]) -> None:
    with pytest.raises(ValidationError):
        EvaluateConfig.model_validate(values)
