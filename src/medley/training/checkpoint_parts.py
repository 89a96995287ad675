"""Tensors in slices: what one rank owns of a training's state, written as one safetensors file; read by name and range, whoever wrote what.

A slice is a run of consecutive elements of a tensor that is thought of as flat, row by row. ZeRO shards so, sharded tables own consecutive rows, and
unsharded tensors are dealt out whole. Long slices are cut into pieces of PIECE_ELEMENTS, each with its own checksum, so that a reader who wants a part
reads little else.
"""

import hashlib
import json
import math
import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor

from medley.manifest import join_uri, open_storage, write_bytes, write_stream
from medley.schema import InputError
from medley.storage import read_piece, storage_failures

PIECE_ELEMENTS = 1 << 22
"""Most elements of a piece: 16 MB of float32."""

SAFETENSORS_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
DTYPES = {name: dtype for dtype, name in SAFETENSORS_NAMES.items()}


@dataclass(frozen=True)
class TensorSlice:
    """Elements `start`, `start + 1`, … of the flat tensor `name`."""

    name: str
    """of a parameter or buffer; NAME/STATE for an optimiser's state of a parameter"""
    shape: tuple[int, ...]
    """of the whole tensor"""
    start: int
    values: Tensor
    """1-D, on the CPU, and nobody else's"""


@dataclass(frozen=True)
class Snapshot:
    """What one rank owns of a training's state at one moment, and the number of optimiser steps taken."""

    slices: list[TensorSlice]
    num_steps: int


@dataclass(frozen=True)
class Entry:
    """One tensor of a safetensors file."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def size_bytes(self) -> int:
        """Of its values."""
        return math.prod(self.shape) * self.dtype.itemsize


def write_safetensors(uri: str, entries: Iterable[Entry], values: Callable[[str], Tensor]) -> tuple[dict[str, Any], dict[str, tuple[int, int]]]:
    """Write a safetensors file with one tensor in memory at a time; values(name) is asked for each, in the order they stand.

    Returns the file's size and SHA-256 as manifests hold them, and for each name where it begins in the file and the CRC-32 of its bytes.
    """
    ordered = sorted(entries, key=lambda entry: (-entry.dtype.itemsize, entry.name))  # each begins at a multiple of its element's size
    header, offset = {}, 0
    for entry in ordered:
        header[entry.name] = {
            "dtype": SAFETENSORS_NAMES[entry.dtype],
            "shape": list(entry.shape),
            "data_offsets": [offset, offset + entry.size_bytes],
        }
        offset += entry.size_bytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    digest, size_bytes, places = hashlib.sha256(), 0, {}
    with write_stream(uri) as stream:
        for piece in (len(text).to_bytes(8, "little"), text):
            stream.write(piece)
            digest.update(piece)
            size_bytes += len(piece)
        for entry in ordered:
            tensor = values(entry.name)
            assert tensor.dtype == entry.dtype, entry.name
            assert tensor.numel() * entry.dtype.itemsize == entry.size_bytes, entry.name
            content = _bytes_of(tensor)
            stream.write(content)
            digest.update(content)
            places[entry.name] = (size_bytes, zlib.crc32(content))
            size_bytes += entry.size_bytes
    return {"size_bytes": size_bytes, "sha256": digest.hexdigest()}, places


def _bytes_of(tensor: Tensor) -> memoryview:
    return tensor.detach().contiguous().flatten().view(torch.uint8).numpy().data


def write_part(folder: str, number: int, slices: Iterable[TensorSlice]) -> None:
    """Write part-NUMBER.safetensors, then its index part-NUMBER.json, which says that the part is whole and what is in it.

    Once the index is there rank 0 may rename the folder: nothing must follow it.
    """
    pieces, tensors = {}, {}
    for owned in slices:
        tensors[owned.name] = {"shape": list(owned.shape), "dtype": SAFETENSORS_NAMES[owned.values.dtype]}
        for start in range(0, len(owned.values), PIECE_ELEMENTS):
            pieces[f"{owned.name}@{owned.start + start}"] = (owned.name, owned.start + start, owned.values[start : start + PIECE_ELEMENTS])
    entries = [Entry(key, (len(values),), values.dtype) for key, (_, _, values) in pieces.items()]
    file, places = write_safetensors(join_uri(folder, part_file(number)), entries, lambda key: pieces[key][2])
    flush(join_uri(folder, part_file(number)))
    rows = [(name, start, len(values), *places[key]) for key, (name, start, values) in pieces.items()]
    write_bytes(join_uri(folder, index_file(number)), json.dumps({"file": file, "tensors": tensors, "pieces": rows}).encode())


def flush(*uris: str) -> None:
    """Have files and folders of a local disk survive a power cut from here on; other storage promises that by itself."""
    for uri in uris:
        filesystem, path = open_storage(uri)
        if filesystem.type_name == "local":
            with storage_failures("flush", uri):
                descriptor = os.open(path, os.O_RDONLY)
                try:
                    os.fsync(descriptor)
                finally:
                    os.close(descriptor)


def part_file(number: int) -> str:
    """Name of a part."""
    return f"part-{number:05d}.safetensors"


def index_file(number: int) -> str:
    """Name of a part's index."""
    return f"part-{number:05d}.json"


