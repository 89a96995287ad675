"""Attention over the modality tokens of an item: each modality looks at the others (Vaswani et al. 2017, one layer)."""

from collections.abc import Mapping
from typing import Literal

from pydantic import Field
from torch import Tensor, nn

from medley.fusion.multi_head import MultiHeadAttention
from medley.fusion.tokens import FusedItems, FusionSettings, ModalityTokens


class AttentionFusionConfig(FusionSettings):
    """Self-attention between modalities."""

    kind: Literal["attention"] = "attention"
    num_heads: int = Field(default=1, ge=1)
    """heads; they share out the columns, so they must divide model.dimension"""

    def build(self, input_dimensions: Mapping[str, int], dimension: int) -> "AttentionFusion":
        """The module."""
        return AttentionFusion(input_dimensions, dimension, self.modality_dropout, self.num_heads)


class AttentionFusion(nn.Module):
    """f = mean over m of (token_m + attention(token_m over all tokens)); the learned missing-tokens take part, so absence can matter."""

    def __init__(self, input_dimensions: Mapping[str, int], dimension: int, modality_dropout: float, num_heads: int):
        super().__init__()
        self.tokens = ModalityTokens(input_dimensions, dimension, modality_dropout)
        self.attention = MultiHeadAttention(dimension, num_heads)

    def forward(self, vectors: Mapping[str, Tensor], present_mask_U: Mapping[str, Tensor]) -> FusedItems:
        """Item vectors, tokens and presence."""
        tokens_UMD, present_UM = self.tokens(vectors, present_mask_U)
        return (tokens_UMD + self.attention(tokens_UMD, tokens_UMD)).mean(dim=1), tokens_UMD, present_UM
