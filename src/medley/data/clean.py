"""Raw items → clean ones: media decoded within limits, made small and encoded again; what cannot be used becomes null and is reported."""

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from medley.data.tables import Tables, iterate_rows
from medley.manifest import write_bytes
from medley.media import MediaConfig, MediaError, decode_audio, decode_image, encode_flac, encode_jpeg, shrink_image
from medley.schema import AUDIO, IMAGE, ITEM_ID, TEXT


def clean_shard(tables: Tables, media: MediaConfig, item_rows: Sequence[tuple[str, int, int]], uri: str) -> dict[str, Any]:
    """Clean one shard's items (a Ray task) and write it. item_rows: (item_id, file number, row in the file), consecutive in the files.

    Undecodable media, blank texts and vectors that are not all finite numbers become null and are reported.
    Returns coverage (column → items that have it) and quarantine rows.
    """
    quarantine: list[dict[str, Any]] = []
    coverage: Counter[str] = Counter()
    rows = []
    vectors = {field.name for field in tables.items_schema if _holds_floats(field.type)}
    for row in _read_rows(tables, item_rows):
        cleaned = {name: _clean_value(name, value, row[ITEM_ID], name in vectors, media, quarantine) for name, value in row.items()}
        coverage.update(name for name, value in cleaned.items() if value is not None)
        rows.append(cleaned)
    fields = [field for field in tables.items_schema if _is_modality(field)]
    schema = pa.schema([pa.field(ITEM_ID, pa.string()), *(pa.field(f.name, pa.large_binary() if pa.types.is_binary(f.type) else f.type) for f in fields)])
    table = pa.Table.from_pylist(rows, schema)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, schema) as writer:
        writer.write_table(table)
    write_bytes(uri, sink.getvalue().to_pybytes())
    return {"coverage": dict(coverage), "quarantine": quarantine}


def _is_modality(field: pa.Field) -> bool:
    """Columns an encoder may read: text, media, tags and vectors; other scalars are attributes and live in item_facts."""
    return field.name == TEXT or pa.types.is_binary(field.type) or pa.types.is_nested(field.type)


def _read_rows(tables: Tables, item_rows: Sequence[tuple[str, int, int]]) -> list[dict[str, Any]]:
    """The raw rows of these items; each file's range is read once and rows that were left out are skipped."""
    rows = []
    for number in sorted({number for _, number, _ in item_rows}):
        wanted = [row for _, file_number, row in item_rows if file_number == number]
        places = set(wanted)
        span = iterate_rows(tables.items[number], wanted[0], wanted[-1] + 1)
        rows += [row for place, row in enumerate(span, start=wanted[0]) if place in places]
    return rows


def _holds_floats(type_: pa.DataType) -> bool:
    return getattr(type_, "value_type", None) is not None and pa.types.is_floating(type_.value_type)


def _clean_value(name: str, value: Any, item_id: str, is_vector: bool, media: MediaConfig, quarantine: list[dict[str, Any]]) -> Any:
    """A value as training wants it, or None with a quarantine row that says why."""
    if value is None:
        return None
    reason = None
    if name == TEXT and not value.strip():
        reason = "text is empty"
    elif is_vector and not all(number is not None and math.isfinite(number) for number in value):
        reason = "vector holds a null, NaN or infinite number"
    elif name == IMAGE:
        try:
            return encode_jpeg(shrink_image(decode_image(value, media), media.image_max_side_pixels), media.image_quality)
        except MediaError as error:
            reason = str(error)
    elif name == AUDIO:
        try:
            return encode_flac(decode_audio(value, media), media.audio_sample_rate_hz)
        except MediaError as error:
            reason = str(error)
    if reason is None:
        return value
    quarantine.append({"table": "items", "id": item_id, "column": name, "reason": reason, "num_rows": 1})
    return None
