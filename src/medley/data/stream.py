"""The plan, streamed: Ray Data turns windows of global batches into their unique items' bytes, threads here decode each once.

Steps: 1. a window is a row: its items; 2. a Ray Data task, anywhere in the cluster, reads their encoded bytes from the prepared shards;
3. threads beside the trainer decode and tokenise each item once per window, one window ahead; 4. the plan says which go into which batch,
and a thread stacks them, one global batch ahead (into pinned memory where there is a GPU).
Each rank has data sets of its own, built from the resume position on, order kept, never split by Ray (its splitter guarantees no order).
"""

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, partial
from itertools import islice
from typing import Any, TypeVar

import pyarrow as pa
import ray.data
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from medley.data.batches import BatchMaker, ItemInputs, PreparedItem, PreparedItems
from medley.data.shards import ItemStore
from medley.encoders import Encoder
from medley.schema import ITEM_INDEX, Batch

FETCH_CPUS = 0.01
"""Trainers may hold every logical CPU; a fetch task that waits for a whole one would wait for ever."""

WINDOWS_PER_DATASET = 64
"""Windows whose items are listed before the first is fetched; a data set for a whole epoch would list all rows. Starting one takes 0.1 to 0.3 s."""

ITEM_OVERHEAD_BYTES = 2000
"""What a prepared item takes beside its arrays of fixed size: its tokens, and the Python objects."""

Value = TypeVar("Value")


class StreamConfig(BaseModel):
    """How micro-batches are fed."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    window_global_batches: int = Field(default=16, ge=1)
    """most global batches fetched together; an item is decoded once per window, so larger windows decode less and hold more"""
    max_window_bytes: int = Field(default=256_000_000, ge=1)
    """most bytes of one window's items, encoded and prepared together, estimated from the data set's means; windows hold fewer global batches where
    needed, at least one. A rank holds two windows, Ray's object store a few encoded ones."""
    decode_threads: int = Field(default=2, ge=1)
    """threads per rank that decode and tokenise"""
    cache_folder: str | None = None
    """folder of each node for copies of the shards of a data set on remote storage, made as they are read and kept; null: the system's temporary folder"""


def fetch_items(block: pa.Table, uri: str, files: Mapping[str, str], columns: tuple[str, ...], cache_folder: str | None) -> pa.Table:
    """The rows of a block's items as they lie in the prepared shards (a Ray Data task). files: shard name → SHA-256."""
    return _store_of_process(uri, tuple(sorted(files.items())), cache_folder).take(block[ITEM_INDEX].to_numpy(), columns)


@lru_cache(maxsize=4)
def _store_of_process(uri: str, files: tuple[tuple[str, str], ...], cache_folder: str | None) -> ItemStore:
    """One reader per task process: shards stay mapped and verified between tasks."""
    return ItemStore(uri, {name: {"sha256": digest} for name, digest in files}, cache_folder)


def stream_items(
    maker_uri: str, files: Mapping[str, Mapping[str, Any]], columns: Sequence[str], blocks: Iterable[pa.Table], cache_folder: str | None
) -> Iterator[pa.Table]:
    """Each block's items with their encoded values, in order, one block ahead."""
    shards = {name: entry["sha256"] for name, entry in files.items() if name.startswith("items/")}
    fetch = partial(fetch_items, uri=maker_uri, files=shards, columns=tuple(columns), cache_folder=cache_folder)
    remaining = iter(blocks)
    while part := list(islice(remaining, WINDOWS_PER_DATASET)):
        dataset = ray.data.from_blocks(part)
        _configure(dataset.context)
        compute = ray.data.TaskPoolStrategy(size=min(2, len(part)))
        fetched = dataset.map_batches(fetch, batch_size=None, batch_format="pyarrow", num_cpus=FETCH_CPUS, compute=compute)
        yield from fetched.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=1)


def _configure(context: ray.data.DataContext) -> None:
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    # None keeps one output block per window; a size would cut and merge them.
    context.target_max_block_size = None
    # The consumer may rest longer than Ray's half hour between windows (evaluation, checkpoints).
    context.execution_no_progress_timeout_s = 24 * 3600
    context.custom_execution_callback_classes = [_executor_pause()]


def _executor_pause() -> type:
    """Ray Data's executor spins at most of a core while its output waits to be read; 3 ms of sleep per step cut that to a fifth."""
    import time

    from ray.data._internal.execution.execution_callback import ExecutionCallback

    class Pause(ExecutionCallback):
        def on_execution_step(self, executor: Any) -> None:
            time.sleep(0.003)

    return Pause


