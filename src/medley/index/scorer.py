"""A scorer: what every kind of training ends in: user vectors × item vectors + biases."""

from dataclasses import dataclass, fields
from typing import Self

import torch
from safetensors.torch import load, save
from torch import Tensor

from medley.manifest import read_bytes, write_bytes


@dataclass(frozen=True)
class Scorer:
    """score(u, i) = user_vectors[u] · item_vectors[i] + user_bias[u] + item_bias[i] + global_bias, all float32."""

    user_vectors_VD: Tensor
    item_vectors_ND: Tensor
    user_bias_V: Tensor
    item_bias_N: Tensor
    global_bias: Tensor
    history_vectors_ND: Tensor | None = None
    """where a user's vector is the sum of these over the history (EASE), for users in training and outside; None: others are solved (fold_in.py)"""

    def __post_init__(self) -> None:
        assert self.user_vectors_VD.shape[1] == self.item_vectors_ND.shape[1]
        assert self.item_bias_N.shape[0] == self.item_vectors_ND.shape[0]
        assert self.user_bias_V.shape[0] == self.user_vectors_VD.shape[0]

    @property
    def item_columns_ND(self) -> Tensor:
        """Item vectors with the item bias as one more column, (N, D + 1).

        A trained user meets the column with a 1. A folded-in user starts from the mean user, so from 1 too, and their history may move it.
        """
        return torch.cat([self.item_vectors_ND, self.item_bias_N[:, None]], dim=1)

    @property
    def user_columns_VD(self) -> Tensor:
        """User vectors with the 1 that meets the bias column, (V, D + 1)."""
        return torch.cat([self.user_vectors_VD, torch.ones(len(self.user_vectors_VD), 1)], dim=1)

    @classmethod
    def of_items(cls, item_scores_N: Tensor, num_users: int) -> Self:
        """The scorer that gives every user the same item scores (popularity)."""
        return cls(
            torch.zeros(num_users, 1),
            torch.zeros(len(item_scores_N), 1),
            torch.zeros(num_users),
            item_scores_N.float(),
            torch.zeros(()),
        )

    def save(self, uri: str) -> None:
        """Write the tensors as one safetensors file."""
        write_bytes(uri, save(self.tensors()))

    def tensors(self) -> dict[str, Tensor]:
        """Field → float32 tensor of its own on the CPU, fields that are None left out."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: value.contiguous().float().cpu() for name, value in values.items() if value is not None}

    @classmethod
    def load(cls, uri: str) -> Self:
        """Read what `save` wrote."""
        return cls(**load(read_bytes(uri)))
