"""A folder of items, media and interactions to tables, by a mapping file: one converter for every catalogue that needs no code of its own.

The mapping (catalogue_mapping.py; examples in jobs/mappings) says which file and which field each column comes from. `write_tables`
    1. scans items and users once: are the named fields there, which attributes are numbers,
    2. streams items, users and interactions into shards; what stays in memory is the ids, one piece of rows and its media,
    3. keeps good rows and reports every bad row and every absent media file in quarantine.parquet.
"""

import json
import posixpath
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import Any, Literal, Self

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict

from medley import schema
from medley.data.convert.catalogue_mapping import PLACEHOLDER, Constant, InteractionsMapping, ItemsMapping, UsersMapping, inside, read_mapping
from medley.data.convert.row_files import read_rows
from medley.manifest import StagedFolder, open_storage
from medley.media import MediaConfig
from medley.schema import InputError

ITEMS_PER_GROUP, ITEMS_PER_FILE = 100, 1_000
"""Items carry media: a row group is what is held in memory at once, here and in prepare."""
ROWS_PER_GROUP, ROWS_PER_FILE = 100_000, 2_000_000
NUM_READERS = 16
"""Threads that read media files; an object store takes tens of milliseconds for each."""

_NUMBER = re.compile(r"-?(0|[1-9]\d*)(\.\d+)?([eE][+-]?\d+)?")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_FLOAT32_MAX = float(np.finfo(np.float32).max)


