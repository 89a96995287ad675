"""The factorisation machine against its formula, and a cross of attributes that it must find."""

from itertools import combinations

import pytest
import torch
from torch import nn

from medley.heads.fm import FactorisationMachine, FactorisationMachineConfig, pairs_within
from medley.heads.mf import MatrixFactorisationConfig


def build() -> FactorisationMachine:
    """Every weight away from 0."""
    torch.manual_seed(0)
    head = FactorisationMachineConfig(user_bias=True).build(num_users=4, num_items=3, dimension=5, mean_value=0.7)
    for parameter in head.parameters():
        nn.init.normal_(parameter)
    return head


def test_scores_are_rendles_sum_over_all_pairs_of_fields_of_both_sides():
    head = build().requires_grad_(False)
    user_fields_BFD, item_fields_UFD = torch.randn(2, 3, 5), torch.randn(3, 2, 5)
    users_B, items_U = torch.tensor([3, 1]), torch.tensor([0, 2, 1])
    is_warm_U = torch.tensor([True, True, False])
    item_vectors_UD, item_bias_U = head.item_side(item_fields_UFD, items_U, is_warm_U)
    user_vectors_BD, user_bias_B = head.user_side(user_fields_BFD, users_B)
    scores_BU = head(user_vectors_BD, item_vectors_UD, user_bias_B, item_bias_U)
    for row, user in enumerate(users_B.tolist()):
        for place, item in enumerate(items_U.tolist()):
            fields = [*user_fields_BFD[row], *item_fields_UFD[place]]
            expected = 0.7 + sum(float(first @ second) for first, second in combinations(fields, 2))
            expected += head.user_bias.weight[user].item() + head.item_bias.weight[item].item() * bool(is_warm_U[place])
            expected += sum(float(field @ head.user_linear.weight[0]) for field in user_fields_BFD[row])
            expected += sum(float(field @ head.item_linear.weight[0]) for field in item_fields_UFD[place])
            assert scores_BU[row, place].item() == pytest.approx(expected, rel=1e-4, abs=1e-4)


def test_pairs_within_one_side_by_hand():
    # (1, 2) · (3, 4) + (1, 2) · (5, 6) + (3, 4) · (5, 6) = 11 + 17 + 39; a single field has no pair.
    assert pairs_within(torch.tensor([[[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]])).tolist() == [67.0]
    assert pairs_within(torch.randn(4, 1, 3)).abs().max() < 1e-6


def test_gradient_reaches_every_parameter():
    head = build()
    item_vectors_UD, item_bias_U = head.item_side(torch.randn(3, 2, 5), torch.arange(3), torch.ones(3, dtype=torch.bool))
    user_vectors_BD, user_bias_B = head.user_side(torch.randn(4, 2, 5), torch.arange(4))
    head(user_vectors_BD, item_vectors_UD, user_bias_B, item_bias_U).square().sum().backward()
    assert [name for name, parameter in head.named_parameters() if parameter.grad is None or not parameter.grad.any()] == []


def rating_error(head_config: MatrixFactorisationConfig | FactorisationMachineConfig) -> float:
    """Squared error, as a share of the variance, on pairs not trained on. Users and items have two attributes each, signs; the rating is the
    product of the first two of either side, plus that of the user's own two, plus that of the item's."""
    generator = torch.Generator().manual_seed(0)
    user_signs_B2, item_signs_B2 = (2 * torch.randint(0, 2, (600, 2), generator=generator) - 1 for _ in range(2))
    cross_B = user_signs_B2[:, 0] * item_signs_B2[:, 0]
    within_B = user_signs_B2.prod(dim=1) + item_signs_B2.prod(dim=1)
    ratings_B = (cross_B + within_B).float()
    torch.manual_seed(1)
    tables = nn.ModuleList([nn.Embedding(2, 8) for _ in range(4)])
    head = head_config.build(num_users=1, num_items=1, dimension=8, mean_value=0.0)
    optimizer = torch.optim.Adam([*tables.parameters(), *head.parameters()], lr=0.05)
    values_B4 = (torch.cat([user_signs_B2, item_signs_B2], dim=1) + 1) // 2
    nobody = torch.zeros(600, dtype=torch.int64)

    def error(rows: slice) -> torch.Tensor:
        user_BFD, item_BFD = (torch.stack([tables[place](values_B4[rows, place]) for place in side], dim=1) for side in ((0, 1), (2, 3)))
        user_BD, user_bias_B = head.user_side(user_BFD, nobody[rows])
        item_BD, item_bias_B = head.item_side(item_BFD, nobody[rows], torch.ones(len(user_BD), dtype=torch.bool))
        found_B = (user_BD * item_BD).sum(dim=1) + user_bias_B + item_bias_B
        return (found_B - ratings_B[rows]).square().mean() / ratings_B.var()

    for _ in range(150):
        optimizer.zero_grad()
        error(slice(0, 400)).backward()
        optimizer.step()
    return error(slice(400, 600)).item()


def test_a_cross_of_attributes_within_a_side_is_found_by_the_machine_and_not_by_matrix_factorisation():
    machine = rating_error(FactorisationMachineConfig(user_bias=True))
    plain = rating_error(MatrixFactorisationConfig(user_bias=True))
    print(f"machine {machine:.4f}, matrix factorisation {plain:.4f}")
    assert machine < 0.02
    assert plain > 0.2
