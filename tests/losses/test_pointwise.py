"""Losses of one score at a time, by hand and against torch's own."""

import pytest
import torch
from torch.nn import functional

from medley.losses.pointwise import bce_loss, squared_error_loss


def test_squared_error_is_a_weighted_sum_and_ignores_rows_of_weight_zero():
    scores_B = torch.tensor([3.0, 5.0, float("nan")]).requires_grad_()
    loss = squared_error_loss(scores_B, torch.tensor([4.0, 2.0, 1.0]), torch.tensor([1.0, 0.5, 0.0]))
    loss.backward()
    assert loss.item() == pytest.approx(1 + 0.5 * 9)
    assert scores_B.grad.tolist() == [-2.0, 3.0, 0.0]


def test_a_row_without_a_rating_is_no_rating_of_zero():
    scores_B = torch.tensor([3.0, 5.0]).requires_grad_()
    loss = squared_error_loss(scores_B, torch.tensor([4.0, float("nan")]), torch.ones(2))
    loss.backward()
    assert (loss.item(), scores_B.grad.tolist()) == (1.0, [-2.0, 0.0])


def test_binary_cross_entropy_is_the_own_item_against_the_mean_of_its_negatives():
    scores_BU = torch.tensor([[2.0, 1.0, -1.0, 5.0], [0.5, 3.0, 0.0, 0.0]])
    negative_mask_BU = torch.tensor([[False, True, True, False], [True, False, False, False]])
    loss = bce_loss(scores_BU, torch.tensor([0, 1]), torch.tensor([1.0, 2.0]), negative_mask_BU, negatives_per_positive=4.0)

    def entropy(score: float, label: float) -> float:
        return functional.binary_cross_entropy_with_logits(torch.tensor(score), torch.tensor(label)).item()

    first = entropy(2.0, 1.0) + 4 * (entropy(1.0, 0.0) + entropy(-1.0, 0.0)) / 2
    second = entropy(3.0, 1.0) + 4 * entropy(0.5, 0.0)
    assert loss.item() == pytest.approx(first + 2 * second, rel=1e-6)


def test_a_row_without_negatives_still_has_its_own_item():
    loss = bce_loss(torch.zeros(1, 2), torch.tensor([0]), torch.ones(1), torch.zeros(1, 2, dtype=torch.bool), negatives_per_positive=4.0)
    assert loss.item() == pytest.approx(torch.log(torch.tensor(2.0)).item())


def test_rows_of_weight_zero_add_nothing_to_the_cross_entropy_even_when_their_scores_are_not_finite():
    scores_BU = torch.tensor([[0.3, -0.2], [float("nan"), float("inf")]]).requires_grad_()
    mask_BU = torch.tensor([[False, True], [False, True]])
    loss = bce_loss(scores_BU, torch.tensor([0, 0]), torch.tensor([1.0, 0.0]), mask_BU, negatives_per_positive=1.0)
    loss.backward()
    assert loss.isfinite()
    assert scores_BU.grad[1].tolist() == [0.0, 0.0]
