"""Losses: pure functions of score tensors that return a SUM over rows, and the configs that choose among them.

Sums, not means: the training loop divides by the total weight over all micro-batches and ranks, so the loss does not depend on how rows were split.
To add one: write its config and its function, add them to the union and to `_row_losses` below.
"""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from medley.losses.alignment import alignment_loss
from medley.losses.pairwise import BprConfig, bpr_loss
from medley.losses.pointwise import BinaryCrossEntropyConfig, MeanSquaredErrorConfig, bce_loss, squared_error_loss
from medley.losses.softmax import FullSoftmaxConfig, InBatchSoftmaxConfig, logq_of_batch, softmax_loss
from medley.schema import Batch, Pool

LossConfig = Annotated[
    InBatchSoftmaxConfig | FullSoftmaxConfig | BprConfig | BinaryCrossEntropyConfig | MeanSquaredErrorConfig,
    Field(discriminator="kind"),
]

ModelOutput = tuple[Tensor, ...]
"""scores (B, U), with a pool (B, W); the user model's penalty per row (B,); tokens of the items' modalities (U, M, width) and which were there (U, M)."""


def batch_loss(config: LossConfig, output: ModelOutput, batch: Batch, train_count_N: Tensor, num_interactions: int, micro_batch_size: int) -> Tensor:
    """The loss of one micro-batch, summed over its rows. train_count_N: train interactions of each item; num_interactions: all of them."""
    scores_BU, penalty_B, tokens_UMD, present_UM = output
    total = _row_losses(config, scores_BU, batch, train_count_N, num_interactions, micro_batch_size) + (penalty_B * batch.row_weight_B).sum()
    if config.alignment is not None:
        # A mean over items, once for each row: so it weighs the same however many items a micro-batch has, and nothing in one of padding.
        total = total + config.alignment.weight * alignment_loss(tokens_UMD, present_UM, config.alignment.temperature) * batch.row_weight_B.sum()
    return total


def _row_losses(config: LossConfig, scores_BU: Tensor, batch: Batch, train_count_N: Tensor, num_interactions: int, micro_batch_size: int) -> Tensor:
    target_position_B, row_weight_B = batch.item_position_B, batch.row_weight_B
    if config.kind == "mse":
        return squared_error_loss(scores_BU.gather(1, target_position_B[:, None]).squeeze(1), batch.value_B, row_weight_B)
    if config.kind == "full_softmax":
        # Items that training does not see are no negatives: pushing them down would let the split into training.
        cold_mask_BU = (train_count_N[batch.item_index_U] == 0).expand_as(scores_BU)
        return softmax_loss(scores_BU, target_position_B, row_weight_B, temperature=config.temperature, excluded_mask_BU=cold_mask_BU)
    if config.kind == "in_batch_softmax":
        return _in_batch_softmax(config, scores_BU, batch, train_count_N, num_interactions, micro_batch_size)
    assert batch.uniform_negative_mask_U is not None
    negative_mask_BU = batch.uniform_negative_mask_U & ~batch.known_positive_mask_BU.scatter(1, target_position_B[:, None], True)
    if config.kind == "bpr":
        return bpr_loss(scores_BU, target_position_B, row_weight_B, negative_mask_BU)
    return bce_loss(scores_BU, target_position_B, row_weight_B, negative_mask_BU, config.negatives_per_positive)


def _in_batch_softmax(
    config: InBatchSoftmaxConfig, scores_BU: Tensor, batch: Batch, train_count_N: Tensor, num_interactions: int, micro_batch_size: int
) -> Tensor:
    if batch.pool is not None:
        return _pooled_softmax(config, scores_BU, batch, batch.pool, train_count_N, num_interactions, micro_batch_size)
    # Items that only histories name were not drawn by popularity, so log q does not hold for them: they are no negatives.
    is_drawn_U = torch.zeros(scores_BU.shape[1], dtype=torch.bool, device=scores_BU.device).index_fill(0, batch.item_position_B, True)
    uniform_share: Tensor | float = 0.0
    if batch.uniform_negative_mask_U is not None:
        is_drawn_U = is_drawn_U | batch.uniform_negative_mask_U
        uniform_share = (config.num_uniform_negatives / (train_count_N > 0).sum()).clamp(max=1.0)
    excluded_mask_BU = ~is_drawn_U.expand_as(scores_BU)
    if config.mask_known_positives:
        excluded_mask_BU = excluded_mask_BU | batch.known_positive_mask_BU
    log_correction_U = None
    if config.logq_correction:
        log_correction_U = logq_of_batch(train_count_N[batch.item_index_U], num_interactions, micro_batch_size, uniform_share)
    return softmax_loss(
        scores_BU,
        batch.item_position_B,
        batch.row_weight_B,
        temperature=config.temperature,
        log_correction_U=log_correction_U,
        excluded_mask_BU=excluded_mask_BU,
    )


def _pooled_softmax(
    config: InBatchSoftmaxConfig, scores_BW: Tensor, batch: Batch, pool: Pool, train_count_N: Tensor, num_interactions: int, micro_batch_size: int
) -> Tensor:
    log_correction_W = None
    if config.logq_correction:
        uniform_share = (config.num_uniform_negatives / (train_count_N > 0).sum()).clamp(max=1.0)
        log_correction_W = logq_of_batch(train_count_N[pool.item_index_W], num_interactions, micro_batch_size * pool.num_ranks, uniform_share)
    return softmax_loss(
        scores_BW,
        pool.item_position_B,
        batch.row_weight_B,
        temperature=config.temperature,
        log_correction_U=log_correction_W,
        excluded_mask_BU=pool.known_positive_mask_BW if config.mask_known_positives else None,
    )
