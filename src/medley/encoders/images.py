"""Preparing pictures for an image encoder: decode, square, normalise."""

from collections.abc import Sequence

import torch
from torch import Tensor

from medley.media import decode_jpeg

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def prepare_square(jpeg: bytes, side_pixels: int) -> Tensor:
    """A prepared JPEG as uint8 (3, side, side): the whole picture, resized without keeping its aspect ratio."""
    image_CHW = decode_jpeg(jpeg)
    if image_CHW.shape[1:] == (side_pixels, side_pixels):
        return image_CHW
    resized = torch.nn.functional.interpolate(image_CHW.unsqueeze(0).float(), size=(side_pixels, side_pixels), mode="bilinear", antialias=True)
    return resized.squeeze(0).round_().clamp_(0, 255).to(torch.uint8)


def normalise(pixels_PCHW: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """uint8 0…255 → float with the given mean and standard deviation per channel, both stated for 0…1."""
    mean_C11 = torch.tensor(mean, device=pixels_PCHW.device).view(-1, 1, 1)
    std_C11 = torch.tensor(std, device=pixels_PCHW.device).view(-1, 1, 1)
    return (pixels_PCHW.float() / 255 - mean_C11) / std_C11
