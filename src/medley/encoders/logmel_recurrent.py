"""Sound by a GRU or LSTM over the log-mel spectrogram."""

from collections.abc import Mapping
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from medley.encoders.log_mel import LogMel, LogMelSettings
from medley.encoders.recurrent import Cell, RecurrentNetwork, RecurrentPooling


class LogMelRecurrentConfig(LogMelSettings):
    """Log-mel + GRU or LSTM from scratch."""

    kind: Literal["logmel_recurrent"] = "logmel_recurrent"
    cell: Cell = "gru"
    """gru or lstm"""
    width: int = Field(default=64, ge=1)
    """of a direction's states; the clip's vector is twice as wide"""
    num_layers: int = Field(default=1, ge=1)
    """of each direction"""
    frames_per_step: int = Field(default=2, ge=1)
    """frames that are read together as one step: the network's time is in proportion to the steps"""
    pooling: RecurrentPooling = "mean"
    """of the states: mean over the clip, or each direction's last"""

    def make(self, assets: Mapping[str, bytes], *, pretrained: bool) -> "LogMelRecurrentEncoder":
        """The module."""
        network = RecurrentNetwork(self.frames_per_step * self.num_mel_bins, self.width, self.num_layers, self.cell, self.pooling)
        return LogMelRecurrentEncoder(self.spectrogram(), self.frames_per_step, network)


class LogMelRecurrentEncoder(nn.Module):
    """Steps: 1. (prepare) log-mel spectrogram; 2. neighbouring frames side by side; 3. the recurrent network over the whole clip."""

    def __init__(self, spectrogram: LogMel, frames_per_step: int, network: RecurrentNetwork):
        super().__init__()
        self.spectrogram = spectrogram
        self.frames_per_step = frames_per_step
        self.network = network
        self.output_dimension = network.output_dimension

    def prepare(self, value: bytes) -> dict[str, Tensor]:
        """Log-mel spectrogram, (F, frames) float32."""
        return self.spectrogram.prepare(value)

    def dummy(self) -> dict[str, Tensor]:
        """Silence."""
        return self.spectrogram.dummy()

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """(P, 2 × width)."""
        log_mel_PFS = inputs["log_mel"].to(self.network.norm.weight.dtype)
        num_missing = -log_mel_PFS.shape[2] % self.frames_per_step
        frames_PTD = nn.functional.pad(log_mel_PFS, (0, num_missing)).transpose(1, 2).unflatten(1, (-1, self.frames_per_step)).flatten(start_dim=2)
        return self.network(frames_PTD, torch.ones(frames_PTD.shape[:2], dtype=torch.bool, device=frames_PTD.device))
