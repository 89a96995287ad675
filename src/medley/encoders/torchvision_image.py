"""Pictures by a torchvision network (ResNet, EfficientNet, ConvNeXt, ViT), with published weights from a local file or from scratch."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, NamedTuple, get_args

import torch
from pydantic import Field
from torch import Tensor, nn

from medley.encoders.images import IMAGENET_MEAN, IMAGENET_STD, SquarePictures, normalise_channels_last
from medley.encoders.resnet import group_norm
from medley.encoders.settings import LayeredSettings
from medley.schema import IMAGE, InputError

ResNet = Literal["resnet18", "resnet34", "resnet50", "resnet101", "resnet152"]
EfficientNet = Literal[
    "efficientnet_b0", "efficientnet_b1", "efficientnet_b2", "efficientnet_b3", "efficientnet_b4", "efficientnet_b5", "efficientnet_b6",
    "efficientnet_b7", "efficientnet_v2_s", "efficientnet_v2_m", "efficientnet_v2_l",
]  # fmt: skip
ConvNeXt = Literal["convnext_tiny", "convnext_small", "convnext_base", "convnext_large"]
VisionTransformer = Literal["vit_b_16", "vit_b_32", "vit_l_16", "vit_l_32", "vit_h_14"]


class Family(NamedTuple):
    """Where networks of a kind have their parts. classifier: the layer that gives classes; what comes before it are the features."""

    names: tuple[str, ...]
    classifier: str
    blocks: Callable[[Any], Iterable[nn.Module]]
    is_sized: bool = False
    """True: the network is made for one size of pictures"""


FAMILIES = (
    Family(get_args(ResNet), "fc", lambda network: (network.layer1, network.layer2, network.layer3, network.layer4)),
    Family(get_args(EfficientNet), "classifier", lambda network: network.features[1:-1]),
    Family(get_args(ConvNeXt), "classifier.2", lambda network: network.features[1::2]),
    Family(get_args(VisionTransformer), "heads", lambda network: network.encoder.layers, is_sized=True),
)


class TorchvisionConfig(LayeredSettings):
    """A network by its name in torchvision."""

    kind: Literal["torchvision"] = "torchvision"
    column: str = IMAGE
    """column of prepared JPEGs"""
    architecture: ResNet | EfficientNet | ConvNeXt | VisionTransformer
    """torchvision's name"""
    weights: str | None = None
    """its state dict, .safetensors or .pth (read with weights_only), a classifier in it is left out; null: from scratch, GroupNorm for BatchNorm"""
    side_pixels: int = Field(default=224, ge=32)
    """pictures are resized to this square; published weights of a ViT need theirs"""

    def learn(self, values: Iterable[bytes]) -> dict[str, bytes]:
        """Nothing is learned."""
        return {}

    def make(self, assets: Mapping[str, bytes], *, pretrained: bool) -> "TorchvisionEncoder":
        """The module, with or without the weights."""
        encoder = TorchvisionEncoder(self.architecture, self.side_pixels, frozen_batch_norm=self.weights is not None)
        if self.weights and pretrained:
            load_torchvision_weights(encoder.network, self.weights, self.architecture, encoder.family.classifier)
        return encoder


class TorchvisionEncoder(SquarePictures, nn.Module):
    """The features before the classifier: the mean over positions, in a ViT the class token. Names are torchvision's, after `network.`."""

    def __init__(self, architecture: str, side_pixels: int, *, frozen_batch_norm: bool):
        super().__init__()
        from torchvision import models
        from torchvision.ops import FrozenBatchNorm2d

        self.side_pixels = side_pixels
        self.family = next(family for family in FAMILIES if architecture in family.names)
        self.network = models.get_model(architecture, weights=None, **({"image_size": side_pixels} if self.family.is_sized else {}))
        classifier = self.network.get_submodule(self.family.classifier)
        self.output_dimension = next(module.in_features for module in classifier.modules() if isinstance(module, nn.Linear))
        self.network.set_submodule(self.family.classifier, nn.Identity())
        for name, module in list(self.network.named_modules()):
            if isinstance(module, nn.BatchNorm2d):
                norm = FrozenBatchNorm2d(module.num_features, module.eps) if frozen_batch_norm else group_norm(module.num_features)
                self.network.set_submodule(name, norm)

    def blocks(self) -> list[nn.Module]:
        """Layers of a ViT, stages of a convolutional network."""
        return list(self.family.blocks(self.network))

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """(P, output_dimension)."""
        return self.network(normalise_channels_last(inputs["pixels"], IMAGENET_MEAN, IMAGENET_STD, next(self.network.parameters()).dtype))


def load_torchvision_weights(network: nn.Module, path: str, architecture: str, classifier: str) -> None:
    """Read a state dict of torchvision's; its classifier is left out, anything else missing or of another shape is an InputError."""
    from safetensors.torch import load_file

    expected = f"a state dict of torchvision's {architecture}"
    try:
        state = load_file(path) if path.endswith(".safetensors") else torch.load(path, weights_only=True, map_location="cpu")
        state = {name: tensor for name, tensor in state.items() if not name.startswith(f"{classifier}.") and not name.endswith("num_batches_tracked")}
        missing, unexpected = network.load_state_dict(state, strict=False)
    except FileNotFoundError as error:
        raise InputError(f"weights '{path}' do not exist", expected, "correct the path") from error
    except Exception as error:
        # A file of another format fails in the reader of one of two libraries, another network's weights in load_state_dict.
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"weights '{path}' cannot be loaded ({reason})", expected, "use torchvision's file") from error
    if missing or unexpected:
        raise InputError(f"weights '{path}' lack {missing[:3]} and hold {unexpected[:3]} besides", expected, "use torchvision's file")
