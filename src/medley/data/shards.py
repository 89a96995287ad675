"""Shards of prepared items, Arrow IPC with a fixed number of rows each: read by item index."""

import hashlib
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from medley.manifest import join_uri, open_storage, read_bytes, write_bytes
from medley.schema import ITEM_INDEX, InputError

ITEMS_PER_SHARD = 256
"""Item i stands in shard i // 256: no index is needed. 256 items of about 25 KB make a shard of about 6 MB."""


class ItemStore:
    """Reads prepared items by index from memory-mapped shards; each shard's hash is checked once per process before its first row is given.

    A shard on remote storage is copied whole into `cache_folder` (default: the system's temporary folder) when it is first read on a node; every
    process of the node then maps that copy, whose name is the shard's hash. A damaged copy is made again. Copies are kept, and nobody
    removes them: the folder needs room for the shards that this node reads. Safe to use from several threads and processes.

    Once per process, not once per node: a mark left by another process would hide what happened to the disk since (a flipped bit changes neither
    size nor time), and hashing costs 0.7 s of CPU per GB, a twentieth of decoding 256-pixel pictures once.
    """

    def __init__(self, uri: str, files: Mapping[str, Mapping[str, Any]], cache_folder: str | None = None):
        """files: shard name → its manifest entry, of which `sha256` is read."""
        self.uri = uri
        self.files = files
        self.cache_folder = cache_folder or tempfile.gettempdir()
        self._shards: dict[int, pa.Table] = {}
        self._columns: dict[tuple[int, str], ColumnValues] = {}
        self._lock = threading.Lock()

    def take(self, item_indices: np.ndarray, columns: Sequence[str]) -> pa.Table:
        """Rows of these items in this order, with an item_index column. item_indices: (rows,) ints, any order."""
        order = np.argsort(item_indices // ITEMS_PER_SHARD, kind="stable")
        in_order = item_indices[order]
        starts = np.flatnonzero(np.diff(in_order // ITEMS_PER_SHARD, prepend=-1))
        pieces = [
            self._shard(int(items[0]) // ITEMS_PER_SHARD).select(columns).take(pa.array(items % ITEMS_PER_SHARD)) for items in np.split(in_order, starts[1:])
        ]
        table = pa.concat_tables(pieces)
        if not np.array_equal(order, np.arange(len(order))):  # windows ask in order of the items, and another take would copy all bytes again
            table = table.take(pa.array(np.argsort(order)))
        return table.append_column(ITEM_INDEX, pa.array(item_indices.astype(np.int32)))

    def values(self, item_indices: np.ndarray, column: str) -> list[Any]:
        """A column's values of these items in this order, None where an item has none. Bytes are views of the mapped shards, not copies."""
        return [self._column(item // ITEMS_PER_SHARD, column)[item % ITEMS_PER_SHARD] for item in item_indices.tolist()]

    def _column(self, number: int, name: str) -> "ColumnValues":
        if (number, name) not in self._columns:
            self._columns[number, name] = ColumnValues(self._shard(number)[name])
        return self._columns[number, name]

    def _shard(self, number: int) -> pa.Table:
        with self._lock:
            if number not in self._shards:
                self._shards[number] = self._open(f"items/part-{number:05d}.arrow")
            return self._shards[number]

    def _open(self, name: str) -> pa.Table:
        place, digest = join_uri(self.uri, name), self.files[name]["sha256"]
        filesystem, path = open_storage(place)
        is_local = isinstance(filesystem, pa.fs.LocalFileSystem)
        local = Path(path) if is_local else Path(self.cache_folder) / f"medley-{digest}.arrow"
        found = _hash(local) if local.exists() else None
        if found != digest and not is_local:
            write_bytes(str(local), read_bytes(place))
            found = _hash(local)
        if found is None:
            raise InputError(f"shard '{name}' is missing from '{self.uri}'", "every file of its manifest", "remove the folder, run jobs.prepare again")
        if found != digest:
            raise InputError(
                f"shard '{name}' in '{self.uri}' has SHA-256 {found[:12]}…",
                f"{digest[:12]}… from its manifest",
                "remove the folder, run jobs.prepare again",
            )
        return pa.ipc.open_file(pa.memory_map(str(local))).read_all()


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


def _hash(path: Path) -> str:
    return hashlib.sha256(pa.memory_map(str(path)).read_buffer()).hexdigest()
