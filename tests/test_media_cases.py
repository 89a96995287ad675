"""The bad images and sounds of the fault list, through the decoder process: each one's outcome, its memory and its time are stated."""

import hashlib
import io
import struct
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from PIL import Image

from medley.media import MediaConfig, MediaError, MediaProcess, decode_audio, decode_image

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="limits on memory need Linux")

CONFIG = MediaConfig()
MAX_GROWTH_MEGABYTES, MAX_SECONDS = 256, 2.0


@pytest.fixture(scope="module")
def process() -> Iterator[MediaProcess]:
    with MediaProcess(CONFIG) as started:
        yield started


def image_bytes(image: Image.Image, image_format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


def sound_bytes(samples: np.ndarray, audio_format: str = "WAV", subtype: str | None = None, rate_hz: int = 16_000) -> bytes:
    buffer = io.BytesIO()
    with soundfile.SoundFile(buffer, "w", rate_hz, 1 if samples.ndim == 1 else samples.shape[1], format=audio_format, subtype=subtype) as sound:
        for piece in np.array_split(samples, max(1, len(samples) // 16_000)):  # one call with minutes of sound crashes the OGG encoder
            sound.write(piece)
    return buffer.getvalue()


def chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def red(width: int = 16, height: int = 8) -> Image.Image:
    return Image.new("RGB", (width, height), (250, 10, 10))


def png_with(name: bytes, body: bytes) -> bytes:
    """A good red PNG with one more chunk behind its header."""
    png = image_bytes(red(), "PNG")
    return png[:33] + chunk(name, body) + png[33:]


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds next to nothing."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def png_of(width: int, height: int, colour_type: int, bytes_per_pixel: int) -> bytes:
    """A whole PNG of zeros, written row by row."""
    packer = zlib.compressobj(1)
    rows = b"".join(packer.compress(bytes(1 + width * bytes_per_pixel)) for _ in range(height)) + packer.flush()
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, colour_type, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def animation(image_format: str, num_frames: int) -> bytes:
    frames = [red(), *(Image.new("RGB", (16, 8), (0, number % 256, 255)) for number in range(num_frames - 1))]
    return image_bytes(frames[0], image_format, save_all=True, append_images=frames[1:])


def turned() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return image_bytes(red(), "JPEG", exif=exif)


def tone(seconds: float = 0.5, rate_hz: int = 16_000) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * 440 * np.arange(round(rate_hz * seconds)) / rate_hz)).astype(np.float32)


def wav_with(position: int, value: bytes, samples: np.ndarray | None = None, subtype: str = "PCM_16") -> bytes:
    """A WAV whose header is changed: 4 size of the file, 22 channels, 24 sample rate, 40 size of the samples."""
    wav = bytearray(sound_bytes(tone() if samples is None else samples, subtype=subtype))
    wav[position : position + len(value)] = value
    return bytes(wav)


def spoilt(value: float) -> np.ndarray:
    return np.where(np.arange(8_000) == 4_000, np.float32(value), tone())


IMAGES: dict[str, tuple[Callable[[], bytes], tuple[int, int] | str]] = {
    # what → (how it is made, what comes out: width and height, or words of the reason)
    "46 empty": (lambda: b"", "image is empty"),
    "47 JPEG cut in half": (lambda: (jpeg := image_bytes(Image.effect_noise((64, 64), 90), "JPEG"))[: len(jpeg) // 2], "truncated"),
    "49 header claims 60,000 x 60,000": (lambda: png_header(60_000, 60_000), "claims 60000 x 60000 pixels, limit 40000000"),
    "50 whole 12,000 x 12,000 PNG": (lambda: png_of(12_000, 12_000, 0, 1), "claims 12000 x 12000 pixels"),
    "50 PNG with alpha just within the limit": (lambda: png_of(6_320, 6_320, 6, 4), (256, 256)),
    "50 WebP just within the limit": (lambda: image_bytes(red(3_160, 3_160), "WEBP"), (256, 256)),
    "50 progressive JPEG just within the limit": (lambda: image_bytes(red(6_320, 6_320), "JPEG", progressive=True, subsampling=0), (256, 256)),
    "51 one pixel": (lambda: image_bytes(red(1, 1), "PNG"), (1, 1)),
    "51 one column": (lambda: image_bytes(red(1, 20_000), "PNG"), (1, 256)),
    "52 CMYK": (lambda: image_bytes(red().convert("CMYK"), "JPEG"), (16, 8)),
    "52 sixteen bits": (lambda: image_bytes(Image.fromarray(np.full((8, 16), 999, dtype=np.uint16)), "PNG"), (16, 8)),
    "52 palette and alpha": (lambda: image_bytes(red().quantize(2), "PNG", transparency=0), (16, 8)),
    "52 grey": (lambda: image_bytes(red().convert("L"), "JPEG"), (16, 8)),
    "52 grey and alpha": (lambda: image_bytes(red().convert("LA"), "PNG"), (16, 8)),
    "53 animated GIF": (lambda: animation("GIF", 100), "none of JPEG, PNG, WebP"),
    "53 animated WebP": (lambda: animation("WEBP", 1_000), (16, 8)),
    "53 animated PNG": (lambda: animation("PNG", 10_000), (16, 8)),
    "54 lying on its side": (turned, (8, 16)),
    "54 damaged EXIF": (lambda: image_bytes(red(), "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xffgarbage"), (16, 8)),
    "55 SVG": (lambda: b'<svg xmlns="http://www.w3.org/2000/svg"/>', "none of JPEG, PNG, WebP"),
    "55 HTML": (lambda: b"<!doctype html><script>alert(1)</script>", "none of JPEG, PNG, WebP"),
    "56 JPEG and ZIP in one": (lambda: image_bytes(red(), "JPEG") + b"PK\x05\x06" + bytes(18), (16, 8)),
    "57 text of 49 MB": (lambda: png_with(b"tEXt", b"Comment\0" + bytes(49_000_000)), (16, 8)),
    "57 text of 51 MB": (lambda: png_with(b"tEXt", b"Comment\0" + bytes(51_000_000)), "limit 50000000"),
    "57 packed text of 200 MB": (lambda: png_with(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(200_000_000))), "Decompressed data too large"),
    "58 TIFF": (lambda: image_bytes(red(), "TIFF"), "none of JPEG, PNG, WebP"),
    "58 FITS": (lambda: b"SIMPLE  =                    T" + bytes(2_850), "none of JPEG, PNG, WebP"),
    "58 GD": (lambda: b"\xff\xff\xff\xff" + bytes(100), "none of JPEG, PNG, WebP"),
    "58 several pictures in one JPEG": (lambda: image_bytes(red(), "MPO", save_all=True, append_images=[red(99, 99)]), (16, 8)),
    "59 damaged profile in a PNG": (lambda: png_with(b"iCCP", b"profile\0\0garbage"), (16, 8)),
    "59 damaged profile in a JPEG": (lambda: image_bytes(red(), "JPEG", icc_profile=b"garbage"), (16, 8)),
    "69 a sound": (lambda: sound_bytes(tone()), "image header cannot be read"),
}

SOUNDS: dict[str, tuple[Callable[[], bytes], tuple[float, bool] | str]] = {
    # what → (how it is made, what comes out: seconds and whether it is silent, or words of the reason)
    "60 empty": (lambda: b"", "audio is empty"),
    "61 no samples": (lambda: sound_bytes(tone(0)), "audio holds no samples"),
    "62 half a WAV": (lambda: (wav := sound_bytes(tone()))[: (len(wav) + 44) // 2], (0.25, False)),
    "63 header claims 4 GB": (lambda: wav_with(40, b"\xff\xff\xff\xff"), (0.5, False)),
    "64 NaN": (lambda: sound_bytes(spoilt(np.nan), subtype="FLOAT"), "NaN or infinite"),
    "64 infinite": (lambda: sound_bytes(spoilt(-np.inf), subtype="FLOAT"), "NaN or infinite"),
    "64 1e30": (lambda: sound_bytes(spoilt(1e30), subtype="FLOAT"), "samples up to 1e+30, expected -1 to 1"),
    "64 integers stored as floats": (lambda: sound_bytes(tone() * 32_767, subtype="FLOAT"), "samples up to 1.64e+04"),
    "65 rate 0": (lambda: wav_with(24, struct.pack("<I", 0)), "audio"),
    "65 rate 1": (lambda: wav_with(24, struct.pack("<I", 1)), "claims 1 Hz"),
    "65 rate 4,294,967,295": (lambda: wav_with(24, struct.pack("<I", 2**32 - 1)), "audio"),
    "66 no channel": (lambda: wav_with(22, struct.pack("<H", 0)), "audio"),
    "66 1,000 channels": (lambda: sound_bytes(np.zeros((10, 1_000), dtype=np.float32)), "claims 1000 channels, limit 8"),
    "66 65,535 channels": (lambda: wav_with(22, struct.pack("<H", 65_535)), "audio"),
    "67 ten minutes of FLAC silence": (lambda: sound_bytes(np.zeros(600 * 16_000, dtype=np.int16), "FLAC"), (10.0, True)),
    "67 ten minutes of OGG silence": (lambda: sound_bytes(np.zeros(600 * 16_000, dtype=np.int16), "OGG"), (10.0, True)),
    "67 17 minutes of FLAC silence": (lambda: sound_bytes(np.zeros(17 * 60 * 16_000, dtype=np.int16), "FLAC"), "claims 1020 s, limit 900 s"),
    "69 a PNG": (lambda: image_bytes(red(), "PNG"), "none of WAV, FLAC, OGG, MP3"),
    "69 a JPEG": (lambda: image_bytes(red(), "JPEG"), "none of WAV, FLAC, OGG, MP3"),
    "69 a WebP": (lambda: image_bytes(red(), "WEBP"), "none of WAV, FLAC, OGG, MP3"),
    "69 ADPCM": (lambda: sound_bytes(tone(), subtype="IMA_ADPCM"), "audio is coded as IMA_ADPCM"),
    "70 clipped": (lambda: sound_bytes(tone() * 10, subtype="FLOAT"), (0.5, False)),
    "70 a constant": (lambda: sound_bytes(np.full(8_000, 0.5), rate_hz=8_000), (1.0, True)),
    "70 all zero": (lambda: sound_bytes(np.zeros(8_000)), (0.5, True)),
}


def peak_megabytes(process_id: int) -> float:
    """The largest resident memory a process ever had."""
    status = Path(f"/proc/{process_id}/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1_000


def check_bounds(process: MediaProcess, what: str, data: bytes) -> Any:
    """Clean one medium and check what it cost. A peak that an earlier case left higher hides nothing: it was within the bound itself."""
    process.clean([("image", image_bytes(red(), "PNG"))])
    assert process.process_id is not None
    first_id, megabytes, started = process.process_id, peak_megabytes(process.process_id), time.perf_counter()
    (found,) = process.clean([(what, data)])
    seconds = time.perf_counter() - started
    assert process.process_id == first_id, "the decoder process ended"
    assert peak_megabytes(first_id) - megabytes < MAX_GROWTH_MEGABYTES
    assert seconds < 2 * MAX_SECONDS  # the machine may be shared; the bound itself is for a free one
    return found


REFUSED = [(what, case) for what, cases in (("image", IMAGES), ("audio", SOUNDS)) for case, (_, expected) in cases.items() if isinstance(expected, str)]


@pytest.mark.parametrize(("what", "case"), REFUSED)
def test_every_unusable_medium_is_refused_with_its_reason_within_256_megabytes(process: MediaProcess, what: str, case: str):
    make, expected = (IMAGES if what == "image" else SOUNDS)[case]
    found = check_bounds(process, what, make())
    assert found.content is None
    assert expected in found.reason


@pytest.mark.parametrize("case", [case for case in IMAGES if ("image", case) not in REFUSED])
def test_every_odd_image_is_kept_in_its_stated_size_within_256_megabytes(process: MediaProcess, case: str):
    make, size = IMAGES[case]
    found = check_bounds(process, "image", make())
    assert (found.reason, Image.open(io.BytesIO(found.content)).size) == ("", size)
    assert b"PK\x05\x06" not in found.content


@pytest.mark.parametrize("case", [case for case in SOUNDS if ("audio", case) not in REFUSED])
def test_every_odd_sound_is_kept_in_its_stated_length_within_256_megabytes(process: MediaProcess, case: str):
    make, (seconds, is_silent) = SOUNDS[case]
    found = check_bounds(process, "audio", make())
    stored = soundfile.info(io.BytesIO(found.content))
    assert (found.reason, stored.samplerate, stored.channels, found.is_silent) == ("", 16_000, 1, is_silent)
    assert stored.frames == pytest.approx(16_000 * seconds, abs=1)


FORMATS = {
    **{name: (decode_image, partial(image_bytes, Image.effect_noise((32, 32), 90), name)) for name in ("JPEG", "PNG", "WEBP")},
    **{name: (decode_audio, partial(sound_bytes, tone(0.1), name)) for name in ("WAV", "FLAC", "OGG", "MP3")},
}


@pytest.mark.parametrize("name", FORMATS)
def test_48_and_68_a_flipped_bit_gives_an_error_or_another_content_hash_than_the_whole_file(name: str):
    decode, make = FORMATS[name]
    data = make()
    digest = hashlib.sha256(decode(data, CONFIG).tobytes()).digest()
    rng, num_refused, num_different = np.random.default_rng(0), 0, 0
    for position in rng.integers(64, len(data), 60):
        damaged = bytearray(data)
        damaged[position] ^= 1 << rng.integers(8)
        try:
            num_different += hashlib.sha256(decode(bytes(damaged), CONFIG).tobytes()).digest() != digest
        except MediaError:
            num_refused += 1
    # No format hides a flip of its samples; what stays equal are bits that carry no sample.
    assert num_refused + num_different >= {"WAV": 60, "PNG": 57, "FLAC": 50}.get(name, 30)
