"""Matrix factorisation with biases: s_ui = p_u · c_i + b_u + b_i + μ (Koren, Bell, Volinsky 2009)."""

from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from medley.heads.scale import LearnedScale, unit_length
from medley.users.table import MakeTable, dense_table


class MatrixFactorisationConfig(BaseModel):
    """Inner product and biases."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["mf"] = "mf"
    item_bias: bool = True
    """a learned bias per item; items without train interactions have none"""
    user_bias: bool = False
    """a learned bias per user: matters for ratings only, a softmax over items does not see it"""
    cosine: bool = False
    """user and item vectors are brought to length 1 first; popularity must then go through the item bias"""
    learned_scale: bool = False
    """the inner product times a learned factor that starts at 1: a learned temperature is the loss's temperature divided by it"""

    def build(self, num_users: int, num_items: int, dimension: int, mean_value: float, table: MakeTable = dense_table) -> "MatrixFactorisation":
        """mean_value: μ, the mean rating of train; 0 for implicit data."""
        user_bias = table(num_users, 1, deviation=0.0) if self.user_bias else None
        item_bias = table(num_items, 1, deviation=0.0) if self.item_bias else None
        return MatrixFactorisation(user_bias, item_bias, mean_value, cosine=self.cosine, learned_scale=self.learned_scale)


class MatrixFactorisation(nn.Module):
    """The biases; the vectors are the sums of the fields before it. user_bias, item_bias: tables of width 1, None: no such bias."""

    global_bias: Tensor

    def __init__(self, user_bias: nn.Module | None, item_bias: nn.Module | None, mean_value: float, *, cosine: bool = False, learned_scale: bool = False):
        super().__init__()
        self.user_bias = user_bias
        self.item_bias = item_bias
        self.cosine = cosine
        self.scale = LearnedScale() if learned_scale else None
        self.register_buffer("global_bias", torch.tensor(float(mean_value)))

    def item_side(self, fields_UFD: Tensor, item_index_U: Tensor, is_warm_U: Tensor) -> tuple[Tensor, Tensor]:
        """Item vectors (U, D) and biases (U,), which are 0 for items that training never saw."""
        vectors_UD = fields_UFD.sum(dim=1)
        bias_U = vectors_UD.new_zeros(len(vectors_UD)) if self.item_bias is None else self.item_bias(item_index_U).squeeze(-1) * is_warm_U
        return unit_length(vectors_UD) if self.cosine else vectors_UD, bias_U

    def user_side(self, fields_BFD: Tensor, user_index_B: Tensor) -> tuple[Tensor, Tensor]:
        """User vectors (B, D), with the scale in them, and biases (B,)."""
        vectors_BD = fields_BFD.sum(dim=1)
        bias_B = vectors_BD.new_zeros(len(vectors_BD)) if self.user_bias is None else self.user_bias(user_index_B).squeeze(-1)
        if self.cosine:
            vectors_BD = unit_length(vectors_BD)
        return vectors_BD if self.scale is None else self.scale(vectors_BD), bias_B

    def forward(self, user_vectors_BD: Tensor, item_vectors_UD: Tensor, user_bias_B: Tensor, item_bias_U: Tensor) -> Tensor:
        """Scores (B, U)."""
        return user_vectors_BD @ item_vectors_UD.T + user_bias_B.unsqueeze(1) + item_bias_U + self.global_bias
