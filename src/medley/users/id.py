"""A learned vector per user (matrix factorisation)."""

from collections.abc import Mapping
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from medley.users.fields import UserFields, one_field
from medley.users.table import MakeTable, dense_table


class IdUserConfig(BaseModel):
    """One free vector per user of the training data."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["id"] = "id"
    initial_deviation: float = Field(default=0.1, gt=0)
    """standard deviation of the first values"""

    history_length: Literal[0] = 0
    columns: tuple[()] = ()

    def build(self, train_count_V: Tensor, num_categories: Mapping[str, int], num_items: int, dimension: int, table: MakeTable = dense_table) -> "IdUser":
        """The module."""
        return IdUser(table(len(train_count_V), dimension, self.initial_deviation, is_random_N=train_count_V > 0))


class IdUser(nn.Module):
    """p_u = table[u]; users without train interactions start at zero and, never being updated, stay there."""

    def __init__(self, embedding: nn.Module):
        super().__init__()
        self.embedding = embedding

    def forward(
        self, user_index_B: Tensor, attributes_B: Mapping[str, Tensor], history_BLD: Tensor, history_index_BL: Tensor, history_mask_BL: Tensor
    ) -> UserFields:
        """One field."""
        return one_field(self.embedding(user_index_B))
