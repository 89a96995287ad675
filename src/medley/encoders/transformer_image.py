"""Pictures by a transformers vision transformer from a local folder (ViT, DINOv2, the pictures' part of CLIP and SigLIP)."""

import json
from collections.abc import Iterable, Mapping
from inspect import signature
from typing import TYPE_CHECKING, Literal

from pydantic import Field
from torch import Tensor, nn

from medley.encoders.images import IMAGENET_MEAN, IMAGENET_STD, SquarePictures, normalise
from medley.encoders.layers import find_blocks
from medley.encoders.transformer_files import FEATURE_FILE, TransformerSettings, model_type
from medley.schema import IMAGE, InputError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Pooling = Literal["mean", "cls", "own"]

OWN_POOLING = {"clip_vision_model": "post_layernorm", "siglip_vision_model": "head"}
"""Type of model → the part that serves its own pooling alone; in the others that is `pooler`, where they have one."""


class TransformerImageConfig(TransformerSettings):
    """A pretrained vision encoder."""

    kind: Literal["transformer_image"] = "transformer_image"
    column: str = IMAGE
    """column of prepared JPEGs"""
    side_pixels: int | None = Field(default=None, ge=8)
    """pictures are resized to this square and the position vectors interpolated where it is another one; null: the size the model was made for"""
    pooling: Pooling = "mean"
    """of the last layer's vectors: mean over the patches; cls: the class token's; own: what the model itself pools (CLIP's normed class token,
    SigLIP's attention, ViT's pooler)"""

    def learn(self, values: Iterable[bytes]) -> dict[str, bytes]:
        """Nothing is learned: the folder's configuration files."""
        return self.read_assets("image")

    def make(self, assets: Mapping[str, bytes], *, pretrained: bool) -> "TransformerImageEncoder":
        """The module, with or without the folder's weights."""
        preprocessing = json.loads(assets.get(FEATURE_FILE, b"{}"))
        mean, std = preprocessing.get("image_mean", IMAGENET_MEAN), preprocessing.get("image_std", IMAGENET_STD)
        idle = () if self.pooling == "own" else (OWN_POOLING.get(model_type(assets), "pooler"),)
        model = self.load(assets, idle, pretrained=pretrained)
        return TransformerImageEncoder(model, mean, std, self.side_pixels, self.pooling)


class TransformerImageEncoder(SquarePictures, nn.Module):
    """The pooled last hidden state."""

    def __init__(self, model: "PreTrainedModel", mean: list[float], std: list[float], side_pixels: int | None, pooling: Pooling):
        super().__init__()
        self.model = model
        self.mean, self.std = mean, std
        self.pooling = pooling
        made_for, patch_size, width = (getattr(model.config, name, None) for name in ("image_size", "patch_size", "hidden_size"))
        if not (isinstance(made_for, int) and isinstance(patch_size, int) and isinstance(width, int)):
            raise InputError(
                f"a model of type '{model.config.model_type}', which has no patches of one size all through",
                "a vision transformer (vit, dinov2, clip, siglip)",
                "use another folder, or the encoder kind torchvision or timm",
            )
        self.side_pixels = side_pixels or made_for
        self.num_patches = (self.side_pixels // patch_size) ** 2
        self.output_dimension = width
        # DINOv2 interpolates without being asked.
        needs_asking = self.side_pixels != made_for and "interpolate_pos_encoding" in signature(model.forward).parameters
        self.options = {"interpolate_pos_encoding": True} if needs_asking else {}

    def blocks(self) -> list[nn.Module]:
        """The model's layers."""
        return find_blocks(self.model)

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """(P, hidden size)."""
        pixels_PCHW = normalise(inputs["pixels"], self.mean, self.std).to(self.model.dtype)
        output = self.model(pixel_values=pixels_PCHW, **self.options)
        if self.pooling == "own":
            return output.pooler_output
        hidden_PTD = output.last_hidden_state
        return hidden_PTD[:, 0] if self.pooling == "cls" else hidden_PTD[:, -self.num_patches :].mean(dim=1)
