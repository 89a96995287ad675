"""A weighted mean of the items a user had, u = Σ_j w_uj c_j: how recent and which item decide the weight."""

from collections.abc import Mapping
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from medley.users.fields import UserFields, one_field, recencies
from medley.users.table import MakeTable, dense_table


class HistoryWeightedUserConfig(BaseModel):
    """Users are what they had, some items more than others."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["history_weighted"] = "history_weighted"
    history_length: int = Field(default=20, ge=1)
    """most recent train items; they are encoded with the micro-batch, so long histories cost time"""

    columns: tuple[()] = ()

    def build(
        self, train_count_V: Tensor, num_categories: Mapping[str, int], num_items: int, dimension: int, table: MakeTable = dense_table
    ) -> "HistoryWeightedUser":
        """The module."""
        return HistoryWeightedUser(table(num_items, 1, deviation=0.0), self.history_length, dimension)


class HistoryWeightedUser(nn.Module):
    """p_u = W Σ_j w_uj c_j with w_uj = softmax over the history of (a[recency of j] + b[j]).

    a and b start at 0 and W at the identity: the plain mean. An empty history gives zeros.
    """

    def __init__(self, item_weight_embedding: nn.Module, history_length: int, dimension: int):
        super().__init__()
        self.recency_weight = nn.Embedding(history_length, 1)
        self.item_weight_embedding = item_weight_embedding
        nn.init.zeros_(self.recency_weight.weight)
        self.project = nn.Linear(dimension, dimension, bias=False)
        nn.init.eye_(self.project.weight)

    def forward(
        self, user_index_B: Tensor, attributes_B: Mapping[str, Tensor], history_BLD: Tensor, history_index_BL: Tensor, history_mask_BL: Tensor
    ) -> UserFields:
        """One field."""
        logits_BL = (self.recency_weight(recencies(history_mask_BL)) + self.item_weight_embedding(history_index_BL)).squeeze(-1)
        # The smallest number, not minus infinity: a row without a history would be NaN.
        logits_BL = logits_BL.masked_fill(~history_mask_BL, torch.finfo(logits_BL.dtype).min)
        weights_BL = torch.softmax(logits_BL, dim=1) * history_mask_BL
        return one_field(self.project(torch.bmm(weights_BL.unsqueeze(1), history_BLD).squeeze(1)))