class CatalogueConfig(BaseModel):
    """A raw folder and the mapping file that describes it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["catalogue"] = "catalogue"
    raw: str
    """Folder (path or URI) with the items file, the interactions file and the media."""
    mapping: str
    """Path or URI of the mapping YAML."""


class _BadRow(ValueError):
    """Why a row, or one media file of it, is left out."""

    def __init__(self, column: str, reason: str):
        super().__init__(reason)
        self.column = column


def write_tables(config: CatalogueConfig, stage: StagedFolder) -> dict[str, int]:
    """Write `items/`, `interactions/`, `users/` (when mapped) and `quarantine.parquet` into the staged folder; returns counts of rows.

    A missing file, a field that no row has and a table without one good row are InputErrors. Of items or users with the same id the first is
    kept. Interactions with unknown items are left out and reported once per item, with their number.
    """
    mapping = read_mapping(config.mapping)
    with _Quarantine(stage) as quarantine:
        item_ids, counts = _write_items(config.raw, mapping.items, stage, quarantine)
        counts["num_interactions"] = _write_interactions(config.raw, mapping.interactions, item_ids, mapping.items.file, stage, quarantine)
        if mapping.users is not None:
            counts["num_users"] = _write_users(config.raw, mapping.users, stage, quarantine)
    return {**counts, "num_quarantined": quarantine.num_rows}


def _write_items(raw: str, mapping: ItemsMapping, stage: StagedFolder, quarantine: "_Quarantine") -> tuple[set[str], dict[str, int]]:
    types = _attribute_types(raw, "items", mapping)
    columns: dict[str, pa.DataType] = {schema.ITEM_ID: pa.string()}
    columns |= {schema.TITLE: pa.string()} if mapping.title else {}
    columns |= {schema.TEXT: pa.string()} if mapping.text else {}
    columns |= {column: pa.list_(pa.string()) for column in mapping.tags} | types | {modality: pa.binary() for modality in mapping.media()}
    item_ids: set[str] = set()

    def convert(row: Mapping[str, Any]) -> dict[str, Any]:
        item: dict[str, Any] = {schema.ITEM_ID: _new_id(row, mapping.id, schema.ITEM_ID, item_ids)}
        if mapping.title:
            item[schema.TITLE] = _string(row, mapping.title, schema.TITLE)
        if mapping.text:
            item[schema.TEXT] = mapping.text_separator.join(filter(None, (_string(row, field, schema.TEXT) for field in mapping.text_fields()))) or None
        item |= {column: _tags(row, column, mapping) for column in mapping.tags}
        item |= _attributes(row, mapping.attributes, types)
        item |= {modality: _media_path(row, modality, source) for modality, source in mapping.media().items()}
        item_ids.add(item[schema.ITEM_ID])
        return item

    counts = Counter({f"num_items_with_{modality}": 0 for modality in mapping.media()})
    rows = _good_rows(raw, "items", mapping, convert, quarantine, mapping.id)
    with _Writer(stage, "items/part-{:05d}.parquet", columns, ITEMS_PER_GROUP, ITEMS_PER_FILE) as writer, ThreadPoolExecutor(NUM_READERS) as readers:
        while piece := list(islice(rows, ITEMS_PER_GROUP)):
            for modality in mapping.media():
                counts[f"num_items_with_{modality}"] += _fill_media(raw, piece, modality, readers, quarantine)
            for item in piece:
                writer.add(item)
    return item_ids, {"num_items": _some_rows(writer, "items", mapping.file, quarantine), **counts}


def _write_users(raw: str, mapping: UsersMapping, stage: StagedFolder, quarantine: "_Quarantine") -> int:
    types = _attribute_types(raw, "users", mapping)
    user_ids: set[str] = set()

    def convert(row: Mapping[str, Any]) -> dict[str, Any]:
        user = {schema.USER_ID: _new_id(row, mapping.id, schema.USER_ID, user_ids), **_attributes(row, mapping.attributes, types)}
        user_ids.add(user[schema.USER_ID])
        return user

    with _Writer(stage, "users/part-{:05d}.parquet", {schema.USER_ID: pa.string()} | types, ROWS_PER_GROUP, ROWS_PER_FILE) as writer:
        for user in _good_rows(raw, "users", mapping, convert, quarantine, mapping.id):
            writer.add(user)
    return _some_rows(writer, "users", mapping.file, quarantine)


def _write_interactions(raw: str, mapping: InteractionsMapping, item_ids: set[str], items_file: str, stage: StagedFolder, quarantine: "_Quarantine") -> int:
    unknown_items: Counter[str] = Counter()

    def convert(row: Mapping[str, Any]) -> dict[str, Any] | None:
        user_id, item_id = _id(row, mapping.user, schema.USER_ID), _id(row, mapping.item, schema.ITEM_ID)
        if item_id not in item_ids:
            unknown_items[item_id] += 1
            return None
        interaction: dict[str, Any] = {schema.USER_ID: user_id, schema.ITEM_ID: item_id}
        if mapping.timestamp:
            interaction[schema.TIMESTAMP] = _timestamp(row, mapping.timestamp, mapping.timestamp_format)
        if mapping.event is not None:
            event = mapping.event
            interaction[schema.EVENT] = event.constant if isinstance(event, Constant) else _string(row, event, schema.EVENT)
        if mapping.value:
            interaction[schema.VALUE] = _float(row, mapping.value, schema.VALUE)
        if mapping.dwell_seconds:
            interaction[schema.DWELL_SECONDS] = _dwell(row, mapping.dwell_seconds)
        if mapping.split:
            interaction[schema.SPLIT] = _split(row, mapping.split)
        return interaction

    columns = {field.name: field.type for field in schema.INTERACTIONS_SCHEMA if getattr(mapping, field.name.removesuffix("_id")) is not None}
    with _Writer(stage, "interactions/part-{:05d}.parquet", columns, ROWS_PER_GROUP, ROWS_PER_FILE) as writer:
        for interaction in _good_rows(raw, "interactions", mapping, convert, quarantine):
            writer.add(interaction)
    for item_id, num_rows in unknown_items.items():
        quarantine.report("interactions", item_id, schema.ITEM_ID, f"no item of {items_file} has this id", num_rows)
    return _some_rows(writer, "interactions", mapping.file, quarantine)


def _good_rows(
    raw: str,
    table: str,
    mapping: ItemsMapping | UsersMapping | InteractionsMapping,
    convert: Callable[[Mapping[str, Any]], dict[str, Any] | None],
    quarantine: "_Quarantine",
    id_field: str = "",
) -> Iterator[dict[str, Any]]:
    """The converted rows of a file; bad ones go to quarantine under the row's id or else its line."""
    for line_number, row in read_rows(raw, mapping.file, table, mapping.fields()):
        if isinstance(row, str):
            quarantine.report(table, f"line {line_number}", "", row)
            continue
        try:
            converted = convert(row)
        except _BadRow as bad:
            has_id = id_field and bad.column not in (schema.ITEM_ID, schema.USER_ID)
            quarantine.report(table, str(row[id_field]) if has_id else f"line {line_number}", bad.column, str(bad))
            continue
        if converted is not None:
            yield converted


