"""Late fusion of scores: each modality keeps columns of its own, so the score is a weighted sum of one inner product per modality."""

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from medley.fusion.tokens import FusedItems, FusionSettings, ModalityTokens


class LateFusionConfig(FusionSettings):
    """Modalities meet in the score alone."""

    kind: Literal["late"] = "late"

    def build(self, input_dimensions: Mapping[str, int], dimension: int) -> "LateFusion":
        """Each of M modalities gets dimension // M columns."""
        assert dimension >= len(input_dimensions)
        return LateFusion(input_dimensions, dimension, self.modality_dropout)


class LateFusion(nn.Module):
    """f = [w_1 token_1, …, w_M token_M, 0 …], so p_u · f = Σ_m w_m p_u^m · token_m: a user has a taste per modality, w_m > 0 is learned and starts at 1.

    Columns that the modalities do not share out evenly stay 0.
    """

    def __init__(self, input_dimensions: Mapping[str, int], dimension: int, modality_dropout: float):
        super().__init__()
        num_modalities = len(input_dimensions)
        width = dimension // num_modalities
        self.num_spare_columns = dimension - num_modalities * width
        self.tokens = ModalityTokens(input_dimensions, width, modality_dropout)
        self.log_weights_M = nn.Parameter(torch.zeros(num_modalities))

    def forward(self, vectors: Mapping[str, Tensor], present_mask_U: Mapping[str, Tensor]) -> FusedItems:
        """Item vectors, tokens and presence."""
        tokens_UMD, present_UM = self.tokens(vectors, present_mask_U)
        weighted_UMD = self.log_weights_M.exp().unsqueeze(-1) * tokens_UMD
        return nn.functional.pad(weighted_UMD.flatten(start_dim=1), (0, self.num_spare_columns)), tokens_UMD, present_UM
