"""Rows of any number in parts that fit a process: which part an id belongs to, and files that hold one table per part.

A part is a range of the ids' 64-bit hashes, so that what is in order of the hashes is in the same order however many parts there are.
"""

import hashlib
import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from medley.manifest import open_storage, write_bytes
from medley.storage import read_piece, storage_failures

ROWS_PER_PARTITION = 2**20
"""About 100 bytes a row are in memory at once, so that a process stays below 300 MB."""

_ODD = np.uint64(0x9E3779B97F4A7C15)
_WORD_BYTES = 8


def num_partitions(num_rows: int, rows_per_partition: int = ROWS_PER_PARTITION) -> int:
    """How many parts the rows are cut into, at least 1."""
    return max(1, math.ceil(num_rows / rows_per_partition))


def mix(hashes: np.ndarray, values: np.ndarray | int) -> np.ndarray:
    """uint64 hashes of (hash, value) pairs: the finaliser of SplitMix64 (Steele et al. 2014). values: integers of 64 bits or fewer."""
    mixed = (hashes ^ np.asarray(values).astype(np.int64).view(np.uint64)) * _ODD
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed ^= mixed >> np.uint64(shift)
        mixed *= np.uint64(factor)
    mixed ^= mixed >> np.uint64(31)
    return mixed


def stable_hash(ids: pa.Array) -> np.ndarray:
    """(ids,) uint64 of an array of strings without nulls, the same in every process and on every machine; equal ids have equal hashes.

    Reads 8 bytes of all ids at a time: Python's hashlib took 30 times as long.
    """
    offsets = np.frombuffer(ids.buffers()[1], dtype=np.int32)[ids.offset : ids.offset + len(ids) + 1].astype(np.int64) if len(ids) else np.zeros(1, np.int64)
    starts, lengths = offsets[:-1], np.diff(offsets)
    hashes = mix(np.zeros(len(ids), dtype=np.uint64), lengths)
    if not lengths.any():
        return hashes
    content = np.zeros(offsets[-1] - offsets[0] + _WORD_BYTES, dtype=np.uint8)
    content[:-_WORD_BYTES] = np.frombuffer(ids.buffers()[2], dtype=np.uint8)[offsets[0] : offsets[-1]]
    words = np.ndarray(len(content) - _WORD_BYTES + 1, dtype="<u8", buffer=content, strides=(1,))
    starts = starts - offsets[0]
    rows = np.arange(len(ids))
    for place in range(0, int(lengths.max()), _WORD_BYTES):
        rows = rows[lengths[rows] > place]
        left = np.minimum(lengths[rows] - place, _WORD_BYTES)
        word = words[starts[rows] + place] & (np.uint64(2**64 - 1) >> (8 * (_WORD_BYTES - left)).astype(np.uint64))
        hashes[rows] = mix(hashes[rows], word.view(np.int64))
    return hashes


def crowded_rows(keys: np.ndarray) -> np.ndarray:
    """(rows,) bool: rows whose key another row has too. Sorting numbers is cheap; only these few need to be compared as they are."""
    is_crowded = np.zeros(len(keys), dtype=bool)
    ordered = np.sort(keys)
    if (ordered[1:] != ordered[:-1]).all():
        return is_crowded
    order = np.argsort(keys)
    ordered = keys[order]
    is_shared = ordered[1:] == ordered[:-1]
    is_crowded[order[1:][is_shared]] = True
    is_crowded[order[:-1][is_shared]] = True
    return is_crowded


def partition_of(hashes: np.ndarray, num_parts: int) -> np.ndarray:
    """The part of each hash, int32; grows with the hash."""
    return (((hashes >> np.uint64(32)) * np.uint64(num_parts)) >> np.uint64(32)).astype(np.int32)


def hash_order(hashes: np.ndarray, ids: pa.Array) -> np.ndarray:
    """The places of the ids in order of (hash, id)."""
    order = np.argsort(hashes)
    if (hashes[order][1:] == hashes[order][:-1]).any():
        return pc.sort_indices(pa.table({"hash": hashes, "id": ids}), sort_keys=[("hash", "ascending"), ("id", "ascending")]).to_numpy()
    return order


def split_rows(table: pa.Table, part: np.ndarray, num_parts: int) -> list[pa.Table]:
    """The rows of each part, in their order."""
    if num_parts == 1:
        return [table]
    # 16 bits: numpy sorts them by radix.
    order = np.argsort(part.astype(np.uint16) if num_parts <= 2**16 else part, kind="stable")
    ends = np.cumsum(np.bincount(part, minlength=num_parts))
    ordered = table.take(pa.array(order))
    return [ordered.slice(start, end - start) for start, end in zip([0, *ends[:-1]], ends, strict=True)]


def write_parts(uri: str, tables: Iterable[pa.Table]) -> dict[str, Any]:
    """One file with a table after the other, each an Arrow stream; returns `offsets` (one more than tables), `size_bytes` and `sha256`."""
    sink, offsets = pa.BufferOutputStream(), [0]
    for table in tables:
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
        offsets.append(sink.tell())
    return {"offsets": offsets, **write_buffer(uri, sink.getvalue())}


def write_buffer(uri: str, content: pa.Buffer) -> dict[str, Any]:
    """One file; returns its `size_bytes` and `sha256`."""
    write_bytes(uri, content)
    return {"size_bytes": content.size, "sha256": hashlib.sha256(content).hexdigest()}


def read_part(uri: str, offsets: Sequence[int] | np.ndarray, number: int) -> pa.Table:
    """Table `number` of a file of write_parts, without reading the others."""
    filesystem, path = open_storage(uri)
    with storage_failures("read", uri), filesystem.open_input_file(path) as file:
        start, stop = int(offsets[number]), int(offsets[number + 1])
        file.seek(start)
        content = read_piece(file, stop - start)
    return pa.ipc.open_stream(content).read_all()
