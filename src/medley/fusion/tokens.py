"""What every fusion starts with: each modality projected to one width, a learned token where it is missing, modality dropout in training."""

from collections.abc import Mapping

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from medley.schema import InputError

FusedItems = tuple[Tensor, Tensor, Tensor]
"""Item vectors (U, D), and what they were made from: the tokens (U, M, width) and which of them were there (U, M), after modality dropout."""


class FusionSettings(BaseModel):
    """Base of the fusions' configurations."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    modality_dropout: float = Field(default=0.1, ge=0, lt=1)
    """share of the present modalities that training treats as missing; an item always keeps at least one it had"""


class ModalityTokens(nn.Module):
    """modality → vectors and presence in; tokens_UMD and present_mask_UM (after dropout) out, modalities in the order of the names."""

    def __init__(self, input_dimensions: Mapping[str, int], dimension: int, modality_dropout: float):
        super().__init__()
        if not input_dimensions:
            raise InputError("a fusion of no modalities", "at least one encoder", "add model.encoders, or leave content out with free item vectors alone")
        self.names = sorted(input_dimensions)
        self.modality_dropout = modality_dropout
        self.project = nn.ModuleDict({name: nn.Sequential(nn.LayerNorm(width), nn.Linear(width, dimension)) for name, width in input_dimensions.items()})
        self.missing = nn.Embedding(len(self.names), dimension)
        nn.init.zeros_(self.missing.weight)

    def forward(self, vectors: Mapping[str, Tensor], present_mask_U: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """tokens (U, M, D) float, presence (U, M) bool."""
        tokens_UMD = torch.stack([self.project[name](vectors[name]) for name in self.names], dim=1)
        present_UM = torch.stack([present_mask_U[name] for name in self.names], dim=1)
        if self.training and self.modality_dropout > 0:
            present_UM = drop_modalities(present_UM, self.modality_dropout)
        missing_MD = self.missing(torch.arange(len(self.names), device=tokens_UMD.device))
        return torch.where(present_UM.unsqueeze(-1), tokens_UMD, missing_MD), present_UM


def drop_modalities(present_UM: Tensor, rate: float) -> Tensor:
    """Each present modality kept with probability 1 − rate; an item that would lose all it has keeps them all."""
    kept_UM = present_UM & (torch.rand(present_UM.shape, device=present_UM.device) >= rate)
    return torch.where(kept_UM.any(dim=1, keepdim=True), kept_UM, present_UM)


def tokens_and_presence(tokens_UMD: Tensor, present_UM: Tensor) -> Tensor:
    """All tokens of an item in a row, and which modalities were there as numbers: (U, M · D + M)."""
    return torch.cat([tokens_UMD.flatten(start_dim=1), present_UM.to(tokens_UMD.dtype)], dim=1)
