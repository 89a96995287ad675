"""Encoded sounds from anywhere → mono samples at one rate, within limits. Raises only MediaError, and MemoryError where the process has a limit."""

import io
import math
from collections.abc import Iterable, Iterator
from fractions import Fraction
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from medley.media.limits import SAMPLE_RATE_RANGE_HZ, MediaConfig, MediaError, check_size, error_line

if TYPE_CHECKING:
    from soundfile import SoundFile

MAX_SAMPLE = 16.0
"""Float samples may overshoot full scale by 24 dB and are clipped; larger ones are no sound in [-1, 1] but integers or garbage stored as floats."""

_FORMATS = ("WAV", "WAVEX", "FLAC", "OGG", "MP3")
_CODECS = ("PCM_", "FLOAT", "DOUBLE", "ULAW", "ALAW", "VORBIS", "OPUS", "MPEG_LAYER_")
_PIECE_FRAMES = 65_536
_FILTER_ZEROS, _ROLLOFF = 6, 0.99


def decode_audio(data: bytes, config: MediaConfig) -> np.ndarray:
    """The first `audio_max_clip_seconds` of an encoded WAV, FLAC, OGG or MP3 as float32 mono samples (S,) in [-1, 1].

    Channels are averaged, then resampled to `audio_sample_rate_hz`. Memory does not grow with the length of the file: it is read in pieces and
    no further than needed. Anything else, anything damaged, samples that are NaN, infinite or above MAX_SAMPLE, no samples and anything over a
    limit raises MediaError. Half a file is a shorter sound, not an error: no format but FLAC could tell.
    """
    return decode_clip(data, config)[0]


