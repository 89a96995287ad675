"""Sound by a small convolutional network over the log-mel spectrogram."""

from collections.abc import Iterable, Mapping
from itertools import pairwise
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from medley.encoders.resnet import group_norm
from medley.encoders.settings import TrainableSettings
from medley.media import decode_flac
from medley.schema import AUDIO


class LogMelCnnConfig(TrainableSettings):
    """Log-mel + CNN from scratch."""

    kind: Literal["logmel_cnn"] = "logmel_cnn"
    column: str = AUDIO
    """column of prepared FLAC clips"""
    sample_rate_hz: int = Field(default=16000, ge=1000)
    """rate of the prepared clips (data.media.audio_sample_rate_hz)"""
    clip_seconds: float = Field(default=4.0, gt=0)
    """clips are cut or padded with silence to this length"""
    num_mel_bins: int = Field(default=64, ge=8)
    window_milliseconds: float = Field(default=32.0, gt=0)
    hop_milliseconds: float = Field(default=16.0, gt=0)
    width: int = Field(default=32, ge=8, multiple_of=8)
    """channels of the first of four stages; the last has eight times as many"""

    def learn(self, values: Iterable[bytes]) -> dict[str, bytes]:
        """Nothing is learned."""
        return {}

    def build(self, assets: Mapping[str, bytes], *, pretrained: bool) -> "LogMelCnnEncoder":
        """The module."""
        return LogMelCnnEncoder(
            sample_rate_hz=self.sample_rate_hz,
            clip_length_samples=round(self.clip_seconds * self.sample_rate_hz),
            num_mel_bins=self.num_mel_bins,
            window_length_samples=round(self.window_milliseconds * self.sample_rate_hz / 1000),
            hop_length_samples=round(self.hop_milliseconds * self.sample_rate_hz / 1000),
            width=self.width,
        )


class LogMelCnnEncoder(nn.Module):
    """Steps: 1. (prepare) mel power spectrogram, log, the clip's own mean taken off, so that loudness does not count; 2. four convolutions
    that halve time and frequency; 3. mean and maximum over time, frequencies kept apart; 4. one linear layer."""

    def __init__(self, *, sample_rate_hz: int, clip_length_samples: int, num_mel_bins: int, window_length_samples: int, hop_length_samples: int, width: int):
        super().__init__()
        from torchaudio.transforms import MelScale, Spectrogram

        self.clip_length_samples = clip_length_samples
        self.input_shape = (num_mel_bins, 1 + clip_length_samples // hop_length_samples)
        self.output_dimension = 8 * width
        # power=None: torchaudio's own power goes through a square root and back, which took most of the time. A tuple, because prepare
        # works on the CPU wherever the weights are: modules in a tuple are not moved with them.
        self.transforms = (
            Spectrogram(n_fft=window_length_samples, hop_length=hop_length_samples, power=None),
            MelScale(num_mel_bins, sample_rate_hz, n_stft=window_length_samples // 2 + 1, mel_scale="slaney", norm="slaney"),
        )
        widths = [1, width, 2 * width, 4 * width, 8 * width]
        self.stages = nn.Sequential(*(conv_stage(num_in, num_out) for num_in, num_out in pairwise(widths)))
        num_bands = -(-num_mel_bins // 16)
        self.project = nn.Linear(2 * 8 * width * num_bands, self.output_dimension)

    @torch.no_grad()
    def prepare(self, value: bytes) -> dict[str, Tensor]:
        """Log-mel spectrogram, (F, frames) float32, of the clip cut or padded with silence to its length. Once per item, not once per step."""
        samples_S = decode_flac(value)[: self.clip_length_samples]
        samples_S = nn.functional.pad(samples_S, (0, self.clip_length_samples - len(samples_S)))
        to_spectrum, to_mel = self.transforms
        spectrum = to_spectrum(samples_S)
        log_mel = torch.log(to_mel(spectrum.real.square() + spectrum.imag.square()) + 1e-5)
        return {"log_mel": (log_mel - log_mel.mean()) / 4}

    def dummy(self) -> dict[str, Tensor]:
        """Silence."""
        return {"log_mel": torch.zeros(self.input_shape)}

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """(P, 8 × width)."""
        log_mel_P1FS = inputs["log_mel"].unsqueeze(1).to(self.project.weight.dtype)
        hidden = self.stages(log_mel_P1FS.contiguous(memory_format=torch.channels_last))
        pooled = torch.cat([hidden.mean(dim=3), hidden.amax(dim=3)], dim=1)
        return self.project(pooled.flatten(start_dim=1))


def conv_stage(num_in: int, num_out: int) -> nn.Sequential:
    """3×3 convolution that halves both sides, GroupNorm, ReLU."""
    return nn.Sequential(nn.Conv2d(num_in, num_out, kernel_size=3, stride=2, padding=1, bias=False), group_norm(num_out), nn.ReLU())
