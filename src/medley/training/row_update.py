"""Updates of single rows of a table: only rows that a step read move, so a step costs what it read and not what the table holds.

A row without a gradient keeps its values and its moments, neither decayed nor moved, where dense AdamW would let both go on.
P is the number of rows that a step read, N that of the table, D the width; state and weights are changed in place.
"""

from collections.abc import Mapping
from typing import Literal

from torch import Tensor

RowOptimizer = Literal["sparse_adam", "rowwise_adam", "rowwise_adagrad"]

ROW_STATES: Mapping[RowOptimizer, Mapping[str, bool]] = {
    "sparse_adam": {"exp_avg": False, "exp_avg_sq": False},
    "rowwise_adam": {"exp_avg": False, "row_exp_avg_sq": True},
    "rowwise_adagrad": {"row_sum_sq": True},
}
"""Optimiser → its states, and whether a state is one number a row (N, 1) or one per value (N, D)."""

BETAS = (0.9, 0.98)
EPSILON = 1e-8


def update_rows(
    optimizer: RowOptimizer,
    weight_ND: Tensor,
    states: Mapping[str, Tensor],
    rows_P: Tensor,
    gradient_PD: Tensor,
    *,
    learning_rate: float,
    weight_decay: float,
    num_steps: int,
) -> None:
    """One step of the rows `rows_P` (each once). num_steps: steps of the run, this one included; the bias correction of Adam follows it, as in
    torch's SparseAdam. weight_decay is decoupled (AdamW), of the rows read."""
    new_PD = weight_ND[rows_P] * (1 - learning_rate * weight_decay)
    if optimizer == "rowwise_adagrad":
        new_PD -= learning_rate * _adagrad_direction(states, rows_P, gradient_PD)
    else:
        new_PD -= learning_rate * _adam_direction(states, rows_P, gradient_PD, "exp_avg_sq" if optimizer == "sparse_adam" else "row_exp_avg_sq", num_steps)
    weight_ND[rows_P] = new_PD


def _adagrad_direction(states: Mapping[str, Tensor], rows_P: Tensor, gradient_PD: Tensor) -> Tensor:
    """g / √(Σ over steps of the mean of g² in the row): Adagrad (Duchi et al. 2011) with one accumulator a row, as DLRM's trainers have it."""
    sum_P1 = states["row_sum_sq"][rows_P] + gradient_PD.square().mean(dim=1, keepdim=True)
    states["row_sum_sq"][rows_P] = sum_P1
    return gradient_PD / (sum_P1.sqrt() + EPSILON)


def _adam_direction(states: Mapping[str, Tensor], rows_P: Tensor, gradient_PD: Tensor, second: str, num_steps: int) -> Tensor:
    """m̂ / √v̂ (Kingma and Ba 2015); v of each value, or of the row's mean square where `second` is a state of rows."""
    square = gradient_PD.square() if second == "exp_avg_sq" else gradient_PD.square().mean(dim=1, keepdim=True)
    first_PD = states["exp_avg"][rows_P].lerp_(gradient_PD, 1 - BETAS[0])
    second_P = states[second][rows_P].lerp_(square, 1 - BETAS[1])
    states["exp_avg"][rows_P] = first_PD
    states[second][rows_P] = second_P
    correction = [1 - beta**num_steps for beta in BETAS]
    return (first_PD / correction[0]) / ((second_P / correction[1]).sqrt() + EPSILON)
