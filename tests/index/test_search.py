"""Exact search against a search by plain Python."""

import numpy as np
import pytest
import torch

from medley.index.scorer import Scorer
from medley.index.search import rank, top_k


def by_hand(scores: list[float], k: int) -> tuple[list[float], list[int]]:
    """The k best of a row: by score, then by position; what is left out is -inf."""
    order = [item for item in sorted(range(len(scores)), key=lambda item: (-scores[item], item)) if scores[item] != -np.inf][:k]
    missing = k - len(order)
    return [scores[item] for item in order] + [-np.inf] * missing, order + [-1] * missing


@pytest.mark.parametrize("num_values", [2, 5, 1000])
@pytest.mark.parametrize("k", [1, 3, 30, 45])
def test_ranking_agrees_with_sorting_by_score_and_position(num_values: int, k: int):
    generator = torch.Generator().manual_seed(num_values + k)
    scores_BN = torch.randint(0, num_values, (40, 30), generator=generator).float()
    scores_BN[torch.rand(40, 30, generator=generator) < 0.2] = -torch.inf
    scores_BK, items_BK = rank(scores_BN.clone(), k)
    assert (scores_BK.shape, items_BK.dtype) == ((40, k), torch.int64)
    for row in range(40):
        scores, items = by_hand(scores_BN[row].tolist(), k)
        assert items_BK[row].tolist() == items
        assert scores_BK[row].tolist() == scores


def test_equal_scores_are_ordered_by_item():
    scores_BK, items_BK = top_k(torch.ones(2, 1), torch.ones(5, 1), torch.tensor([0.0, 1.0, 0.0, 1.0, 1.0]), k=4)
    assert items_BK.tolist() == [[1, 3, 4, 0]] * 2
    assert scores_BK.tolist() == [[2.0, 2.0, 2.0, 1.0]] * 2


def test_scores_are_inner_products_plus_the_items_bias():
    scores_BK, items_BK = top_k(torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 1.0], [3.0, 0.0], [0.0, 0.0]]), torch.tensor([0.0, 0.5, 9.0]), k=3)
    assert (items_BK.tolist(), scores_BK.tolist()) == ([[2, 1, 0]], [[9.0, 3.5, 3.0]])


def test_excluded_items_never_come_back_and_do_not_leave_other_rows():
    users_BD, items_ND = torch.ones(3, 1), torch.arange(5.0).unsqueeze(1)
    excluded = (np.array([0, 0, 2, 2]), np.array([4, 3, 4, 4]))
    _, items_BK = top_k(users_BD, items_ND, torch.zeros(5), 4, excluded)
    assert items_BK.tolist() == [[2, 1, 0, -1], [4, 3, 2, 1], [3, 2, 1, 0]]


def test_where_everything_is_excluded_nothing_comes_back():
    scores_BK, items_BK = top_k(torch.ones(1, 1), torch.ones(2, 1), torch.zeros(2), 3, (np.array([0, 0]), np.array([0, 1])))
    assert items_BK.tolist() == [[-1, -1, -1]]
    assert scores_BK.tolist() == [[-torch.inf] * 3]


def test_no_user_gets_no_rows():
    scores_BK, items_BK = top_k(torch.ones(0, 2), torch.ones(4, 2), torch.zeros(4), 3)
    assert (scores_BK.shape, items_BK.shape) == ((0, 3), (0, 3))


def test_the_given_tensors_are_left_as_they_are():
    bias_N, vectors_ND = torch.zeros(3), torch.ones(3, 1)
    top_k(torch.ones(1, 1), vectors_ND, bias_N, 2, (np.array([0]), np.array([1])))
    assert bias_N.tolist() == [0.0, 0.0, 0.0]
    assert vectors_ND.tolist() == [[1.0]] * 3


def test_a_scorer_comes_back_from_its_file(tmp_path):
    scorer = Scorer(torch.randn(3, 2), torch.randn(4, 2), torch.randn(3), torch.randn(4), torch.tensor(0.5))
    scorer.save(str(tmp_path / "s.safetensors"))
    loaded = Scorer.load(str(tmp_path / "s.safetensors"))
    assert loaded.tensors().keys() == scorer.tensors().keys()
    assert all(torch.equal(loaded.tensors()[name], value) for name, value in scorer.tensors().items())


def test_a_scorer_of_item_scores_ranks_the_same_for_everybody():
    scorer = Scorer.of_items(torch.tensor([1, 5, 3]), num_users=2)
    scores_BK, items_BK = top_k(scorer.user_vectors_VD, scorer.item_vectors_ND, scorer.item_bias_N, 2)
    assert (items_BK.tolist(), scores_BK.tolist()) == ([[1, 2]] * 2, [[5.0, 3.0]] * 2)


def test_many_equal_scores_are_ordered_as_a_stable_sort_orders_them():
    generator = torch.Generator().manual_seed(0)
    scores_BN = torch.randint(0, 6, (200, 30), generator=generator).float()
    scores_BN[torch.rand(200, 30, generator=generator) < 0.4] = -torch.inf
    scores_BN[7] = -torch.inf
    for k in (1, 5, 29, 30, 33):
        scores_BK, items_BK = rank(scores_BN, k)
        in_order_BN = np.argsort(-scores_BN.numpy(), axis=1, kind="stable")[:, :k]
        expected = np.where(np.isinf(np.take_along_axis(scores_BN.numpy(), in_order_BN, 1)), -1, in_order_BN)
        assert items_BK[:, :30].tolist() == expected.tolist()
        assert scores_BK[:, :30].tolist() == np.take_along_axis(scores_BN.numpy(), in_order_BN, 1).tolist()
        assert (items_BK[:, 30:] == -1).all()
