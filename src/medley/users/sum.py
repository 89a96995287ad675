"""The sum of several user models: p_u = (id) + (attributes) + (history)."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from medley.users.attributes import AttributesUserConfig
from medley.users.autoencoder import AutoencoderUserConfig
from medley.users.fields import UserFields
from medley.users.history_attention import HistoryAttentionUserConfig
from medley.users.history_mean import HistoryMeanUserConfig
from medley.users.history_weighted import HistoryWeightedUserConfig
from medley.users.id import IdUserConfig
from medley.users.table import MakeTable, dense_table
from medley.users.transformer import TransformerUserConfig

UserPart = (
    IdUserConfig
    | AttributesUserConfig
    | HistoryMeanUserConfig
    | HistoryWeightedUserConfig
    | HistoryAttentionUserConfig
    | TransformerUserConfig
    | AutoencoderUserConfig
)


class SumUserConfig(BaseModel):
    """Parts added up."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["sum"] = "sum"
    parts: tuple[Annotated[UserPart, Field(discriminator="kind")], ...] = Field(min_length=1)
    """the user models to add"""

    @property
    def history_length(self) -> int:
        """The longest history that a part wants."""
        return max(part.history_length for part in self.parts)

    @property
    def columns(self) -> tuple[str, ...]:
        """Attribute columns of all parts."""
        return tuple(sorted({column for part in self.parts for column in part.columns}))

    def build(self, train_count_V: Tensor, num_categories: Mapping[str, int], num_items: int, dimension: int, table: MakeTable = dense_table) -> "SumUser":
        """The module."""
        parts = [part.build(train_count_V, num_categories, num_items, dimension, table) for part in self.parts]
        return SumUser(parts, [part.history_length for part in self.parts])


class SumUser(nn.Module):
    """Every part sees the same inputs, the history as long as it asked for."""

    def __init__(self, parts: Sequence[nn.Module], history_lengths: list[int]):
        super().__init__()
        self.parts = nn.ModuleList(parts)
        self.history_lengths = history_lengths

    def forward(
        self, user_index_B: Tensor, attributes_B: Mapping[str, Tensor], history_BLD: Tensor, history_index_BL: Tensor, history_mask_BL: Tensor
    ) -> UserFields:
        """The fields of all parts and the sum of their penalties."""
        fields, penalties = [], []
        for part, length in zip(self.parts, self.history_lengths, strict=True):
            vectors_BLD, index_BL, mask_BL = most_recent(length, history_BLD, history_index_BL, history_mask_BL)
            part_BFD, penalty_B = part(user_index_B, attributes_B, vectors_BLD, index_BL, mask_BL)
            fields.append(part_BFD)
            penalties.append(penalty_B)
        return torch.cat(fields, dim=1), torch.stack(penalties).sum(dim=0)


def most_recent(length: int, history_BLD: Tensor, history_index_BL: Tensor, history_mask_BL: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The last `length` real items of each history, oldest first with padding at the end, as when the history had been cut before."""
    if history_mask_BL.shape[1] <= length:
        return history_BLD, history_index_BL, history_mask_BL
    lengths_B1 = history_mask_BL.sum(dim=1, keepdim=True)
    places_BL = (lengths_B1 - length).clamp(min=0) + torch.arange(length, device=history_mask_BL.device)
    mask_BL = places_BL < lengths_B1
    places_BL = places_BL.clamp(max=history_mask_BL.shape[1] - 1)
    vectors_BLD = history_BLD.gather(1, places_BL.unsqueeze(-1).expand(-1, -1, history_BLD.shape[2]))
    return vectors_BLD, history_index_BL.gather(1, places_BL), mask_BL
