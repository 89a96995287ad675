"""Gated fusion: per item and modality a gate in (0, 1), learned from all modalities together (Arevalo et al. 2017)."""

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from medley.fusion.tokens import FusionSettings, ModalityTokens


class GatedFusionConfig(FusionSettings):
    """A gated sum of the modalities."""

    kind: Literal["gated"] = "gated"

    def build(self, input_dimensions: Mapping[str, int], dimension: int) -> "GatedFusion":
        """The module."""
        return GatedFusion(input_dimensions, dimension, self.modality_dropout)


class GatedFusion(nn.Module):
    """f = Σ_m 2 σ(g_m) token_m; the gates see every token and the presence mask and start at 1 (a plain sum)."""

    def __init__(self, input_dimensions: Mapping[str, int], dimension: int, modality_dropout: float):
        super().__init__()
        self.tokens = ModalityTokens(input_dimensions, dimension, modality_dropout)
        num_modalities = len(input_dimensions)
        self.gate = nn.Linear(num_modalities * (dimension + 1), num_modalities)
        nn.init.zeros_(self.gate.weight)
        nn.init.zeros_(self.gate.bias)

    def forward(self, vectors: Mapping[str, Tensor], present_mask_U: Mapping[str, Tensor]) -> Tensor:
        """(U, D)."""
        tokens_UMD, present_UM = self.tokens(vectors, present_mask_U)
        flat = torch.cat([tokens_UMD.flatten(start_dim=1), present_UM.to(tokens_UMD.dtype)], dim=1)
        gates_UM1 = 2 * torch.sigmoid(self.gate(flat)).unsqueeze(-1)
        return (gates_UM1 * tokens_UMD).sum(dim=1)
