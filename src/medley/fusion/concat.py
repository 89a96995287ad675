"""Concatenation and a perceptron: the plain way, which lets modalities interact."""

from collections.abc import Mapping
from typing import Literal

from pydantic import Field
from torch import Tensor, nn

from medley.fusion.tokens import FusedItems, FusionSettings, ModalityTokens, tokens_and_presence


class ConcatFusionConfig(FusionSettings):
    """concat + MLP."""

    kind: Literal["concat"] = "concat"
    hidden_dimension: int = Field(default=128, ge=1)
    """width of the hidden layer"""

    def build(self, input_dimensions: Mapping[str, int], dimension: int) -> "ConcatFusion":
        """The module."""
        return ConcatFusion(input_dimensions, dimension, self.hidden_dimension, self.modality_dropout)


class ConcatFusion(nn.Module):
    """f = W₂ gelu(W₁ [tokens, presence]) + mean of the tokens."""

    def __init__(self, input_dimensions: Mapping[str, int], dimension: int, hidden_dimension: int, modality_dropout: float):
        super().__init__()
        self.tokens = ModalityTokens(input_dimensions, dimension, modality_dropout)
        num_modalities = len(input_dimensions)
        self.mix = nn.Sequential(nn.Linear(num_modalities * (dimension + 1), hidden_dimension), nn.GELU(), nn.Linear(hidden_dimension, dimension))

    def forward(self, vectors: Mapping[str, Tensor], present_mask_U: Mapping[str, Tensor]) -> FusedItems:
        """Item vectors, tokens and presence."""
        tokens_UMD, present_UM = self.tokens(vectors, present_mask_U)
        return self.mix(tokens_and_presence(tokens_UMD, present_UM)) + tokens_UMD.mean(dim=1), tokens_UMD, present_UM
