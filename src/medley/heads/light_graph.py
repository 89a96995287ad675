"""Light propagation over the interactions (LightGCN, He et al. 2020): free vectors of users and items, averaged with those of their neighbours.

    e_u ← Σ_{i ∈ N(u)} e_i / √(|N(u)| |N(i)|),   e_i ← Σ_{u ∈ N(i)} e_u / √(|N(u)| |N(i)|),   layers 0 to L averaged.

Every micro-batch propagates the whole tables through all train interactions: time and memory grow with both, however small the micro-batch. That
suits data sets whose tables and interactions fit in each worker; large micro-batches pay it less often. Validation propagates once.
"""

from typing import Any, Self

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn


class LightGraphConfig(BaseModel):
    """Propagation of free vectors; needs `model.users.kind: id` and `model.item_id`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    num_layers: int = Field(default=2, ge=1)
    """steps between users and items; each makes neighbours more alike"""


class LightGraph(nn.Module):
    """The graph of a training set; it has no weights of its own and follows from the data, so checkpoints do not hold it."""

    def __init__(self, users: Tensor, items: Tensor, num_users: int, num_items: int, num_layers: int):
        """users, items: int64, the two ends of every train interaction; a repeated one counts once."""
        super().__init__()
        pairs = torch.unique(users * num_items + items)
        users, items = pairs // num_items, pairs % num_items
        user_degree_V, item_degree_N = torch.bincount(users, minlength=num_users), torch.bincount(items, minlength=num_items)
        weights = (user_degree_V[users].double() * item_degree_N[items]).rsqrt().float()
        self.to_users = SparseMatrix(users, items, weights, (num_users, num_items))
        self.to_items = SparseMatrix(items, users, weights, (num_items, num_users))
        self.num_layers = num_layers
        self.cached: tuple[Tensor, Tensor] | None = None

    def train(self, mode: bool = True) -> Self:
        """Also forgets what evaluation kept: weights may change from here on."""
        self.cached = None
        return super().train(mode)

    def forward(self, user_table: nn.Module, item_table: nn.Module) -> tuple[Tensor, Tensor]:
        """Vectors of all users (V, D) and all items (N, D). In evaluation without gradients they are computed once and kept."""
        is_kept = not self.training and not torch.is_grad_enabled()
        if is_kept and self.cached is not None:
            return self.cached
        num_users, num_items = self.to_users.shape
        device = self.to_users.columns.device
        tables = self.propagate(user_table(torch.arange(num_users, device=device)), item_table(torch.arange(num_items, device=device)))
        if is_kept:
            self.cached = tables
        return tables

    def propagate(self, user_VD: Tensor, item_ND: Tensor) -> tuple[Tensor, Tensor]:
        """The means over the layers, (V, D) and (N, D), in the type of the tables."""
        to_users, to_items = self.to_users(), self.to_items()
        # Sparse products want float32, whatever the weights are held in.
        users, items = [user_VD.float()], [item_ND.float()]
        for _ in range(self.num_layers):
            last_user_VD, last_item_ND = users[-1], items[-1]
            users.append(SparseProduct.apply(last_item_ND, to_users, to_items))
            items.append(SparseProduct.apply(last_user_VD, to_items, to_users))
        return torch.stack(users).mean(dim=0).to(user_VD.dtype), torch.stack(items).mean(dim=0).to(item_ND.dtype)


class SparseMatrix(nn.Module):
    """A constant matrix in compressed rows that moves with the model; sparse tensors themselves cannot be buffers everywhere."""

    offsets: Tensor
    columns: Tensor
    values: Tensor

    def __init__(self, rows: Tensor, columns: Tensor, values: Tensor, shape: tuple[int, int]):
        super().__init__()
        self.shape = shape
        order = torch.argsort(rows, stable=True)
        offsets = torch.cat([rows.new_zeros(1), torch.bincount(rows, minlength=shape[0]).cumsum(0)])
        for name, tensor in {"offsets": offsets, "columns": columns[order], "values": values[order]}.items():
            self.register_buffer(name, tensor, persistent=False)

    def forward(self) -> Tensor:
        """The matrix."""
        return torch.sparse_csr_tensor(self.offsets, self.columns, self.values.float(), self.shape, check_invariants=False)


class SparseProduct(torch.autograd.Function):
    """matrix @ dense, whose gradient is the transposed matrix times that of the product: torch would transpose and sort at every step."""

    @staticmethod
    def forward(ctx: Any, dense: Tensor, matrix: Tensor, transposed: Tensor) -> Tensor:
        """Only the dense factor has a gradient."""
        ctx.transposed = transposed
        return matrix @ dense

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]  # torch declares any number of gradients
        """Of the dense factor."""
        return ctx.transposed @ gradient.contiguous(), None, None
