"""Sound by a transformers model from a local folder: Audio Spectrogram Transformer, Whisper's encoder, wav2vec 2.0."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn

from medley.encoders.layers import find_blocks
from medley.encoders.pooling import first_positions, mean_over
from medley.encoders.transformer_files import FEATURE_FILE, TransformerSettings, model_type, read_settings, with_folder
from medley.media import decode_flac
from medley.schema import AUDIO, InputError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Pooling = Literal["mean", "own"]


class Reading(NamedTuple):
    """How a type of model is read. first: positions before those that follow the clip in time."""

    first: int
    in_time: bool
    """True: positions follow the clip, and the mean leaves out those of silence added at its end"""
    has_own_pooling: bool
    is_waveform: bool


READINGS = {
    # Patches of the spectrogram in both directions, after a class and a distillation token.
    "audio-spectrogram-transformer": Reading(first=2, in_time=False, has_own_pooling=True, is_waveform=False),
    "whisper": Reading(first=0, in_time=True, has_own_pooling=False, is_waveform=False),
    "wav2vec2": Reading(first=0, in_time=True, has_own_pooling=False, is_waveform=True),
}
"""Type of model, as transformers names it, → how it is read."""


class TransformerAudioConfig(TransformerSettings):
    """A pretrained sound encoder, fed by the feature extractor that its folder describes."""

    kind: Literal["transformer_audio"] = "transformer_audio"
    column: str = AUDIO
    """column of prepared FLAC clips, at the feature extractor's sample rate (data.media.audio_sample_rate_hz)"""
    clip_seconds: float = Field(default=10.0, ge=0.1)
    """clips are cut to this length; wav2vec 2.0 reads them padded with silence to it, the others to the length they were made for"""
    pooling: Pooling = "mean"
    """of the last layer's vectors: mean over the clip; own: what the Audio Spectrogram Transformer itself pools (its two class tokens)"""

    def reads_sample_rate_hz(self) -> int:
        """The rate that the prepared clips must have."""
        self.read_assets("audio")
        return int(read_settings(Path(self.path) / FEATURE_FILE).get("sampling_rate", 16000))

    def learn(self, values: Iterable[bytes]) -> dict[str, bytes]:
        """Nothing is learned: the folder's configuration files."""
        return self.read_assets("audio")

    def make(self, assets: Mapping[str, bytes], *, pretrained: bool) -> "TransformerAudioEncoder":
        """The module, with or without the folder's weights."""
        from transformers import AutoFeatureExtractor

        kind = model_type(assets)
        if kind not in READINGS:
            raise InputError(f"'{self.path}' holds a sound model of type '{kind}'", f"one of {', '.join(READINGS)}", "use another folder")
        if self.pooling == "own" and not READINGS[kind].has_own_pooling:
            raise InputError(f"pooling: own for a model of type '{kind}', which pools nothing", "pooling: mean", "change it")
        extractor = with_folder(assets, lambda folder: AutoFeatureExtractor.from_pretrained(folder, local_files_only=True))
        model = self.load(assets, (), pretrained=pretrained)
        # Of Whisper, which also writes text, the encoder alone.
        model = model.get_encoder() if model.config.is_encoder_decoder else model
        return TransformerAudioEncoder(model, extractor, READINGS[kind], self.clip_seconds, self.pooling)


class TransformerAudioEncoder(nn.Module):
    """The pooled last hidden state."""

    def __init__(self, model: "PreTrainedModel", extractor: Any, reading: Reading, clip_seconds: float, pooling: Pooling):
        super().__init__()
        self.model = model
        self.extractor = extractor
        self.reading = reading
        self.pooling = pooling
        self.clip_length_samples = round(clip_seconds * extractor.sampling_rate)
        # Whisper's extractor pads clips to a length of its own.
        self.num_samples = int(getattr(extractor, "n_samples", self.clip_length_samples))
        self.least_samples = 1
        if reading.is_waveform:
            for size, stride in zip(reversed(model.config.conv_kernel), reversed(model.config.conv_stride), strict=True):
                self.least_samples = (self.least_samples - 1) * stride + size
        self.takes_mask = reading.is_waveform and bool(extractor.return_attention_mask)
        self.output_dimension = model.config.hidden_size
        self.input_shape = self._prepare(torch.zeros(extractor.sampling_rate // 10))["features"].shape

    def blocks(self) -> list[nn.Module]:
        """The model's layers."""
        return find_blocks(self.model)

    def prepare(self, value: bytes) -> dict[str, Tensor]:
        """features: what the model's own extractor makes of the clip, float32, all of one shape; real_share: the part of it that is no padding, (1,)."""
        return self._prepare(decode_flac(value))

    @torch.no_grad()
    def _prepare(self, samples_S: Tensor) -> dict[str, Tensor]:
        samples_S = samples_S[: self.clip_length_samples]
        extracted = self.extractor(samples_S.numpy(), sampling_rate=self.extractor.sampling_rate, return_tensors="pt")
        features = extracted[self.extractor.model_input_names[0]][0]
        if self.reading.is_waveform:
            features = nn.functional.pad(features, (0, self.num_samples - len(features)))
        return {"features": features, "real_share": torch.tensor([min(1.0, len(samples_S) / self.num_samples)])}

    def dummy(self) -> dict[str, Tensor]:
        """Nothing but padding."""
        return {"features": torch.zeros(self.input_shape), "real_share": torch.zeros(1)}

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """(P, hidden size)."""
        features, num_samples_P = inputs["features"].to(self.model.dtype), self._real_samples(inputs["real_share"])
        options = {"attention_mask": first_positions(num_samples_P, features.shape[1]).long()} if self.takes_mask else {}
        output = self.model(features, **options)
        if self.pooling == "own":
            return output.pooler_output
        hidden_PTD = output.last_hidden_state[:, self.reading.first :]
        if not self.reading.in_time:
            return hidden_PTD.mean(dim=1)
        return mean_over(hidden_PTD, first_positions(self._real_frames(num_samples_P, hidden_PTD.shape[1]), hidden_PTD.shape[1]))

    def _real_samples(self, share_P1: Tensor) -> Tensor:
        """(P,) int64, samples that are no padding; at least what the first position reads."""
        return (share_P1[:, 0].float() * self.num_samples).round().long().clamp(min=self.least_samples)

    def _real_frames(self, num_samples_P: Tensor, num_frames: int) -> Tensor:
        """(P,) positions of the model's output that read only these samples (wav2vec 2.0), or any of them (Whisper)."""
        if not self.reading.is_waveform:
            return (num_samples_P * num_frames / self.num_samples).ceil()
        for size, stride in zip(self.model.config.conv_kernel, self.model.config.conv_stride, strict=True):
            num_samples_P = (num_samples_P - size) // stride + 1
        return num_samples_P
