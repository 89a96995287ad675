"""From the vectors of a sequence to one, and from a vector to its normalised self; all row by row."""

from typing import Any, Literal

import torch
from torch import Tensor, nn

OutputNorm = Literal["none", "unit", "layer"]


def mean_over(hidden_PTD: Tensor, real_PT: Tensor) -> Tensor:
    """(P, D), the mean over real positions. real_PT: nonzero is real, at least one a row."""
    real_PT1 = real_PT.unsqueeze(-1).to(hidden_PTD.dtype)
    return (hidden_PTD * real_PT1).sum(dim=1) / real_PT1.sum(dim=1)


def last_real(hidden_PTD: Tensor, real_PT: Tensor) -> Tensor:
    """(P, D), the vector at each row's last real position. real_PT: nonzero is real, at least one a row."""
    places_T = torch.arange(real_PT.shape[1], device=real_PT.device)
    last_P = ((real_PT != 0) * places_T).amax(dim=1)
    return hidden_PTD[torch.arange(len(last_P), device=last_P.device), last_P]


def first_positions(num_P: Tensor, num_positions: int) -> Tensor:
    """(P, T) bool, True at each row's first num_P of so many positions."""
    return torch.arange(num_positions, device=num_P.device) < num_P.unsqueeze(1)


def normalise_output(encoder: nn.Module, kind: Literal["unit", "layer"]) -> None:
    """Have an encoder's vectors normalised, in place. It gets no weights by that, so it may be frozen, and its weights keep their names."""
    encoder.register_forward_hook(_unit if kind == "unit" else _layer)


def _unit(encoder: nn.Module, inputs: Any, vectors_PD: Tensor) -> Tensor:
    return nn.functional.normalize(vectors_PD, dim=1)


def _layer(encoder: nn.Module, inputs: Any, vectors_PD: Tensor) -> Tensor:
    return nn.functional.layer_norm(vectors_PD, vectors_PD.shape[1:])
