"""Encoded bytes to arrays and back, within limits: the only door through which images and sounds enter.

`MediaProcess` cleans bytes from anywhere in a limited child process; `decode_image` and `decode_audio` are what it runs there (a decoder written
in C may still crash). `decode_jpeg` and `decode_flac` are the fast paths for what cleaning stored. Nothing here imports torch before it is used.
"""

from medley.media.images import decode_image
from medley.media.limits import SAMPLE_RATE_RANGE_HZ, MediaConfig, MediaError
from medley.media.process import CleanMedium, MediaProcess
from medley.media.sounds import decode_audio
from medley.media.stored import decode_flac, decode_jpeg, decode_jpeg_into, encode_flac, encode_jpeg

__all__ = [
    "SAMPLE_RATE_RANGE_HZ",
    "CleanMedium",
    "MediaConfig",
    "MediaError",
    "MediaProcess",
    "decode_audio",
    "decode_flac",
    "decode_image",
    "decode_jpeg",
    "decode_jpeg_into",
    "encode_flac",
    "encode_jpeg",
]