class ItemPreparer:
    """Turns fetched rows into prepared items in threads, one list of columns for all encoders."""

    def __init__(self, encoders: Mapping[str, Encoder], columns: Mapping[str, str], threads: ThreadPoolExecutor):
        self.encoders = encoders
        self.column_of = columns
        self.threads = threads

    @property
    def columns(self) -> list[str]:
        """The shard columns that any encoder reads."""
        return sorted(set(self.column_of.values()))

    def prepare(self, rows: pa.Table) -> PreparedItems:
        """item index → prepared inputs of the modalities it has."""
        # A few pieces for each thread: one hand-over an item took a tenth of the time of decoding it.
        size = max(1, rows.num_rows // 16)
        pieces = self.threads.map(self._prepare_piece, (rows.slice(start, size) for start in range(0, rows.num_rows, size)))
        return PreparedItems(item for piece in pieces for item in piece)

    def _prepare_piece(self, rows: pa.Table) -> list[tuple[int, PreparedItem]]:
        items: list[dict[str, dict[str, Tensor]]] = [{} for _ in range(rows.num_rows)]
        for name, encoder in self.encoders.items():
            for item, value in zip(items, rows[self.column_of[name]].to_pylist(), strict=True):
                if value is not None:
                    item[name] = encoder.prepare(value)
        return list(zip(rows[ITEM_INDEX].to_pylist(), items, strict=True))


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

    def close(self) -> None:
        """End the threads."""
        for threads in (self.batch_thread, self.window_thread, self.threads):
            threads.shutdown(cancel_futures=True)

    @property
    def max_window_items(self) -> int:
        """How many items `max_window_bytes` has room for, at least 1."""
        data = self.maker.data
        encoded = sum(entry["size_bytes"] for name, entry in data.manifest["files"].items() if name.startswith("items/")) / data.num_items
        prepared = sum(tensor.nbytes for encoder in self.encoders.values() for tensor in encoder.dummy().values())
        return max(1, int(self.config.max_window_bytes / (encoded + prepared + ITEM_OVERHEAD_BYTES)))

    def global_batches(self, epoch: int, start_global_batch: int, micro_batches: Sequence[int]) -> Iterator[list[Batch]]:
        """The batches of `micro_batches` for every global batch of an epoch from `start_global_batch` on."""
        return one_ahead(self._batches(epoch, start_global_batch, micro_batches), self.batch_thread)

    def _batches(self, epoch: int, start_global_batch: int, micro_batches: Sequence[int]) -> Iterator[list[Batch]]:
        listed: deque[tuple[int, int]] = deque()

        def blocks() -> Iterator[pa.Table]:
            windows = self.maker.windows(epoch, start_global_batch, micro_batches, self.config.window_global_batches, self.max_window_items)
            for first, stop, items in windows:
                listed.append((first, stop))
                yield _block(items)

        pins_memory = torch.cuda.is_available()
        for prepared in self._prepared(blocks()):
            for number in range(*listed.popleft()):
                batches = [self.maker.batch((epoch, number, micro), prepared, self.encoders) for micro in micro_batches]
                yield [batch.pin_memory() for batch in batches] if pins_memory else batches

    def items(self, item_indices: Sequence[Any]) -> Iterator[ItemInputs]:
        """Prepared items of each array of item indices, in order: what embedding the catalogue reads."""
        yield from self._prepared(_block(indices) for indices in item_indices)

    def _prepared(self, blocks: Iterable[pa.Table]) -> Iterator[PreparedItems]:
        """Each block's prepared items; the next block is decoded while the current one is used."""
        if not self.encoders:
            return (PreparedItems() for _ in blocks)
        data = self.maker.data
        tables = stream_items(data.uri, data.manifest["files"], self.preparer.columns, blocks, self.config.cache_folder)
        return one_ahead(map(self.preparer.prepare, tables), self.window_thread)


def one_ahead(values: Iterator[Value], thread: ThreadPoolExecutor) -> Iterator[Value]:
    """The same values; each is made in the thread while the one before it is used."""
    pending = thread.submit(next, values, None)
    while (value := pending.result()) is not None:
        pending = thread.submit(next, values, None)
        yield value


def _block(item_indices: Any) -> pa.Table:
    return pa.table({ITEM_INDEX: pa.array(item_indices, pa.int32())})
