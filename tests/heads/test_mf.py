"""Scores and biases of matrix factorisation by hand."""

import pytest
import torch

from medley.heads.mf import MatrixFactorisation, MatrixFactorisationConfig

USERS_BD = torch.tensor([[1.0, 2.0], [0.0, -1.0]])
ITEMS_UD = torch.tensor([[3.0, 1.0], [0.5, 0.0], [0.0, 4.0]])


def build(mean_value: float = 0.0, **settings: bool) -> MatrixFactorisation:
    return MatrixFactorisationConfig(**settings).build(num_users=2, num_items=3, dimension=2, mean_value=mean_value)


def test_a_score_is_the_inner_product_plus_three_biases():
    scores_BU = build(mean_value=3.5)(USERS_BD, ITEMS_UD, torch.tensor([10.0, 20.0]), torch.tensor([0.1, 0.2, 0.3]))
    expected = torch.tensor([[5 + 13.6, 0.5 + 13.7, 8 + 13.8], [-1 + 23.6, 0 + 23.7, -4 + 23.8]])
    assert torch.allclose(scores_BU, expected)


def test_vectors_are_the_sums_of_the_fields():
    head = build()
    fields_UFD = torch.stack([ITEMS_UD, 10 * ITEMS_UD], dim=1)
    vectors_UD, _ = head.item_side(fields_UFD, torch.arange(3), torch.ones(3, dtype=torch.bool))
    assert torch.equal(vectors_UD, 11 * ITEMS_UD)
    vectors_BD, _ = head.user_side(torch.stack([USERS_BD, USERS_BD], dim=1), torch.arange(2))
    assert torch.equal(vectors_BD, 2 * USERS_BD)


def test_biases_start_at_zero_and_cold_items_have_none():
    head = build()
    items_U, is_warm_U = torch.tensor([2, 0, 1]), torch.tensor([True, False, True])
    assert head.item_side(ITEMS_UD.unsqueeze(1), items_U, is_warm_U)[1].tolist() == [0.0, 0.0, 0.0]
    with torch.no_grad():
        head.item_bias.weight.copy_(torch.tensor([[1.0], [2.0], [3.0]]))
    assert head.item_side(ITEMS_UD.unsqueeze(1), items_U, is_warm_U)[1].tolist() == [3.0, 0.0, 2.0]


def test_user_biases_are_looked_up_where_asked_for():
    head = build(user_bias=True)
    with torch.no_grad():
        head.user_bias.weight.copy_(torch.tensor([[4.0], [5.0]]))
    assert head.user_side(torch.zeros(3, 1, 2), torch.tensor([1, 0, 1]))[1].tolist() == [5.0, 4.0, 5.0]


def test_a_bias_that_is_turned_off_has_no_weights_and_counts_zero():
    head = build(mean_value=1.0, item_bias=False)
    assert list(head.parameters()) == []
    assert head.item_side(ITEMS_UD.unsqueeze(1), torch.arange(3), torch.ones(3, dtype=torch.bool))[1].tolist() == [0.0, 0.0, 0.0]
    assert head.user_side(USERS_BD.unsqueeze(1), torch.arange(2))[1].tolist() == [0.0, 0.0]
    assert head.global_bias.item() == pytest.approx(1.0)


def test_gradient_reaches_the_biases():
    head = build(user_bias=True)
    items_UD, item_bias_U = head.item_side(ITEMS_UD.unsqueeze(1), torch.tensor([0, 1, 2]), torch.tensor([True, True, False]))
    users_BD, user_bias_B = head.user_side(USERS_BD.unsqueeze(1), torch.tensor([0, 1]))
    head(users_BD, items_UD, user_bias_B, item_bias_U).sum().backward()
    assert head.user_bias.weight.grad.squeeze(1).tolist() == [3.0, 3.0]
    assert head.item_bias.weight.grad.squeeze(1).tolist() == [2.0, 2.0, 0.0]


def test_cosine_scores_do_not_know_how_long_the_vectors_are():
    head = build(cosine=True)
    items_UD, _ = head.item_side(7 * ITEMS_UD.unsqueeze(1), torch.arange(3), torch.ones(3, dtype=torch.bool))
    users_BD, _ = head.user_side(torch.cat([USERS_BD, torch.zeros(1, 2)]).unsqueeze(1), torch.arange(3))
    scores_BU = head(users_BD, items_UD, torch.zeros(3), torch.zeros(3))
    expected = torch.tensor([[5 / 50**0.5, 1 / 5**0.5, 2 / 5**0.5], [-1 / 10**0.5, 0.0, -1.0], [0.0, 0.0, 0.0]])
    assert torch.allclose(scores_BU, expected, atol=1e-6)


def test_a_learned_scale_starts_at_one_multiplies_the_inner_product_and_is_trained():
    head = build(learned_scale=True)
    assert torch.equal(head.user_side(USERS_BD.unsqueeze(1), torch.arange(2))[0], USERS_BD)
    with torch.no_grad():
        head.scale.log_scale.fill_(3.0).log_()
    users_BD, _ = head.user_side(USERS_BD.unsqueeze(1), torch.arange(2))
    assert torch.allclose(users_BD, 3 * USERS_BD)
    users_BD.sum().backward()
    assert head.scale.log_scale.grad.item() == pytest.approx(3 * USERS_BD.sum().item())
