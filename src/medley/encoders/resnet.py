"""Pictures from scratch by a ResNet-18 (He et al. 2016) of any width, with GroupNorm; for published weights see torchvision_image.py."""

from collections.abc import Iterable, Mapping
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from medley.encoders.images import IMAGENET_MEAN, IMAGENET_STD, SquarePictures, normalise_channels_last
from medley.encoders.settings import LayeredSettings
from medley.schema import IMAGE


class ResNetConfig(LayeredSettings):
    """ResNet-18 of any width and resolution."""

    kind: Literal["resnet"] = "resnet"
    column: str = IMAGE
    """column of prepared JPEGs"""
    side_pixels: int = Field(default=128, ge=16)
    """pictures are resized to this square"""
    width: int = Field(default=64, ge=8, multiple_of=8)
    """channels of the first stage; the last has eight times as many. 64 is as wide as the published network."""
    small_stem: bool = False
    """True: a 3×3 stem that keeps the resolution, for pictures under about 64 pixels; False: the published 7×7 stem (a quarter of the resolution)"""

    def learn(self, values: Iterable[bytes]) -> dict[str, bytes]:
        """Nothing is learned."""
        return {}

    def make(self, assets: Mapping[str, bytes], *, pretrained: bool) -> "ResNetEncoder":
        """The module."""
        return ResNetEncoder(self.side_pixels, self.width, small_stem=self.small_stem)


def group_norm(num_channels: int) -> nn.GroupNorm:
    """GroupNorm with 8 channels a group (Wu and He 2018): no statistics of the batch, so a row's vector depends on the row alone."""
    return nn.GroupNorm(num_channels // 8, num_channels)


class ResNetEncoder(SquarePictures, nn.Module):
    """Four stages of two blocks each, then the mean over positions."""

    def __init__(self, side_pixels: int, width: int, *, small_stem: bool):
        super().__init__()
        self.side_pixels = side_pixels
        self.output_dimension = 8 * width
        if small_stem:
            self.conv1 = nn.Conv2d(3, width, kernel_size=3, stride=1, padding=1, bias=False)
            self.maxpool: nn.Module = nn.Identity()
        else:
            self.conv1 = nn.Conv2d(3, width, kernel_size=7, stride=2, padding=3, bias=False)
            self.maxpool = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)
        self.bn1 = group_norm(width)
        self.layer1 = residual_stage(width, width, stride=1)
        self.layer2 = residual_stage(width, 2 * width, stride=2)
        self.layer3 = residual_stage(2 * width, 4 * width, stride=2)
        self.layer4 = residual_stage(4 * width, 8 * width, stride=2)

    def blocks(self) -> list[nn.Module]:
        """The four stages."""
        return [self.layer1, self.layer2, self.layer3, self.layer4]

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """(P, 8 × width)."""
        hidden = normalise_channels_last(inputs["pixels"], IMAGENET_MEAN, IMAGENET_STD, self.conv1.weight.dtype)
        hidden = self.maxpool(torch.relu(self.bn1(self.conv1(hidden))))
        hidden = self.layer4(self.layer3(self.layer2(self.layer1(hidden))))
        return hidden.mean(dim=(2, 3))


def residual_stage(num_in: int, num_out: int, *, stride: int) -> nn.Sequential:
    """Two basic blocks; the first changes resolution and width."""
    from torchvision.models.resnet import BasicBlock

    shortcut = None
    if stride != 1 or num_in != num_out:
        shortcut = nn.Sequential(nn.Conv2d(num_in, num_out, kernel_size=1, stride=stride, bias=False), group_norm(num_out))
    return nn.Sequential(BasicBlock(num_in, num_out, stride, shortcut, norm_layer=group_norm), BasicBlock(num_out, num_out, norm_layer=group_norm))
