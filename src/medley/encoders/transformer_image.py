"""Pictures by any transformers vision model from a local folder (ViT, DINOv2, CLIP vision, …)."""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Literal

from torch import Tensor, nn

from medley.encoders.images import IMAGENET_MEAN, IMAGENET_STD, black_square, normalise, prepare_square, prepare_squares_into
from medley.encoders.settings import TrainableSettings
from medley.encoders.transformer_files import build_model, read_assets
from medley.schema import IMAGE

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class TransformerImageConfig(TrainableSettings):
    """A pretrained vision encoder."""

    kind: Literal["transformer_image"] = "transformer_image"
    column: str = IMAGE
    """column of prepared JPEGs"""
    path: str
    """local transformers folder with config and safetensors weights"""

    def learn(self, values: Iterable[bytes]) -> dict[str, bytes]:
        """Nothing is learned: the folder's configuration files."""
        return read_assets(self.path, "image")

    def build(self, assets: Mapping[str, bytes], *, pretrained: bool) -> "TransformerImageEncoder":
        """The module, with or without the folder's weights."""
        preprocessing = json.loads(assets.get("preprocessor_config.json", b"{}"))
        mean, std = preprocessing.get("image_mean", IMAGENET_MEAN), preprocessing.get("image_std", IMAGENET_STD)
        return TransformerImageEncoder(build_model(assets, self.path, pretrained=pretrained), mean, std)


class TransformerImageEncoder(nn.Module):
    """Mean of the patch vectors of the last hidden state."""

    def __init__(self, model: "PreTrainedModel", mean: list[float], std: list[float]):
        super().__init__()
        self.model = model
        self.mean, self.std = mean, std
        self.side_pixels = model.config.image_size
        self.output_dimension = model.config.hidden_size

    def prepare(self, value: bytes) -> dict[str, Tensor]:
        """uint8 (3, side, side), the side the model was made for."""
        return {"pixels": prepare_square(value, self.side_pixels)}

    def prepare_into(self, values: Sequence[bytes], out: Mapping[str, Tensor]) -> None:
        """uint8 (values, 3, side, side)."""
        prepare_squares_into(values, out["pixels"])

    def dummy(self) -> dict[str, Tensor]:
        """A black picture."""
        return {"pixels": black_square(self.side_pixels)}

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """(P, hidden size)."""
        pixels_PCHW = normalise(inputs["pixels"], self.mean, self.std).to(self.model.dtype)
        return self.model(pixel_values=pixels_PCHW).last_hidden_state.mean(dim=1)
