"""BPR by hand."""

import math

import pytest
import torch

from medley.losses.pairwise import bpr_loss


def test_bpr_is_the_mean_over_a_rows_negatives_of_how_far_its_own_item_is_above_them():
    # Margins log 3 and 0 in the first row: −log σ = log(4/3) and log 2. The second row has one negative, margin log 4: log(5/4).
    scores_BU = torch.tensor([[math.log(3), 0.0, math.log(3), 50.0], [0.0, 9.0, 0.0, math.log(4)]])
    negative_mask_BU = torch.tensor([[False, True, True, False], [True, False, False, False]])
    loss = bpr_loss(scores_BU, torch.tensor([0, 3]), torch.tensor([1.0, 2.0]), negative_mask_BU)
    assert loss.item() == pytest.approx((math.log(4 / 3) + math.log(2)) / 2 + 2 * math.log(5 / 4), rel=1e-5)


def test_a_row_without_negatives_costs_nothing():
    scores_BU = torch.randn(1, 3).requires_grad_()
    loss = bpr_loss(scores_BU, torch.tensor([0]), torch.ones(1), torch.zeros(1, 3, dtype=torch.bool))
    loss.backward()
    assert loss.item() == 0
    assert scores_BU.grad.tolist() == [[0.0, 0.0, 0.0]]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_rows_of_weight_zero_add_nothing_even_when_their_scores_are_not_finite(bad):
    scores_BU = torch.tensor([[0.3, -0.2], [bad, bad]]).requires_grad_()
    loss = bpr_loss(scores_BU, torch.tensor([0, 0]), torch.tensor([1.0, 0.0]), torch.tensor([[False, True], [False, True]]))
    loss.backward()
    assert loss.isfinite()
    assert scores_BU.grad[1].tolist() == [0.0, 0.0]


def test_extreme_scores_keep_loss_and_gradient_finite():
    scores_BU = torch.tensor([[-1e4, 1e4]]).requires_grad_()
    loss = bpr_loss(scores_BU, torch.tensor([0]), torch.ones(1), torch.tensor([[False, True]]))
    loss.backward()
    assert loss.item() == pytest.approx(2e4)
    assert scores_BU.grad.tolist() == [[-1.0, 1.0]]
