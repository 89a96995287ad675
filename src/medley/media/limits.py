"""What is kept of images and sounds, the limits above which they are refused, and the one error that says why."""

from pydantic import BaseModel, ConfigDict, Field

SAMPLE_RATE_RANGE_HZ = (4_000, 384_000)
"""Rates that a sound may have: below is no audible signal (files that claim 1 Hz exist), above is no recorder."""


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
    """Images whose header claims more pixels (width x height) are refused before anything is decoded; a quarter of it for WebP, whose decoder
    takes four times the memory."""
    max_audio_seconds: float = Field(default=900.0, gt=0)
    """Longer sounds are refused."""
    max_audio_channels: int = Field(default=8, ge=1)
    """Sounds with more channels are refused."""
    max_size_bytes: int = Field(default=50_000_000, ge=1)
    """Larger files are refused unread."""
    max_decode_seconds: float = Field(default=5.0, gt=0)
    """Processor time after which the decoder of one image or sound is ended."""
    max_decode_bytes: int = Field(default=1_000_000_000, ge=1)
    """Memory that the decoder of one image or sound may take (enforced on Linux)."""


def check_size(what: str, data: bytes, config: MediaConfig) -> None:
    """MediaError where an encoded image or sound is empty or too large to be read."""
    if len(data) == 0:
        raise MediaError(f"{what} is empty (0 bytes)")
    if len(data) > config.max_size_bytes:
        raise MediaError(f"{what} has {len(data)} bytes, limit {config.max_size_bytes}")


def error_line(error: Exception) -> str:
    """The first line of a decoder's error, the same in every run."""
    # soundfile puts the address of the buffer before libsndfile's own words.
    text = getattr(error, "error_string", str(error))
    return (text.splitlines() or [""])[0][:200] or type(error).__name__
