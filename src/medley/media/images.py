"""Encoded images from anywhere → small upright RGB pixels, within limits. Raises only MediaError, and MemoryError where the process has a limit."""

import io
from typing import TYPE_CHECKING

import numpy as np

from medley.media.limits import MediaConfig, MediaError, check_size, error_line

if TYPE_CHECKING:
    from PIL import Image

_ORIENTATION = 0x0112
_STRIP_PIXELS = 1_000_000
_WEBP_COPIES = 4
"""Whole images that the WebP decoder holds at once; the others hold one (measured: 625 MB and 170 MB for 40 million pixels)."""


def decode_image(data: bytes, config: MediaConfig) -> np.ndarray:
    """The first frame of an encoded JPEG, PNG or WebP as uint8 RGB (C, H, W), its longer side at most `image_max_side_pixels`.

    Shrinking is antialiased and keeps proportions; nothing is enlarged. The EXIF orientation turns the image upright. Transparency is laid
    over white; CMYK, palette, grey and 16-bit images become RGB. Colour profiles, damaged EXIF data and whatever follows the image are
    ignored. Anything else, anything damaged and anything over a limit raises MediaError.
    """
    check_size("image", data, config)
    try:
        image = _open_image(data)
    except MemoryError:
        raise
    except Exception as error:
        # Pillow's plugins raise OSError, SyntaxError, struct.error, zlib.error … on damaged bytes: all mean the same here.
        raise MediaError(f"image header cannot be read ({error_line(error)})") from None
    with image:
        width, height = image.size
        limit = config.max_image_pixels // (_WEBP_COPIES if image.format == "WEBP" else 1)
        if width * height > limit:
            raise MediaError(f"image header claims {width} x {height} pixels, limit {limit}")
        try:
            rgb = _upright(_shrunk_rgb(image, config.image_max_side_pixels), _orientation(image))
        except MemoryError:
            raise
        except Exception as error:
            raise MediaError(f"image cannot be decoded ({error_line(error)})") from None
    return np.ascontiguousarray(np.asarray(rgb).transpose(2, 0, 1))


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


def _shrunk_rgb(image: "Image.Image", max_side_pixels: int) -> "Image.Image":
    """RGB pixels of the target size. Strips are converted and averaged one by one, so that only the decoder's own buffer is as large as the image."""
    from PIL import Image

    scale = min(1.0, max_side_pixels / max(image.size))
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    # A JPEG decoder can leave out detail: an eighth of the work for a photograph. Twice the target keeps the last step antialiased.
    image.draft(None, (2 * size[0], 2 * size[1]))
    image.load()
    width, height = image.size
    factor = max(1, max(width, height) // (2 * max_side_pixels))
    mode = "RGBA" if image.has_transparency_data else "RGB"
    reduced = Image.new(mode, (-(-width // factor), -(-height // factor)))
    strip_height = factor * max(1, _STRIP_PIXELS // (width * factor))
    for top in range(0, height, strip_height):
        strip = _in_eight_bits(image.crop((0, top, width, min(top + strip_height, height)))).convert(mode)
        reduced.paste(strip.reduce(factor) if factor > 1 else strip, (0, top // factor))
    if mode == "RGBA":
        reduced = Image.alpha_composite(Image.new("RGBA", reduced.size, "white"), reduced).convert("RGB")
    if reduced.size == size:
        return reduced
    return reduced.resize(size, Image.Resampling.BILINEAR, box=(0, 0, width / factor, height / factor))


def _in_eight_bits(image: "Image.Image") -> "Image.Image":
    from PIL import Image

    # Pillow's own conversion of 16-bit grey clips at 255 instead of scaling.
    return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)) if image.mode.startswith("I") else image


def _orientation(image: "Image.Image") -> int:
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except MemoryError:
        raise
    except Exception:
        # The pixels are whole: as stored is the best reading of an image whose EXIF data is damaged.
        return 1


def _upright(image: "Image.Image", orientation: int) -> "Image.Image":
    """The image turned and mirrored as EXIF orientations 2…8 say; any other value leaves it."""
    from PIL.Image import Transpose

    turns = {
        2: Transpose.FLIP_LEFT_RIGHT,
        3: Transpose.ROTATE_180,
        4: Transpose.FLIP_TOP_BOTTOM,
        5: Transpose.TRANSPOSE,
        6: Transpose.ROTATE_270,
        7: Transpose.TRANSVERSE,
        8: Transpose.ROTATE_90,
    }
    return image.transpose(turns[orientation]) if orientation in turns else image
