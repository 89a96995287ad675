"""Softmax losses: over the items of a micro-batch with the sampling-bias correction, and over the whole catalogue."""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from medley.losses.settings import LossSettings


class InBatchSoftmaxConfig(LossSettings):
    """Softmax over the micro-batch's unique items: each row's own item against the other rows' items."""

    kind: Literal["in_batch_softmax"] = "in_batch_softmax"
    temperature: float = Field(default=0.1, gt=0)
    """Scores are divided by it; .05-.2 suits cosine scores, 1 suits free inner products."""
    logq_correction: bool = True
    """Subtract log q (`logq_of_batch`) in training, so that popular items are not punished for being drawn as negatives more often."""
    mask_known_positives: bool = True
    """Leave the user's other training items out of the negatives."""
    num_uniform_negatives: int = Field(default=0, ge=0)
    """Items that training sees, drawn uniformly for each global batch and added to the negatives of all its rows (mixed negative sampling,
    Yang et al. 2020): rare items become negatives too."""
    across_ranks: bool = False
    """True: the items of the micro-batches that all workers compute at a time are one pool of negatives, as if they were one micro-batch that many times
    larger; train.workers then decides the result and stays as it is. A term for alignment keeps to a worker's own items."""


class FullSoftmaxConfig(LossSettings):
    """Softmax over the whole catalogue; exact, for catalogues whose item vectors fit in one step."""

    kind: Literal["full_softmax"] = "full_softmax"
    temperature: float = Field(default=0.1, gt=0)
    """Scores are divided by it; .05-.2 suits cosine scores, 1 suits free inner products."""

    num_uniform_negatives: Literal[0] = 0


def softmax_loss(
    scores_BU: Tensor,
    target_position_B: Tensor,
    row_weight_B: Tensor,
    *,
    temperature: float,
    log_correction_U: Tensor | None = None,
    excluded_mask_BU: Tensor | None = None,
) -> Tensor:
    """Sum over rows of weight × cross entropy of the row's own item among the U items.

    scores_BU: before the temperature. target_position_B: int64, place of the row's item among U. row_weight_B: 0 for padding rows.
    log_correction_U: log q of each item, subtracted from the scaled scores. excluded_mask_BU: bool, True leaves the item out of the row's
    denominator; the row's own item stays in whatever the mask says. Rows of weight 0 add exactly 0 to the loss and to every gradient,
    even where their scores are NaN or infinite. Returns a float32 scalar (float64 for float64 scores).

    The correction applies to the target too (Yi et al. 2019). Given the set of items in the batch, Bayes' rule gives P(target = i | set) ∝ p(i) / q(i)
    for every member i, the target included; sparing the target only estimates the full denominator, which small batches bias (Jensen).
    """
    is_counted_B = row_weight_B != 0
    logits_BU = scores_BU.float() if scores_BU.dtype in (torch.float16, torch.bfloat16) else scores_BU
    # Before any arithmetic: 0 × NaN is NaN, so a weight of 0 alone would not silence a padding row.
    logits_BU = logits_BU.masked_fill(~is_counted_B[:, None], 0.0) / temperature
    if log_correction_U is not None:
        logits_BU = logits_BU - log_correction_U
    if excluded_mask_BU is not None:
        excluded_mask_BU = excluded_mask_BU.scatter(1, target_position_B[:, None], False)
        logits_BU = logits_BU.masked_fill(excluded_mask_BU, float("-inf"))
    cross_entropy_B = functional.cross_entropy(logits_BU, target_position_B, reduction="none")
    return (cross_entropy_B * row_weight_B).sum()


def logq_of_batch(train_count_U: Tensor, num_interactions: int, batch_size: int, uniform_share: Tensor | float = 0.0) -> Tensor:
    """Log of the probability that an item is among the negatives of a micro-batch: drawn with one of its rows by popularity, or uniformly.

    log(1 - (1 - count / num_interactions) ** batch_size × (1 - uniform_share)), the sampling-bias correction of Yi et al. 2019
    ("Sampling-Bias-Corrected Neural Modeling for Large Corpus Item Recommendations"). They correct by the expected count per draw; here each item
    stands once in a batch however often it was drawn, so the probability of being included is the right q. Histories that bring further items
    into the batch are not modelled.

    train_count_U: times each item occurs in the training interactions; 0 counts as 1, since an item that is in a batch occurs at least once.
    num_interactions: all training interactions. batch_size: interactions per micro-batch. uniform_share: share of the items that are drawn
    uniformly, without replacement; at most 1. Returns (U,) float32, at most 0.
    """
    share_U = train_count_U.double().clamp(min=1) / num_interactions
    # In float64 with log1p and expm1: shares of 1e-9 would round to q = 0 and log q = -inf.
    log_absent_U = batch_size * torch.log1p(-share_U) + torch.log1p(-torch.as_tensor(uniform_share, dtype=torch.float64, device=share_U.device))
    return torch.log(-torch.expm1(log_absent_U)).float()
