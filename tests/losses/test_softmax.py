"""Softmax losses against numbers worked out on paper, torch's own cross entropy, and simulation."""

import math

import pytest
import torch
from torch.nn import functional

from medley.losses.softmax import logq_of_batch, softmax_loss


def test_softmax_over_all_items_equals_torch_cross_entropy():
    scores_BU = torch.randn(5, 7, generator=torch.Generator().manual_seed(0))
    target_B = torch.tensor([0, 6, 3, 3, 1])
    expected = functional.cross_entropy(scores_BU / 0.2, target_B, reduction="sum")
    torch.testing.assert_close(softmax_loss(scores_BU, target_B, torch.ones(5), temperature=0.2), expected)


def test_softmax_loss_is_the_weighted_sum_worked_out_by_hand():
    # Scaled by temperature 0.5 the rows are (log 3, log 1) and (log 1, log 4): p = 3/4 and 4/5.
    scores_BU = 0.5 * torch.tensor([[3.0, 1.0], [1.0, 4.0]]).log()
    loss = softmax_loss(scores_BU, torch.tensor([0, 1]), torch.tensor([1.0, 2.0]), temperature=0.5)
    assert loss.item() == pytest.approx(math.log(4 / 3) + 2 * math.log(5 / 4), rel=1e-6)


def test_log_correction_divides_every_item_by_q_the_target_included():
    # exp(score) / q: target 2 / 0.5 = 4, the others 1 / 0.25 = 4 and 3 / 0.75 = 4, so p = 1/3.
    scores_BU = torch.tensor([[2.0, 1.0, 3.0]]).log()
    log_correction_U = torch.tensor([0.5, 0.25, 0.75]).log()
    loss = softmax_loss(scores_BU, torch.tensor([0]), torch.ones(1), temperature=1.0, log_correction_U=log_correction_U)
    assert loss.item() == pytest.approx(math.log(3), rel=1e-6)


def test_excluded_items_leave_the_denominator_but_the_target_stays():
    scores_BU = torch.tensor([[1.0, 2.0, 5.0]]).log().requires_grad_()
    excluded_mask_BU = torch.tensor([[True, False, True]])
    loss = softmax_loss(scores_BU, torch.tensor([0]), torch.ones(1), temperature=1.0, excluded_mask_BU=excluded_mask_BU)
    assert loss.item() == pytest.approx(math.log(3), rel=1e-6)
    loss.backward()
    torch.testing.assert_close(scores_BU.grad, torch.tensor([[1 / 3 - 1, 2 / 3, 0.0]]))
    assert excluded_mask_BU.tolist() == [[True, False, True]]


def test_a_row_with_every_other_item_excluded_costs_nothing_and_has_a_finite_gradient():
    scores_BU = torch.randn(1, 3).requires_grad_()
    loss = softmax_loss(scores_BU, torch.tensor([1]), torch.ones(1), temperature=0.1, excluded_mask_BU=torch.ones(1, 3, dtype=torch.bool))
    loss.backward()
    assert loss.item() == 0
    assert scores_BU.grad.tolist() == [[0.0, 0.0, 0.0]]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_rows_of_weight_zero_add_nothing_even_when_their_scores_are_not_finite(bad):
    good_BU = torch.tensor([[0.3, -0.2]])
    scores_BU = torch.cat([good_BU, torch.full((1, 2), bad)]).requires_grad_()
    loss = softmax_loss(scores_BU, torch.tensor([0, 1]), torch.tensor([1.0, 0.0]), temperature=0.1)
    loss.backward()
    assert loss.item() == softmax_loss(good_BU, torch.tensor([0]), torch.ones(1), temperature=0.1).item()
    assert scores_BU.grad[1].tolist() == [0.0, 0.0]
    assert scores_BU.grad.isfinite().all()


def test_a_batch_of_padding_rows_costs_exactly_zero_and_keeps_the_graph():
    scores_BU = torch.randn(2, 3).requires_grad_()
    loss = softmax_loss(scores_BU, torch.zeros(2, dtype=torch.int64), torch.zeros(2), temperature=0.1, log_correction_U=torch.zeros(3))
    loss.backward()
    assert loss.item() == 0
    assert scores_BU.grad.abs().sum() == 0


