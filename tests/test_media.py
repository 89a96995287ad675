"""Media are decoded exactly, within limits, and every bad file is a MediaError with a readable reason."""

import io
import pickle
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from fractions import Fraction

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

from medley.media import MediaConfig, MediaError, decode_audio, decode_flac, decode_image, decode_jpeg, encode_flac, encode_jpeg
from medley.media.sounds import resample

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


def test_lossless_formats_give_the_exact_pixels():
    pixels = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255]], [[1, 2, 3], [4, 5, 6], [7, 8, 9]]], dtype=np.uint8)
    for image_format, options in (("PNG", {}), ("WEBP", {"lossless": True})):
        decoded_CHW = decode_image(image_bytes(Image.fromarray(pixels), image_format, **options), CONFIG)
        assert decoded_CHW.dtype == np.uint8
        assert decoded_CHW.flags.c_contiguous
        assert np.array_equal(decoded_CHW.transpose(1, 2, 0), pixels)


def test_grey_sixteen_bit_palette_and_cmyk_become_rgb():
    grey = Image.new("L", (2, 2), 100)
    sixteen_bit = Image.fromarray(np.full((2, 2), 100 * 256 + 7, dtype=np.uint16))
    palette = Image.new("RGB", (2, 2), (100, 100, 100)).quantize(2)
    for image in (grey, sixteen_bit, palette):
        assert np.unique(decode_image(image_bytes(image, "PNG"), CONFIG)).tolist() == [100]
    cmyk = decode_image(image_bytes(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG", quality=100), CONFIG)
    assert cmyk[:, 4, 4].tolist() == pytest.approx([255, 0, 0], abs=3)


def test_transparency_is_laid_over_white():
    half_black = Image.new("RGBA", (2, 2), (0, 0, 0, 128))
    assert np.unique(decode_image(image_bytes(half_black, "PNG"), CONFIG)).tolist() == [127]
    clear_palette = Image.new("P", (2, 2), 0)
    clear_palette.putpalette([10, 20, 30])
    assert np.unique(decode_image(image_bytes(clear_palette, "PNG", transparency=0), CONFIG)).tolist() == [255]


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


def test_a_damaged_image_and_one_above_the_size_limit_are_media_errors():
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    png = bytearray(image_bytes(noise, "PNG"))
    with pytest.raises(MediaError, match="limit 100"):
        decode_image(bytes(png), MediaConfig(max_size_bytes=100))
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


def test_shrinking_averages_keeps_proportions_and_never_enlarges():
    def shrunk(pixels_HWC: np.ndarray, max_side_pixels: int) -> np.ndarray:
        return decode_image(image_bytes(Image.fromarray(pixels_HWC), "PNG"), MediaConfig(image_max_side_pixels=max_side_pixels))

    stripes_HWC = np.zeros((100, 400, 3), dtype=np.uint8)
    stripes_HWC[:, ::2] = 200
    for max_side_pixels in (40, 300):  # with and without whole pixels averaged before the last step
        found_CHW = shrunk(stripes_HWC, max_side_pixels)
        assert found_CHW.shape == (3, max_side_pixels // 4, max_side_pixels)
        if max_side_pixels == 40:
            assert np.abs(found_CHW.astype(int) - 100).max() < 5
    assert np.array_equal(shrunk(stripes_HWC, 400).transpose(1, 2, 0), stripes_HWC)
    assert shrunk(np.zeros((20_000, 1, 3), dtype=np.uint8), 256).shape == (3, 256, 1)


def test_a_large_image_shrunk_in_strips_keeps_every_part_in_its_place():
    slope_H = np.linspace(0, 255, 2_000)
    pixels_HWC = np.broadcast_to(slope_H[:, None, None], (2_000, 3_000, 3)).astype(np.uint8)
    centres_H = (np.arange(67) + 0.5) * 2_000 / 67
    for image_format, tolerance in (("PNG", 2), ("JPEG", 3), ("WEBP", 4)):
        found_CHW = decode_image(image_bytes(Image.fromarray(pixels_HWC), image_format), MediaConfig(image_max_side_pixels=100))
        assert found_CHW.shape == (3, 67, 100)
        assert np.abs(found_CHW - np.interp(centres_H, np.arange(2_000) + 0.5, slope_H)[:, None]).max() < tolerance


def test_jpeg_round_trip_is_close_and_both_decoders_agree():
    image_CHW = torch.arange(64, dtype=torch.uint8).repeat(3, 64, 1)
    data = encode_jpeg(image_CHW, 90)
    decoded_CHW = decode_jpeg(data)
    assert decoded_CHW.shape == (3, 64, 64)
    assert decoded_CHW.dtype == torch.uint8
    assert (decoded_CHW.int() - image_CHW.int()).abs().max() < 8
    assert np.abs(decoded_CHW.numpy().astype(int) - decode_image(data, CONFIG)).max() <= 2


@pytest.mark.parametrize("audio_format", ["WAV", "WAVEX", "FLAC", "OGG", "MP3"])
def test_every_audio_format_keeps_a_tone_and_its_length(audio_format):
    samples_S = decode_audio(sound_bytes(tone(440, 44_100, 1.0), 44_100, audio_format), CONFIG)
    assert samples_S.dtype == np.float32
    assert len(samples_S) == pytest.approx(16_000, abs=1_600 if audio_format == "MP3" else 1)
    spectrum = np.abs(np.fft.rfft(samples_S[:16_000], n=16_000))
    assert spectrum.argmax() == 440  # one bin is 1 Hz
    assert np.abs(samples_S[4_000:12_000]).max() == pytest.approx(0.5, abs=0.02)


def test_odd_sample_rates_are_resampled_without_a_huge_kernel():
    for rate_hz in (4_001, 22_254, 383_999):
        samples_S = decode_audio(sound_bytes(tone(440, rate_hz, 1.0), rate_hz), CONFIG)
        assert len(samples_S) == pytest.approx(16_000, abs=1)
        assert np.abs(np.fft.rfft(samples_S, n=16_000)).argmax() == 440


@pytest.mark.parametrize(("rate_hz", "new_rate_hz"), [(44_100, 16_000), (8_000, 16_000), (22_254, 16_000), (16_000, 16_000)])
def test_resampling_in_pieces_gives_the_numbers_of_torchaudio(rate_hz: int, new_rate_hz: int):
    from torchaudio.functional import resample as torchaudio_resample

    samples_S = np.random.default_rng(0).standard_normal(rate_hz).astype(np.float32)
    ratio = Fraction(new_rate_hz, rate_hz).limit_denominator(1_000)
    expected_S = torchaudio_resample(torch.from_numpy(samples_S), ratio.denominator, ratio.numerator).numpy()
    for num_pieces in (1, 7, 1_000):
        found_S = resample(np.array_split(samples_S, num_pieces), rate_hz, new_rate_hz)
        assert found_S.dtype == np.float32
        assert len(found_S) == len(expected_S)
        assert np.abs(found_S - expected_S).max() < 1e-4


def test_stereo_becomes_the_mean_of_its_channels():
    stereo = np.column_stack([np.full(100, 0.5), np.full(100, -0.25)]).astype(np.float32)
    samples_S = decode_audio(sound_bytes(stereo, 16_000, subtype="FLOAT"), CONFIG)
    assert samples_S.tolist() == [0.125] * 100


def test_only_the_first_seconds_are_kept_and_loud_floats_are_clipped():
    samples_S = decode_audio(sound_bytes(np.full(40_000, 3.0, dtype=np.float32), 16_000, subtype="FLOAT"), MediaConfig(audio_max_clip_seconds=2))
    assert len(samples_S) == 32_000
    assert np.unique(samples_S).tolist() == [1.0]


def test_foreign_sounds_and_ones_above_the_size_limit_are_media_errors():
    with pytest.raises(MediaError, match="limit 100"):
        decode_audio(sound_bytes(np.ones(100, dtype=np.float32), 16_000), MediaConfig(max_size_bytes=100))
    with pytest.raises(MediaError, match="none of WAV, FLAC, OGG, MP3"):
        decode_audio(sound_bytes(tone(440, 8000, 0.1), 8000, "AIFF"), CONFIG)
    with pytest.raises(MediaError, match=r"audio header cannot be read \(Format not recognised"):
        decode_audio(b"ID3" + bytes(100), CONFIG)


def test_flac_round_trip_is_exact_to_sixteen_bits_and_clips():
    samples_S = torch.tensor([0.0, 0.5, -0.5, -1.0, 2.0, -2.0])
    decoded_S = decode_flac(encode_flac(samples_S, 16_000))
    assert decoded_S.tolist() == pytest.approx([0.0, 0.5, -0.5, -1.0, 1.0, -1.0], abs=1 / 32_767)
    assert np.array_equal(decode_audio(encode_flac(samples_S, 16_000), CONFIG), decoded_S)


def test_threads_decode_the_same_bits():
    jpeg = encode_jpeg(torch.arange(256, dtype=torch.uint8).repeat(3, 64, 1), 90)
    ogg = sound_bytes(tone(440, 32_728, 0.3), 32_728, "OGG")

    def decode(_: int) -> tuple[np.ndarray, np.ndarray, torch.Tensor]:
        return decode_image(jpeg, CONFIG), decode_audio(ogg, CONFIG), decode_jpeg(jpeg)

    expected = decode(0)
    with ThreadPoolExecutor(4) as threads:
        for found in threads.map(decode, range(20)):
            assert all(np.array_equal(a, b) for a, b in zip(expected, found, strict=True))
