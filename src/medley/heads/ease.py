"""EASE (Steck 2019), a linear item-item model in closed form, with the additions that pay: row weights, denoising, item scaling, content."""

from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from medley.heads.content import ContentConfig
from medley.heads.sparse import SparseRows

NUM_MATRICES = 6
"""Dense float32 matrices of items × items that are in memory at the highest point."""
NUM_SPARE_DIRECTIONS = 32
NUM_ITERATIONS = 8


class EaseConfig(BaseModel):
    """Closed form over the items: memory grows with their square (3,600 items 0.3 GB, 36,000 items 31 GB), time with their cube."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["ease"] = "ease"
    regularization: float = Field(default=500.0, gt=0)
    """ridge term λ, in interactions"""
    user_weight_exponent: float = Field(default=0.5, ge=0)
    """row weights: a user with n interactions counts (n / mean)^-exponent; 0: all count 1"""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """share of each history that is thought away when it predicts the rest (EDLAE, Steck 2020: adds dropout / (1 - dropout) × count to the ridge)"""
    item_scaling: float = 0.0
    """weight of item i on item j is multiplied by (count_i / count_j)^item_scaling; above 0 rarer items gain"""
    content: tuple[ContentConfig, ...] = ()
    """content that is added to the items' co-occurrence; none: interactions alone"""
    rank: int = Field(default=256, ge=1)
    """width of the vectors that the item-item matrix is cut to; what that costs is measured and reported"""
    metric: str = Field(default="ndcg@20", pattern=r"^(ndcg|recall)@[1-9]\d*$")
    """validation metric by which the cut is measured and that the run reports"""
    cpus_per_worker: float = Field(default=1, gt=0)
    """CPUs of the one process that solves it"""


def ease_bytes(num_items: int) -> int:
    """Memory that `solve_ease` and `factorise` need at their highest point."""
    return NUM_MATRICES * 4 * num_items**2


def solve_ease(config: EaseConfig, history: SparseRows, content_NN: Tensor | None) -> Tensor:
    """B (N, N), scores = history × B, diagonal 0: argmin Σ_u w_u ‖x_u − x_u B‖² + ‖Λ^½ B‖² given Bᵢᵢ = 0, where G = Xᵀ W X + content.

    history: users × items, values 1. content_NN: what is added to G. With P = (G + Λ)⁻¹: Bᵢⱼ = −Pᵢⱼ / Pⱼⱼ (Steck 2019, equation 8).
    """
    length_V = history.lengths.float()
    weight_V = (length_V.clamp(min=1) / length_V[length_V > 0].mean()) ** -config.user_weight_exponent
    system_NN = history.scale_rows(weight_V.sqrt()).gram()
    ridge_N = config.dropout / (1 - config.dropout) * system_NN.diagonal() + config.regularization
    if content_NN is not None:
        system_NN += content_NN
    system_NN.diagonal().add_(ridge_N)
    inverse_NN = torch.cholesky_inverse(torch.linalg.cholesky(system_NN))
    weights_NN = inverse_NN.div_(-inverse_NN.diagonal().clone())
    weights_NN.fill_diagonal_(0)
    if config.item_scaling:
        scale_N = torch.bincount(history.columns, minlength=history.num_columns).clamp(min=1).float() ** config.item_scaling
        weights_NN *= scale_N[:, None] / scale_N
    return weights_NN


def factorise(weights_NN: Tensor, history: SparseRows, rank: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """(history_vectors_ND, item_vectors_ND), D = min(rank, N), whose product is the best for the users' scores: argmin ‖X B − X H Cᵀ‖².

    The optimum is C = V, H = B V with V the leading right singular vectors of X B, found by iterating on its Gram matrix
    (Halko, Martinsson, Tropp 2011, algorithm 4.4). Both sides are then scaled to equal length per direction, so that the cosine of two
    item vectors counts each direction by its share of the scores.
    """
    num_items = len(weights_NN)
    rank = min(rank, num_items)
    energy_NN = weights_NN.T @ (history.gram() @ weights_NN)
    num_directions = min(rank + NUM_SPARE_DIRECTIONS, num_items)
    basis = torch.linalg.qr(torch.randn(num_items, num_directions, generator=generator)).Q
    for _ in range(NUM_ITERATIONS):
        basis = torch.linalg.qr(energy_NN @ basis).Q
    rotation = torch.linalg.eigh(basis.T @ energy_NN @ basis)
    strongest = torch.argsort(rotation.eigenvalues, descending=True)[:rank]
    directions_ND = basis @ rotation.eigenvectors[:, strongest]
    # The scores along a direction have the root of its eigenvalue as length; a part of it stands in the item vector.
    length_D = rotation.eigenvalues[strongest].clamp(min=1e-12) ** 0.25
    return (weights_NN @ directions_ND) / length_D, directions_ND * length_D
