"""The sum of learned vectors of a user's attributes (country, age group, …)."""

from collections.abc import Mapping
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from medley.users.fields import UserFields
from medley.users.table import MakeTable, dense_table


class AttributesUserConfig(BaseModel):
    """Categorical columns of the users table."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["attributes"] = "attributes"
    columns: tuple[str, ...] = Field(min_length=1)
    """columns of the users table"""
    initial_deviation: float = Field(default=0.1, gt=0)
    """standard deviation of the first values"""

    history_length: Literal[0] = 0

    def build(
        self, train_count_V: Tensor, num_categories: Mapping[str, int], num_items: int, dimension: int, table: MakeTable = dense_table
    ) -> "AttributesUser":
        """num_categories: column → categories, 0 (unknown) included."""
        return AttributesUser({name: num_categories[name] for name in self.columns}, dimension, self.initial_deviation)


class AttributesUser(nn.Module):
    """p_u = Σ_a table_a[u's value of a]; unknown values (category 0) have a vector of their own."""

    def __init__(self, num_categories: Mapping[str, int], dimension: int, initial_deviation: float):
        super().__init__()
        self.names = sorted(num_categories)
        embeddings = [nn.Embedding(num_categories[name], dimension) for name in self.names]
        for embedding in embeddings:
            nn.init.normal_(embedding.weight, std=initial_deviation)
        self.embeddings = nn.ModuleList(embeddings)

    def forward(
        self, user_index_B: Tensor, attributes_B: Mapping[str, Tensor], history_BLD: Tensor, history_index_BL: Tensor, history_mask_BL: Tensor
    ) -> UserFields:
        """One field per attribute."""
        fields_BFD = torch.stack([embedding(attributes_B[name]) for name, embedding in zip(self.names, self.embeddings, strict=True)], dim=1)
        return fields_BFD, fields_BFD.new_zeros(len(fields_BFD))
