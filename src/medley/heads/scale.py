"""The length of vectors and the scale of scores."""

import torch
from torch import Tensor, nn


def unit_length(vectors_BD: Tensor) -> Tensor:
    """Vectors of length 1; zeros (users without anything known) stay zeros."""
    return nn.functional.normalize(vectors_BD, dim=-1, eps=1e-6)


class LearnedScale(nn.Module):
    """Times e^s, s learned from 0: always positive, and a decay pulls it to 1."""

    def __init__(self) -> None:
        super().__init__()
        # With a dimension: DeepSpeed hands weights round as bytes, which it cannot make of a tensor without any.
        self.log_scale = nn.Parameter(torch.zeros(1))

    def forward(self, values: Tensor) -> Tensor:
        """The same shape."""
        return values * self.log_scale.exp()
