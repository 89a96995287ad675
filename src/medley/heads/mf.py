"""Matrix factorisation with biases: s_ui = p_u · c_i + b_u + b_i + μ (Koren, Bell, Volinsky 2009)."""

from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn


class MatrixFactorisationConfig(BaseModel):
    """Inner product and biases."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["mf"] = "mf"
    item_bias: bool = True
    """a learned bias per item; items without train interactions have none"""
    user_bias: bool = False
    """a learned bias per user: matters for ratings only, a softmax over items does not see it"""

    def build(self, num_users: int, num_items: int, mean_value: float) -> "MatrixFactorisation":
        """mean_value: μ, the mean rating of train; 0 for implicit data."""
        return MatrixFactorisation(num_users if self.user_bias else 0, num_items if self.item_bias else 0, mean_value)


class MatrixFactorisation(nn.Module):
    """The biases; the vectors come from the users and items before it. num_users or num_items 0: no such bias."""

    global_bias: Tensor

    def __init__(self, num_users: int, num_items: int, mean_value: float):
        super().__init__()
        self.user_bias = nn.Embedding(num_users, 1) if num_users else None
        self.item_bias = nn.Embedding(num_items, 1) if num_items else None
        for table in (self.user_bias, self.item_bias):
            if table is not None:
                nn.init.zeros_(table.weight)
        self.register_buffer("global_bias", torch.tensor(float(mean_value)))

    def item_biases(self, item_index_U: Tensor, is_warm_U: Tensor) -> Tensor:
        """(U,) float; 0 for items that training never saw."""
        if self.item_bias is None:
            return torch.zeros(len(item_index_U), device=item_index_U.device)
        return self.item_bias(item_index_U).squeeze(-1) * is_warm_U

    def user_biases(self, user_index_B: Tensor) -> Tensor:
        """(B,) float."""
        if self.user_bias is None:
            return torch.zeros(len(user_index_B), device=user_index_B.device)
        return self.user_bias(user_index_B).squeeze(-1)

    def forward(self, user_vectors_BD: Tensor, item_vectors_UD: Tensor, user_bias_B: Tensor, item_bias_U: Tensor) -> Tensor:
        """Scores (B, U)."""
        return user_vectors_BD @ item_vectors_UD.T + user_bias_B.unsqueeze(1) + item_bias_U + self.global_bias