def test_extreme_scores_keep_loss_and_gradient_finite():
    scores_BU = torch.tensor([[1e4, -1e4, 0.0]]).requires_grad_()
    log_correction_U = logq_of_batch(torch.tensor([1, 10**9, 5]), 10**10, 64)
    loss = softmax_loss(scores_BU, torch.tensor([1]), torch.ones(1), temperature=0.05, log_correction_U=log_correction_U)
    loss.backward()
    assert loss.isfinite()
    assert scores_BU.grad.isfinite().all()


def test_bfloat16_scores_are_summed_in_float32():
    scores_BU = torch.tensor([[1.0, 0.5]], dtype=torch.bfloat16)
    loss = softmax_loss(scores_BU, torch.tensor([0]), torch.ones(1), temperature=0.1)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(math.log1p(math.exp(-5)), rel=1e-5)


def test_logq_agrees_with_the_share_of_simulated_batches_that_hold_the_item():
    count_U = torch.tensor([60, 25, 10, 4, 1])
    draws = torch.multinomial(count_U.double(), 20_000 * 8, replacement=True, generator=torch.Generator().manual_seed(0)).view(-1, 8)
    simulated_U = torch.stack([(draws == item).any(dim=1).double().mean() for item in range(5)])
    # Four standard deviations of a share of 20,000 batches are at most 4 × 0.5 / sqrt(20,000) = 0.014.
    torch.testing.assert_close(logq_of_batch(count_U, 100, 8).double().exp(), simulated_U, atol=0.014, rtol=0)


def test_logq_worked_out_by_hand():
    # 1 - (1 - 1/2)^2 = 3/4 and 1 - (1 - 1/4)^2 = 7/16; an item that fills the data is always in.
    torch.testing.assert_close(logq_of_batch(torch.tensor([2, 1, 4]), 4, 2), torch.tensor([3 / 4, 7 / 16, 1.0]).log())


def test_logq_of_an_unseen_item_is_that_of_an_item_seen_once_and_tiny_shares_stay_finite():
    logq_U = logq_of_batch(torch.tensor([0, 1]), 10**12, 4)
    assert logq_U[0] == logq_U[1]
    assert logq_U[0].item() == pytest.approx(math.log(4e-12), rel=1e-6)


def test_corrected_in_batch_softmax_has_its_minimum_at_the_true_distribution():
    """Exact over all batches: the row's target from p, the other items drawn independently with probability q, as popularity would."""
    p_N, q_N = torch.tensor([0.5, 0.3, 0.15, 0.05]).double(), torch.tensor([0.9, 0.5, 0.2, 0.1]).double()
    logits_N = p_N.log().requires_grad_()
    loss = torch.zeros((), dtype=torch.float64)
    for subset in range(16):
        drawn_N = torch.tensor([bool(subset >> item & 1) for item in range(4)])
        probability = torch.where(drawn_N, q_N, 1 - q_N).prod()
        for target in range(4):
            present_N = drawn_N | (torch.arange(4) == target)
            weight_B = (probability * p_N[target]).reshape(1)
            loss = loss + softmax_loss(
                logits_N[None], torch.tensor([target]), weight_B, temperature=1.0, log_correction_U=q_N.log(), excluded_mask_BU=~present_N[None]
            )
    loss.backward()
    torch.testing.assert_close(logits_N.grad, torch.zeros(4, dtype=torch.float64), atol=1e-12, rtol=0)


def test_logq_of_mixed_negatives_is_the_chance_of_either_draw():
    # Absent with probability (1 - 1/2)^2 × (1 - 1/4) = 3/16, so present with 13/16; all items drawn uniformly are always in.
    torch.testing.assert_close(logq_of_batch(torch.tensor([2]), 4, 2, 0.25), torch.tensor([13 / 16]).log())
    assert logq_of_batch(torch.tensor([2, 1]), 4, 2, torch.tensor(1.0)).tolist() == [0.0, 0.0]
