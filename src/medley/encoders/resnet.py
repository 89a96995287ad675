"""Pictures by a ResNet-18 (He et al. 2016): with GroupNorm from scratch, with frozen BatchNorm where weights are loaded."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from medley.encoders.images import IMAGENET_MEAN, IMAGENET_STD, black_square, normalise, prepare_square, prepare_squares_into
from medley.encoders.settings import TrainableSettings
from medley.schema import IMAGE, InputError


class ResNetConfig(TrainableSettings):
    """ResNet-18 of any width and resolution."""

    kind: Literal["resnet"] = "resnet"
    column: str = IMAGE
    """column of prepared JPEGs"""
    side_pixels: int = Field(default=128, ge=16)
    """pictures are resized to this square"""
    width: int = Field(default=64, ge=8, multiple_of=8)
    """channels of the first stage; the last has eight times as many. 64 is the published network."""
    small_stem: bool = False
    """True: a 3×3 stem that keeps the resolution, for pictures under about 64 pixels; False: the published 7×7 stem (a quarter of the resolution)"""
    weights: str | None = None
    """a torchvision resnet18 state dict (.safetensors or .pth, read with weights_only); needs width 64 and the published stem"""

    @model_validator(mode="after")
    def check_weights(self) -> Self:
        """Published weights fit only the published shape."""
        if self.weights and (self.width != 64 or self.small_stem):
            raise ValueError(f"weights with width {self.width} and small_stem {self.small_stem}; they fit width 64 and small_stem false")
        return self

    def learn(self, values: Iterable[bytes]) -> dict[str, bytes]:
        """Nothing is learned."""
        return {}

    def build(self, assets: Mapping[str, bytes], *, pretrained: bool) -> "ResNetEncoder":
        """The module, with or without the weights."""
        encoder = ResNetEncoder(self.side_pixels, self.width, small_stem=self.small_stem, frozen_batch_norm=self.weights is not None)
        if self.weights and pretrained:
            load_torchvision_weights(encoder, self.weights)
        return encoder


def group_norm(num_channels: int) -> nn.GroupNorm:
    """GroupNorm with 8 channels a group (Wu and He 2018): no statistics of the batch, so a row's vector depends on the row alone."""
    return nn.GroupNorm(num_channels // 8, num_channels)


class ResNetEncoder(nn.Module):
    """Module names follow torchvision's, so that its weights load by name. (P, 8 × width) out of the mean over positions."""

    def __init__(self, side_pixels: int, width: int, *, small_stem: bool, frozen_batch_norm: bool):
        super().__init__()
        from torchvision.ops import FrozenBatchNorm2d

        norm = FrozenBatchNorm2d if frozen_batch_norm else group_norm
        self.side_pixels = side_pixels
        self.output_dimension = 8 * width
        if small_stem:
            self.conv1 = nn.Conv2d(3, width, kernel_size=3, stride=1, padding=1, bias=False)
            self.maxpool: nn.Module = nn.Identity()
        else:
            self.conv1 = nn.Conv2d(3, width, kernel_size=7, stride=2, padding=3, bias=False)
            self.maxpool = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)
        self.bn1 = norm(width)
        self.layer1 = residual_stage(width, width, stride=1, norm=norm)
        self.layer2 = residual_stage(width, 2 * width, stride=2, norm=norm)
        self.layer3 = residual_stage(2 * width, 4 * width, stride=2, norm=norm)
        self.layer4 = residual_stage(4 * width, 8 * width, stride=2, norm=norm)

    def prepare(self, value: bytes) -> dict[str, Tensor]:
        """uint8 (3, side, side)."""
        return {"pixels": prepare_square(value, self.side_pixels)}

    def prepare_into(self, values: Sequence[bytes], out: Mapping[str, Tensor]) -> None:
        """uint8 (values, 3, side, side)."""
        prepare_squares_into(values, out["pixels"])

    def dummy(self) -> dict[str, Tensor]:
        """A black picture."""
        return {"pixels": black_square(self.side_pixels)}

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """(P, 8 × width)."""
        hidden = normalise(inputs["pixels"], IMAGENET_MEAN, IMAGENET_STD).to(self.conv1.weight.dtype)
        hidden = hidden.contiguous(memory_format=torch.channels_last)
        hidden = self.maxpool(torch.relu(self.bn1(self.conv1(hidden))))
        hidden = self.layer4(self.layer3(self.layer2(self.layer1(hidden))))
        return hidden.mean(dim=(2, 3))


def residual_stage(num_in: int, num_out: int, *, stride: int, norm: Callable[[int], nn.Module]) -> nn.Sequential:
    """Two basic blocks; the first changes resolution and width."""
    from torchvision.models.resnet import BasicBlock

    shortcut = None
    if stride != 1 or num_in != num_out:
        shortcut = nn.Sequential(nn.Conv2d(num_in, num_out, kernel_size=1, stride=stride, bias=False), norm(num_out))
    return nn.Sequential(BasicBlock(num_in, num_out, stride, shortcut, norm_layer=norm), BasicBlock(num_out, num_out, norm_layer=norm))


def load_torchvision_weights(encoder: ResNetEncoder, path: str) -> None:
    """Read a torchvision resnet18 state dict; its classifier is left out, anything else missing is an InputError."""
    from safetensors.torch import load_file

    try:
        state = load_file(path) if path.endswith(".safetensors") else torch.load(path, weights_only=True, map_location="cpu")
        state = {name: tensor for name, tensor in state.items() if not name.startswith("fc.") and not name.endswith("num_batches_tracked")}
        missing, unexpected = encoder.load_state_dict(state, strict=False)
    except FileNotFoundError as error:
        raise InputError(f"resnet weights '{path}' do not exist", "a torchvision resnet18 state dict", "correct the path") from error
    except Exception as error:
        # A file of another format fails in the reader of one of two libraries, another network's weights in load_state_dict.
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"resnet weights '{path}' cannot be loaded ({reason})", "a torchvision resnet18 state dict", "use torchvision's file") from error
    if missing or unexpected:
        raise InputError(
            f"resnet weights '{path}' lack {missing[:3]} and hold {unexpected[:3]} besides", "the names of torchvision's resnet18", "use its state dict"
        )
