"""What stands in a model for a frozen encoder whose vectors are read from the feature cache."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn


class CachedEncoder(nn.Module):
    """Nothing to run: vectors pass through, in the number format of the model's weights."""

    is_frozen = True
    like: Tensor

    def __init__(self, output_dimension: int):
        super().__init__()
        self.output_dimension = output_dimension
        # Follows the model to its device and number format; no part of a checkpoint.
        self.register_buffer("like", torch.zeros(1), persistent=False)

    def prepare(self, value: Sequence[float]) -> dict[str, Tensor]:
        """(D,) float32."""
        return {"vector": torch.tensor(value, dtype=torch.float32)}

    def dummy(self) -> dict[str, Tensor]:
        """Zeros."""
        return {"vector": torch.zeros(self.output_dimension)}

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """(P, D)."""
        return inputs["vector"].to(self.like.dtype)
