"""Scores and biases of matrix factorisation by hand."""

import pytest
import torch

from medley.heads.mf import MatrixFactorisationConfig

USERS_BD = torch.tensor([[1.0, 2.0], [0.0, -1.0]])
ITEMS_UD = torch.tensor([[3.0, 1.0], [0.5, 0.0], [0.0, 4.0]])


def test_a_score_is_the_inner_product_plus_three_biases():
    head = MatrixFactorisationConfig().build(num_users=2, num_items=3, mean_value=3.5)
    scores_BU = head(USERS_BD, ITEMS_UD, torch.tensor([10.0, 20.0]), torch.tensor([0.1, 0.2, 0.3]))
    expected = torch.tensor([[5 + 13.6, 0.5 + 13.7, 8 + 13.8], [-1 + 23.6, 0 + 23.7, -4 + 23.8]])
    assert torch.allclose(scores_BU, expected)


def test_biases_start_at_zero_and_cold_items_have_none():
    head = MatrixFactorisationConfig().build(num_users=2, num_items=3, mean_value=0.0)
    items_U, is_warm_U = torch.tensor([2, 0, 1]), torch.tensor([True, False, True])
    assert head.item_biases(items_U, is_warm_U).tolist() == [0.0, 0.0, 0.0]
    with torch.no_grad():
        head.item_bias.weight.copy_(torch.tensor([[1.0], [2.0], [3.0]]))
    assert head.item_biases(items_U, is_warm_U).tolist() == [3.0, 0.0, 2.0]


def test_user_biases_are_looked_up_where_asked_for():
    head = MatrixFactorisationConfig(user_bias=True).build(num_users=2, num_items=3, mean_value=0.0)
    with torch.no_grad():
        head.user_bias.weight.copy_(torch.tensor([[4.0], [5.0]]))
    assert head.user_biases(torch.tensor([1, 0, 1])).tolist() == [5.0, 4.0, 5.0]


def test_a_bias_that_is_turned_off_has_no_weights_and_counts_zero():
    head = MatrixFactorisationConfig(item_bias=False).build(num_users=2, num_items=3, mean_value=1.0)
    assert list(head.parameters()) == []
    assert head.item_biases(torch.tensor([0, 1]), torch.tensor([True, True])).tolist() == [0.0, 0.0]
    assert head.user_biases(torch.tensor([0])).tolist() == [0.0]
    assert head.global_bias.item() == pytest.approx(1.0)


def test_gradient_reaches_the_biases():
    head = MatrixFactorisationConfig(user_bias=True).build(num_users=2, num_items=3, mean_value=0.0)
    scores = head(USERS_BD, ITEMS_UD, head.user_biases(torch.tensor([0, 1])), head.item_biases(torch.tensor([0, 1, 2]), torch.tensor([True, True, False])))
    scores.sum().backward()
    assert head.user_bias.weight.grad.squeeze(1).tolist() == [3.0, 3.0]
    assert head.item_bias.weight.grad.squeeze(1).tolist() == [2.0, 2.0, 0.0]