def decode_clip(data: bytes, config: MediaConfig) -> tuple[np.ndarray, bool]:
    """The samples of `decode_audio`, and whether they are silence or a constant, to within a 16-bit step up and down."""
    import soundfile

    check_size("audio", data, config)
    if not _looks_like_audio(data):
        raise MediaError("audio is none of WAV, FLAC, OGG, MP3")
    try:
        sound = soundfile.SoundFile(io.BytesIO(data))
    except MemoryError:
        raise
    except Exception as error:
        raise MediaError(f"audio header cannot be read ({error_line(error)})") from None
    extremes: list[float] = []

    def watched(pieces: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
        for piece_S in pieces:
            extremes.extend((float(piece_S.min()), float(piece_S.max())))
            yield piece_S

    with sound:
        _check_header(sound, config)
        pieces = _mono_pieces(sound, math.ceil(config.audio_max_clip_seconds * sound.samplerate))
        samples_S = resample(watched(pieces), sound.samplerate, config.audio_sample_rate_hz)
    if not extremes:
        raise MediaError("audio holds no samples")
    clip_S = samples_S[: round(config.audio_max_clip_seconds * config.audio_sample_rate_hz)].clip(-1, 1)
    return clip_S, max(extremes) - min(extremes) <= 2 / 32_768


def resample(pieces: Iterable[np.ndarray], rate_hz: int, new_rate_hz: int) -> np.ndarray:
    """Consecutive pieces of a sound as one float32 array at another rate, by a Hann-windowed sinc filter (Smith, Digital Audio Resampling).

    The numbers are those of `torchaudio.functional.resample` with its default filter.
    """
    # The filter has new/gcd x rate/gcd entries: 24 GB for a file that claims 383,999 Hz. A fraction of small numbers is exact
    # for every usual rate and within 1e-6 for odd ones (0.2 samples in 10 s), at a few MB.
    ratio = Fraction(new_rate_hz, rate_hz).limit_denominator(1_000)
    step, num_phases = ratio.denominator, ratio.numerator
    if step == num_phases:
        return np.concatenate([np.zeros(0, dtype=np.float32), *pieces])
    filters, margin = _filters(step, num_phases)
    waiting_S = np.zeros(margin, dtype=np.float32)
    num_samples, resampled = 0, []

    def filter_waiting() -> np.ndarray:
        """Filter every whole window of what waits; returns the rest."""
        if len(waiting_S) < filters.shape[0]:
            return waiting_S
        windows = np.lib.stride_tricks.sliding_window_view(waiting_S, filters.shape[0])[::step]
        resampled.append((np.ascontiguousarray(windows) @ filters).reshape(-1))
        return waiting_S[len(windows) * step :]

    for piece_S in pieces:
        num_samples += len(piece_S)
        waiting_S = np.concatenate([waiting_S, piece_S])
        waiting_S = filter_waiting()
    waiting_S = np.concatenate([waiting_S, np.zeros(margin + step, dtype=np.float32)])
    filter_waiting()
    return np.concatenate(resampled)[: math.ceil(num_phases * num_samples / step)]


@lru_cache(maxsize=8)
def _filters(step: int, num_phases: int) -> tuple[np.ndarray, int]:
    """(window, num_phases) float32 filters, one column per output sample of a step, and how far the window reaches before the step."""
    cutoff = min(step, num_phases) * _ROLLOFF
    margin = math.ceil(_FILTER_ZEROS * step / cutoff)
    inputs = np.arange(-margin, margin + step)[:, None] / step
    outputs = np.arange(num_phases)[None] / num_phases
    times = np.clip((inputs - outputs) * cutoff, -_FILTER_ZEROS, _FILTER_ZEROS)
    window = np.cos(times * math.pi / _FILTER_ZEROS / 2) ** 2
    return (np.sinc(times) * window * (cutoff / step)).astype(np.float32), margin


def _mono_pieces(sound: "SoundFile", num_frames: int) -> Iterator[np.ndarray]:
    """The first frames, averaged over channels and clipped, in pieces of float32 samples."""
    while num_frames > 0:
        try:
            samples_SC = sound.read(min(num_frames, _PIECE_FRAMES), dtype="float32", always_2d=True)
        except MemoryError:
            raise
        except Exception as error:
            raise MediaError(f"audio cannot be decoded ({error_line(error)})") from None
        if len(samples_SC) == 0:
            return
        largest = np.abs(samples_SC).max()
        if not np.isfinite(largest):
            raise MediaError("audio holds NaN or infinite samples")
        if largest > MAX_SAMPLE:
            raise MediaError(f"audio holds samples up to {largest:.3g}, expected -1 to 1 (limit {MAX_SAMPLE:g})")
        num_frames -= len(samples_SC)
        yield samples_SC.mean(axis=1).clip(-1, 1)


def _looks_like_audio(data: bytes) -> bool:
    """Whether the first bytes are those of WAV, FLAC, OGG or MP3, so that libsndfile's other parsers never see foreign bytes."""
    is_wav = data[:4] == b"RIFF" and data[8:12] == b"WAVE"
    is_mp3_frame = len(data) > 1 and data[0] == 0xFF and data[1] & 0xE0 == 0xE0
    return is_wav or is_mp3_frame or data.startswith((b"fLaC", b"OggS", b"ID3"))


def _check_header(sound: "SoundFile", config: MediaConfig) -> None:
    lowest_hz, highest_hz = SAMPLE_RATE_RANGE_HZ
    if sound.format not in _FORMATS:
        raise MediaError(f"audio is {sound.format}, none of WAV, FLAC, OGG, MP3")
    if not sound.subtype.startswith(_CODECS):
        # libsndfile's decoders of these have known overflows (CVE-2026-37555).
        raise MediaError(f"audio is coded as {sound.subtype}, none of PCM, float, A-law, mu-law, Vorbis, Opus, MP3")
    if not lowest_hz <= sound.samplerate <= highest_hz:
        raise MediaError(f"audio header claims {sound.samplerate} Hz, limits {lowest_hz} to {highest_hz}")
    if sound.channels > config.max_audio_channels:
        raise MediaError(f"audio header claims {sound.channels} channels, limit {config.max_audio_channels}")
    if sound.frames > config.max_audio_seconds * sound.samplerate:
        raise MediaError(f"audio header claims {sound.frames / sound.samplerate:.0f} s, limit {config.max_audio_seconds:g} s")
