"""The decoder process: reads untrusted images and sounds from a pipe, answers with clean ones or reasons. Started by `MediaProcess` only.

It imports no torch (0.3 s to start instead of 3), has no environment to leak, can open no file or socket, and has a limit on memory and on
processor time per medium. Frames, little-endian: a request is a count and then per medium `REQUEST` and its bytes; a reply is `REPLY` and its
bytes, one per medium in order. A reply before the first request says that the process is ready.
"""

import os
import resource
import signal
import struct
import sys
from typing import BinaryIO

import numpy as np

from medley.media.images import decode_image
from medley.media.limits import MediaConfig, MediaError
from medley.media.sounds import decode_clip
from medley.media.stored import encode_flac, encode_jpeg

COUNT = struct.Struct("<I")
REQUEST = struct.Struct("<BQ")
REPLY = struct.Struct("<BQ")
IMAGE_KIND, AUDIO_KIND = 0, 1
REFUSED, CLEANED, CLEANED_SILENT, READY = 0, 1, 2, 3


def main() -> None:
    """Serve standard input until it ends. The only argument is the MediaConfig as JSON."""
    config = MediaConfig.model_validate_json(sys.argv[1])
    requests, replies = os.fdopen(0, "rb"), os.fdopen(os.dup(1), "wb")
    _import_decoders(config)
    # Decoders written in C print warnings about damaged files: neither replies nor anybody's log.
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    _limit(config)
    _reply(replies, READY, b"")
    while len(header := requests.read(COUNT.size)) == COUNT.size:
        media = [_read_medium(requests) for _ in range(COUNT.unpack(header)[0])]
        for kind, data in media:
            _reply(replies, *_clean(kind, data, config))


def _clean(kind: int, data: bytes, config: MediaConfig) -> tuple[int, bytes]:
    # Counts processor time of this process, not the waiting for a busy machine; its signal ends the process.
    signal.setitimer(signal.ITIMER_PROF, config.max_decode_seconds)
    try:
        if kind == IMAGE_KIND:
            return CLEANED, encode_jpeg(decode_image(data, config), config.image_quality)
        samples_S, is_silent = decode_clip(data, config)
        return CLEANED_SILENT if is_silent else CLEANED, encode_flac(samples_S, config.audio_sample_rate_hz)
    except MediaError as error:
        return REFUSED, str(error).encode(errors="replace")
    except MemoryError:
        return REFUSED, f"decoder needed more than {config.max_decode_bytes / 1e6:g} MB".encode()
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def _read_medium(requests: BinaryIO) -> tuple[int, bytes]:
    kind, size = REQUEST.unpack(requests.read(REQUEST.size))
    return kind, requests.read(size)


def _reply(replies: BinaryIO, code: int, content: bytes) -> None:
    replies.write(REPLY.pack(code, len(content)) + content)
    replies.flush()


def _import_decoders(config: MediaConfig) -> None:
    """Everything that decoding would import later, when no file can be opened any more."""
    import PIL.JpegImagePlugin
    import PIL.MpoImagePlugin  # for JPEG files with several pictures
    import PIL.PngImagePlugin
    import PIL.TiffImagePlugin  # reads EXIF data
    import PIL.WebPImagePlugin  # noqa: F401

    decode_image(encode_jpeg(np.zeros((3, 8, 8), dtype=np.uint8), 90), config)
    decode_clip(encode_flac(np.zeros(100, dtype=np.float32), 8_000), config)


def _limit(config: MediaConfig) -> None:
    if sys.platform == "linux":  # macOS enforces no limit on memory
        with open("/proc/self/statm") as statistics:
            used_bytes = int(statistics.read().split()[0]) * resource.getpagesize()
        limit_bytes = used_bytes + config.max_decode_bytes
        resource.setrlimit(resource.RLIMIT_AS, (limit_bytes, limit_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, 0))
