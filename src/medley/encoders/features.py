"""A precomputed vector column used as it is."""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from medley.encoders.settings import TrainableSettings


class FeaturesConfig(TrainableSettings):
    """Vectors that the user or an earlier run computed."""

    kind: Literal["features"] = "features"
    column: str
    """fixed-size list<float> column"""
    normalise: bool = True
    """True: each feature is shifted and scaled to mean 0 and deviation 1 over the train items; False: taken as it is"""

    def learn(self, values: Iterable[Sequence[float]]) -> dict[str, bytes]:
        """Width, mean and deviation of the train items' vectors."""
        features_ND = torch.tensor([list(value) for value in values], dtype=torch.float32)
        deviation_D = features_ND.std(dim=0, correction=0)
        # A feature that never varies stays 0 after the shift; dividing it by 1 keeps it finite.
        deviation_D = torch.where(deviation_D > 1e-8, deviation_D, torch.ones_like(deviation_D))
        return {"statistics.json": json.dumps({"mean": features_ND.mean(dim=0).tolist(), "deviation": deviation_D.tolist()}).encode()}

    def make(self, assets: Mapping[str, bytes], *, pretrained: bool) -> "FeaturesEncoder":
        """The module."""
        statistics = json.loads(assets["statistics.json"])
        return FeaturesEncoder(statistics["mean"], statistics["deviation"], normalise=self.normalise)


class FeaturesEncoder(nn.Module):
    """Nothing to train."""

    mean_D: Tensor
    deviation_D: Tensor

    def __init__(self, mean: Sequence[float], deviation: Sequence[float], *, normalise: bool):
        super().__init__()
        self.output_dimension = len(mean)
        self.normalise = normalise
        self.register_buffer("mean_D", torch.tensor(mean, dtype=torch.float32))
        self.register_buffer("deviation_D", torch.tensor(deviation, dtype=torch.float32))

    def prepare(self, value: Sequence[float]) -> dict[str, Tensor]:
        """(D,) float32."""
        return {"features": torch.tensor(value, dtype=torch.float32)}

    def dummy(self) -> dict[str, Tensor]:
        """Zeros."""
        return {"features": torch.zeros(self.output_dimension)}

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """(P, D), in the number format of the model's weights, which these buffers follow."""
        features_PD = inputs["features"].to(self.mean_D.dtype)
        return (features_PD - self.mean_D) / self.deviation_D if self.normalise else features_PD
