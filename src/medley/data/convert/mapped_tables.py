"""A raw folder and a mapping → items, interactions and users tables: what every converter of files goes through.

A converter gives the mapping (read from YAML or made in code for a published layout) and the rows of each file. `write_mapped_tables`
    1. scans items and users once: are the named fields there, which attributes are numbers,
    2. streams items, users and interactions into shards; what stays in memory is the ids, one piece of rows and its media and vectors,
    3. keeps good rows and reports every bad row and every absent media file in quarantine.parquet; or refuses the first bad row.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from typing import Any

import pyarrow as pa

from medley import schema
from medley.data.convert.catalogue_mapping import CatalogueMapping, Constant, InteractionsMapping, ItemsMapping, UsersMapping
from medley.data.convert.feature_files import open_features
from medley.data.convert.field_values import (
    NUMBER,
    BadValue,
    read_attributes,
    read_dwell,
    read_float,
    read_id,
    read_new_id,
    read_split,
    read_string,
    read_tags,
    read_timestamp,
)
from medley.data.convert.media_files import NUM_READERS, fill_media, media_path
from medley.data.convert.row_files import RowReader, bad_line, read_rows
from medley.data.convert.table_files import ITEMS_PER_FILE, ITEMS_PER_GROUP, ROWS_PER_FILE, ROWS_PER_GROUP, Quarantine, TableWriter
from medley.manifest import StagedFolder
from medley.schema import InputError


@dataclass(frozen=True)
class RawFolder:
    """Where the files are, how their rows are read, and what a bad row means."""

    uri: str
    read_rows: RowReader = read_rows
    refuses_bad_rows: bool = False
    """True for published data sets, where a bad row means a damaged copy: an InputError with file and line instead of quarantine"""


def write_mapped_tables(folder: RawFolder, mapping: CatalogueMapping, stage: StagedFolder) -> dict[str, int]:
    """Write `items/`, `interactions/`, `users/` (when mapped) and `quarantine.parquet` into the staged folder; returns counts of rows.

    A missing file, a field that no row has and a table without one good row are InputErrors. Of items or users with the same id the first is
    kept. Interactions with unknown items are left out and reported once per item, with their number.
    """
    with Quarantine(stage) as quarantine:
        item_ids, counts = _write_items(folder, mapping.items, stage, quarantine)
        counts["num_interactions"] = _write_interactions(folder, mapping.interactions, item_ids, mapping.items.file, stage, quarantine)
        if mapping.users is not None:
            counts["num_users"] = _write_users(folder, mapping.users, stage, quarantine)
    return {**counts, "num_quarantined": quarantine.num_rows}


def _write_items(folder: RawFolder, mapping: ItemsMapping, stage: StagedFolder, quarantine: Quarantine) -> tuple[set[str], dict[str, int]]:
    types = _attribute_types(folder, "items", mapping)
    item_ids: set[str] = set()

    def convert(row: Mapping[str, Any]) -> dict[str, Any]:
        item: dict[str, Any] = {schema.ITEM_ID: read_new_id(row, mapping.id, schema.ITEM_ID, item_ids)}
        if mapping.title:
            item[schema.TITLE] = read_string(row, mapping.title, schema.TITLE)
        if mapping.text:
            texts = (read_string(row, field, schema.TEXT) for field in mapping.text_fields())
            item[schema.TEXT] = mapping.text_separator.join(filter(None, texts)) or None
        item |= {column: read_tags(row, column, mapping) for column in mapping.tags}
        item |= read_attributes(row, mapping.attributes, types)
        item |= {modality: media_path(row, modality, source) for modality, source in mapping.media().items()}
        item_ids.add(item[schema.ITEM_ID])
        return item

    counts = Counter({f"num_items_with_{name}": 0 for name in (*mapping.media(), *mapping.features)})
    rows = _good_rows(folder, "items", mapping, convert, quarantine, mapping.id)
    with ExitStack() as open_files:
        features = {name: open_files.enter_context(open_features(folder.uri, name, source)) for name, source in mapping.features.items()}
        columns = _item_columns(mapping, types) | {name: vectors.column_type for name, vectors in features.items()}
        writer = open_files.enter_context(TableWriter(stage, "items/part-{:05d}.parquet", columns, ITEMS_PER_GROUP, ITEMS_PER_FILE))
        readers = open_files.enter_context(ThreadPoolExecutor(NUM_READERS))
        while piece := list(islice(rows, ITEMS_PER_GROUP)):
            for modality in mapping.media():
                counts[f"num_items_with_{modality}"] += fill_media(folder.uri, piece, modality, readers, quarantine)
            for name, vectors in features.items():
                counts[f"num_items_with_{name}"] += vectors.fill(piece, name)
            for item in piece:
                writer.add(item)
        for name, vectors in features.items():
            counts[f"num_unknown_ids_of_{name}"] = vectors.report_unknown(item_ids)
    return item_ids, {"num_items": _some_rows(writer, "items", mapping.file, quarantine), **counts}


def _item_columns(mapping: ItemsMapping, types: dict[str, pa.DataType]) -> dict[str, pa.DataType]:
    """Column -> type, of all item columns but the precomputed vectors."""
    columns: dict[str, pa.DataType] = {schema.ITEM_ID: pa.string()}
    columns |= {schema.TITLE: pa.string()} if mapping.title else {}
    columns |= {schema.TEXT: pa.string()} if mapping.text else {}
    return columns | {column: pa.list_(pa.string()) for column in mapping.tags} | types | {modality: pa.binary() for modality in mapping.media()}


def _write_users(folder: RawFolder, mapping: UsersMapping, stage: StagedFolder, quarantine: Quarantine) -> int:
    types = _attribute_types(folder, "users", mapping)
    user_ids: set[str] = set()

    def convert(row: Mapping[str, Any]) -> dict[str, Any]:
        user = {schema.USER_ID: read_new_id(row, mapping.id, schema.USER_ID, user_ids), **read_attributes(row, mapping.attributes, types)}
        user_ids.add(user[schema.USER_ID])
        return user

    with TableWriter(stage, "users/part-{:05d}.parquet", {schema.USER_ID: pa.string()} | types, ROWS_PER_GROUP, ROWS_PER_FILE) as writer:
        for user in _good_rows(folder, "users", mapping, convert, quarantine, mapping.id):
            writer.add(user)
    return _some_rows(writer, "users", mapping.file, quarantine)


def _write_interactions(
    folder: RawFolder, mapping: InteractionsMapping, item_ids: set[str], items_file: str, stage: StagedFolder, quarantine: Quarantine
) -> int:
    unknown_items: Counter[str] = Counter()

    def convert(row: Mapping[str, Any]) -> dict[str, Any] | None:
        user_id, item_id = read_id(row, mapping.user, schema.USER_ID), read_id(row, mapping.item, schema.ITEM_ID)
        if item_id not in item_ids:
            unknown_items[item_id] += 1
            return None
        interaction: dict[str, Any] = {schema.USER_ID: user_id, schema.ITEM_ID: item_id}
        if mapping.timestamp:
            interaction[schema.TIMESTAMP] = read_timestamp(row, mapping.timestamp, mapping.timestamp_format)
        if mapping.event is not None:
            event = mapping.event
            interaction[schema.EVENT] = event.constant if isinstance(event, Constant) else read_string(row, event, schema.EVENT)
        if mapping.value:
            interaction[schema.VALUE] = read_float(row, mapping.value, schema.VALUE)
        if mapping.dwell_seconds:
            interaction[schema.DWELL_SECONDS] = read_dwell(row, mapping.dwell_seconds)
        if mapping.split:
            interaction[schema.SPLIT] = read_split(row, mapping.split)
        return interaction

    columns = {field.name: field.type for field in schema.INTERACTIONS_SCHEMA if getattr(mapping, field.name.removesuffix("_id")) is not None}
    with TableWriter(stage, "interactions/part-{:05d}.parquet", columns, ROWS_PER_GROUP, ROWS_PER_FILE) as writer:
        for interaction in _good_rows(folder, "interactions", mapping, convert, quarantine):
            writer.add(interaction)
    for item_id, num_rows in unknown_items.items():
        quarantine.report("interactions", item_id, schema.ITEM_ID, f"no item of {items_file} has this id", num_rows)
    return _some_rows(writer, "interactions", mapping.file, quarantine)


def _good_rows(
    folder: RawFolder,
    table: str,
    mapping: ItemsMapping | UsersMapping | InteractionsMapping,
    convert: Callable[[Mapping[str, Any]], dict[str, Any] | None],
    quarantine: Quarantine,
    id_field: str = "",
) -> Iterator[dict[str, Any]]:
    """The converted rows of a file; bad ones go to quarantine under the row's id or else its line, or are refused."""
    for line_number, row in folder.read_rows(folder.uri, mapping.file, table, mapping.fields()):
        try:
            if isinstance(row, str):
                raise BadValue("", row)
            converted = convert(row)
        except BadValue as bad:
            if folder.refuses_bad_rows:
                raise bad_line(folder.uri, mapping.file, line_number, str(bad), bad.column) from None
            has_id = id_field and bad.column not in (schema.ITEM_ID, schema.USER_ID)
            identity = str(row[id_field]) if isinstance(row, dict) and has_id else f"line {line_number}"
            quarantine.report(table, identity, bad.column, str(bad))
            continue
        if converted is not None:
            yield converted


