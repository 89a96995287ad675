"""Encoded bytes to arrays and back, within limits: the only door through which images and sounds enter.

`decode_image` and `decode_audio` take bytes from anywhere and raise only MediaError; run them in a limited child process (a decoder written
in C may still crash). `decode_jpeg` and `decode_flac` are the fast paths for what `encode_jpeg` and `encode_flac` wrote. All are thread-safe.
"""

import io
import math
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

if TYPE_CHECKING:
    from PIL import Image
    from soundfile import SoundFile

SAMPLE_RATE_RANGE_HZ = (4_000, 384_000)
"""Rates that a sound may have: below is no audible signal (files that claim 1 Hz exist), above is no recorder."""

_AUDIO_FORMATS = ("WAV", "WAVEX", "FLAC", "OGG", "MP3")


class MediaError(ValueError):
    """Why an image or a sound cannot be used, in one short sentence; survives pickling between processes."""


class MediaConfig(BaseModel):
    """What is kept of images and sounds, and the limits above which they are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    image_max_side_pixels: int = Field(default=256, ge=16)
    """Longer side of a stored image, pixels; larger ones are shrunk, smaller ones are kept as they are."""
    image_quality: int = Field(default=90, ge=1, le=100)
    """JPEG quality of a stored image."""
    audio_sample_rate_hz: int = Field(default=16_000, ge=SAMPLE_RATE_RANGE_HZ[0], le=SAMPLE_RATE_RANGE_HZ[1])
    """Sample rate of a stored sound, Hz."""
    audio_max_clip_seconds: float = Field(default=10.0, gt=0, le=600)
    """What is kept of a sound: its first seconds."""
    max_image_pixels: int = Field(default=40_000_000, ge=1)
    """Images whose header claims more pixels (width x height) are refused before anything is decoded."""
    max_audio_seconds: float = Field(default=900.0, gt=0)
    """Longer sounds are refused."""
    max_audio_channels: int = Field(default=8, ge=1)
    """Sounds with more channels are refused."""
    max_size_bytes: int = Field(default=50_000_000, ge=1)
    """Larger files are refused unread."""


def decode_image(data: bytes, config: MediaConfig) -> Tensor:
    """The first frame of an encoded JPEG, PNG or WebP as a uint8 RGB tensor (C, H, W), turned upright by its EXIF orientation.

    Transparency is laid over white; CMYK, palette, grey and 16-bit images become RGB; colour profiles are ignored.
    Anything else, anything damaged and anything over a limit raises MediaError.
    """
    from PIL import ImageOps

    _check_size("image", data, config)
    try:
        image = _open_image(data)
    except Exception as error:
        # Pillow's plugins raise OSError, SyntaxError, struct.error, zlib.error, MemoryError … on damaged bytes: all mean the same here.
        raise MediaError(f"image header cannot be read ({_first_line(error)})") from None
    with image:
        width, height = image.size
        if width * height > config.max_image_pixels:
            raise MediaError(f"image header claims {width} x {height} pixels, limit {config.max_image_pixels}")
        try:
            image.load()
            rgb = np.array(_to_rgb(ImageOps.exif_transpose(image)))
        except Exception as error:
            raise MediaError(f"image cannot be decoded ({_first_line(error)})") from None
    return torch.from_numpy(rgb).permute(2, 0, 1).contiguous()


def shrink_image(image_CHW: Tensor, max_side_pixels: int) -> Tensor:
    """The uint8 image with its longer side at most `max_side_pixels`, antialiased, proportions kept; never enlarged."""
    height, width = image_CHW.shape[-2:]
    scale = max_side_pixels / max(height, width)
    if scale >= 1:
        return image_CHW
    size = (max(1, round(height * scale)), max(1, round(width * scale)))
    return torch.nn.functional.interpolate(image_CHW[None], size=size, mode="bilinear", antialias=True)[0]


def encode_jpeg(image_CHW: Tensor, quality: int) -> bytes:
    """A uint8 RGB image as JPEG bytes."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image_CHW.permute(1, 2, 0).contiguous().numpy()).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def decode_jpeg(data: bytes) -> Tensor:
    """JPEG bytes that `encode_jpeg` wrote as a uint8 RGB tensor (C, H, W); no limits, no checks."""
    from torchvision.io import ImageReadMode
    from torchvision.io import decode_jpeg as decode

    return decode(torch.frombuffer(bytearray(data), dtype=torch.uint8), mode=ImageReadMode.RGB)


