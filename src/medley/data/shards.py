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

    Shards on remote storage are copied to `cache_folder` first. Safe to use from several threads.
    """

    def __init__(self, uri: str, files: Mapping[str, Mapping[str, Any]], cache_folder: str | None = None):
        self.uri = uri
        self.files = files
        self.cache_folder = cache_folder or tempfile.gettempdir()
        self._shards: dict[int, pa.Table] = {}
        self._lock = threading.Lock()

    def take(self, item_indices: np.ndarray, columns: Sequence[str]) -> pa.Table:
        """Rows of these items in this order, with an item_index column. item_indices: (rows,) ints, any order."""
        shard_numbers = item_indices // ITEMS_PER_SHARD
        order = np.argsort(shard_numbers, kind="stable")
        pieces = []
        for number in np.unique(shard_numbers):
            rows = item_indices[order][shard_numbers[order] == number] % ITEMS_PER_SHARD
            pieces.append(self._shard(int(number)).select(columns).take(pa.array(rows)))
        back = np.empty(len(order), dtype=np.int64)
        back[order] = np.arange(len(order))
        table = pa.concat_tables(pieces).take(pa.array(back))
        return table.append_column(ITEM_INDEX, pa.array(item_indices.astype(np.int32)))

    def _shard(self, number: int) -> pa.Table:
        with self._lock:
            if number not in self._shards:
                self._shards[number] = self._open(f"items/part-{number:05d}.arrow")
            return self._shards[number]

    def _open(self, name: str) -> pa.Table:
        filesystem, path = open_storage(join_uri(self.uri, name))
        if isinstance(filesystem, pa.fs.LocalFileSystem):
            local = Path(path)
        else:
            local = Path(self.cache_folder) / f"medley-{self.files[name]['sha256'][:24]}.arrow"
            if not local.exists():
                write_bytes(str(local), read_bytes(join_uri(self.uri, name)))
        try:
            source = pa.memory_map(str(local))
        except FileNotFoundError as error:
            raise InputError(
                f"shard '{name}' is missing from '{self.uri}'", "every file of its manifest", "remove the folder, run jobs.prepare again"
            ) from error
        found = hashlib.sha256(source.read_buffer()).hexdigest()
        if found != self.files[name]["sha256"]:
            raise InputError(
                f"shard '{name}' in '{self.uri}' has SHA-256 {found[:12]}…",
                f"{self.files[name]['sha256'][:12]}… from its manifest",
                "remove the folder, run jobs.prepare again",
            )
        return pa.ipc.open_file(source).read_all()
