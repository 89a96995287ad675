"""Contrastive alignment by hand and against torch's cross entropy."""

import math

import pytest
import torch
from torch.nn import functional

from medley.losses.alignment import alignment_loss


def test_alignment_is_the_symmetric_cross_entropy_of_cosines():
    tokens_UMD = torch.randn(5, 2, 3, generator=torch.Generator().manual_seed(0))
    first, second = (functional.normalize(tokens_UMD[:, place], dim=1) for place in (0, 1))
    logits_UU, own_U = first @ second.T / 0.2, torch.arange(5)
    expected = (functional.cross_entropy(logits_UU, own_U) + functional.cross_entropy(logits_UU.T, own_U)) / 2
    torch.testing.assert_close(alignment_loss(tokens_UMD, torch.ones(5, 2, dtype=torch.bool), 0.2), expected)


def test_an_item_without_one_of_the_two_neither_counts_nor_is_a_negative():
    tokens_UMD = torch.randn(5, 2, 3, generator=torch.Generator().manual_seed(0))
    present_UM = torch.tensor([[True, True], [True, False], [True, True], [False, False], [True, True]])
    expected = alignment_loss(tokens_UMD[[0, 2, 4]], torch.ones(3, 2, dtype=torch.bool), 0.2)
    torch.testing.assert_close(alignment_loss(tokens_UMD, present_UM, 0.2), expected)


def test_the_loss_of_more_modalities_is_the_mean_over_their_pairs():
    tokens_UMD = torch.randn(4, 3, 3, generator=torch.Generator().manual_seed(0))
    present_UM = torch.ones(4, 3, dtype=torch.bool)
    pairs = [alignment_loss(tokens_UMD[:, pair], present_UM[:, pair], 0.2) for pair in ([0, 1], [0, 2], [1, 2])]
    torch.testing.assert_close(alignment_loss(tokens_UMD, present_UM, 0.2), torch.stack(pairs).mean())


def test_two_items_whose_modalities_agree_by_hand():
    # Cosines 1 with their own and 0 with the other; e^1 / (e^1 + e^0) at temperature 1.
    tokens_UMD = torch.tensor([[[2.0, 0.0], [5.0, 0.0]], [[0.0, 1.0], [0.0, 3.0]]])
    loss = alignment_loss(tokens_UMD, torch.ones(2, 2, dtype=torch.bool), 1.0)
    assert loss.item() == pytest.approx(math.log(1 + math.exp(-1)), rel=1e-5)


@pytest.mark.parametrize("num_modalities", [0, 1, 2])
def test_without_a_pair_the_loss_is_zero_and_keeps_the_graph(num_modalities: int):
    tokens_UMD = torch.randn(3, num_modalities, 2).requires_grad_()
    loss = alignment_loss(tokens_UMD, torch.zeros(3, num_modalities, dtype=torch.bool), 0.1)
    loss.backward()
    assert loss.item() == 0
    assert not tokens_UMD.grad.any()


def test_training_on_it_brings_the_modalities_of_an_item_together():
    torch.manual_seed(0)
    target_UD = torch.randn(40, 4)
    maps = [torch.nn.Linear(4, 4) for _ in range(2)]
    inputs = [target_UD @ torch.randn(4, 4), target_UD @ torch.randn(4, 4)]
    optimizer = torch.optim.Adam([parameter for layer in maps for parameter in layer.parameters()], lr=0.05)
    for _ in range(100):
        tokens_UMD = torch.stack([layer(rows) for layer, rows in zip(maps, inputs, strict=True)], dim=1)
        loss = alignment_loss(tokens_UMD, torch.ones(40, 2, dtype=torch.bool), 0.1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    first, second = (functional.normalize(tokens_UMD[:, place], dim=1) for place in (0, 1))
    assert (first @ second.T).argmax(dim=1).eq(torch.arange(40)).float().mean() > 0.8  # by chance 1 in 40