def _attribute_types(raw: str, table: str, mapping: ItemsMapping | UsersMapping) -> dict[str, pa.DataType]:
    """Arrow type of each attribute column: double when all of its values are plain numbers that a double holds exactly, else string."""
    seen: set[str] = set()
    not_numbers: set[str] = set()
    for _, row in read_rows(raw, mapping.file, table, mapping.fields()):
        for column, field in mapping.attributes.items():
            value = None if isinstance(row, str) else row.get(field)
            if value is None or not str(value).strip() or column in not_numbers:
                continue
            seen.add(column)
            text = "" if isinstance(value, bool) else str(value)
            if not _NUMBER.fullmatch(text) or abs(float(text)) > 2**53:
                not_numbers.add(column)
    return {column: pa.float64() if column in seen - not_numbers else pa.string() for column in mapping.attributes}


def _string(row: Mapping[str, Any], field: str, column: str) -> str | None:
    """The field as text, None when it is absent, null or blank; a list of texts is joined by spaces, other structures stay JSON."""
    value = row.get(field)
    if value is None:
        return None
    if isinstance(value, list) and all(isinstance(entry, str) for entry in value):
        value = " ".join(value)
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError:
        raise _BadRow(column, f"field '{field}' is not valid UTF-8") from None
    return text if text.strip() else None


def _id(row: Mapping[str, Any], field: str, column: str) -> str:
    value = row.get(field)
    if isinstance(value, (bool, float, list, dict)):
        raise _BadRow(column, f"field '{field}' is no string or whole number")
    text = _string(row, field, column)
    if text is None:
        raise _BadRow(column, f"field '{field}' is empty")
    return text


def _new_id(row: Mapping[str, Any], field: str, column: str, known: set[str]) -> str:
    text = _id(row, field, column)
    if text in known:
        raise _BadRow(column, f"'{text[:100]}' is the id of an earlier row")
    return text


def _tags(row: Mapping[str, Any], column: str, mapping: ItemsMapping) -> list[str] | None:
    source, value = mapping.tags[column], None
    field = source if isinstance(source, str) else source.field
    value = row.get(field)
    if isinstance(value, str) and not isinstance(source, str):
        value = [tag.strip() for tag in value.split(source.separator)]
    elif isinstance(value, str) and value.startswith("["):
        try:
            value = json.loads(value)
        except ValueError:
            raise _BadRow(column, f"field '{field}' begins like a JSON list and is none") from None
    if value is not None and not isinstance(value, list):
        value = [value]
    tags = [_string({field: tag}, field, column) for tag in value or ()]
    return [tag for tag in tags if tag] or None


def _attributes(row: Mapping[str, Any], attributes: Mapping[str, str], types: Mapping[str, pa.DataType]) -> dict[str, Any]:
    texts = {column: _string(row, field, column) for column, field in attributes.items()}
    return {column: float(text) if text is not None and types[column] == pa.float64() else text for column, text in texts.items()}


def _float(row: Mapping[str, Any], field: str, column: str) -> float | None:
    text = _string(row, field, column)
    if text is None:
        return None
    try:
        number = float(text)
    except ValueError:
        raise _BadRow(column, f"'{text[:100]}' is not a number") from None
    if not abs(number) <= _FLOAT32_MAX:
        raise _BadRow(column, f"{text[:100]} is not a finite number of 32 bits")
    return number


def _dwell(row: Mapping[str, Any], field: str) -> float | None:
    seconds = _float(row, field, schema.DWELL_SECONDS)
    if seconds is not None and seconds < 0:
        raise _BadRow(schema.DWELL_SECONDS, f"{seconds:g} seconds are negative")
    return seconds


def _split(row: Mapping[str, Any], field: str) -> str | None:
    split = _string(row, field, schema.SPLIT)
    if split is not None and split not in schema.SPLITS:
        raise _BadRow(schema.SPLIT, f"'{split[:100]}' is none of {', '.join(schema.SPLITS)}")
    return split


def _timestamp(row: Mapping[str, Any], field: str, timestamp_format: str) -> datetime:
    """The time in UTC; an absent one is as bad as an unreadable one, because the split by time has no place for it."""
    text = _string(row, field, schema.TIMESTAMP)
    if text is None:
        raise _BadRow(schema.TIMESTAMP, f"field '{field}' is empty")
    try:
        if timestamp_format in ("seconds", "milliseconds"):
            # timedelta keeps microseconds and refuses NaN, infinity and years after 9999: milliseconds read as seconds end there.
            return _EPOCH + timedelta(**{timestamp_format: float(text)})
        moment = datetime.fromisoformat(text) if timestamp_format == "iso" else datetime.strptime(text, timestamp_format)
        return moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)
    except (ValueError, OverflowError):
        raise _BadRow(schema.TIMESTAMP, f"'{text[:100]}' is not a time of the format {timestamp_format}") from None


