"""Alternating least squares: implicit (Hu, Koren, Volinsky 2008, with the regularisation of Rendle et al. 2021) and explicit, in block solves.

Implicit loss, w_u the user's weight, n_u = Σ_i v_ui, n_i = Σ_u w_u v_ui, α₀ = unobserved_weight:
    Σ_observed w_u v_ui (1 − p_uᵀc_i)² + α₀ Σ_all w_u (p_uᵀc_i)² + Σ_u w_u ridge(n_u + α₀ N) ‖p_u‖² + Σ_i ridge(n_i + α₀ Σ_u w_u) ‖c_i − prior_i‖²
    ridge(s) = λ m (s / m)^ν, λ = regularization, ν = regularization_exponent, m the mean of s over the side: ν moves the ridge between rows only
Explicit: the observed term with rating − μ − b_u − b_i instead of 1, and α₀ = 0.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from medley.heads.content import ContentConfig
from medley.heads.sparse import SparseRows

ELEMENTS_PER_GROUP = 1 << 21
"""Gathered vectors that are solved for at a time: 8 MB stay in the processor's cache."""
FILL_FACTOR = 1.25
"""Rows of a group are filled up to its longest; a row shorter than this fraction of it starts the next group."""


class AlsConfig(BaseModel):
    """Matrix factorisation by alternating least squares; memory grows with interactions and vectors alone."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["als"] = "als"
    feedback: Literal["implicit", "explicit"] = "implicit"
    """implicit: every interaction says 1, weighted by its event; explicit: the ratings (`value`), interactions without one left out"""
    dimension: int = Field(default=128, ge=1)
    """width of the vectors"""
    epochs: int = Field(default=14, ge=1)
    """passes over users and items"""
    regularization: float = Field(default=0.007, gt=0)
    """λ; implicit: per interaction and per α₀-weighted unobserved pair; explicit: per rating, where about 0.05 suits"""
    regularization_exponent: float = Field(default=1.0, ge=0, le=2)
    """ν: 1 regularises by frequency (as stochastic gradient descent does), 0 everybody alike"""
    unobserved_weight: float = Field(default=0.3, ge=0)
    """α₀: weight of a pair without interaction, where one counts 1; falls with the size of the catalogue (0.02 for 40,000 items)"""
    user_weight_exponent: float = Field(default=0.0, ge=0)
    """a user with n interactions counts (n / mean)^-exponent when items are solved; 0: all count 1"""
    initial_deviation: float = Field(default=0.1, gt=0)
    """deviation of the first vectors' numbers, times √dimension"""
    block_dimension: int = Field(default=32, ge=1)
    """numbers of a vector that are solved for at once (iALS++, Rendle et al. 2021); `dimension` or more: the exact solution, slower for wide vectors"""
    content: tuple[ContentConfig, ...] = ()
    """content from which item vectors are predicted (prior_i, a ridge regression on it in every epoch): vectors for items without interactions"""
    content_regularization: float = Field(default=1.0, gt=0)
    """ridge term of that regression, in the scale of a cosine"""
    metric: str = Field(default="ndcg@20", pattern=r"^(ndcg|recall)@[1-9]\d*$")
    """validation metric that the run reports"""
    workers: int = Field(default=1, ge=1)
    """processes that share users and items out; the result is the same up to rounding"""
    cpus_per_worker: float = Field(default=1, gt=0)
    """CPUs of each process"""


@dataclass(frozen=True)
class Half:
    """One side's problem: for each row argmin Σ_j v (t − p·f_j)² + α₀ pᵀGp + ridge ‖p − prior‖².

    rows: entries with weights v as values. targets: t of each entry, or None for 1 everywhere. ridge_B: one per row.
    """

    rows: SparseRows
    targets: Tensor | None
    ridge_B: Tensor

    def part(self, first: int, last: int) -> "Half":
        """The rows from `first` to before `last`."""
        start, stop = int(self.rows.offsets[first]), int(self.rows.offsets[last])
        rows = SparseRows(self.rows.offsets[first : last + 1] - start, self.rows.columns[start:stop], self.rows.values[start:stop], self.rows.num_columns)
        return Half(rows, None if self.targets is None else self.targets[start:stop], self.ridge_B[first:last])