def decode_audio(data: bytes, config: MediaConfig) -> Tensor:
    """The first `audio_max_clip_seconds` of an encoded WAV, FLAC, OGG or MP3 as float32 mono samples (S,) in [-1, 1].

    Channels are averaged, then resampled to `audio_sample_rate_hz`. Anything else, anything damaged, NaN or infinite samples, no samples
    and anything over a limit raises MediaError. Half a file is a shorter sound, not an error: no format but FLAC could tell.
    """
    import soundfile

    _check_size("audio", data, config)
    if not _looks_like_audio(data):
        raise MediaError("audio is none of WAV, FLAC, OGG, MP3")
    try:
        sound = soundfile.SoundFile(io.BytesIO(data))
    except Exception as error:
        raise MediaError(f"audio header cannot be read ({_first_line(error)})") from None
    with sound:
        _check_sound_header(sound, config)
        rate_hz = sound.samplerate
        try:
            samples_SC = sound.read(math.ceil(config.audio_max_clip_seconds * rate_hz), dtype="float32", always_2d=True)
        except Exception as error:
            raise MediaError(f"audio cannot be decoded ({_first_line(error)})") from None
    if len(samples_SC) == 0:
        raise MediaError("audio holds no samples")
    samples_S = torch.from_numpy(samples_SC).mean(dim=1)
    if not torch.isfinite(samples_S).all():
        raise MediaError("audio holds NaN or infinite samples")
    resampled_S = _resample(samples_S.clamp_(-1, 1), rate_hz, config.audio_sample_rate_hz)
    return resampled_S[: round(config.audio_max_clip_seconds * config.audio_sample_rate_hz)].clamp(-1, 1)


def encode_flac(samples_S: Tensor, sample_rate_hz: int) -> bytes:
    """Float samples in [-1, 1] as FLAC bytes of 16 bits; values outside are clipped."""
    import soundfile

    buffer = io.BytesIO()
    soundfile.write(buffer, samples_S.numpy(), sample_rate_hz, format="FLAC", subtype="PCM_16")
    return buffer.getvalue()


def decode_flac(data: bytes) -> Tensor:
    """FLAC bytes that `encode_flac` wrote as float32 samples (S,); no limits, no checks."""
    import soundfile

    return torch.from_numpy(soundfile.read(io.BytesIO(data), dtype="float32")[0])


def _check_size(what: str, data: bytes, config: MediaConfig) -> None:
    if len(data) == 0:
        raise MediaError(f"{what} is empty (0 bytes)")
    if len(data) > config.max_size_bytes:
        raise MediaError(f"{what} has {len(data)} bytes, limit {config.max_size_bytes}")


def _open_image(data: bytes) -> "Image.Image":
    """Read the header with the one plugin that the first bytes name.

    Not Image.open: it has a pixel limit of its own for the whole process, with a warning below it, and opens multi-picture files too.
    """
    from PIL.JpegImagePlugin import JpegImageFile
    from PIL.PngImagePlugin import PngImageFile
    from PIL.WebPImagePlugin import WebPImageFile

    for magic, plugin in ((b"\xff\xd8\xff", JpegImageFile), (b"\x89PNG\r\n\x1a\n", PngImageFile), (b"RIFF", WebPImageFile)):
        if data.startswith(magic):
            return plugin(io.BytesIO(data))
    raise MediaError("none of JPEG, PNG, WebP")


def _to_rgb(image: "Image.Image") -> "Image.Image":
    from PIL import Image

    if image.mode.startswith("I"):
        # Pillow's own conversion of 16-bit grey clips at 255 instead of scaling.
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def _looks_like_audio(data: bytes) -> bool:
    """Whether the first bytes are those of WAV, FLAC, OGG or MP3, so that libsndfile's other parsers never see foreign bytes."""
    is_wav = data[:4] == b"RIFF" and data[8:12] == b"WAVE"
    is_mp3_frame = len(data) > 1 and data[0] == 0xFF and data[1] & 0xE0 == 0xE0
    return is_wav or is_mp3_frame or data.startswith((b"fLaC", b"OggS", b"ID3"))


def _check_sound_header(sound: "SoundFile", config: MediaConfig) -> None:
    lowest_hz, highest_hz = SAMPLE_RATE_RANGE_HZ
    if sound.format not in _AUDIO_FORMATS:
        raise MediaError(f"audio is {sound.format}, none of WAV, FLAC, OGG, MP3")
    if not lowest_hz <= sound.samplerate <= highest_hz:
        raise MediaError(f"audio header claims {sound.samplerate} Hz, limits {lowest_hz} to {highest_hz}")
    if sound.channels > config.max_audio_channels:
        raise MediaError(f"audio header claims {sound.channels} channels, limit {config.max_audio_channels}")
    if sound.frames > config.max_audio_seconds * sound.samplerate:
        raise MediaError(f"audio header claims {sound.frames / sound.samplerate:.0f} s, limit {config.max_audio_seconds:g} s")


def _resample(samples_S: Tensor, rate_hz: int, new_rate_hz: int) -> Tensor:
    import torchaudio.functional

    # torchaudio's kernel has new/gcd x rate/gcd entries: 24 GB for a file that claims 383,999 Hz. A fraction of small numbers is exact
    # for every usual rate and within 1e-6 for odd ones (0.2 samples in 10 s), at a few MB.
    ratio = Fraction(new_rate_hz, rate_hz).limit_denominator(1_000)
    return torchaudio.functional.resample(samples_S, ratio.denominator, ratio.numerator)


def _first_line(error: Exception) -> str:
    # soundfile puts the address of the buffer before libsndfile's own words; reasons must be the same in every run.
    text = getattr(error, "error_string", str(error))
    return (text.splitlines() or [""])[0][:200] or type(error).__name__
