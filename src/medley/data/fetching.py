"""Windows through Ray Data: tasks anywhere in the cluster read the items' encoded bytes, in order, ahead of who decodes them."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache, partial
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
import ray.data

from medley.data.node_cache import NodeCache
from medley.data.prepared import PreparedData
from medley.data.shards import ColumnValues, ItemShards, ItemStore
from medley.schema import ITEM_INDEX

FETCH_CPUS = 0.01
"""Trainers may hold every logical CPU; a fetch task that waits for a whole one would wait for ever."""

WINDOWS_PER_DATASET = 64
"""Windows whose items are listed before the first is fetched; a data set for a whole epoch would list all rows. Starting one takes 0.1 to 0.3 s."""

PAUSE_SECONDS = 0.02
"""Sleep of Ray Data's executor between its steps: without it, it spins at most of a core while its output waits to be read, at 3 ms at a fifth of one.
A window lasts ten times as long."""


class FetchedItems:
    """A window's rows as a task returned them."""

    def __init__(self, rows: pa.Table):
        self._row_of_item = {item: row for row, item in enumerate(rows[ITEM_INDEX].to_pylist())}
        self._columns = {name: ColumnValues(rows[name]) for name in rows.column_names}

    def values(self, item_indices: np.ndarray, column: str) -> list[Any]:
        """A column's values of these items in this order, None where an item has none."""
        values = self._columns[column]
        return [values[self._row_of_item[item]] for item in item_indices.tolist()]


def fetched_windows(data: PreparedData, columns: Sequence[str], windows: Iterable[np.ndarray], cache: NodeCache) -> Iterator[tuple[np.ndarray, FetchedItems]]:
    """Each window's items with their encoded values, in order, one window ahead."""
    pending: deque[np.ndarray] = deque()

    def blocks() -> Iterator[pa.Table]:
        for items_W in windows:
            pending.append(items_W)
            yield pa.table({ITEM_INDEX: pa.array(items_W, pa.int32())})

    fetch = partial(fetch_items, shards=data.item_shards, columns=tuple(columns), cache=cache)
    for rows in stream_blocks(blocks(), fetch, num_tasks=2, num_cpus=FETCH_CPUS):
        yield pending.popleft(), FetchedItems(rows)


def fetch_items(block: pa.Table, shards: ItemShards, columns: tuple[str, ...], cache: NodeCache) -> pa.Table:
    """The rows of a block's items as they lie in the prepared shards (a Ray Data task)."""
    return store_of_process(shards, cache).take(block[ITEM_INDEX].to_numpy(), columns)


@lru_cache(maxsize=4)
def store_of_process(shards: ItemShards, cache: NodeCache) -> ItemStore:
    """One reader per task process: shards stay mapped and verified between tasks."""
    return ItemStore(shards, cache)


def stream_blocks(
    blocks: Iterable[pa.Table], function: Callable[..., Any], *, num_tasks: int, num_cpus: float, splits_outputs: bool = False
) -> Iterator[pa.Table]:
    """What the function makes of each block in Ray Data tasks, in order; at most num_tasks at a time.

    splits_outputs: the function yields tables of one row, and each crosses the object store by itself.
    """
    remaining = iter(blocks)
    while part := list(islice(remaining, WINDOWS_PER_DATASET)):
        dataset = ray.data.from_blocks(part)
        _configure(dataset.context, splits_outputs=splits_outputs)
        compute = ray.data.TaskPoolStrategy(size=min(num_tasks, len(part)))
        made = dataset.map_batches(function, batch_size=None, batch_format="pyarrow", num_cpus=num_cpus, compute=compute)
        yield from made.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=1)


def _configure(context: ray.data.DataContext, *, splits_outputs: bool) -> None:
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    # None keeps one output block per input block; a byte makes one of each row; any other size would cut and merge them.
    context.target_max_block_size = 1 if splits_outputs else None
    # The consumer may rest longer than Ray's half hour between windows (evaluation, checkpoints).
    context.execution_no_progress_timeout_s = 24 * 3600
    context.custom_execution_callback_classes = [_executor_pause()]


def _executor_pause() -> type:
    import time

    from ray.data._internal.execution.execution_callback import ExecutionCallback

    class Pause(ExecutionCallback):
        def on_execution_step(self, executor: Any) -> None:
            time.sleep(PAUSE_SECONDS)

    return Pause
