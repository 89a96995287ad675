"""A factorisation machine (Rendle 2010) over the fields of a user and of an item.

ŷ = μ + Σ_f w_f + Σ_{f<g} v_f · v_g over all fields f, g of both sides: user number, attributes, history; fused content, item number.
With P = Σ v_f over the user's fields and C = Σ v_f over the item's, the pairs fall into three sums:

    pairs across:        Σ_{f user, g item} v_f · v_g = P · C
    pairs of the user:   ½ (‖P‖² − Σ_f ‖v_f‖²)   depends on the user alone
    pairs of the item:   ½ (‖C‖² − Σ_f ‖v_f‖²)   depends on the item alone

so that ŷ = P · C + b_u + b_i + μ with b = Σ_f w_f + pairs of that side. This is a scorer like any other: searched, folded in, blended and bundled.
"""

from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from medley.users.table import MakeTable, dense_table


class FactorisationMachineConfig(BaseModel):
    """Linear terms and all pairs of fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["fm"] = "fm"
    user_bias: bool = False
    """a learned bias per user: matters for ratings only, a softmax over items does not see it"""

    def build(self, num_users: int, num_items: int, dimension: int, mean_value: float, table: MakeTable = dense_table) -> "FactorisationMachine":
        """mean_value: μ, the mean rating of train; 0 for implicit data."""
        user_bias = table(num_users, 1, deviation=0.0) if self.user_bias else None
        return FactorisationMachine(user_bias, table(num_items, 1, deviation=0.0), dimension, mean_value)


class FactorisationMachine(nn.Module):
    """Linear weights: a bias per item and user, and for the other fields a linear function of their vectors.

    Unlike a bias per item, the linear function of content also tells popular from unpopular items that training never saw.
    """

    global_bias: Tensor

    def __init__(self, user_bias: nn.Module | None, item_bias: nn.Module, dimension: int, mean_value: float):
        super().__init__()
        self.item_bias = item_bias
        self.user_bias = user_bias
        self.item_linear = nn.Linear(dimension, 1, bias=False)
        self.user_linear = nn.Linear(dimension, 1, bias=False)
        nn.init.zeros_(self.item_linear.weight)
        nn.init.zeros_(self.user_linear.weight)
        self.register_buffer("global_bias", torch.tensor(float(mean_value)))

    def item_side(self, fields_UFD: Tensor, item_index_U: Tensor, is_warm_U: Tensor) -> tuple[Tensor, Tensor]:
        """Item vectors (U, D) and biases (U,): linear terms and pairs of the item's fields."""
        vectors_UD = fields_UFD.sum(dim=1)
        own_bias_U = self.item_bias(item_index_U).squeeze(-1) * is_warm_U
        return vectors_UD, own_bias_U + self.item_linear(vectors_UD).squeeze(-1) + pairs_within(fields_UFD)

    def user_side(self, fields_BFD: Tensor, user_index_B: Tensor) -> tuple[Tensor, Tensor]:
        """User vectors (B, D) and biases (B,): linear terms and pairs of the user's fields."""
        vectors_BD = fields_BFD.sum(dim=1)
        bias_B = self.user_linear(vectors_BD).squeeze(-1) + pairs_within(fields_BFD)
        return vectors_BD, bias_B if self.user_bias is None else bias_B + self.user_bias(user_index_B).squeeze(-1)

    def forward(self, user_vectors_BD: Tensor, item_vectors_UD: Tensor, user_bias_B: Tensor, item_bias_U: Tensor) -> Tensor:
        """Scores (B, U)."""
        return user_vectors_BD @ item_vectors_UD.T + user_bias_B.unsqueeze(1) + item_bias_U + self.global_bias


def pairs_within(fields_BFD: Tensor) -> Tensor:
    """Σ_{f<g} v_f · v_g of each row, (B,), in linear time (Rendle 2010, lemma 3.1)."""
    return 0.5 * (fields_BFD.sum(dim=1).square().sum(dim=1) - fields_BFD.square().sum(dim=(1, 2)))
