"""Weights of a transformers folder under ZeRO-3: each rank reads its own range of every tensor out of the safetensors files, and nothing else.

`from_pretrained` shards the model too, but has rank 0 read all files into memory first and send every tensor through the network.
"""

import ctypes
import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from medley.schema import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""Number formats of safetensors files that weights come in."""


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a safetensors file."""

    path: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    offset_bytes: int

    @property
    def num_elements(self) -> int:
        """Of the whole tensor."""
        return math.prod(self.shape)

    def read(self, start: int, stop: int) -> Tensor:
        """Elements start … stop - 1 of the flat tensor. Plain reads: pages of a mapped file would count as this process's memory."""
        content = bytearray((stop - start) * self.dtype.itemsize)
        with self.path.open("rb") as file:
            file.seek(self.offset_bytes + start * self.dtype.itemsize)
            num_read = file.readinto(content)
        if num_read != len(content):
            raise InputError(f"'{self.path}' ends early", "whole *.safetensors files", "copy the model's folder again")
        return torch.frombuffer(content, dtype=self.dtype) if content else torch.empty(0, dtype=self.dtype)


def stored_tensors(folder: str) -> dict[str, StoredTensor]:
    """The floating-point tensors of all *.safetensors files of a folder, by name."""
    found = {}
    for path in sorted(Path(folder).glob("*.safetensors")):
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            try:
                header = json.loads(file.read(length))
            except ValueError as error:
                raise InputError(f"the weights in '{path}' cannot be read ({error})", "whole *.safetensors files", "copy the model's folder again") from error
        for name, facts in header.items():
            if name != "__metadata__" and facts["dtype"] in DTYPES:
                found[name] = StoredTensor(path, DTYPES[facts["dtype"]], tuple(facts["shape"]), 8 + length + facts["data_offsets"][0])
    return found


def build_sharded(config: Any, path: str) -> tuple["PreTrainedModel", set[str]]:
    """The model of a folder, of which this rank holds its own ranges, and the names of weights that the folder lacks, which are 0.

    Collective; ZeRO-3 was announced to transformers (`training/sharded_building.py`).
    """
    from transformers import AutoModel
    from transformers.utils.generic import ContextManagers

    tensors = stored_tensors(path)
    model_class: Any = AutoModel._model_mapping[type(config)]
    with returning_memory(), ContextManagers(model_class.get_init_context(torch.float32, False, False, None)):
        model = model_class(config)
    return model, _fill(model, _under_our_names(model, tensors))


@contextmanager
def returning_memory() -> Iterator[None]:
    """Inside, freed tensors go back to the system at once. The C library of Linux keeps blocks of up to 32 MB for later use: while whole layers come
    and their ranges stay, that made a rank hold .86 of a model instead of .56 (measured, 2 ranks)."""
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)
    if set_option is None:
        yield
        return
    map_threshold, trim_threshold = -3, -1
    set_option(map_threshold, 1 << 20)
    try:
        yield
    finally:
        # Where the library's own adjustment, which the first call ended, arrives with tensors of this size.
        set_option(map_threshold, 32 << 20)
        set_option(trim_threshold, 64 << 20)


def _fill(model: "PreTrainedModel", tensors: Mapping[str, StoredTensor]) -> set[str]:
    missing = set()
    for name, parameter in model.named_parameters():
        if name in tensors:
            fill_own_range(name, parameter, tensors[name])
        else:
            missing.add(name)
            parameter.ds_tensor.zero_()  # type: ignore[attr-defined]  # DeepSpeed's own attribute
    for name, buffer in model.named_buffers():
        if name in tensors:
            buffer.copy_(tensors[name].read(0, buffer.numel()).view(buffer.shape))
    return missing


def _under_our_names(model: "PreTrainedModel", tensors: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    """Files keep the names that weights had in other versions, or inside of a larger model; transformers knows how they are called now."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

    mapping = get_model_conversion_mapping(model)
    renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
    own, named = model.state_dict(), {}
    for name, tensor in tensors.items():
        ours, converted = rename_source_key(name, renamings, converters, model.base_model_prefix, own)
        if converted is not None:
            raise InputError(
                f"the weights of {type(model).__name__} in '{tensor.path.parent}' are stored in another layout than it holds them ('{name}')",
                "weights that only need names",
                "set train.engine.zero_stage=2",
            )
        named[ours] = tensor
    return named


def fill_own_range(name: str, parameter: nn.Parameter, tensor: StoredTensor) -> None:
    """Fill what this rank holds of a sharded parameter; where its end lies beyond the tensor's, the rest is 0."""
    shape, own = tuple(parameter.ds_shape), parameter.ds_tensor  # type: ignore[attr-defined]
    if tensor.shape != shape:
        raise InputError(f"'{name}' in '{tensor.path}' has shape {list(tensor.shape)}", f"{list(shape)}", "correct config.json, or copy the folder again")
    start = min(torch.distributed.get_rank() * own.numel(), tensor.num_elements)
    length = min(own.numel(), tensor.num_elements - start)
    own.flatten()[:length].copy_(tensor.read(start, start + length))
    own.flatten()[length:].zero_()
