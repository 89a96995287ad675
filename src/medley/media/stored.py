"""What a prepared set stores, JPEG and 16-bit FLAC: written by the cleaning, read without checks by training. All are thread-safe."""

import io
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor


def encode_jpeg(image_CHW: "Tensor | np.ndarray", quality: int) -> bytes:
    """A uint8 RGB image as JPEG bytes."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(np.asarray(image_CHW).transpose(1, 2, 0))).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def decode_jpeg(data: bytes | memoryview) -> "Tensor":
    """JPEG bytes that `encode_jpeg` wrote as a uint8 RGB tensor (C, H, W), channels last in memory; no limits, no checks. A view is not copied."""
    import simplejpeg
    import torch

    return torch.from_numpy(simplejpeg.decode_jpeg(data, "RGB")).permute(2, 0, 1)


def decode_jpeg_into(data: bytes | memoryview, pixels_HWC: np.ndarray) -> bool:
    """Write the pixels of `decode_jpeg` into memory; False, with nothing written, where the picture has another size."""
    import simplejpeg

    height, width, *_ = simplejpeg.decode_jpeg_header(data)
    if (height, width) != pixels_HWC.shape[:2]:
        return False
    simplejpeg.decode_jpeg(data, "RGB", buffer=pixels_HWC)
    return True


def encode_flac(samples_S: "Tensor | np.ndarray", sample_rate_hz: int) -> bytes:
    """Float samples in [-1, 1] as FLAC bytes of 16 bits; values outside are clipped."""
    import soundfile

    buffer = io.BytesIO()
    soundfile.write(buffer, np.asarray(samples_S), sample_rate_hz, format="FLAC", subtype="PCM_16")
    return buffer.getvalue()


def decode_flac(data: bytes) -> "Tensor":
    """FLAC bytes that `encode_flac` wrote as float32 samples (S,); no limits, no checks."""
    import soundfile
    import torch

    return torch.from_numpy(soundfile.read(io.BytesIO(data), dtype="float32")[0])
