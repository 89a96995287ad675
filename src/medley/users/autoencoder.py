"""A deep encoder of the whole history (Mult-VAE, Liang et al. 2018; the penalty per item of RecVAE, Shenbin et al. 2020)."""

from collections.abc import Mapping
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from medley.users.fields import UserFields
from medley.users.table import MakeTable, dense_table


class AutoencoderUserConfig(BaseModel):
    """Users are a function of all the items they had, by item number: it has no word for items that training did not see.

    With `loss.kind: full_softmax` it is Mult-VAE whose decoder is the item vectors; the target is always left out of the input.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["autoencoder"] = "autoencoder"
    history_length: int = Field(default=200, ge=1)
    """most recent train items that are read; the items of a micro-batch's histories are encoded with it, which without encoders costs little"""
    hidden_dimension: int = Field(default=256, ge=1)
    """width of the hidden layer"""
    dropout: float = Field(default=0.5, ge=0, lt=1)
    """share of a history that training leaves out"""
    kl_weight: float = Field(default=0.005, ge=0)
    """weight of the divergence from a normal distribution, per train row: a user's counts once per item, as RecVAE scales it; 0: no noise (Mult-DAE)"""

    columns: tuple[()] = ()

    def build(
        self, train_count_V: Tensor, num_categories: Mapping[str, int], num_items: int, dimension: int, table: MakeTable = dense_table
    ) -> "AutoencoderUser":
        """The module."""
        return AutoencoderUser(num_items, dimension, self.hidden_dimension, self.dropout, self.kl_weight)


class AutoencoderUser(nn.Module):
    """p_u = μ (+ σ ε in training), (μ, log σ²) = W₂ tanh(norm(Σ_j W₁[j])) over the items of the history; an empty history gives zeros."""

    def __init__(self, num_items: int, dimension: int, hidden_dimension: int, dropout: float, kl_weight: float):
        super().__init__()
        self.dropout = dropout
        self.kl_weight = kl_weight
        # Rows of the first layer's matrix: summing those of the history is its product with the multi-hot vector of the catalogue. A bag never
        # holds the rows of all histories at once, 100 MB for 512 histories of 200 items.
        self.item_embedding = nn.EmbeddingBag(num_items, hidden_dimension, mode="sum")
        nn.init.normal_(self.item_embedding.weight, std=hidden_dimension**-0.5)
        self.hidden_norm = nn.LayerNorm(hidden_dimension)
        self.encode = nn.Linear(hidden_dimension, 2 * dimension if kl_weight else dimension)

    def forward(
        self, user_index_B: Tensor, attributes_B: Mapping[str, Tensor], history_BLD: Tensor, history_index_BL: Tensor, history_mask_BL: Tensor
    ) -> UserFields:
        """One field, and the divergence per row."""
        kept_BL = history_mask_BL.to(self.item_embedding.weight.dtype)
        kept_BL = nn.functional.dropout(kept_BL, self.dropout, self.training)
        # Mult-VAE brings the multi-hot vector to length 1; the norm of the sum, as in RecVAE, does the same for any length of the history.
        summed_BH = self.item_embedding(history_index_BL, per_sample_weights=kept_BL)
        has_history_B1 = history_mask_BL.any(dim=1, keepdim=True)
        encoded = self.encode(torch.tanh(self.hidden_norm(summed_BH))) * has_history_B1
        if not self.kl_weight:
            return encoded.unsqueeze(1), encoded.new_zeros(len(encoded))
        mean_BD, log_variance_BD = encoded.chunk(2, dim=1)
        divergence_B = 0.5 * (mean_BD.square() + log_variance_BD.exp() - 1 - log_variance_BD).sum(dim=1)
        if self.training:
            mean_BD = mean_BD + torch.randn_like(mean_BD) * (0.5 * log_variance_BD).exp() * has_history_B1
        return mean_BD.unsqueeze(1), self.kl_weight * divergence_B
