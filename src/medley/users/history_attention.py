"""Attention over the items a user had, from a learned query (the user encoder of NRMS, Wu et al. 2019, in its servable form).

Attention from the target item (DIN, Zhou et al. 2018) gives every pair of user and item a user vector of its own. That is no scorer: it cannot be
searched, folded in or blended as user vectors × item vectors, so it is not here. Heads share out the columns and look for different items.
"""

from collections.abc import Mapping
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from medley.fusion.multi_head import MultiHeadAttention
from medley.users.fields import UserFields, one_field, recencies
from medley.users.table import MakeTable, dense_table


class HistoryAttentionUserConfig(BaseModel):
    """Users are the items that matter among those they had."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["history_attention"] = "history_attention"
    history_length: int = Field(default=20, ge=1)
    """most recent train items; they are encoded with the micro-batch, so long histories cost time"""
    num_heads: int = Field(default=1, ge=1)
    """heads; they share out the columns, so they must divide model.dimension"""

    columns: tuple[()] = ()

    def build(
        self, train_count_V: Tensor, num_categories: Mapping[str, int], num_items: int, dimension: int, table: MakeTable = dense_table
    ) -> "HistoryAttentionUser":
        """The module."""
        return HistoryAttentionUser(self.history_length, dimension, self.num_heads)


class HistoryAttentionUser(nn.Module):
    """p_u = attention(query, {c_j + recency_j}); an empty history gives zeros."""

    def __init__(self, history_length: int, dimension: int, num_heads: int):
        super().__init__()
        self.recency = nn.Embedding(history_length, dimension)
        nn.init.normal_(self.recency.weight, std=0.02)
        self.query = nn.Embedding(1, dimension)
        nn.init.normal_(self.query.weight, std=1.0)
        self.attention = MultiHeadAttention(dimension, num_heads)

    def forward(
        self, user_index_B: Tensor, attributes_B: Mapping[str, Tensor], history_BLD: Tensor, history_index_BL: Tensor, history_mask_BL: Tensor
    ) -> UserFields:
        """One field."""
        tokens_BLD = history_BLD + self.recency(recencies(history_mask_BL))
        query_B1D = self.query(user_index_B.new_zeros(len(user_index_B), 1))
        has_history_B1 = history_mask_BL.any(dim=1, keepdim=True)
        # A row without a history looks at its padding, so that its softmax is finite, and then counts zero.
        looked_at_BL = history_mask_BL | ~has_history_B1
        return one_field(self.attention(query_B1D, tokens_BLD, looked_at_BL).squeeze(1) * has_history_B1)
