"""One modality in, one vector out.

An encoder's file owns its configuration and its module. A configuration has `column` and two methods: `learn(values)` returns the assets
(file name → bytes: tokenizer, vocabulary) that the encoder needs beside its weights; `make(assets, pretrained)` makes the module. What all share
(training a part of it, LoRA, output norm, activation checkpointing) is in settings.py, whose `build` calls `make`.

The module has `output_dimension`, `prepare(value)` (one item on the CPU, thread-safe, the same in training and serving; returns input
name → tensor), `dummy()` (a prepared item of zeros) and `forward(inputs)` over P stacked items, (P, output_dimension).
It may have one of two faster ways to prepare many items, with the same result: `prepare_into` where all items' inputs have one size,
`prepare_many` where one call for all is cheaper. Media come as `bytes` or as a view of memory (`memoryview`).
A deep network's module also has `blocks()`, its layers in order, and its configuration the base `LayeredSettings`.
To add one: write the file, add it to the union below.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Protocol, runtime_checkable

import torch
from pydantic import Field
from torch import Tensor

from medley.encoders.features import FeaturesConfig
from medley.encoders.logmel_cnn import LogMelCnnConfig
from medley.encoders.logmel_recurrent import LogMelRecurrentConfig
from medley.encoders.recurrent_text import RecurrentTextConfig
from medley.encoders.resnet import ResNetConfig
from medley.encoders.subword import SubwordConfig
from medley.encoders.tags import TagsConfig
from medley.encoders.timm_image import TimmConfig
from medley.encoders.torchvision_image import TorchvisionConfig
from medley.encoders.transformer_audio import TransformerAudioConfig
from medley.encoders.transformer_image import TransformerImageConfig
from medley.encoders.transformer_text import TransformerTextConfig

EncoderConfig = Annotated[
    SubwordConfig
    | RecurrentTextConfig
    | TransformerTextConfig
    | ResNetConfig
    | TorchvisionConfig
    | TimmConfig
    | TransformerImageConfig
    | LogMelCnnConfig
    | LogMelRecurrentConfig
    | TransformerAudioConfig
    | TagsConfig
    | FeaturesConfig,
    Field(discriminator="kind"),
]


class Encoder(Protocol):
    """What the model and the stream ask of an encoder."""

    output_dimension: int

    def prepare(self, value: Any) -> dict[str, Tensor]:
        """One item's raw value → its input tensors, on the CPU."""

    def dummy(self) -> dict[str, Tensor]:
        """Zeros shaped like one prepared item: what an encoder runs on when no item of a micro-batch has its modality."""

    def __call__(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """(P, output_dimension) float vectors of P items."""


@runtime_checkable
class PreparesInto(Protocol):
    """An encoder whose inputs are of one size, and written straight into a batch's memory."""

    def prepare_into(self, values: Sequence[Any], out: Mapping[str, Tensor]) -> None:
        """`prepare` of each value into a row of out: input name → (values, …), each row laid out in memory as in `dummy()`."""


@runtime_checkable
class PreparesMany(Protocol):
    """An encoder that prepares many items in one call for less."""

    def prepare_many(self, values: Sequence[Any]) -> list[dict[str, Tensor]]:
        """`prepare` of each value."""


@runtime_checkable
class ReadsSound(Protocol):
    """The configuration of an encoder of sounds."""

    def reads_sample_rate_hz(self) -> int:
        """The rate that the prepared clips must have."""


def stack_inputs(prepared: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Stack items' inputs by name; where first dimensions differ (tokens, tags) shorter ones are padded with 0 at the end."""
    stacked = {}
    for name in prepared[0]:
        tensors = [item[name] for item in prepared]
        if len({len(tensor) for tensor in tensors}) > 1:
            stacked[name] = torch.nn.utils.rnn.pad_sequence(tensors, batch_first=True)
        else:
            stacked[name] = _stack(tensors)
    return stacked


def _stack(tensors: list[Tensor]) -> Tensor:
    """torch.stack; pictures that lie channels last in memory, as a JPEG decoder leaves them, stay so: turning them took 250 µs for 256² pixels, not 60."""
    if all(tensor.dim() == 3 and tensor.permute(1, 2, 0).is_contiguous() for tensor in tensors):
        return torch.stack([tensor.permute(1, 2, 0) for tensor in tensors]).permute(0, 3, 1, 2)
    return torch.stack(tensors)
