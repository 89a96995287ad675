"""The plan, streamed: windows of global batches, whose unique items are decoded once each, one window ahead of training.

Steps: 1. the plan lists a window's items; 2. their encoded bytes are views of shards mapped by this process or, of a catalogue too large to map,
come from Ray Data tasks anywhere in the cluster; 3. threads beside the trainer decode and tokenise each item once, into memory that is used again
(or tasks on the cluster's CPUs do, cluster_decoding.py); 4. the plan says which go into which batch, and a thread puts them together, one global
batch ahead (into pinned memory where there is a GPU).
Each rank reads windows of its own, from the resume position on, in order, never split by Ray (its splitter guarantees no order).
"""

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import starmap
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field

from medley.data.batches import BatchMaker, ItemInputs, PreparedItems
from medley.data.cluster_decoding import ClusterDecoder
from medley.data.fetching import fetched_windows
from medley.data.node_cache import NodeCache
from medley.data.preparing import ItemPreparer, ValueSource, in_order_of_use
from medley.data.shards import ItemStore
from medley.encoders import Encoder
from medley.schema import Batch

ITEM_OVERHEAD_BYTES = 2000
"""What a prepared item takes beside its arrays of fixed size: its tokens, and the Python objects."""

Value = TypeVar("Value")


class StreamConfig(BaseModel):
    """How micro-batches are fed."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    window_global_batches: int = Field(default=16, ge=1)
    """most global batches decoded together; an item is decoded once per window, so larger windows decode less and hold more"""
    max_window_bytes: int = Field(default=256_000_000, ge=1)
    """most bytes of one window's items, encoded and prepared together, estimated from the data set's means; windows hold fewer global batches where
    needed, at least one. A rank holds two windows, a third while the last batches of one are in use; Ray's object store a few encoded ones."""
    decode: Literal["trainer", "cluster"] = "trainer"
    """who decodes: threads beside the trainer, or Ray Data tasks of one CPU each, when the trainers' own CPUs cannot keep their GPUs busy; the cluster needs
    those CPUs free, and finished micro-batches cross the object store. Both give the same bits."""
    decode_threads: int = Field(default=2, ge=1)
    """threads per rank that decode and tokenise; with decode `cluster`, tasks at a time"""
    max_mapped_bytes: int = Field(default=50_000_000_000, ge=0)
    """catalogues whose item shards take at most this are mapped by every rank (from copies on its node where storage is remote); the items of larger ones
    are read by Ray Data tasks, anywhere in the cluster, and cross the object store"""
    cache_folder: str | None = None
    """folder of each node for copies of the shards of a data set on remote storage, made as they are read; null: the system's temporary folder"""
    max_cache_bytes: int | None = Field(default=None, ge=0)
    """most bytes of those copies; the least recently opened ones go. null: no limit, the folder needs room for all shards that its node reads"""

    @property
    def cache(self) -> NodeCache:
        """Where copies of remote shards lie on a node."""
        return NodeCache(self.cache_folder, self.max_cache_bytes)


class BatchStream:
    """This rank's micro-batches, epoch by epoch, from any position."""

    def __init__(self, maker: BatchMaker, encoders: Mapping[str, Encoder], columns: Mapping[str, str], config: StreamConfig):
        """columns: encoder name → the shard column it reads."""
        self.maker = maker
        self.encoders = encoders
        self.config = config
        self.threads = ThreadPoolExecutor(config.decode_threads, thread_name_prefix="decode")
        self.window_thread = ThreadPoolExecutor(1, thread_name_prefix="window")
        self.batch_thread = ThreadPoolExecutor(1, thread_name_prefix="batch")
        self.preparer = ItemPreparer(encoders, columns, self.threads)
        self.cluster = ClusterDecoder(maker.data, encoders, columns, config.decode_threads, config.cache)
        self.store = ItemStore(maker.data.item_shards, config.cache)

    def close(self) -> None:
        """End the threads."""
        for threads in (self.batch_thread, self.window_thread, self.threads):
            threads.shutdown(cancel_futures=True)

    @property
    def encoded_bytes(self) -> int:
        """Bytes of all item shards."""
        return sum(entry["size_bytes"] for name, entry in self.maker.data.manifest["files"].items() if name.startswith("items/"))

    @property
    def max_window_items(self) -> int:
        """How many items `max_window_bytes` has room for, at least 1."""
        prepared = sum(tensor.nbytes for encoder in self.encoders.values() for tensor in encoder.dummy().values())
        item_bytes = self.encoded_bytes / self.maker.data.num_items + prepared + ITEM_OVERHEAD_BYTES
        return max(1, int(self.config.max_window_bytes / item_bytes))

    def global_batches(self, epoch: int, start_global_batch: int, micro_batches: Sequence[int]) -> Iterator[list[Batch]]:
        """The batches of `micro_batches` for every global batch of an epoch from `start_global_batch` on."""
        return one_ahead(self._batches(epoch, start_global_batch, micro_batches), self.batch_thread)

    def _batches(self, epoch: int, start_global_batch: int, micro_batches: Sequence[int]) -> Iterator[list[Batch]]:
        windows = self.maker.windows(epoch, start_global_batch, micro_batches, self.config.window_global_batches, self.max_window_items)
        inputs = self._inputs(parts for _, _, parts in windows)
        pins_memory = torch.cuda.is_available()
        for number in range(start_global_batch, self.maker.plan.num_global_batches):
            batches = [self.maker.batch((epoch, number, micro), next(inputs), self.encoders) for micro in micro_batches]
            yield [batch.pin_memory() for batch in batches] if pins_memory else batches

    def items(self, item_indices: Sequence[Any]) -> Iterator[ItemInputs]:
        """Prepared items of each array of item indices, in order: what embedding the catalogue reads."""
        yield from self._inputs([np.asarray(items)] for items in item_indices)

    def _inputs(self, windows: Iterable[Sequence[np.ndarray]]) -> Iterator[ItemInputs]:
        """What encoders read, for each micro-batch of each window, which is given as the items of its micro-batches."""
        if not self.encoders:
            return (PreparedItems({}) for parts in windows for _ in parts)
        if self.config.decode == "cluster":
            return one_ahead(self.cluster.decode(windows), self.window_thread)
        return self._prepared_here(windows)

    def _prepared_here(self, windows: Iterable[Sequence[np.ndarray]]) -> Iterator[ItemInputs]:
        """Each window's prepared items, once for each of its micro-batches; the next window is decoded while the current one is used."""
        num_parts: deque[int] = deque()

        def items() -> Iterator[np.ndarray]:
            for parts in windows:
                num_parts.append(len(parts))
                yield parts[0] if self.maker.whole_catalogue else in_order_of_use(parts)

        encoded: Iterable[tuple[np.ndarray, ValueSource]] = ((items_W, self.store) for items_W in items())
        if self.encoded_bytes > self.config.max_mapped_bytes:
            encoded = fetched_windows(self.maker.data, self.preparer.columns, items(), self.config.cache)
        for prepared in one_ahead(starmap(self.preparer.prepare, encoded), self.window_thread):
            yield from [prepared] * num_parts.popleft()


def one_ahead(values: Iterator[Value], thread: ThreadPoolExecutor) -> Iterator[Value]:
    """The same values; each is made in the thread while the one before it is used."""
    pending = thread.submit(next, values, None)
    while (value := pending.result()) is not None:
        pending = thread.submit(next, values, None)
        yield value
