"""The mean of the modalities an item has, in one space: any subset of them can stand for the item (the averaging of SiBraR, Ganhör et al. 2024)."""

from collections.abc import Mapping
from typing import Literal

from torch import Tensor, nn

from medley.fusion.tokens import FusedItems, FusionSettings, ModalityTokens


class MeanFusionConfig(FusionSettings):
    """Every modality that is there counts the same."""

    kind: Literal["mean"] = "mean"

    def build(self, input_dimensions: Mapping[str, int], dimension: int) -> "MeanFusion":
        """The module."""
        return MeanFusion(input_dimensions, dimension, self.modality_dropout)


class MeanFusion(nn.Module):
    """f = mean of the present tokens; an item with none has the mean of the missing-tokens."""

    def __init__(self, input_dimensions: Mapping[str, int], dimension: int, modality_dropout: float):
        super().__init__()
        self.tokens = ModalityTokens(input_dimensions, dimension, modality_dropout)

    def forward(self, vectors: Mapping[str, Tensor], present_mask_U: Mapping[str, Tensor]) -> FusedItems:
        """Item vectors, tokens and presence."""
        tokens_UMD, present_UM = self.tokens(vectors, present_mask_U)
        counted_UM = present_UM | ~present_UM.any(dim=1, keepdim=True)
        weights_UM1 = counted_UM.unsqueeze(-1).to(tokens_UMD.dtype)
        return (tokens_UMD * weights_UM1).sum(dim=1) / weights_UM1.sum(dim=1), tokens_UMD, present_UM
