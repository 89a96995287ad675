"""Low-rank bilinear fusion: products between modalities without their full outer product (LMF: Liu et al. 2018)."""

from collections.abc import Mapping
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from medley.fusion.tokens import FusedItems, FusionSettings, ModalityTokens


class BilinearFusionConfig(FusionSettings):
    """Products of modalities; bilinear for two, multilinear for more."""

    kind: Literal["bilinear"] = "bilinear"
    rank: int = Field(default=4, ge=1)
    """products that are added up; the full outer product would need as many as there are columns"""

    def build(self, input_dimensions: Mapping[str, int], dimension: int) -> "BilinearFusion":
        """The module."""
        return BilinearFusion(input_dimensions, dimension, self.modality_dropout, self.rank)


class BilinearFusion(nn.Module):
    """f = mean of the tokens + Σ_r Π_m (A_mr token_m + b_mr), products column by column.

    The biases b are LMF's constant 1 beside each token: they keep the terms of fewer modalities. The mean lets training start from a sum.
    """

    def __init__(self, input_dimensions: Mapping[str, int], dimension: int, modality_dropout: float, rank: int):
        super().__init__()
        self.rank = rank
        self.tokens = ModalityTokens(input_dimensions, dimension, modality_dropout)
        self.factors = nn.ModuleList([nn.Linear(dimension, rank * dimension) for _ in input_dimensions])

    def forward(self, vectors: Mapping[str, Tensor], present_mask_U: Mapping[str, Tensor]) -> FusedItems:
        """Item vectors, tokens and presence."""
        tokens_UMD, present_UM = self.tokens(vectors, present_mask_U)
        factors = torch.stack([factor(tokens_UMD[:, place]) for place, factor in enumerate(self.factors)], dim=1)
        products = torch.unflatten(factors.prod(dim=1), -1, (self.rank, -1)).sum(dim=1)
        return tokens_UMD.mean(dim=1) + products, tokens_UMD, present_UM
