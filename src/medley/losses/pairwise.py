"""BPR: a user's own item should score higher than one drawn uniformly (Rendle et al. 2009)."""

from typing import Literal

from pydantic import Field
from torch import Tensor
from torch.nn import functional

from medley.losses.settings import LossSettings


class BprConfig(LossSettings):
    """Bayesian personalised ranking against the plan's shared uniform negatives."""

    kind: Literal["bpr"] = "bpr"
    num_uniform_negatives: int = Field(default=64, ge=1)
    """items drawn uniformly for each global batch, negatives of all its rows; a row's loss is the mean over those that its user did not have"""


def bpr_loss(scores_BU: Tensor, target_position_B: Tensor, row_weight_B: Tensor, negative_mask_BU: Tensor) -> Tensor:
    """Sum over rows of weight × mean over the row's negatives of −log σ(score of the own item − score of the negative).

    A row without a negative adds 0; rows of weight 0 add exactly 0, whatever their scores.
    """
    scores_BU = scores_BU.float().masked_fill((row_weight_B == 0)[:, None], 0.0)
    margins_BU = scores_BU.gather(1, target_position_B[:, None]) - scores_BU
    return (mean_of_negatives(-functional.logsigmoid(margins_BU), negative_mask_BU) * row_weight_B).sum()


def mean_of_negatives(losses_BU: Tensor, negative_mask_BU: Tensor) -> Tensor:
    """Mean of each row over its negatives, (B,); 0 where it has none."""
    return (losses_BU * negative_mask_BU).sum(dim=1) / negative_mask_BU.sum(dim=1).clamp(min=1)
