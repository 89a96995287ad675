"""Negatives of all ranks: item vectors sent to every rank, and their gradients back to the rank that computed them (as in CLIP, Radford et al. 2021)."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from medley.schema import Pool


def pooled_items(item_vectors_UD: Tensor, item_bias_U: Tensor, pool: Pool) -> tuple[Tensor, Tensor]:
    """Vectors (W, D) and biases (W,) of the pool's items. Collective, forward and backward; in float32, which every backend can send."""
    assert dist.get_world_size() == pool.num_ranks
    columns_UE = torch.cat([item_vectors_UD, item_bias_U.unsqueeze(1)], dim=1).float()
    received = _Gather.apply(columns_UE[pool.sent_position_S])[pool.received_position_W].to(item_vectors_UD.dtype)
    return received[:, :-1], received[:, -1]


class _Gather(torch.autograd.Function):
    """Every rank's rows, rank by rank; the gradient of a rank's rows is the sum of all ranks'."""

    @staticmethod
    def forward(ctx: Any, own_SE: Tensor) -> Tensor:
        """(S, E) → (ranks × S, E)."""
        parts = [torch.empty_like(own_SE) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, own_SE.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]  # torch declares any arguments
        """(ranks × S, E) → (S, E)."""
        total = gradient.clone()
        dist.all_reduce(total)
        return total.chunk(dist.get_world_size())[dist.get_rank()]
