"""Losses of one score at a time: binary cross entropy with sampled negatives, squared error of ratings."""

from typing import Literal

from pydantic import Field
from torch import Tensor
from torch.nn import functional

from medley.losses.pairwise import mean_of_negatives
from medley.losses.settings import LossSettings


class BinaryCrossEntropyConfig(LossSettings):
    """Had or not had, against the plan's shared uniform negatives (He et al. 2017, NCF; SASRec's loss)."""

    kind: Literal["bce"] = "bce"
    num_uniform_negatives: int = Field(default=64, ge=1)
    """items drawn uniformly for each global batch, negatives of all its rows that did not have them"""
    negatives_per_positive: float = Field(default=4.0, gt=0)
    """weight of all negatives of a row together; each draw stands for this share of them"""


class MeanSquaredErrorConfig(LossSettings):
    """Squared error of explicit ratings; interactions without one are left out."""

    kind: Literal["mse"] = "mse"

    num_uniform_negatives: Literal[0] = 0


def bce_loss(scores_BU: Tensor, target_position_B: Tensor, row_weight_B: Tensor, negative_mask_BU: Tensor, negatives_per_positive: float) -> Tensor:
    """Sum over rows of weight × (−log σ(own score) + negatives_per_positive × mean over negatives of −log(1 − σ(score))).

    Rows of weight 0 add exactly 0, whatever their scores.
    """
    scores_BU = scores_BU.float().masked_fill((row_weight_B == 0)[:, None], 0.0)
    own_B = functional.softplus(-scores_BU.gather(1, target_position_B[:, None]).squeeze(1))
    others_B = mean_of_negatives(functional.softplus(scores_BU), negative_mask_BU)
    return ((own_B + negatives_per_positive * others_B) * row_weight_B).sum()


def squared_error_loss(scores_B: Tensor, value_B: Tensor, row_weight_B: Tensor) -> Tensor:
    """Sum over rows of weight × (score - value)²; rows without a value (NaN) or of weight 0 add exactly 0, whatever their score."""
    error_B = (scores_B.float() - value_B).masked_fill(value_B.isnan() | (row_weight_B == 0), 0.0)
    return (error_B.square() * row_weight_B).sum()