def _media_path(row: Mapping[str, Any], modality: str, source: str) -> str | None:
    """The relative path of a media file; None when a field it is made of is empty."""
    if "{" not in source:
        return _string(row, source, modality)
    values = {field: _string(row, field, modality) for field in PLACEHOLDER.findall(source)}
    return None if None in values.values() else PLACEHOLDER.sub(lambda match: values[match[1]] or "", source)


def _fill_media(raw: str, items: list[dict[str, Any]], modality: str, readers: ThreadPoolExecutor, quarantine: "_Quarantine") -> int:
    """Replace the paths in the items' column `modality` by the files' bytes, or by None with a report; returns how many have bytes."""
    filesystem, root = open_storage(raw)
    limit_bytes = MediaConfig().max_size_bytes

    def read(path: str | None) -> bytes | _BadRow | None:
        if path is None:
            return None
        try:
            full_path = posixpath.join(root, inside(path))
            info = filesystem.get_file_info(full_path)
            if info.type != pafs.FileType.File:
                return _BadRow(modality, f"file {path} does not exist")
            if not 0 < info.size <= limit_bytes:
                return _BadRow(modality, f"file {path} has {info.size} bytes, limit {limit_bytes}")
            with filesystem.open_input_file(full_path) as stream:
                return stream.read()
        except (ValueError, OSError) as error:
            return _BadRow(modality, f"file {path[:200]} cannot be read ({str(error)[:300]})")

    for item, content in zip(items, readers.map(read, [item[modality] for item in items]), strict=True):
        if isinstance(content, _BadRow):
            quarantine.report("items", item[schema.ITEM_ID], modality, str(content))
        item[modality] = content if isinstance(content, bytes) else None
    return sum(item[modality] is not None for item in items)


def _some_rows(writer: "_Writer", table: str, file: str, quarantine: "_Quarantine") -> int:
    """The number of rows written; none at all is an InputError with the first reason."""
    if writer.num_rows == 0:
        reason = f", first reason: {quarantine.first_reasons[table]}" if table in quarantine.first_reasons else ""
        raise InputError(f"file '{file}' has no usable row{reason}", f"at least one good row for {table}", "correct the file or the mapping")
    return writer.num_rows


class _Writer:
    """Rows into one Parquet file, or into numbered ones: `name` has a place for the number. One row group is held in memory."""

    def __init__(self, stage: StagedFolder, name: str, columns: Mapping[str, pa.DataType], rows_per_group: int, rows_per_file: int | None = None):
        self.stage, self.name, self.rows_per_group, self.rows_per_file = stage, name, rows_per_group, rows_per_file
        self.schema = pa.schema([pa.field(column, kind, nullable=column not in (schema.ITEM_ID, schema.USER_ID)) for column, kind in columns.items()])
        self.num_rows = 0
        self._group: list[dict[str, Any]] = []
        self._file: pq.ParquetWriter | None = None
        self._num_files = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._group or self._num_files == 0:
            self._flush()
        if self._file is not None:
            self._file.close()

    def add(self, row: dict[str, Any]) -> None:
        """Write one row; a full group goes to the file."""
        self._group.append(row)
        self.num_rows += 1
        if len(self._group) == self.rows_per_group:
            self._flush()

    def _flush(self) -> None:
        if self._file is None:
            filesystem, path = open_storage(self.stage.path(self.name.format(self._num_files)))
            filesystem.create_dir(posixpath.dirname(path), recursive=True)
            texts = [field.name for field in self.schema if not pa.types.is_binary(field.type)]
            self._file = pq.ParquetWriter(path, self.schema, filesystem=filesystem, write_page_checksum=True, use_dictionary=texts)
            self._num_files += 1
        self._file.write_table(pa.Table.from_pylist(self._group, self.schema))
        self._group = []
        if self.rows_per_file and self.num_rows % self.rows_per_file == 0:
            self._file.close()
            self._file = None


class _Quarantine(_Writer):
    """The rows of `quarantine.parquet`, and the first reason of each table for the message when nothing is left."""

    def __init__(self, stage: StagedFolder):
        super().__init__(stage, "quarantine.parquet", {field.name: field.type for field in schema.QUARANTINE_SCHEMA}, ROWS_PER_GROUP)
        self.first_reasons: dict[str, str] = {}

    def report(self, table: str, identity: str, column: str, reason: str, num_rows: int = 1) -> None:
        """Add one row of the quarantine."""
        self.first_reasons.setdefault(table, f"{identity}: {reason}")
        self.add({"table": table, "id": identity, "column": column or None, "reason": reason, "num_rows": num_rows})
