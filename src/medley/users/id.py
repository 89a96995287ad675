"""A learned vector per user (matrix factorisation)."""

from collections.abc import Mapping
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from medley.users.fields import UserFields, one_field


class IdUserConfig(BaseModel):
    """One free vector per user of the training data."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["id"] = "id"
    initial_deviation: float = Field(default=0.1, gt=0)
    """standard deviation of the first values"""

    history_length: Literal[0] = 0
    columns: tuple[()] = ()

    def build(self, train_count_V: Tensor, num_categories: Mapping[str, int], num_items: int, dimension: int) -> "IdUser":
        """The module."""
        return IdUser(train_count_V, dimension, self.initial_deviation)


class IdUser(nn.Module):
    """p_u = table[u]; users without train interactions start at zero and, never being updated, stay there."""

    def __init__(self, train_count_V: Tensor, dimension: int, initial_deviation: float):
        super().__init__()
        self.embedding = nn.Embedding(len(train_count_V), dimension)
        nn.init.normal_(self.embedding.weight, std=initial_deviation)
        with torch.no_grad():
            self.embedding.weight.mul_((train_count_V > 0).unsqueeze(1))

    def forward(
        self, user_index_B: Tensor, attributes_B: Mapping[str, Tensor], history_BLD: Tensor, history_index_BL: Tensor, history_mask_BL: Tensor
    ) -> UserFields:
        """One field."""
        return one_field(self.embedding(user_index_B))
