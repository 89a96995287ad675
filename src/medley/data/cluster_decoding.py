"""Micro-batches decoded by Ray Data tasks on the cluster's CPUs: only what encoders read crosses the object store, micro-batch by micro-batch."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import torch
from torch import Tensor, nn

from medley.data.batches import Stacked
from medley.data.fetching import store_of_process, stream_blocks
from medley.data.node_cache import NodeCache
from medley.data.prepared import PreparedData
from medley.data.preparing import ItemPreparer, in_order_of_use
from medley.data.reused_memory import ReusedMemory
from medley.data.shards import ColumnValues, ItemShards
from medley.encoders import Encoder

ITEMS, LAYOUTS = "items", "layouts"


@dataclass(frozen=True)
class FinishedInputs:
    """One micro-batch's inputs as a task made them."""

    items_U: np.ndarray
    inputs: dict[str, dict[str, Tensor]]
    present_mask_U: dict[str, Tensor]

    def stack(self, item_index_U: np.ndarray, encoders: Mapping[str, Encoder]) -> Stacked:
        """The inputs of these items, which must be the micro-batch's."""
        assert np.array_equal(item_index_U, self.items_U)
        return self.inputs, self.present_mask_U


class ClusterDecoder:
    """Has windows decoded, `num_tasks` at a time; each task takes one logical CPU of the cluster, which must have them free beside the trainers."""

    def __init__(self, data: PreparedData, encoders: Mapping[str, Encoder], columns: Mapping[str, str], num_tasks: int, cache: NodeCache):
        self.data = data
        self.encoders = encoders
        self.columns = columns
        self.num_tasks = num_tasks
        self.cache = cache
        self.memory: dict[str, ReusedMemory] = {}

    @cached_property
    def preparing(self) -> "ray.ObjectRef[Any]":
        """What tasks prepare items with, put once, so that a task process finds the preparer that it has."""
        return ray.put(({name: without_weights(encoder) for name, encoder in self.encoders.items()}, dict(self.columns)))

    def decode(self, windows: Iterable[Sequence[np.ndarray]]) -> Iterator[FinishedInputs]:
        """Inputs of each micro-batch of each window, in order. windows: the items of their micro-batches."""
        decode = partial(decode_window, shards=self.data.item_shards, preparing=self.preparing, cache=self.cache)
        blocks = (pa.table({ITEMS: pa.array(list(parts), pa.list_(pa.int32()))}) for parts in windows)
        for row in stream_blocks(blocks, decode, num_tasks=self.num_tasks, num_cpus=1, splits_outputs=True):
            yield self._finished(row)

    def _finished(self, row: pa.Table) -> FinishedInputs:
        inputs: dict[str, dict[str, Tensor]] = {name: {} for name in self.encoders}
        present: dict[str, Tensor] = {}
        for column, (dtype, shape, strides) in json.loads(row[LAYOUTS][0].as_py()).items():
            kind, name, key = column.split("/")
            content = np.frombuffer(ColumnValues(row[column])[0], dtype=np.uint8)
            # Copied out: the object store's memory is read-only, and is wanted back.
            flat = self.memory.setdefault(column, ReusedMemory(torch.zeros((), dtype=torch.uint8))).rows(len(content))
            flat.numpy()[:] = content
            tensor = flat.view(getattr(torch, dtype)).as_strided(shape, strides)
            if kind == "present":
                present[name] = tensor
            else:
                inputs[name][key] = tensor
        return FinishedInputs(np.array(row[ITEMS][0].as_py()), inputs, present)


def decode_window(window: pa.Table, shards: ItemShards, preparing: "ray.ObjectRef[Any]", cache: NodeCache) -> Iterator[pa.Table]:
    """A row for each micro-batch of a window, whose items are decoded once each (a Ray Data task)."""
    preparer = _preparer_of_process(preparing)
    parts = [np.array(items) for items in window[ITEMS].to_pylist()]
    prepared = preparer.prepare(in_order_of_use(parts), store_of_process(shards, cache))
    for items_U in parts:
        inputs, present = prepared.stack(items_U, preparer.encoders)
        tensors = {f"present/{name}/": mask_U for name, mask_U in present.items()}
        tensors |= {f"inputs/{name}/{key}": tensor for name, keys in inputs.items() for key, tensor in keys.items()}
        layouts = {column: (str(tensor.dtype).removeprefix("torch."), tensor.shape, tensor.stride()) for column, tensor in tensors.items()}
        columns = {column: _bytes_of(tensor) for column, tensor in tensors.items()}
        yield pa.table({ITEMS: pa.array([items_U], pa.list_(pa.int32())), LAYOUTS: [json.dumps(layouts)], **columns})


@lru_cache(maxsize=2)
def _preparer_of_process(preparing: "ray.ObjectRef[Any]") -> ItemPreparer:
    """One preparer per task process: tokenizers stay built, memory is used again."""
    encoders, columns = ray.get(preparing)
    return ItemPreparer(encoders, columns, ThreadPoolExecutor(1, thread_name_prefix="decode"))


def _bytes_of(tensor: Tensor) -> pa.Array:
    """A tensor's memory, which has no gaps, as one binary value, not copied."""
    flat = tensor.as_strided((tensor.numel(),), (1,), tensor.storage_offset()).view(torch.uint8)
    return pa.Array.from_buffers(pa.large_binary(), 1, [None, pa.py_buffer(np.array([0, len(flat)])), pa.py_buffer(flat.numpy())])


def without_weights(encoder: Encoder) -> Encoder:
    """What preparing items needs of an encoder: its plain attributes, no weights and no submodules."""
    if not isinstance(encoder, nn.Module):
        return encoder
    light = nn.Module()
    light.__class__ = type(encoder)
    # DeepSpeed hangs attributes of its own on the modules that it splits.
    light.__dict__ |= {name: value for name, value in vars(encoder).items() if name not in light.__dict__ and not name.startswith("ds_")}
    return light  # type: ignore[return-value]
