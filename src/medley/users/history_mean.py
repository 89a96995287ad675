"""The mean of the vectors of the items a user had, through one linear layer (FISM without its exponent: Kabbur et al. 2013)."""

from collections.abc import Mapping
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from medley.users.fields import UserFields, one_field
from medley.users.table import MakeTable, dense_table


class HistoryMeanUserConfig(BaseModel):
    """Users are what they had: also works for users who were not in training."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["history_mean"] = "history_mean"
    history_length: int = Field(default=20, ge=1)
    """most recent train items; they are encoded with the micro-batch, so long histories cost time"""

    columns: tuple[()] = ()

    def build(
        self, train_count_V: Tensor, num_categories: Mapping[str, int], num_items: int, dimension: int, table: MakeTable = dense_table
    ) -> "HistoryMeanUser":
        """The module."""
        return HistoryMeanUser(dimension)


class HistoryMeanUser(nn.Module):
    """p_u = W mean_{j ∈ history} c_j; W starts at the identity, an empty history gives zeros."""

    def __init__(self, dimension: int):
        super().__init__()
        self.project = nn.Linear(dimension, dimension, bias=False)
        nn.init.eye_(self.project.weight)

    def forward(
        self, user_index_B: Tensor, attributes_B: Mapping[str, Tensor], history_BLD: Tensor, history_index_BL: Tensor, history_mask_BL: Tensor
    ) -> UserFields:
        """One field."""
        real_BL1 = history_mask_BL.unsqueeze(-1).to(history_BLD.dtype)
        mean_BD = (history_BLD * real_BL1).sum(dim=1) / real_BL1.sum(dim=1).clamp(min=1)
        return one_field(self.project(mean_BD))
