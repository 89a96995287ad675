"""Log-mel spectrograms: the settings and the preparation that sound encoders from scratch share."""

from collections.abc import Iterable

import torch
from pydantic import Field
from torch import Tensor, nn

from medley.encoders.settings import TrainableSettings
from medley.media import decode_flac
from medley.schema import AUDIO


class LogMelSettings(TrainableSettings):
    """Base of the configurations of encoders over log-mel spectrograms."""

    column: str = AUDIO
    """column of prepared FLAC clips"""
    sample_rate_hz: int = Field(default=16000, ge=1000)
    """rate of the prepared clips (data.media.audio_sample_rate_hz)"""
    clip_seconds: float = Field(default=4.0, gt=0)
    """clips are cut or padded with silence to this length"""
    num_mel_bins: int = Field(default=64, ge=8)
    window_milliseconds: float = Field(default=32.0, gt=0)
    hop_milliseconds: float = Field(default=16.0, gt=0)

    def reads_sample_rate_hz(self) -> int:
        """The rate that the prepared clips must have."""
        return self.sample_rate_hz

    def learn(self, values: Iterable[bytes]) -> dict[str, bytes]:
        """Nothing is learned."""
        return {}

    def spectrogram(self) -> "LogMel":
        """The preparation."""
        return LogMel(
            sample_rate_hz=self.sample_rate_hz,
            clip_length_samples=round(self.clip_seconds * self.sample_rate_hz),
            num_mel_bins=self.num_mel_bins,
            window_length_samples=round(self.window_milliseconds * self.sample_rate_hz / 1000),
            hop_length_samples=round(self.hop_milliseconds * self.sample_rate_hz / 1000),
        )


class LogMel:
    """Mel power spectrogram of a clip, log, the clip's own mean taken off, so that loudness does not count. shape: (F, frames)."""

    def __init__(self, *, sample_rate_hz: int, clip_length_samples: int, num_mel_bins: int, window_length_samples: int, hop_length_samples: int):
        from torchaudio.transforms import MelScale, Spectrogram

        self.clip_length_samples = clip_length_samples
        self.shape = (num_mel_bins, 1 + clip_length_samples // hop_length_samples)
        # power=None: torchaudio's own power goes through a square root and back, which took most of the time.
        self.to_spectrum = Spectrogram(n_fft=window_length_samples, hop_length=hop_length_samples, power=None)
        self.to_mel = MelScale(num_mel_bins, sample_rate_hz, n_stft=window_length_samples // 2 + 1, mel_scale="slaney", norm="slaney")

    @torch.no_grad()
    def prepare(self, flac: bytes) -> dict[str, Tensor]:
        """(F, frames) float32 of the clip cut or padded with silence to its length. Once per item, not once per step."""
        samples_S = decode_flac(flac)[: self.clip_length_samples]
        samples_S = nn.functional.pad(samples_S, (0, self.clip_length_samples - len(samples_S)))
        spectrum = self.to_spectrum(samples_S)
        log_mel = torch.log(self.to_mel(spectrum.real.square() + spectrum.imag.square()) + 1e-5)
        return {"log_mel": (log_mel - log_mel.mean()) / 4}

    def dummy(self) -> dict[str, Tensor]:
        """Silence."""
        return {"log_mel": torch.zeros(self.shape)}
