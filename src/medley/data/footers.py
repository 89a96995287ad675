"""The pre-flight: every broken shard of the tables named at once, from a few bytes each, before any work."""

import base64
import os
import posixpath
import re
from collections.abc import Iterable

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from medley.manifest import join_uri, open_storage
from medley.schema import InputError
from medley.storage import storage_failures

MAX_ROW_GROUP_BYTES = 2**31
MAGIC, ENCRYPTED_MAGIC = b"PAR1", b"PARE"
NUM_NAMED = 20


def check_footers(root_uri: str, names: Iterable[str], max_row_group_bytes: int = MAX_ROW_GROUP_BYTES) -> None:
    """An InputError that names every shard (`items/part-0.parquet`) whose footer cannot be read or must not be."""
    filesystem, root = open_storage(root_uri)
    names = list(names)
    faults = [(name, fault) for name in names if (fault := _fault(filesystem, root, posixpath.join(root, name), max_row_group_bytes))]
    if faults:
        listed = "; ".join(f"shard '{join_uri(root_uri, name)}' cannot be read ({fault})" for name, fault in faults[:NUM_NAMED])
        more = f"; and {len(faults) - NUM_NAMED} more" if len(faults) > NUM_NAMED else ""
        raise InputError(f"{len(faults)} of {len(names)} shards are broken: {listed}{more}", "whole Parquet files", "write them again, or remove them")


def _fault(filesystem: pafs.FileSystem, root: str, path: str, max_row_group_bytes: int) -> str | None:
    """What is wrong with one shard, or None."""
    if isinstance(filesystem, pafs.LocalFileSystem) and not os.path.realpath(path).startswith(os.path.realpath(root) + os.sep):
        return f"a link to '{os.path.realpath(path)}', outside the tables folder"
    try:
        with storage_failures("read", path), filesystem.open_input_file(path) as file:
            fault = _footer_fault(file)
            if fault:
                return fault
            file.seek(0)
            metadata = pq.read_metadata(file)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:  # the last: damaged names, also within pyarrow's own message
        return str(error).splitlines()[0]
    if metadata.num_rows == 0:
        return "no rows"
    sizes = [metadata.row_group(group).total_byte_size for group in range(metadata.num_row_groups)]
    if max(sizes) > max_row_group_bytes:
        return f"row group {sizes.index(max(sizes))} holds {max(sizes):,} bytes, limit {max_row_group_bytes:,}; write smaller row groups"
    return None


def _footer_fault(file: pa.NativeFile) -> str | None:
    """What the raw bytes say, before any Parquet code reads them: an extension type's own code would run when the schema is read (CVE-2026-41486)."""
    size = file.size()
    if size == 0:
        return "empty file"
    head = file.read(4)
    if head not in (MAGIC, ENCRYPTED_MAGIC):
        return f"begins with {head!r}: no Parquet file"
    if size < 12:
        return f"cut after {size} bytes"
    file.seek(size - 8)
    tail = file.read(8)
    if ENCRYPTED_MAGIC in (head, tail[4:]):
        return "encrypted"
    if tail[4:] != MAGIC:
        return "does not end like a Parquet file: cut"
    length = int.from_bytes(tail[:4], "little")
    if length > size - 12:
        return f"footer of {length:,} bytes in a file of {size:,}"
    file.seek(size - 8 - length)
    # In Thrift's compact form the value of the key is a string: its type, its length as a varint, then the base64 of an Arrow schema.
    found = re.search(rb"ARROW:schema\x18[\x80-\xff]*[\x00-\x7f]([A-Za-z0-9+/=]+)", file.read(length))
    if found:
        name = re.search(rb"ARROW:extension:name", base64.b64decode(found[1][: len(found[1]) // 4 * 4]))
        if name:
            return "a column has an extension type; write its storage type"
    return None
