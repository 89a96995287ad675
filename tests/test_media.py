"""Media are decoded exactly, within limits, and every bad file is a MediaError with a readable reason."""

import io
import pickle
import struct
import tracemalloc
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

from medley.media import MediaConfig, MediaError, decode_audio, decode_flac, decode_image, decode_jpeg, encode_flac, encode_jpeg, shrink_image

CONFIG = MediaConfig()


def image_bytes(image: Image.Image, image_format: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


def sound_bytes(samples: np.ndarray, rate_hz: int, audio_format: str = "WAV", subtype: str | None = None) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate_hz, format=audio_format, subtype=subtype)
    return buffer.getvalue()


def tone(frequency_hz: float, rate_hz: int, seconds: float) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * frequency_hz * np.arange(round(rate_hz * seconds)) / rate_hz)).astype(np.float32)


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds next to nothing."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    )


def test_lossless_formats_give_the_exact_pixels():
    pixels = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255]], [[1, 2, 3], [4, 5, 6], [7, 8, 9]]], dtype=np.uint8)
    for image_format, options in (("PNG", {}), ("WEBP", {"lossless": True})):
        decoded_CHW = decode_image(image_bytes(Image.fromarray(pixels), image_format, **options), CONFIG)
        assert decoded_CHW.dtype == torch.uint8
        assert decoded_CHW.is_contiguous()
        assert np.array_equal(decoded_CHW.permute(1, 2, 0).numpy(), pixels)


