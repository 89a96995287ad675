"""Preparing pictures for an image encoder: decode, square, normalise."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from medley.media import decode_jpeg, decode_jpeg_into

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class SquarePictures:
    """What encoders of pictures read: pixels of `side_pixels` squared. Put it before nn.Module."""

    side_pixels: int

    def prepare(self, value: bytes) -> dict[str, Tensor]:
        """uint8 (3, side, side)."""
        return {"pixels": prepare_square(value, self.side_pixels)}

    def prepare_into(self, values: Sequence[bytes], out: Mapping[str, Tensor]) -> None:
        """uint8 (values, 3, side, side)."""
        prepare_squares_into(values, out["pixels"])

    def dummy(self) -> dict[str, Tensor]:
        """A black picture."""
        return {"pixels": black_square(self.side_pixels)}


def prepare_square(jpeg: bytes | memoryview, side_pixels: int) -> Tensor:
    """A prepared JPEG as uint8 (3, side, side), channels last in memory: the whole picture, resized without keeping its aspect ratio."""
    image_CHW = decode_jpeg(jpeg)
    if image_CHW.shape[1:] == (side_pixels, side_pixels):
        return image_CHW
    resized = torch.nn.functional.interpolate(image_CHW.unsqueeze(0).float(), size=(side_pixels, side_pixels), mode="bilinear", antialias=True)
    return resized.round_().clamp_(0, 255).to(torch.uint8).contiguous(memory_format=torch.channels_last).squeeze(0)


def prepare_squares_into(jpegs: Sequence[bytes | memoryview], pixels_PCHW: Tensor) -> None:
    """`prepare_square` of each JPEG, written into memory that lies channels last: a picture of the right size is decoded there, without a copy."""
    for jpeg, pixels_HWC in zip(jpegs, pixels_PCHW.permute(0, 2, 3, 1).numpy(), strict=True):
        if not decode_jpeg_into(jpeg, pixels_HWC):
            pixels_HWC[:] = prepare_square(jpeg, len(pixels_HWC)).permute(1, 2, 0).numpy()


def black_square(side_pixels: int) -> Tensor:
    """uint8 zeros that lie as `prepare_square` leaves pixels."""
    return torch.zeros(side_pixels, side_pixels, 3, dtype=torch.uint8).permute(2, 0, 1)


def normalise(pixels_PCHW: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """uint8 0…255 → float with the given mean and standard deviation per channel, both stated for 0…1."""
    mean_C11 = torch.tensor(mean, device=pixels_PCHW.device).view(-1, 1, 1)
    std_C11 = torch.tensor(std, device=pixels_PCHW.device).view(-1, 1, 1)
    return (pixels_PCHW.float() / 255 - mean_C11) / std_C11


def normalise_channels_last(pixels_PCHW: Tensor, mean: Sequence[float], std: Sequence[float], dtype: torch.dtype) -> Tensor:
    """`normalise` as convolutions want it: in the weights' precision, channels last in memory."""
    return normalise(pixels_PCHW, mean, std).to(dtype).contiguous(memory_format=torch.channels_last)
