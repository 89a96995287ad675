"""Blends: sums and fused ranks on paper, the same in evaluation's matrices and in exact search, and back from their file."""

import math

import numpy as np
import pytest
import torch

from medley.index.blend import Blend, fuse_ranks, read_scorer
from medley.index.exact import BlendSearch, ExactSearch
from medley.index.fold_in import FoldIn
from medley.index.scorer import Scorer


def random_scorer(seed: int, dimension: int, *, has_history: bool = False, num_items: int = 50) -> Scorer:
    generator = torch.Generator().manual_seed(seed)
    users_VD, items_ND, bias_N, history_ND = (
        torch.randn(*shape, generator=generator) for shape in ((4, dimension), (num_items, dimension), (num_items,), (num_items, dimension))
    )
    return Scorer(users_VD, items_ND, torch.arange(4.0), bias_N, torch.tensor(0.5), history_ND if has_history else None)


def full_scores(scorer: Scorer) -> torch.Tensor:
    return scorer.user_columns_VD @ scorer.item_columns_ND.T


PARTS = {"first": random_scorer(0, 3), "second": random_scorer(1, 5, has_history=True)}
NOTHING = [np.zeros(0, dtype=np.int64)] * 4


def test_ranks_are_fused_by_the_logarithm_of_their_places():
    scores = [torch.tensor([[3.0, 2.0, 1.0, -torch.inf]]), torch.tensor([[1.0, 5.0, 4.0, -torch.inf]])]
    fused_1N = fuse_ranks(scores, [0.25, 0.75], num_candidates=2)
    gain = [math.log(22 / 20), math.log(22 / 21)]
    assert fused_1N[0].tolist() == pytest.approx([0.25 * gain[0], 0.25 * gain[1] + 0.75 * gain[0], 0.75 * gain[1], -math.inf])


def test_a_linear_blend_scores_the_weighted_sum():
    blend = Blend(PARTS, {"first": 0.5, "second": 2.0}, by_rank=False)
    expected_BN = 0.5 * full_scores(PARTS["first"]) + 2.0 * full_scores(PARTS["second"])
    best = BlendSearch(blend).best(blend.user_columns_VD, [5] * 4, NOTHING)
    for row_N, (indices, scores) in zip(expected_BN, best, strict=True):
        assert indices.tolist() == torch.topk(row_N, 5).indices.tolist()
        assert scores.tolist() == pytest.approx(torch.topk(row_N, 5).values.tolist(), abs=1e-4)
    assert blend.user_offset_V.tolist() == pytest.approx([1.25, 3.75, 6.25, 8.75])


def test_search_fuses_ranks_as_evaluation_does_with_items_left_out():
    blend = Blend(PARTS, {"first": 0.3, "second": 0.7}, by_rank=True)
    excluded = [np.array([row, row + 7]) for row in range(4)]
    scores = [full_scores(part) for part in PARTS.values()]
    for part_BN in scores:
        for row, items in enumerate(excluded):
            part_BN[row, items] = -torch.inf
    fused_BN = fuse_ranks(scores, [0.3, 0.7])
    for row_N, (indices, values) in zip(fused_BN, BlendSearch(blend).best(blend.user_columns_VD, [10] * 4, excluded), strict=True):
        assert values.tolist() == pytest.approx(torch.topk(row_N, 10).values.tolist(), abs=1e-6)
        assert row_N[indices].tolist() == pytest.approx(values.tolist(), abs=1e-6)


@pytest.mark.parametrize("by_rank", [False, True])
def test_shares_of_the_parts_add_up_to_the_score(by_rank: bool):
    search = BlendSearch(blend := Blend(PARTS, {"first": 0.3, "second": 0.7}, by_rank))
    shares = search.shares(blend.user_columns_VD[1], np.array([3, 8]), NOTHING[0])
    assert list(shares) == ["first", "second"]
    assert (shares["first"] + shares["second"]).tolist() == pytest.approx(
        search.scores(blend.user_columns_VD[1], np.array([3, 8]), NOTHING[0]).tolist(), abs=1e-5
    )


def test_scores_and_shares_of_items_are_those_of_the_ranking_without_what_is_left_out():
    search = BlendSearch(blend := Blend(PARTS, {"first": 0.3, "second": 0.7}, by_rank=True))
    user_D, excluded = blend.user_columns_VD[1], np.array([2, 3, 5, 8, 13, 21, 34])
    ((indices, scores),) = search.best(user_D[None], [50], [excluded])
    assert search.scores(user_D, indices, excluded).tolist() == pytest.approx(scores.tolist(), abs=1e-6)
    assert search.scores(user_D, indices, NOTHING[0]).tolist() != pytest.approx(scores.tolist(), abs=1e-6)
    # What an item already had is worth: with it alone back in the ranking, it has the same place.
    assert search.scores(user_D, excluded[:1], excluded).tolist() == pytest.approx(search.scores(user_D, excluded[:1], excluded[1:]).tolist(), abs=1e-6)


