"""Shards of prepared items, Arrow IPC with the same number of rows each: read by item index."""

import math
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa

from medley.data.node_cache import NodeCache, file_hash
from medley.manifest import join_uri, open_storage
from medley.schema import ITEM_INDEX, InputError

MIN_ITEMS_PER_SHARD, MAX_ITEMS_PER_SHARD = 2**8, 2**14
SHARD_BYTES = 2**23
"""what the raw items of a shard have about, where the bounds allow it: few large files for light items, few items for a task that decodes media"""

MAX_OPEN_SHARDS = 2**14
"""of a process; Linux allows 65,530 memory maps in all"""


def items_per_shard(item_bytes: float) -> int:
    """How many items a shard holds, a power of two. item_bytes: size of a raw one."""
    return int(min(MAX_ITEMS_PER_SHARD, max(MIN_ITEMS_PER_SHARD, 2 ** math.floor(math.log2(SHARD_BYTES / max(1.0, item_bytes))))))


def shard_name(number: int) -> str:
    """Where a prepared set keeps a shard."""
    return f"items/part-{number:05d}.arrow"


@dataclass(frozen=True)
class ItemShards:
    """The shards of a prepared set. Item i stands in shard i // items_per_shard: no index is needed."""

    uri: str
    sha256: tuple[str, ...]
    """of each shard"""
    items_per_shard: int

    @classmethod
    def of(cls, uri: str, manifest: Mapping[str, Any]) -> Self:
        """Those that the manifest of a prepared set names."""
        files = manifest["files"]
        names = [shard_name(number) for number in range(sum(name.startswith("items/") for name in files))]
        return cls(uri, tuple(files[name]["sha256"] for name in names), int(manifest["counts"]["items_per_shard"]))


class ItemStore:
    """Reads prepared items by index from memory-mapped shards; each shard's hash is checked once per process before its first row is given.

    A shard on remote storage is copied whole into the node's cache when it is first read there; every process of the node then maps that copy.
    At most MAX_OPEN_SHARDS are mapped, the least recently used ones go. Safe to use from several threads and processes.

    Once per process, not once per node: a mark left by another process would hide what happened to the disk since (a flipped bit changes neither
    size nor time), and hashing costs 0.7 s of CPU per GB, a twentieth of decoding 256-pixel pictures once.
    """

    def __init__(self, shards: ItemShards, cache: NodeCache = NodeCache()):  # noqa: B008  # frozen
        self.shards = shards
        self.cache = cache
        self._open: OrderedDict[int, OpenShard] = OrderedDict()
        self._lock = threading.Lock()

    def take(self, item_indices: np.ndarray, columns: Sequence[str]) -> pa.Table:
        """Rows of these items in this order, with an item_index column. item_indices: (rows,) ints, any order."""
        size = self.shards.items_per_shard
        order = np.argsort(item_indices // size, kind="stable")
        in_order = item_indices[order]
        starts = np.flatnonzero(np.diff(in_order // size, prepend=-1))
        pieces = [self._shard(int(items[0]) // size).table.select(columns).take(pa.array(items % size)) for items in np.split(in_order, starts[1:])]
        table = pa.concat_tables(pieces)
        if not np.array_equal(order, np.arange(len(order))):  # windows ask in order of the items, and another take would copy all bytes again
            table = table.take(pa.array(np.argsort(order)))
        return table.append_column(ITEM_INDEX, pa.array(item_indices.astype(np.int32)))

    def iterate(self, item_indices: np.ndarray, columns: Sequence[str]) -> Iterator[pa.Table]:
        """Rows of many items as `take` gives them, the smallest shard's number of items at a time."""
        for first in range(0, len(item_indices), MIN_ITEMS_PER_SHARD):
            yield self.take(item_indices[first : first + MIN_ITEMS_PER_SHARD], columns)

    def values(self, item_indices: np.ndarray, column: str) -> list[Any]:
        """A column's values of these items in this order, None where an item has none. Bytes are views of the mapped shards, not copies."""
        size = self.shards.items_per_shard
        return [self._shard(item // size).column(column)[item % size] for item in item_indices.tolist()]

    def _shard(self, number: int) -> "OpenShard":
        with self._lock:
            if number in self._open:
                self._open.move_to_end(number)
            else:
                self._open[number] = OpenShard(self._map(number))
                if len(self._open) > MAX_OPEN_SHARDS:
                    self._open.popitem(last=False)
            return self._open[number]

    def _map(self, number: int) -> pa.Table:
        uri, name, digest = self.shards.uri, shard_name(number), self.shards.sha256[number]
        filesystem, path = open_storage(join_uri(uri, name))
        if not isinstance(filesystem, pa.fs.LocalFileSystem):
            local, found = self.cache.copy(join_uri(uri, name), digest)
        elif (local := Path(path)).exists():
            found = file_hash(local)
        else:
            raise InputError(f"shard '{name}' is missing from '{uri}'", "every file of its manifest", "remove the folder, run jobs.prepare again")
        if found != digest:
            raise InputError(
                f"shard '{name}' in '{uri}' has SHA-256 {found[:12]}…",
                f"{digest[:12]}… from its manifest",
                "remove the folder, run jobs.prepare again",
            )
        return pa.ipc.open_file(pa.memory_map(str(local))).read_all()


class OpenShard:
    """A mapped shard, and the columns that were read by row."""

    def __init__(self, table: pa.Table):
        self.table = table
        self._columns: dict[str, ColumnValues] = {}

    def column(self, name: str) -> "ColumnValues":
        """A column's values by row."""
        if name not in self._columns:
            self._columns[name] = ColumnValues(self.table[name])
        return self._columns[name]


class ColumnValues:
    """A column's values by row; None where there is none. Bytes are views of the column's memory, other values are Python's."""

    def __init__(self, column: pa.ChunkedArray):
        array = column.combine_chunks()
        self._array = array.combine_chunks() if isinstance(array, pa.ChunkedArray) else array
        self._is_valid: list[bool] | None = self._array.is_valid().to_pylist() if self._array.null_count else None
        self._bytes: memoryview | None = None
        if pa.types.is_large_binary(self._array.type):
            _, offsets, content = self._array.buffers()
            self._offsets = np.frombuffer(offsets, np.int64)[self._array.offset : self._array.offset + len(self._array) + 1].tolist()
            self._bytes = memoryview(content or b"").cast("B")

    def __getitem__(self, row: int) -> Any:
        if self._is_valid is not None and not self._is_valid[row]:
            return None
        if self._bytes is not None:
            return self._bytes[self._offsets[row] : self._offsets[row + 1]]
        return self._array[row].as_py()
