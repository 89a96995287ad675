"""A causal transformer over the history (SASRec, Kang and McAuley 2018); with content items it is the MoRec of Yuan et al. 2023."""

from collections.abc import Mapping
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from medley.fusion.multi_head import MultiHeadAttention
from medley.users.fields import UserFields, one_field, recencies
from medley.users.table import MakeTable, dense_table


class TransformerUserConfig(BaseModel):
    """Users are the order of what they had. Its vectors are long (√dimension), so a loss temperature of 1, or head.cosine, suits it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["transformer"] = "transformer"
    history_length: int = Field(default=20, ge=1)
    """most recent train items; they are encoded with the micro-batch, so long histories cost time"""
    num_layers: int = Field(default=2, ge=1)
    """blocks of attention and perceptron"""
    num_heads: int = Field(default=1, ge=1)
    """heads; they share out the columns, so they must divide model.dimension"""
    dropout: float = Field(default=0.1, ge=0, lt=1)
    """share of the values that training leaves out, of the input and of what every layer adds"""

    columns: tuple[()] = ()

    def build(
        self, train_count_V: Tensor, num_categories: Mapping[str, int], num_items: int, dimension: int, table: MakeTable = dense_table
    ) -> "TransformerUser":
        """The module."""
        return TransformerUser(self.history_length, dimension, self.num_layers, self.num_heads, self.dropout)


class TransformerUser(nn.Module):
    """p_u = norm(blocks(c_j + recency_j)) at the most recent item; an empty history gives zeros.

    Every train row asks for the item after its own history, so only the last place is read, where SASRec reads all places of one sequence.
    """

    def __init__(self, history_length: int, dimension: int, num_layers: int, num_heads: int, dropout: float):
        super().__init__()
        self.recency = nn.Embedding(history_length, dimension)
        nn.init.normal_(self.recency.weight, std=0.02)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList([TransformerBlock(dimension, num_heads, dropout) for _ in range(num_layers)])
        self.norm = nn.LayerNorm(dimension)

    def forward(
        self, user_index_B: Tensor, attributes_B: Mapping[str, Tensor], history_BLD: Tensor, history_index_BL: Tensor, history_mask_BL: Tensor
    ) -> UserFields:
        """One field."""
        rows_BLD = self.dropout(history_BLD + self.recency(recencies(history_mask_BL)))
        for block in self.blocks:
            # Padding stands behind the real items, so the causal mask alone keeps it out of what they see.
            rows_BLD = block(rows_BLD)
        lengths_B = history_mask_BL.sum(dim=1)
        last_B11 = (lengths_B - 1).clamp(min=0)[:, None, None]
        last_BD = rows_BLD.gather(1, last_B11.expand(-1, 1, rows_BLD.shape[2])).squeeze(1)
        return one_field(self.norm(last_BD) * (lengths_B > 0).unsqueeze(1))


class TransformerBlock(nn.Module):
    """x + attention(norm x), then x + perceptron(norm x); the norm stands before (Xiong et al. 2020), which trains without a warm-up of its own."""

    def __init__(self, dimension: int, num_heads: int, dropout: float):
        super().__init__()
        self.attention_norm = nn.LayerNorm(dimension)
        self.attention = MultiHeadAttention(dimension, num_heads)
        self.perceptron_norm = nn.LayerNorm(dimension)
        self.perceptron = nn.Sequential(nn.Linear(dimension, 4 * dimension), nn.GELU(), nn.Linear(4 * dimension, dimension))
        self.dropout = nn.Dropout(dropout)

    def forward(self, rows_BLD: Tensor) -> Tensor:
        """(B, L, D) → (B, L, D); row l sees rows 0 to l."""
        normed_BLD = self.attention_norm(rows_BLD)
        rows_BLD = rows_BLD + self.dropout(self.attention(normed_BLD, normed_BLD, is_causal=True))
        return rows_BLD + self.dropout(self.perceptron(self.perceptron_norm(rows_BLD)))