def solve_half(
    half: Half, vectors_BD: Tensor, fixed_ND: Tensor, unobserved_DD: Tensor, block_dimension: int, prior_BD: Tensor | None = None
) -> tuple[Tensor, float]:
    """(new vectors (B, D), the observed part of the loss with them).

    vectors_BD: where the blocks start. fixed_ND: the other side. unobserved_DD: α₀ Σ w f fᵀ over the whole other side.
    A system that is not positive definite in float32 leaves NaN.
    """
    solved_BD, observed_loss = torch.empty_like(vectors_BD), torch.zeros((), dtype=torch.float64)
    dimension = vectors_BD.shape[1]
    # Rows are filled up with this one. Gathered into one buffer: memory that is taken anew for each group costs seven times the copy.
    fixed_ND = torch.cat([fixed_ND, torch.zeros(1, dimension)])
    groups = _groups(half.rows.lengths, dimension)
    buffer = torch.empty(max((len(rows) * _longest(half, rows) for rows in groups), default=0), dimension)
    is_weighted = bool((half.rows.values != 1).any())
    for rows in groups:
        root_weight_BL, columns_BL, target_BL = _filled(half, rows)
        fixed_BLD = torch.index_select(fixed_ND, 0, columns_BL.reshape(-1), out=buffer[: columns_BL.numel()]).view(*columns_BL.shape, dimension)
        if is_weighted:
            fixed_BLD.mul_(root_weight_BL.unsqueeze(2))
        prior = None if prior_BD is None else prior_BD[rows]
        own_BD, error_BL = _solve_group(fixed_BLD, target_BL, vectors_BD[rows], half.ridge_B[rows], unobserved_DD, block_dimension, prior)
        solved_BD[rows] = own_BD
        observed_loss += error_BL.square().sum(dtype=torch.float64)
    return solved_BD, float(observed_loss)


def _longest(half: Half, rows: Tensor) -> int:
    return max(1, int(half.rows.lengths[rows].max()))


def _groups(lengths: Tensor, dimension: int) -> list[Tensor]:
    """Rows of similar length together, few enough to fit ELEMENTS_PER_GROUP."""
    order = torch.argsort(lengths, descending=True, stable=True)
    sorted_lengths = lengths[order].tolist()
    groups, first = [], 0
    for place, length in enumerate(sorted_lengths):
        longest = max(1, sorted_lengths[first])
        is_full = (place - first + 1) * max(longest, dimension) * dimension > ELEMENTS_PER_GROUP
        if place > first and (is_full or length * FILL_FACTOR + 8 < longest):
            groups.append(order[first:place])
            first = place
    return [*groups, order[first:]] if len(order) else []


def _filled(half: Half, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Roots of the weights, columns, and targets times these roots, of some rows, (B, L), filled up with weight 0 and a column past the last."""
    place_BL = torch.arange(_longest(half, rows)).expand(len(rows), -1)
    real_BL = place_BL < half.rows.lengths[rows][:, None]
    if not len(half.rows.columns):
        return real_BL.float(), torch.full(real_BL.shape, half.rows.num_columns), real_BL.float()
    entry_BL = torch.where(real_BL, half.rows.offsets[rows][:, None] + place_BL, 0)
    root_weight_BL = half.rows.values[entry_BL].sqrt() * real_BL
    columns_BL = half.rows.columns[entry_BL].masked_fill(~real_BL, half.rows.num_columns)
    return root_weight_BL, columns_BL, root_weight_BL if half.targets is None else half.targets[entry_BL] * root_weight_BL


def _solve_group(
    fixed_BLD: Tensor,
    target_BL: Tensor,
    vectors_BD: Tensor,
    ridge_B: Tensor,
    unobserved_DD: Tensor,
    block_dimension: int,
    prior_BD: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """One pass over the blocks (iALS++, algorithm 2): each block's numbers are solved exactly, the others held.

    fixed_BLD, target_BL: already times the roots of the weights. Returns vectors and errors, these weighted so too.
    """
    vectors_BD = vectors_BD.clone()
    error_BL = target_BL - torch.bmm(fixed_BLD, vectors_BD.unsqueeze(2)).squeeze(2)
    for start in range(0, vectors_BD.shape[1], block_dimension):
        block = slice(start, min(start + block_dimension, vectors_BD.shape[1]))
        part_BLD = fixed_BLD[:, :, block]
        pull_BD = vectors_BD[:, block] if prior_BD is None else vectors_BD[:, block] - prior_BD[:, block]
        downhill_BD = torch.bmm(part_BLD.mT, error_BL.unsqueeze(2)).squeeze(2) - vectors_BD @ unobserved_DD[:, block] - ridge_B[:, None] * pull_BD
        system_BDD = torch.bmm(part_BLD.mT, part_BLD).add_(unobserved_DD[block, block])
        system_BDD.diagonal(dim1=1, dim2=2).add_(ridge_B[:, None])
        factor_BDD, status_B = torch.linalg.cholesky_ex(system_BDD)
        step_BD = torch.cholesky_solve(downhill_BD.unsqueeze(2), factor_BDD).squeeze(2)
        step_BD[status_B != 0] = torch.nan
        vectors_BD[:, block] += step_BD
        error_BL -= torch.bmm(part_BLD, step_BD.unsqueeze(2)).squeeze(2)
    return vectors_BD, error_BL
