"""Attention with several heads (Vaswani et al. 2017), for tokens of an item and for histories of a user."""

import torch
from torch import Tensor, nn


class MultiHeadAttention(nn.Module):
    """O softmax(Q K^T / √width) V per head, then joined.

    torch's own module reads the weights of its output layer without calling it, which ZeRO-3 cannot see. Queries and keys have no bias: one of
    the keys would move no weight.
    """

    def __init__(self, dimension: int, num_heads: int):
        super().__init__()
        assert dimension % num_heads == 0
        self.num_heads = num_heads
        self.query = nn.Linear(dimension, dimension, bias=False)
        self.key = nn.Linear(dimension, dimension, bias=False)
        self.value = nn.Linear(dimension, dimension)
        self.output = nn.Linear(dimension, dimension)

    def forward(self, queries_BQD: Tensor, tokens_BTD: Tensor, mask_BT: Tensor | None = None, *, is_causal: bool = False) -> Tensor:
        """(B, Q, D). mask_BT: False tokens are not looked at; a row needs at least one True. is_causal: query q sees tokens 0 to q."""
        query, key, value = self._split(self.query(queries_BQD)), self._split(self.key(tokens_BTD)), self._split(self.value(tokens_BTD))
        mask = mask_BT[:, None, None, :] if mask_BT is not None else None
        joined = nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=is_causal)
        return self.output(joined.transpose(1, 2).flatten(start_dim=2))

    def _split(self, rows_BTD: Tensor) -> Tensor:
        """(B, heads, T, width of a head)."""
        return torch.unflatten(rows_BTD, -1, (self.num_heads, -1)).transpose(1, 2)