def test_a_part_that_knows_nothing_of_a_user_abstains():
    knowing, other = random_scorer(0, 3), random_scorer(1, 5)
    nothing = Scorer(torch.zeros(4, 5), other.item_vectors_ND, torch.zeros(4), torch.zeros(50), torch.zeros(()))
    blend = Blend({"knowing": knowing, "nothing": nothing}, {"knowing": 0.5, "nothing": 0.5}, by_rank=True)
    alone = torch.topk(full_scores(knowing)[0], 10).indices.tolist()
    search, user_D = BlendSearch(blend), blend.user_columns_VD[0]
    assert search.best(user_D[None], [10], NOTHING[:1])[0][0].tolist() == alone
    assert search.among(user_D, np.arange(50), 10)[0].tolist() == alone
    assert search.shares(user_D, np.arange(50), NOTHING[0])["nothing"].tolist() == [0.0] * 50
    assert torch.topk(fuse_ranks([full_scores(part) for part in blend.parts.values()], [0.5, 0.5])[0], 10).indices.tolist() == alone


def test_the_whole_catalogue_as_candidates_is_no_restriction():
    blend = Blend({name: random_scorer(seed, 4, num_items=900) for seed, name in enumerate("ab")}, {"a": 0.4, "b": 0.6}, by_rank=True)
    search = BlendSearch(blend)
    (free,) = search.best(blend.user_columns_VD[:1], [300], NOTHING[:1])
    among = search.among(blend.user_columns_VD[0], np.arange(900), 300)
    assert (among[0].tolist(), among[1].tolist()) == (free[0].tolist(), free[1].tolist())


def test_a_user_gets_the_same_alone_and_beside_one_who_asks_for_more():
    blend = Blend({name: random_scorer(seed, 4, num_items=900) for seed, name in enumerate("ab")}, {"a": 0.5, "b": 0.5}, by_rank=True)
    search, users_VD = BlendSearch(blend), blend.user_columns_VD
    alone, beside = search.best(users_VD[:1], [5], NOTHING[:1]), search.best(users_VD[:2], [5, 400], NOTHING[:2])
    assert alone[0][0].tolist() == beside[0][0].tolist()
    assert alone[0][1].tolist() == beside[0][1].tolist()
    assert len(beside[1][0]) == 400


def test_a_history_is_summed_where_the_scorer_says_so_and_solved_where_not():
    fold_in = FoldIn(Blend(PARTS, {"first": 1.0, "second": 1.0}, by_rank=True), 0.3, 1.0)
    history_L = torch.tensor([2, 9])
    columns_D = fold_in.columns(history_L)
    assert columns_D[:4].tolist() == pytest.approx(FoldIn(Blend.of(PARTS["first"]), 0.3, 1.0).columns(history_L).tolist())
    assert columns_D[4:9].tolist() == pytest.approx((PARTS["second"].history_vectors_ND[2] + PARTS["second"].history_vectors_ND[9]).tolist())
    assert columns_D[9] == 1.0


def test_many_histories_are_folded_in_as_each_alone():
    fold_in = FoldIn(Blend.of(PARTS["first"]), 0.3, 1.0)
    histories = [torch.tensor([1, 2, 3]), torch.tensor([4])]
    together = fold_in.columns_of_many(histories)
    assert together[1].tolist() == pytest.approx(fold_in.columns(histories[1]).tolist(), abs=1e-5)


@pytest.mark.parametrize("by_rank", [False, True])
def test_a_blend_comes_back_from_its_file(tmp_path, by_rank: bool):
    blend = Blend(PARTS, {"first": 0.3, "second": 0.7}, by_rank)
    blend.save(str(tmp_path / "scorer.safetensors"))
    loaded = read_scorer(str(tmp_path / "scorer.safetensors"))
    assert (list(loaded.parts), loaded.weights, loaded.by_rank) == (["first", "second"], blend.weights, by_rank)
    assert torch.equal(loaded.parts["second"].history_vectors_ND, PARTS["second"].history_vectors_ND)
    PARTS["first"].save(str(tmp_path / "one.safetensors"))
    assert isinstance(read_scorer(str(tmp_path / "one.safetensors")), Scorer)


def test_exact_search_orders_equal_scores_by_item():
    ((indices, scores),) = ExactSearch(torch.ones(6, 1)).best(torch.ones(1, 1), 3, [np.array([1])])
    assert (indices.tolist(), scores.tolist()) == ([0, 2, 3], [1.0] * 3)