def _attribute_types(folder: RawFolder, table: str, mapping: ItemsMapping | UsersMapping) -> dict[str, pa.DataType]:
    """Arrow type of each attribute column: double when all of its values are plain numbers that a double holds exactly, else string."""
    seen: set[str] = set()
    not_numbers: set[str] = set()
    for _, row in folder.read_rows(folder.uri, mapping.file, table, mapping.fields()):
        for column, field in mapping.attributes.items():
            value = None if isinstance(row, str) else row.get(field)
            if value is None or not str(value).strip() or column in not_numbers:
                continue
            seen.add(column)
            text = "" if isinstance(value, bool) else str(value)
            if not NUMBER.fullmatch(text) or abs(float(text)) > 2**53:
                not_numbers.add(column)
    return {column: pa.float64() if column in seen - not_numbers else pa.string() for column in mapping.attributes}


def _some_rows(writer: TableWriter, table: str, file: str, quarantine: Quarantine) -> int:
    """The number of rows written; none at all is an InputError with the first reason."""
    if writer.num_rows == 0:
        reason = f", first reason: {quarantine.first_reasons[table]}" if table in quarantine.first_reasons else ""
        raise InputError(f"file '{file}' has no usable row{reason}", f"at least one good row for {table}", "correct the file or the mapping")
    return writer.num_rows
