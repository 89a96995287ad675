"""The plan, streamed: Ray Data turns windows of global batches into their unique items' bytes, threads here decode each once.

Steps: 1. a window is a row: its items; 2. a Ray Data task, anywhere in the cluster, reads their encoded bytes from the prepared shards;
3. threads beside the trainer decode and tokenise each item once per window, one window ahead; 4. the plan says which go into which batch.
One data set per rank and epoch, built at the resume position, order kept, never split by Ray (its splitter guarantees no order).
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, partial
from typing import Any

import pyarrow as pa
import ray.data
from pydantic import BaseModel, ConfigDict, Field

from medley.data.batches import BatchMaker, ItemInputs, PreparedItem, PreparedItems
from medley.data.shards import ItemStore
from medley.encoders import Encoder
from medley.schema import ITEM_INDEX, Batch

FETCH_CPUS = 0.01
"""Trainers may hold every logical CPU; a fetch task that waits for a whole one would wait for ever."""


class StreamConfig(BaseModel):
    """How micro-batches are fed."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    window_global_batches: int = Field(default=16, ge=1)
    """global batches fetched together; an item is decoded once per window, so larger windows decode less and hold more"""
    decode_threads: int = Field(default=2, ge=1)
    """threads per rank that decode and tokenise"""


def fetch_items(block: pa.Table, uri: str, files: Mapping[str, Mapping[str, Any]], columns: tuple[str, ...]) -> pa.Table:
    """The rows of a block's items as they lie in the prepared shards (a Ray Data task)."""
    return _store_of_process(uri, files_key=tuple(sorted((name, entry["sha256"]) for name, entry in files.items()))).take(block[ITEM_INDEX].to_numpy(), columns)


@lru_cache(maxsize=4)
def _store_of_process(uri: str, files_key: tuple[tuple[str, str], ...]) -> ItemStore:
    """One reader per task process: shards stay mapped and verified between tasks."""
    return ItemStore(uri, {name: {"sha256": digest} for name, digest in files_key})


def stream_items(maker_uri: str, files: Mapping[str, Mapping[str, Any]], columns: Sequence[str], blocks: list[pa.Table]) -> Iterator[pa.Table]:
    """Each block's items with their encoded values, in order, one block ahead."""
    if not blocks:
        return
    shards = {name: entry for name, entry in files.items() if name.startswith("items/")}
    dataset = ray.data.from_blocks(blocks)
    _configure(dataset.context)
    fetched = dataset.map_batches(
        partial(fetch_items, uri=maker_uri, files=shards, columns=tuple(columns)),
        batch_size=None,
        batch_format="pyarrow",
        num_cpus=FETCH_CPUS,
        compute=ray.data.TaskPoolStrategy(size=2),
    )
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
        indices = rows[ITEM_INDEX].to_pylist()
        values = {column: rows[column].to_pylist() for column in self.columns}
        places = range(len(indices))
        chunk = max(1, len(indices) // 16)
        prepared = self.threads.map(partial(self._prepare_one, values), places, chunksize=chunk)
        return PreparedItems(zip(indices, prepared, strict=True))

    def _prepare_one(self, values: Mapping[str, list[Any]], place: int) -> PreparedItem:
        item = {}
        for name, encoder in self.encoders.items():
            value = values[self.column_of[name]][place]
            if value is not None:
                item[name] = encoder.prepare(value)
        return item


class BatchStream:
    """This rank's micro-batches, epoch by epoch, from any position."""

    def __init__(self, maker: BatchMaker, encoders: Mapping[str, Encoder], columns: Mapping[str, str], config: StreamConfig):
        """columns: encoder name → the shard column it reads."""
        self.maker = maker
        self.encoders = encoders
        self.config = config
        self.threads = ThreadPoolExecutor(config.decode_threads, thread_name_prefix="decode")
        self.ahead = ThreadPoolExecutor(1, thread_name_prefix="window")
        self.preparer = ItemPreparer(encoders, columns, self.threads)

    def close(self) -> None:
        """End the threads."""
        self.ahead.shutdown(cancel_futures=True)
        self.threads.shutdown(cancel_futures=True)

    def global_batches(self, epoch: int, start_global_batch: int, micro_batches: Sequence[int]) -> Iterator[list[Batch]]:
        """The batches of `micro_batches` for every global batch of an epoch from `start_global_batch` on."""
        windows = list(self.maker.plan.windows(start_global_batch, self.config.window_global_batches))
        blocks = [_block(self.maker.items_of(epoch, first, stop, micro_batches)) for first, stop in windows]
        for (first, stop), prepared in zip(windows, self._prepared(blocks), strict=True):
            for number in range(first, stop):
                yield [self.maker.batch((epoch, number, micro), prepared, self.encoders) for micro in micro_batches]

    def items(self, item_indices: Sequence[Any]) -> Iterator[ItemInputs]:
        """Prepared items of each array of item indices, in order: what embedding the catalogue reads."""
        yield from self._prepared([_block(indices) for indices in item_indices])

    def _prepared(self, blocks: list[pa.Table]) -> Iterator[PreparedItems]:
        """Each block's prepared items; the next block is decoded while the current one is used."""
        data = self.maker.data
        tables: Iterable[pa.Table] = stream_items(data.uri, data.manifest["files"], self.preparer.columns, blocks)
        if not self.encoders:
            yield from (PreparedItems() for _ in blocks)
            return
        source = iter(tables)

        def next_prepared() -> PreparedItems | None:
            table = next(source, None)
            return None if table is None else self.preparer.prepare(table)

        pending = self.ahead.submit(next_prepared)
        while (prepared := pending.result()) is not None:
            pending = self.ahead.submit(next_prepared)
            yield prepared


def _block(item_indices: Any) -> pa.Table:
    return pa.table({ITEM_INDEX: pa.array(item_indices, pa.int32())})
