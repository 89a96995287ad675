"""EASE against its formula in numpy, its additions, and its cut to vectors."""

import numpy as np
import pytest
import torch

from medley.heads.content import tag_cosines, vector_cosines
from medley.heads.ease import EaseConfig, factorise, solve_ease
from medley.heads.sparse import SparseRows

RANDOM = np.random.default_rng(0)
DENSE = (RANDOM.random((40, 9)) < 0.4).astype(np.float32)
HISTORY = SparseRows.from_pairs(*np.nonzero(DENSE), np.ones(int(DENSE.sum())), *DENSE.shape)


def ease_in_numpy(gram: np.ndarray, ridge: np.ndarray) -> np.ndarray:
    inverse = np.linalg.inv(gram + np.diag(ridge))
    weights = -inverse / np.diag(inverse)
    np.fill_diagonal(weights, 0)
    return weights


def test_sparse_rows_add_what_comes_twice_and_turn_around():
    rows = SparseRows.from_pairs(np.array([1, 0, 1]), np.array([2, 0, 2]), np.array([1.0, 2.0, 3.0]), 3, 4)
    assert (rows.offsets.tolist(), rows.columns.tolist(), rows.values.tolist()) == ([0, 1, 2, 2], [0, 2], [2.0, 4.0])
    turned = rows.transpose()
    assert (turned.offsets.tolist(), turned.columns.tolist(), turned.values.tolist()) == ([0, 1, 1, 2, 2], [0, 1], [2.0, 4.0])


def test_the_gram_matrix_is_that_of_the_dense_matrix():
    assert HISTORY.gram(columns_per_block=4).numpy() == pytest.approx(DENSE.T @ DENSE)


def test_plain_ease_is_the_closed_form():
    found = solve_ease(EaseConfig(regularization=3.0, user_weight_exponent=0.0), HISTORY, None)
    assert found.numpy() == pytest.approx(ease_in_numpy(DENSE.T @ DENSE, np.full(9, 3.0)), abs=1e-5)


def test_row_weights_denoising_scaling_and_content_enter_as_documented():
    lengths, counts = DENSE.sum(axis=1), DENSE.sum(axis=0)
    weights = (np.maximum(lengths, 1) / lengths[lengths > 0].mean()) ** -0.5
    gram = DENSE.T @ (DENSE * weights[:, None])
    content = np.full((9, 9), 0.25, dtype=np.float32)
    expected = ease_in_numpy(gram + content, 0.2 / 0.8 * np.diag(gram) + 3.0) * (counts[:, None] / counts) ** 0.15
    config = EaseConfig(regularization=3.0, user_weight_exponent=0.5, dropout=0.2, item_scaling=0.15)
    assert solve_ease(config, HISTORY, torch.from_numpy(content)).numpy() == pytest.approx(expected, abs=1e-5)


def test_users_without_interactions_change_nothing():
    config = EaseConfig(regularization=3.0, user_weight_exponent=0.5)
    longer = SparseRows.from_pairs(*np.nonzero(DENSE), np.ones(int(DENSE.sum())), 60, 9)
    assert solve_ease(config, longer, None).numpy() == pytest.approx(solve_ease(config, HISTORY, None).numpy(), abs=1e-6)


def test_vectors_of_full_width_give_the_same_scores_and_fewer_the_closest():
    weights_NN = solve_ease(EaseConfig(regularization=3.0), HISTORY, None)
    scores = DENSE @ weights_NN.numpy()
    full = factorise(weights_NN, HISTORY, 9, torch.Generator().manual_seed(0))
    assert (DENSE @ full[0].numpy()) @ full[1].numpy().T == pytest.approx(scores, abs=1e-4)
    cut = factorise(weights_NN, HISTORY, 3, torch.Generator().manual_seed(0))
    error = np.linalg.norm((DENSE @ cut[0].numpy()) @ cut[1].numpy().T - scores)
    # Eckart and Young: no matrix of rank 3 is closer than the singular values that are left out.
    assert error == pytest.approx(np.sqrt((np.linalg.svd(scores, compute_uv=False)[3:] ** 2).sum()), rel=1e-3)


def test_tags_are_compared_by_idf():
    cosines = tag_cosines([["a", "b"], ["a"], ["b", "b"], []]).numpy()
    # Both tags stand in two of four items, so they weigh the same: the first item is at 45 degrees to either.
    half = 2**-0.5
    assert cosines == pytest.approx(np.array([[1, half, half, 0], [half, 1, 0, 0], [half, 0, 1, 0], [0, 0, 0, 0]]), abs=1e-6)


def test_vectors_are_compared_around_the_mean_of_the_items_that_training_saw():
    vectors_ND = torch.tensor([[3.0, 1.0], [1.0, 1.0], [9.0, 9.0], [0.0, 0.0]])
    present_mask_N, is_warm_N = torch.tensor([True, True, True, False]), torch.tensor([True, True, False, True])
    cosines = vector_cosines(vectors_ND, present_mask_N, is_warm_N)
    # Around (2, 1): (1, 0), (-1, 0), (7, 8).
    assert cosines[0].tolist() == pytest.approx([1.0, -1.0, 7 / 113**0.5, 0.0])
    assert cosines[3].tolist() == [0.0] * 4
