"""Gated fusion: per item and modality a gate, learned from all modalities together (Arevalo et al. 2017)."""

import math
from collections.abc import Mapping
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from medley.fusion.tokens import FusedItems, FusionSettings, ModalityTokens, tokens_and_presence


class GatedFusionConfig(FusionSettings):
    """A gated sum of the modalities."""

    kind: Literal["gated"] = "gated"
    initial_gate: float = Field(default=1.0, gt=0, lt=2)
    """every gate at the start: 1 the plain sum of the modalities; near 0 the item starts as its free vector, and content comes in where it helps"""

    def build(self, input_dimensions: Mapping[str, int], dimension: int) -> "GatedFusion":
        """The module."""
        return GatedFusion(input_dimensions, dimension, self.modality_dropout, self.initial_gate)


class GatedFusion(nn.Module):
    """f = Σ_m 2 σ(g_m) token_m, gates in (0, 2); they see every token and the presence mask, and start at one value for all items."""

    def __init__(self, input_dimensions: Mapping[str, int], dimension: int, modality_dropout: float, initial_gate: float):
        super().__init__()
        self.tokens = ModalityTokens(input_dimensions, dimension, modality_dropout)
        num_modalities = len(input_dimensions)
        self.gate = nn.Linear(num_modalities * (dimension + 1), num_modalities)
        nn.init.zeros_(self.gate.weight)
        nn.init.constant_(self.gate.bias, math.log(initial_gate / (2 - initial_gate)))

    def forward(self, vectors: Mapping[str, Tensor], present_mask_U: Mapping[str, Tensor]) -> FusedItems:
        """Item vectors, tokens and presence."""
        tokens_UMD, present_UM = self.tokens(vectors, present_mask_U)
        gates_UM1 = 2 * torch.sigmoid(self.gate(tokens_and_presence(tokens_UMD, present_UM))).unsqueeze(-1)
        return (gates_UM1 * tokens_UMD).sum(dim=1), tokens_UMD, present_UM
