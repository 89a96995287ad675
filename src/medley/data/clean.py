"""Raw items → clean ones: media decoded within limits, made small and encoded again; what cannot be used becomes null and is reported."""

import hashlib
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import pyarrow as pa

from medley.data.tables import Tables, iterate_rows
from medley.manifest import write_bytes
from medley.media import CleanMedium, MediaConfig, MediaProcess
from medley.schema import AUDIO, IMAGE, ITEM_ID, TEXT

HASH_SUFFIX = "_sha256"
"""A shard's column NAME_sha256 holds the 32 bytes of the SHA-256 of each stored medium in column NAME, null where there is none."""

SILENT_AUDIO = "silent_audio"
"""Counted beside the columns' coverage: sounds that are silence or a constant. They are kept."""

_ROWS_AT_ONCE = 32


def clean_shard(tables: Tables, media: MediaConfig, item_rows: Sequence[tuple[str, int, int]], uri: str) -> dict[str, Any]:
    """Clean one shard's items (a Ray task) and write it. item_rows: (item_id, file number, row in the file), consecutive in the files.

    Media are decoded in a limited child process, which ends with the task. Undecodable media, blank texts and vectors that are not all finite
    numbers become null and are reported. Returns coverage (column → items that have it, and SILENT_AUDIO) and quarantine rows.
    """
    quarantine: list[dict[str, Any]] = []
    coverage: Counter[str] = Counter()
    cleaned_rows = []
    vectors = {field.name for field in tables.items_schema if _holds_floats(field.type)}
    with MediaProcess(media) as process:
        raw_rows = _read_rows(tables, item_rows)
        while rows := list(islice(raw_rows, _ROWS_AT_ONCE)):
            for row, media_of_row in zip(rows, _clean_media(process, rows), strict=True):
                cleaned = {name: _clean_value(name, value, row[ITEM_ID], name in vectors, media_of_row, quarantine) for name, value in row.items()}
                coverage.update(name for name, value in cleaned.items() if value is not None)
                coverage[SILENT_AUDIO] += any(medium.is_silent for medium in media_of_row.values())
                hashes = {name + HASH_SUFFIX: hashlib.sha256(medium.content).digest() for name, medium in media_of_row.items() if medium.content is not None}
                cleaned_rows.append(cleaned | hashes)
    schema = _shard_schema(tables.items_schema)
    table = pa.Table.from_pylist(cleaned_rows, schema)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, schema) as writer:
        writer.write_table(table)
    write_bytes(uri, sink.getvalue().to_pybytes())
    return {"coverage": dict(coverage), "quarantine": quarantine}


def _shard_schema(items_schema: pa.Schema) -> pa.Schema:
    """The id, the modality columns, and a hash column per kind of medium."""
    modalities = [field for field in items_schema if _is_modality(field)]
    columns = [pa.field(field.name, pa.large_binary() if pa.types.is_binary(field.type) else field.type) for field in modalities]
    hashes = [pa.field(name + HASH_SUFFIX, pa.binary(32)) for name in (IMAGE, AUDIO) if name in items_schema.names]
    return pa.schema([pa.field(ITEM_ID, pa.string()), *columns, *hashes])


def _is_modality(field: pa.Field) -> bool:
    """Columns an encoder may read: text, media, tags and vectors; other scalars are attributes and live in item_facts."""
    return field.name == TEXT or pa.types.is_binary(field.type) or pa.types.is_nested(field.type)


def _read_rows(tables: Tables, item_rows: Sequence[tuple[str, int, int]]) -> Iterator[dict[str, Any]]:
    """The raw rows of these items, from the row groups that hold any of them."""
    for number in sorted({number for _, number, _ in item_rows}):
        yield from iterate_rows(tables.items[number], [row for _, file_number, row in item_rows if file_number == number])


def _holds_floats(type_: pa.DataType) -> bool:
    return getattr(type_, "value_type", None) is not None and pa.types.is_floating(type_.value_type)


def _clean_media(process: MediaProcess, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, CleanMedium]]:
    """Each row's clean media by column."""
    places = [(place, name) for place, row in enumerate(rows) for name in (IMAGE, AUDIO) if row.get(name) is not None]
    media: list[dict[str, CleanMedium]] = [{} for _ in rows]
    for (place, name), medium in zip(places, process.clean([(name, rows[place][name]) for place, name in places]), strict=True):
        media[place][name] = medium
    return media


def _clean_value(name: str, value: Any, item_id: str, is_vector: bool, media: Mapping[str, CleanMedium], quarantine: list[dict[str, Any]]) -> Any:
    """A value as training wants it, or None with a quarantine row that says why."""
    if value is None:
        return None
    reason = ""
    if name == TEXT and not value.strip():
        reason = "text is empty"
    elif is_vector and not all(number is not None and math.isfinite(number) for number in value):
        reason = "vector holds a null, NaN or infinite number"
    elif name in media:
        value, reason = media[name].content, media[name].reason
    if not reason:
        return value
    quarantine.append({"table": "items", "id": item_id, "column": name, "reason": reason, "num_rows": 1})
    return None
