"""Raw items → clean ones: media decoded within limits, made small and encoded again; what cannot be used becomes null and is reported."""

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from medley.data.tables import Tables, iterate_rows
from medley.media import MediaConfig, MediaProcess
from medley.schema import AUDIO, IMAGE, ITEM_ID, TEXT

HASH_SUFFIX = "_sha256"
"""A shard's column NAME_sha256 holds the 32 bytes of the SHA-256 of each stored medium in column NAME, null where there is none."""

SILENT_AUDIO = "silent_audio"
"""Counted beside the columns' coverage: sounds that are silence or a constant. They are kept."""


@dataclass
class CleanedItems:
    """A shard's rows, and what was found in them."""

    table: pa.Table
    """item_id, the columns that encoders may read, a hash column per kind of medium"""
    coverage: Counter[str] = field(default_factory=Counter)
    """column → items that have it, and SILENT_AUDIO"""
    quarantine: list[dict[str, Any]] = field(default_factory=list)
    """values that cannot be used, as Quarantine.report_missing takes them"""


def clean_items(tables: Tables, media: MediaConfig, files: np.ndarray, rows: np.ndarray) -> CleanedItems:
    """The items at these places, clean. files, rows: (items,) number of the file and row in it, ascending.

    Media are decoded in a limited child process, which ends with the call. Undecodable media, blank texts and vectors that are not all finite
    numbers become null and are reported.
    """
    schema = _shard_schema(tables.items_schema)
    cleaned = CleanedItems(schema.empty_table())
    with MediaProcess(media) as process:
        pieces = [_clean_piece(piece, schema, process, cleaned) for piece in _read(tables, files, rows)]
    cleaned.table = pa.concat_tables([cleaned.table, *pieces])
    return cleaned


def _shard_schema(items_schema: pa.Schema) -> pa.Schema:
    """The id, the modality columns, and a hash column per kind of medium."""
    modalities = [field for field in items_schema if _is_modality(field)]
    columns = [pa.field(field.name, pa.large_binary() if pa.types.is_binary(field.type) else field.type) for field in modalities]
    hashes = [pa.field(name + HASH_SUFFIX, pa.binary(32)) for name in (IMAGE, AUDIO) if name in items_schema.names]
    return pa.schema([pa.field(ITEM_ID, pa.string()), *columns, *hashes])


def _is_modality(field: pa.Field) -> bool:
    """Columns an encoder may read: text, media, tags and vectors; other scalars are attributes and live in item_facts."""
    return field.name == TEXT or pa.types.is_binary(field.type) or pa.types.is_nested(field.type)


def _read(tables: Tables, files: np.ndarray, rows: np.ndarray) -> Iterator[pa.Table]:
    for number in np.unique(files).tolist():
        yield from iterate_rows(tables.items[number], rows[files == number])


def _clean_piece(piece: pa.Table, schema: pa.Schema, process: MediaProcess, cleaned: CleanedItems) -> pa.Table:
    """Rows of the tables as rows of a shard."""
    columns: dict[str, pa.Array | pa.ChunkedArray] = {}
    for name in piece.column_names:
        column = piece[name].combine_chunks()
        if name in (IMAGE, AUDIO):
            column, columns[name + HASH_SUFFIX] = _clean_media(name, column, piece[ITEM_ID], process, cleaned)
        elif name == TEXT:
            column = _without(column, _is_blank(column), "text is empty", name, piece[ITEM_ID], cleaned)
        elif _holds_floats(column.type):
            column = _without(column, _is_not_finite(column), "vector holds a null, NaN or infinite number", name, piece[ITEM_ID], cleaned)
        columns[name] = column
        if num_present := len(column) - column.null_count:
            cleaned.coverage[name] += num_present
    return pa.table([columns[field.name].cast(field.type) for field in schema], schema)


def _clean_media(name: str, column: pa.Array, ids: pa.ChunkedArray, process: MediaProcess, cleaned: CleanedItems) -> tuple[pa.Array, pa.Array]:
    """(stored media, their hashes)"""
    places = np.flatnonzero(column.is_valid())
    media = process.clean([(name, value) for value in column.drop_null().to_pylist()])
    for place, medium in zip(places, media, strict=True):
        if medium.content is None:
            _report(cleaned, ids[int(place)], name, medium.reason)
    cleaned.coverage[SILENT_AUDIO] += sum(medium.is_silent for medium in media)
    contents: list[bytes | None] = [None] * len(column)
    for place, medium in zip(places, media, strict=True):
        contents[place] = medium.content
    return pa.array(contents, pa.large_binary()), pa.array([None if value is None else hashlib.sha256(value).digest() for value in contents], pa.binary(32))


def _is_blank(texts: pa.Array) -> np.ndarray:
    """(rows,) bool"""
    return pc.fill_null(pc.equal(pc.utf8_trim_whitespace(texts), ""), False).to_numpy(zero_copy_only=False)


def _holds_floats(type_: pa.DataType) -> bool:
    return getattr(type_, "value_type", None) is not None and pa.types.is_floating(type_.value_type)


def _is_not_finite(vectors: pa.Array) -> np.ndarray:
    """(rows,) bool: lists of numbers that hold a null, NaN or infinity"""
    row_of_value = np.repeat(np.arange(len(vectors)), pc.fill_null(pc.list_value_length(vectors), 0).to_numpy())
    is_finite = pc.fill_null(pc.is_finite(pc.list_flatten(vectors)), False).to_numpy(zero_copy_only=False)
    is_bad = np.zeros(len(vectors), dtype=bool)
    is_bad[row_of_value[~is_finite]] = True
    return is_bad


def _without(column: pa.Array, is_bad: np.ndarray, reason: str, name: str, ids: pa.ChunkedArray, cleaned: CleanedItems) -> pa.Array:
    """The column with nulls for values that cannot be used."""
    if not is_bad.any():
        return column
    for place in np.flatnonzero(is_bad):
        _report(cleaned, ids[int(place)], name, reason)
    return column.take(pa.array(np.arange(len(column)), mask=is_bad))


def _report(cleaned: CleanedItems, id_: pa.Scalar, column: str, reason: str) -> None:
    cleaned.quarantine.append({"table": "items", "id": id_.as_py(), "column": column, "reason": reason, "num_rows": 1})