@dataclass(frozen=True)
class _Piece:
    start: int
    length: int
    part: int
    offset_bytes: int
    crc32: int


class StoredState:
    """The tensors of a checkpoint by name, read when they are asked for; each piece is checked against its checksum as it is read."""

    def __init__(self, folder: str, indices: Iterable[Mapping[str, Any]], num_steps: int):
        """indices: what stands in part-00000.json, part-00001.json, …. num_steps: optimiser steps taken."""
        self.folder = folder
        self.num_steps = num_steps
        self.entries: dict[str, Entry] = {}
        pieces: dict[str, list[_Piece]] = {}
        for part, index in enumerate(indices):
            for name, facts in index["tensors"].items():
                entry = Entry(name, tuple(facts["shape"]), DTYPES[facts["dtype"]])
                assert self.entries.setdefault(name, entry) == entry, name
            for name, *place in index["pieces"]:
                start, length, offset_bytes, crc32 = place
                pieces.setdefault(name, []).append(_Piece(start, length, part, offset_bytes, crc32))
        self.pieces = {name: sorted(pieces.get(name, []), key=lambda piece: piece.start) for name in self.entries}
        self._check_cover()
        self._files: dict[int, pa.NativeFile] = {}

    def _check_cover(self) -> None:
        """Ranks that disagree about who owns what are our mistake, and must not end in a checkpoint."""
        for name, entry in self.entries.items():
            end = 0
            for piece in self.pieces[name]:
                assert piece.start == end, f"element {end} of '{name}' is {'missing' if piece.start > end else 'there twice'}"
                end += piece.length
            assert end == math.prod(entry.shape), f"'{name}' ends at {end}"

    def weights(self) -> Iterator[Entry]:
        """The parameters and buffers."""
        return (entry for name, entry in self.entries.items() if "/" not in name)

    def __contains__(self, name: str) -> bool:
        return name in self.entries

    def tensor(self, name: str) -> Tensor:
        """A whole tensor."""
        return self.read(name, 0, math.prod(self.entries[name].shape)).view(self.entries[name].shape)

    def read(self, name: str, start: int, stop: int) -> Tensor:
        """Elements start … stop - 1 of a flat tensor. A piece whose bytes changed is an InputError."""
        values = torch.empty(stop - start, dtype=self.entries[name].dtype)
        for piece in self.pieces[name]:
            first, last = max(start, piece.start), min(stop, piece.start + piece.length)
            if first < last:
                values[first - start : last - start] = self._read_piece(name, piece)[first - piece.start : last - piece.start]
        return values

    def _read_piece(self, name: str, piece: _Piece) -> Tensor:
        dtype, uri = self.entries[name].dtype, join_uri(self.folder, part_file(piece.part))
        with storage_failures("read", uri):
            if piece.part not in self._files:
                filesystem, path = open_storage(uri)
                self._files[piece.part] = filesystem.open_input_file(path)
            file = self._files[piece.part]
            file.seek(piece.offset_bytes)
            content = read_piece(file, piece.length * dtype.itemsize)
        if zlib.crc32(content) != piece.crc32:
            raise InputError(
                f"'{name}' in '{uri}' has CRC-32 {zlib.crc32(content):08x} in elements {piece.start} to {piece.start + piece.length - 1}",
                f"{piece.crc32:08x}",
                "the file was changed or damaged after it was verified, or on its way: run the same command again",
            )
        return torch.frombuffer(bytearray(content), dtype=dtype)
