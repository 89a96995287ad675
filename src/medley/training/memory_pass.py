"""What one micro-batch takes: a forward and backward pass on the CPU, every live tensor counted."""

import weakref
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from medley.data.batches import Stacked
from medley.data.shards import ItemStore
from medley.encoders import Encoder, stack_inputs
from medley.model import RecommenderModel
from medley.schema import Batch


class LiveTensors(TorchDispatchMode):
    """Inside the block, counts the bytes of all storages that operations make on CPUs, until they are freed."""

    def __init__(self) -> None:
        super().__init__()
        self._sizes: dict[int, int] = {}
        self.num_bytes = 0
        """alive now"""
        self.peak = 0
        """most at once"""

    def __torch_dispatch__(self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and leaf.device.type == "cpu":
                self._count(leaf.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        place = storage.data_ptr()
        if place == 0 or place in self._sizes:
            return
        self._sizes[place] = storage.nbytes()
        self.num_bytes += storage.nbytes()
        self.peak = max(self.peak, self.num_bytes)
        weakref.finalize(storage, self._forget, place)

    def _forget(self, place: int) -> None:
        self.num_bytes -= self._sizes.pop(place, 0)


class ReadItems:
    """`ItemInputs` read item by item from the prepared shards in this process: no Ray, no threads."""

    def __init__(self, store: ItemStore, columns: Mapping[str, str]):
        """columns: encoder → the shard column it reads; the others get zeros for every item."""
        self.store = store
        self.columns = columns

    def stack(self, item_index_U: np.ndarray, encoders: Mapping[str, Encoder]) -> Stacked:
        """The inputs of these items."""
        inputs, present = {}, {}
        for name, encoder in encoders.items():
            if name not in self.columns:
                inputs[name] = stack_inputs([encoder.dummy()] * len(item_index_U))
                present[name] = torch.ones(len(item_index_U), dtype=torch.bool)
                continue
            values = self.store.take(item_index_U, [self.columns[name]])[self.columns[name]].to_pylist()
            rows = [encoder.prepare(value) for value in values if value is not None]
            present[name] = torch.tensor([value is not None for value in values])
            inputs[name] = stack_inputs(rows or [encoder.dummy()])
        return inputs, present


def activation_bytes(model: RecommenderModel, batch: Batch) -> int:
    """Most bytes alive at once in a forward and backward pass beside weights, inputs and whole gradients; leaves no gradient behind."""

    def drop_gradient(parameter: Tensor) -> None:
        parameter.grad = None

    hooks = [parameter.register_post_accumulate_grad_hook(drop_gradient) for parameter in model.parameters() if parameter.requires_grad]
    model.train()
    with LiveTensors() as live:
        scores_BU = model(batch)[0]
        # As a softmax loss: it keeps the scores, their exponentials and their gradient.
        scores_BU.float().logsumexp(dim=1).sum().backward()
        del scores_BU
    for hook in hooks:
        hook.remove()
    return live.peak
