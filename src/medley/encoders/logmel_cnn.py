"""Sound by a small convolutional network over the log-mel spectrogram."""

from collections.abc import Mapping
from itertools import pairwise
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from medley.encoders.log_mel import LogMel, LogMelSettings
from medley.encoders.resnet import group_norm


class LogMelCnnConfig(LogMelSettings):
    """Log-mel + CNN from scratch."""

    kind: Literal["logmel_cnn"] = "logmel_cnn"
    width: int = Field(default=32, ge=8, multiple_of=8)
    """channels of the first of four stages; the last has eight times as many"""

    def make(self, assets: Mapping[str, bytes], *, pretrained: bool) -> "LogMelCnnEncoder":
        """The module."""
        return LogMelCnnEncoder(self.spectrogram(), self.width)


class LogMelCnnEncoder(nn.Module):
    """Steps: 1. (prepare) log-mel spectrogram; 2. four convolutions that halve time and frequency; 3. mean and maximum over time, frequencies
    kept apart; 4. one linear layer."""

    def __init__(self, spectrogram: LogMel, width: int):
        super().__init__()
        self.spectrogram = spectrogram
        self.output_dimension = 8 * width
        widths = [1, width, 2 * width, 4 * width, 8 * width]
        self.stages = nn.Sequential(*(conv_stage(num_in, num_out) for num_in, num_out in pairwise(widths)))
        num_bands = -(-spectrogram.shape[0] // 16)
        self.project = nn.Linear(2 * 8 * width * num_bands, self.output_dimension)

    def prepare(self, value: bytes) -> dict[str, Tensor]:
        """Log-mel spectrogram, (F, frames) float32."""
        return self.spectrogram.prepare(value)

    def dummy(self) -> dict[str, Tensor]:
        """Silence."""
        return self.spectrogram.dummy()

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """(P, 8 × width)."""
        log_mel_P1FS = inputs["log_mel"].unsqueeze(1).to(self.project.weight.dtype)
        hidden = self.stages(log_mel_P1FS.contiguous(memory_format=torch.channels_last))
        pooled = torch.cat([hidden.mean(dim=3), hidden.amax(dim=3)], dim=1)
        return self.project(pooled.flatten(start_dim=1))


def conv_stage(num_in: int, num_out: int) -> nn.Sequential:
    """3×3 convolution that halves both sides, GroupNorm, ReLU."""
    return nn.Sequential(nn.Conv2d(num_in, num_out, kernel_size=3, stride=2, padding=1, bias=False), group_norm(num_out), nn.ReLU())
