"""The fold-in against numpy and on paper: the mean user without a history, drawn towards the items of one."""

import numpy as np
import pytest
import torch

from medley.index.fold_in import FoldInPrior, fold_in
from medley.index.scorer import Scorer


def scorer_of(user_vectors_VD: torch.Tensor, item_vectors_ND: torch.Tensor, item_bias_N: torch.Tensor) -> Scorer:
    return Scorer(user_vectors_VD, item_vectors_ND, torch.zeros(len(user_vectors_VD)), item_bias_N, torch.tensor(7.0))


def test_fold_in_is_the_ridge_solution_around_the_mean_user():
    random = np.random.default_rng(0)
    items, mean_user, own_score = random.normal(size=(50, 6)), random.normal(size=6), 2.5
    history, unseen_weight, regularization = [3, 17, 44], 0.2, 1.5
    liked = items[history]
    normal = liked.T @ liked + unseen_weight * items.T @ items + regularization * np.eye(6)
    expected = mean_user + np.linalg.solve(normal, liked.T @ (own_score - liked @ mean_user))
    items_ND = torch.from_numpy(items).float()
    prior = FoldInPrior(torch.from_numpy(mean_user), own_score)
    found_D = fold_in(items_ND[history], items_ND.T @ items_ND, prior, unseen_weight, regularization)
    assert found_D.dtype == torch.float32
    assert found_D.tolist() == pytest.approx(expected.tolist(), abs=1e-5)


def test_fold_in_by_hand_and_without_a_history():
    items_ND, gram_DD = torch.tensor([[2.0], [1.0]]), torch.tensor([[5.0]])
    prior = FoldInPrior(torch.tensor([1.0], dtype=torch.float64), own_score=3.0)
    # The item scores 2 for the mean user, 1 is missing: (4 + 0.1 × 5 + 0.5) δ = 2 × 1.
    assert fold_in(items_ND[[0]], gram_DD, prior, 0.1, 0.5).tolist() == pytest.approx([1.4])
    assert fold_in(items_ND[[]], gram_DD, prior, 0.1, 0.5).tolist() == [1.0]


def test_a_stronger_prior_leaves_the_ranking_of_the_mean_user():
    # The mean user prefers item 0, the history says item 1.
    items_ND = torch.tensor([[1.0, 0.0, 0.5], [0.0, 1.0, 0.0]])
    prior = FoldInPrior(torch.tensor([1.0, 0.0, 1.0], dtype=torch.float64), own_score=3.0)
    gram_DD = items_ND.T @ items_ND
    weak, strong = (items_ND @ fold_in(items_ND[[1]], gram_DD, prior, 0.0, regularization) for regularization in (0.1, 100.0))
    assert (int(weak.argmax()), int(strong.argmax())) == (1, 0)


def test_the_prior_is_the_mean_of_trained_users_and_of_their_highest_scores():
    # The third user was never trained. Highest scores: user 0 1 + 0.5 (item 0), user 1 4 (item 1); the global bias ranks nothing.
    scorer = scorer_of(torch.tensor([[1.0, 0.0], [0.0, 2.0], [0.0, 0.0]]), torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([0.5, 0.0]))
    prior = FoldInPrior.of(scorer)
    assert prior.mean_user_D.tolist() == [0.5, 1.0, 1.0]
    assert prior.own_score == pytest.approx((1.5 + 4.0) / 2)


def test_without_trained_users_the_fold_in_starts_at_zero():
    prior = FoldInPrior.of(scorer_of(torch.zeros(3, 2), torch.ones(4, 2), torch.ones(4)))
    assert (prior.mean_user_D.tolist(), prior.own_score) == ([0.0, 0.0, 0.0], 1.0)


def test_the_scale_of_many_users_comes_from_an_even_sample_of_them():
    # 512 trained users with highest scores 0, 1, …, 511: every second one is looked at.
    users_VD = torch.stack([torch.arange(512.0), torch.ones(512)], dim=1)
    prior = FoldInPrior.of(scorer_of(users_VD, torch.tensor([[1.0, 0.0]]), torch.zeros(1)))
    assert prior.mean_user_D.tolist() == [255.5, 1.0, 1.0]
    assert prior.own_score == pytest.approx(255.0)
