"""Pictures by any of timm's networks (EfficientNet, ConvNeXt, ViT, …) with weights from a local file; needs the extra `timm`."""

from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any, Literal

from pydantic import Field
from torch import Tensor, nn

from medley.encoders.images import SquarePictures, normalise_channels_last
from medley.encoders.settings import LayeredSettings
from medley.schema import IMAGE, InputError

STAGES = ("layer1", "layer2", "layer3", "layer4", "s1", "s2", "s3", "s4")
"""What timm calls the stages of ResNets and RegNets."""


class TimmConfig(LayeredSettings):
    """A pretrained picture network by its name in timm."""

    kind: Literal["timm"] = "timm"
    column: str = IMAGE
    """column of prepared JPEGs"""
    architecture: str
    """timm's name: tf_efficientnet_lite0, convnext_tiny, vit_small_patch16_224, …"""
    weights: str
    """its state dict with timm's names, .safetensors; a classifier in it is left out"""
    side_pixels: int | None = Field(default=None, ge=16)
    """pictures are resized to this square; null: the size that the network was made for"""

    def learn(self, values: Iterable[bytes]) -> dict[str, bytes]:
        """Nothing is learned."""
        return {}

    def make(self, assets: Mapping[str, bytes], *, pretrained: bool) -> "TimmEncoder":
        """The module, with or without the weights."""
        network = build_network(self.architecture)
        made_for = network.pretrained_cfg
        if pretrained:
            load_timm_weights(network, self.weights)
        side_pixels = self.side_pixels or made_for["input_size"][-1]
        if made_for["fixed_input_size"] and side_pixels != made_for["input_size"][-1]:
            raise InputError(
                f"side_pixels {side_pixels} for timm's '{self.architecture}'", f"{made_for['input_size'][-1]}, its only size", "leave side_pixels out"
            )
        return TimmEncoder(network, side_pixels, made_for["mean"], made_for["std"])


def build_network(architecture: str) -> Any:
    """A network of timm's without its classifier, its BatchNorm frozen: rows do not see each other."""
    try:
        import timm
    except ImportError as error:
        raise InputError(f"encoder kind timm ('{architecture}') and no package timm", "the extra timm", "pip install 'medley-rec[timm]'") from error
    from timm.utils.model import freeze_batch_norm_2d

    # The check keeps out names that timm would look up on the network (hf-hub:…).
    if not timm.is_model(architecture):
        near = get_close_matches(architecture, timm.list_models(), n=3)
        raise InputError(f"timm has no network '{architecture}'", f"one of its names{f', such as {chr(44).join(near)}' if near else ''}", "correct the name")
    return freeze_batch_norm_2d(timm.create_model(architecture, pretrained=False, num_classes=0))


def load_timm_weights(network: Any, path: str) -> None:
    """Fill a network from a safetensors state dict; what is missing or of another shape is an InputError."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    remedy = "save timm's state dict once with safetensors.torch.save_file"
    if not path.endswith(".safetensors"):
        raise InputError(f"timm weights '{path}' are no safetensors file", "a .safetensors file (others can hold code)", remedy)
    try:
        state = load_file(path)
    except FileNotFoundError as error:
        raise InputError(f"timm weights '{path}' do not exist", "a .safetensors file", "correct the path") from error
    except SafetensorError as error:
        raise InputError(f"timm weights '{path}' cannot be read ({error})", "a whole .safetensors file", remedy) from error
    own, classifier = network.state_dict(), network.pretrained_cfg.get("classifier") or ()
    prefixes = tuple(f"{name}." for name in ([classifier] if isinstance(classifier, str) else classifier))
    state = {name: value for name, value in state.items() if not name.endswith("num_batches_tracked") and (name in own or not name.startswith(prefixes))}
    wrong = sorted({*own} ^ {*state}) + sorted(name for name in {*own} & {*state} if own[name].shape != state[name].shape)
    if wrong:
        raise InputError(
            f"timm weights '{path}' and the network differ in {', '.join(wrong[:3])} ({len(wrong)} names)", "the state dict of that network", remedy
        )
    network.load_state_dict(state)


class TimmEncoder(SquarePictures, nn.Module):
    """The network's pooled features."""

    def __init__(self, network: Any, side_pixels: int, mean: Sequence[float], std: Sequence[float]):
        super().__init__()
        self.network = network
        self.side_pixels = side_pixels
        self.mean, self.std = mean, std
        self.output_dimension = int(network.num_features)

    def blocks(self) -> list[nn.Module]:
        """Layers of a transformer, stages of a convolutional network."""
        for name in ("blocks", "stages", "layers"):
            if hasattr(self.network, name):
                return list(getattr(self.network, name).children())
        return [part for name, part in self.network.named_children() if name in STAGES]

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """(P, output_dimension)."""
        return self.network(normalise_channels_last(inputs["pixels"], self.mean, self.std, next(self.network.parameters()).dtype))
