"""Settings that encoders share, and how they act on the module that an encoder's own file makes."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import nn

from medley.encoders.layers import checkpoint_blocks, train_last_blocks
from medley.encoders.lora import add_lora
from medley.encoders.pooling import OutputNorm, normalise_output
from medley.schema import InputError

TRAINING_FIELDS = frozenset({"train", "top_layers", "lora", "learning_rate", "cache", "activation_checkpointing"})
"""Settings of an encoder that change neither its vocabulary nor its weights' meaning: a frozen encoder of the same weights gives the same vectors."""


class LoraSettings(BaseModel):
    """Low-rank updates W + (alpha / rank) B A of linear layers, whose own weights stay (Hu et al. 2022)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rank: int = Field(default=8, ge=1)
    """columns of B and rows of A"""
    alpha: int = Field(default=16, ge=1)
    """the update is multiplied by alpha / rank"""
    targets: tuple[str, ...] = ()
    """linear layers by the end of their names (q_proj, v_proj, …); empty: all those of the blocks"""


class TrainableSettings(BaseModel, ABC):
    """Base of the encoders' configurations."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    train: Literal["full", "frozen"] = "full"
    """full: every weight is trained; frozen: none is."""
    learning_rate: float | None = Field(default=None, gt=0)
    """None: the run's learning rate. Pretrained encoders want 10 to 100 times less."""
    cache: bool = False
    """True, for a frozen encoder: training, validation and search read the vectors that jobs.encode computed once, with the same result"""
    output_norm: OutputNorm = "none"
    """of an item's vector: none; unit: length 1; layer: mean 0 and deviation 1 over its D numbers"""

    @model_validator(mode="after")
    def _check_cache(self) -> Self:
        if self.cache and self.train != "frozen":
            raise ValueError(f"train: frozen where cache is true (with train: {self.train} the vectors change at every step)")
        return self

    @abstractmethod
    def make(self, assets: Mapping[str, bytes], *, pretrained: bool) -> nn.Module:
        """The encoder's module as its file defines it. pretrained=False: only its shape, a checkpoint will fill the weights."""

    def build(self, assets: Mapping[str, bytes], *, pretrained: bool) -> nn.Module:
        """The module with everything that these settings say of it, but `train: frozen`: that is `frozen.build_frozen`."""
        encoder = self.make(assets, pretrained=pretrained)
        if self.output_norm != "none":
            normalise_output(encoder, self.output_norm)
        return encoder


class LayeredSettings(TrainableSettings):
    """Base of the configurations of deep networks, whose encoders have `blocks()`: their layers in order, from the input to the output."""

    train: Literal["full", "top_layers", "lora", "frozen"] = "full"  # type: ignore[assignment]  # wider on purpose
    """full: every weight is trained; top_layers: the last blocks and what follows them; lora: low-rank updates alone; frozen: none."""
    top_layers: int = Field(default=2, ge=1)
    """with train: top_layers, how many of the last blocks: layers of a transformer, stages of a convolutional network"""
    lora: LoraSettings = LoraSettings()
    """with train: lora"""
    activation_checkpointing: bool = False
    """True: blocks are computed again in the backward pass instead of keeping what they computed, about a third more work for far less memory"""

    def build(self, assets: Mapping[str, bytes], *, pretrained: bool) -> nn.Module:
        """The module with everything that these settings say of it, but `train: frozen`."""
        encoder = super().build(assets, pretrained=pretrained)
        blocks = encoder.blocks()  # type: ignore[operator]  # every encoder of these settings has it
        if not blocks and (self.train in ("top_layers", "lora") or self.activation_checkpointing):
            raise InputError(
                f"train: {self.train}, activation_checkpointing: {self.activation_checkpointing} for a network whose layers are in no order known here",
                "train: full or frozen, activation_checkpointing: false",
                "change them, or choose another network",
            )
        if self.train == "top_layers":
            train_last_blocks(encoder, blocks, self.top_layers)
        elif self.train == "lora":
            add_lora(encoder, blocks, self.lora.rank, self.lora.alpha, self.lora.targets)
        if self.activation_checkpointing:
            checkpoint_blocks(blocks)
        return encoder