def test_grey_sixteen_bit_palette_and_cmyk_become_rgb():
    grey = Image.new("L", (2, 2), 100)
    sixteen_bit = Image.fromarray(np.full((2, 2), 100 * 256 + 7, dtype=np.uint16))
    palette = Image.new("RGB", (2, 2), (100, 100, 100)).quantize(2)
    for image in (grey, sixteen_bit, palette):
        assert decode_image(image_bytes(image, "PNG"), CONFIG).unique().tolist() == [100]
    cmyk = decode_image(image_bytes(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG", quality=100), CONFIG)
    assert cmyk[:, 4, 4].tolist() == pytest.approx([255, 0, 0], abs=3)


def test_transparency_is_laid_over_white():
    half_black = Image.new("RGBA", (2, 2), (0, 0, 0, 128))
    assert decode_image(image_bytes(half_black, "PNG"), CONFIG).unique().tolist() == [127]
    clear_palette = Image.new("P", (2, 2), 0)
    clear_palette.putpalette([10, 20, 30])
    assert decode_image(image_bytes(clear_palette, "PNG", transparency=0), CONFIG).unique().tolist() == [255]


def test_exif_orientation_is_honoured():
    image = Image.new("RGB", (16, 8), "white")
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying on its left side: turn 90 degrees clockwise
    image.paste("black", (0, 0, 4, 8))
    upright_CHW = decode_image(image_bytes(image, "JPEG", exif=exif, quality=100), CONFIG)
    assert upright_CHW.shape == (3, 16, 8)
    assert upright_CHW[0, 1, 4] < 10
    assert upright_CHW[0, 14, 4] > 245


def test_the_first_frame_of_an_animation_is_taken():
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    for image_format, options in (("PNG", {}), ("WEBP", {"lossless": True})):
        data = image_bytes(frames[0], image_format, save_all=True, append_images=frames[1:], **options)
        assert decode_image(data, CONFIG)[:, 0, 0].tolist() == [255, 0, 0]


def test_an_image_bomb_is_refused_from_its_header_without_memory():
    data = png_header(60_000, 60_000)
    assert len(data) < 100
    tracemalloc.start()
    with pytest.raises(MediaError, match="image header claims 60000 x 60000 pixels, limit 40000000"):
        decode_image(data, CONFIG)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak_bytes < 1_000_000


def test_bad_images_are_media_errors():
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    jpeg = image_bytes(noise, "JPEG")
    with pytest.raises(MediaError, match="truncated"):
        decode_image(jpeg[: len(jpeg) // 2], CONFIG)
    with pytest.raises(MediaError, match="image is empty"):
        decode_image(b"", CONFIG)
    with pytest.raises(MediaError, match="limit 100"):
        decode_image(jpeg, MediaConfig(max_size_bytes=100))
    for data in (image_bytes(noise, "TIFF"), image_bytes(noise, "GIF"), b"<svg/>", sound_bytes(tone(440, 8000, 0.1), 8000)):
        with pytest.raises(MediaError, match="image header cannot be read"):
            decode_image(data, CONFIG)
    png = bytearray(image_bytes(noise, "PNG"))
    png[200] ^= 1
    with pytest.raises(MediaError, match="image cannot be decoded"):
        decode_image(bytes(png), CONFIG)


def test_damaged_bytes_raise_nothing_but_media_errors():
    rng = np.random.default_rng(1)
    noise = Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8))
    samples = tone(440, 16_000, 0.05)
    files = [(decode_image, image_bytes(noise, image_format)) for image_format in ("JPEG", "PNG", "WEBP")]
    files += [(decode_audio, sound_bytes(samples, 16_000, audio_format)) for audio_format in ("WAV", "FLAC", "OGG", "MP3")]
    for decode, data in files:
        for _ in range(40):
            damaged = bytearray(data)
            for position in rng.integers(0, len(data), 3):
                damaged[position] = rng.integers(0, 256)
            with suppress(MediaError):
                decode(bytes(damaged[: rng.integers(1, len(data) + 1)]), CONFIG)


def test_media_errors_survive_pickling():
    with pytest.raises(MediaError) as caught:
        decode_image(b"", CONFIG)
    assert str(pickle.loads(pickle.dumps(caught.value))) == "image is empty (0 bytes)"


def test_shrinking_keeps_proportions_and_never_enlarges():
    image_CHW = torch.zeros(3, 100, 400, dtype=torch.uint8)
    image_CHW[:, :, ::2] = 200
    shrunk_CHW = shrink_image(image_CHW, 40)
    assert shrunk_CHW.shape == (3, 10, 40)
    assert shrunk_CHW.dtype == torch.uint8
    assert shrunk_CHW.float().sub(100).abs().max() < 5  # stripes average out: antialiased
    assert shrink_image(image_CHW, 400) is image_CHW
    assert shrink_image(torch.zeros(3, 20_000, 1, dtype=torch.uint8), 256).shape == (3, 256, 1)


def test_jpeg_round_trip_is_close_and_both_decoders_agree():
    image_CHW = torch.arange(64, dtype=torch.uint8).repeat(3, 64, 1)
    data = encode_jpeg(image_CHW, 90)
    decoded_CHW = decode_jpeg(data)
    assert decoded_CHW.shape == (3, 64, 64)
    assert decoded_CHW.dtype == torch.uint8
    assert (decoded_CHW.int() - image_CHW.int()).abs().max() < 8
    assert (decoded_CHW.int() - decode_image(data, CONFIG).int()).abs().max() <= 2


@pytest.mark.parametrize("audio_format", ["WAV", "WAVEX", "FLAC", "OGG", "MP3"])
def test_every_audio_format_keeps_a_tone_and_its_length(audio_format):
    samples_S = decode_audio(sound_bytes(tone(440, 44_100, 1.0), 44_100, audio_format), CONFIG)
    assert samples_S.dtype == torch.float32
    assert len(samples_S) == pytest.approx(16_000, abs=1_600 if audio_format == "MP3" else 1)
    spectrum = torch.fft.rfft(samples_S[:16_000], n=16_000).abs()
    assert spectrum.argmax() == 440  # one bin is 1 Hz
    assert samples_S[4_000:12_000].abs().max() == pytest.approx(0.5, abs=0.02)


def test_odd_sample_rates_are_resampled_without_a_huge_kernel():
    for rate_hz in (4_001, 22_254, 383_999):
        samples_S = decode_audio(sound_bytes(tone(440, rate_hz, 1.0), rate_hz), CONFIG)
        assert len(samples_S) == pytest.approx(16_000, abs=1)
        assert torch.fft.rfft(samples_S, n=16_000).abs().argmax() == 440


def test_stereo_becomes_the_mean_of_its_channels():
    stereo = np.column_stack([np.full(100, 0.5), np.full(100, -0.25)]).astype(np.float32)
    samples_S = decode_audio(sound_bytes(stereo, 16_000, subtype="FLOAT"), CONFIG)
    assert samples_S.tolist() == [0.125] * 100


def test_only_the_first_seconds_are_kept_and_loud_floats_are_clipped():
    samples_S = decode_audio(sound_bytes(np.full(40_000, 3.0, dtype=np.float32), 16_000, subtype="FLOAT"), MediaConfig(audio_max_clip_seconds=2))
    assert len(samples_S) == 32_000
    assert samples_S.unique().tolist() == [1.0]


def test_bad_sounds_are_media_errors():
    ones = np.ones(100, dtype=np.float32)
    for bad in (np.nan, np.inf):
        with pytest.raises(MediaError, match="audio holds NaN or infinite samples"):
            decode_audio(sound_bytes(np.where(np.arange(100) == 50, bad, ones), 16_000, subtype="FLOAT"), CONFIG)
    with pytest.raises(MediaError, match="audio is empty"):
        decode_audio(b"", CONFIG)
    with pytest.raises(MediaError, match="audio holds no samples"):
        decode_audio(sound_bytes(ones[:0], 16_000), CONFIG)
    with pytest.raises(MediaError, match="claims 9 channels, limit 8"):
        decode_audio(sound_bytes(np.ones((10, 9)), 16_000), CONFIG)
    with pytest.raises(MediaError, match="claims 1 Hz"):
        decode_audio(sound_bytes(ones, 1), CONFIG)
    with pytest.raises(MediaError, match="claims 1000 s, limit 900 s"):
        decode_audio(sound_bytes(np.zeros(4_000_000, dtype=np.int16), 4_000, "FLAC"), CONFIG)
    with pytest.raises(MediaError, match="limit 100"):
        decode_audio(sound_bytes(ones, 16_000), MediaConfig(max_size_bytes=100))


def test_foreign_bytes_are_not_audio():
    image = Image.new("RGB", (8, 8))
    for data in (image_bytes(image, "PNG"), image_bytes(image, "JPEG"), image_bytes(image, "WEBP"), sound_bytes(tone(440, 8000, 0.1), 8000, "AIFF")):
        with pytest.raises(MediaError, match="none of WAV, FLAC, OGG, MP3"):
            decode_audio(data, CONFIG)
    with pytest.raises(MediaError, match=r"audio header cannot be read \(Format not recognised"):
        decode_audio(b"ID3" + bytes(100), CONFIG)


def test_flac_round_trip_is_exact_to_sixteen_bits_and_clips():
    samples_S = torch.tensor([0.0, 0.5, -0.5, -1.0, 2.0, -2.0])
    decoded_S = decode_flac(encode_flac(samples_S, 16_000))
    assert decoded_S.tolist() == pytest.approx([0.0, 0.5, -0.5, -1.0, 1.0, -1.0], abs=1 / 32_767)
    assert torch.equal(decode_audio(encode_flac(samples_S, 16_000), CONFIG), decoded_S)


def test_threads_decode_the_same_bits():
    jpeg = encode_jpeg(torch.arange(256, dtype=torch.uint8).repeat(3, 64, 1), 90)
    ogg = sound_bytes(tone(440, 32_728, 0.3), 32_728, "OGG")

    def decode(_: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        return decode_image(jpeg, CONFIG), decode_audio(ogg, CONFIG), decode_jpeg(jpeg)

    expected = decode(0)
    with ThreadPoolExecutor(4) as threads:
        for found in threads.map(decode, range(20)):
            assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))
