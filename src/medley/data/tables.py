"""The input tables: what a converter wrote or a user brought; checked at the door."""

import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from medley.data.contract import conform, unify
from medley.data.footers import check_footers
from medley.manifest import find_manifest, fingerprint, hash_file, join_uri, list_folder, open_storage, read_manifest, verify_files
from medley.schema import InputError
from medley.storage import storage_failures

logger = logging.getLogger(__name__)

TABLES_KIND = "tables"
TABLE_NAMES = ("items", "interactions", "users")
MAX_WARNINGS = 10
ROWS_PER_GROUP = 2**17
READ_BYTES = 2**23
"""of a table with media that is read bit by bit"""


@dataclass(frozen=True)
class TableFile:
    """One Parquet file of a table, its row groups' sizes and the schema it is read as: that of its table."""

    uri: str
    name: str
    """`items/part-0.parquet`"""
    row_group_rows: tuple[int, ...]
    size_bytes: int
    """of its values, before compression"""
    schema: pa.Schema

    @property
    def num_rows(self) -> int:
        """Rows of all row groups."""
        return sum(self.row_group_rows)

    @classmethod
    def of(cls, uri: str, name: str, footer: pq.FileMetaData, schema: pa.Schema) -> Self:
        """The file `uri`, as its footer says."""
        groups = [footer.row_group(group) for group in range(footer.num_row_groups)]
        return cls(uri, name, tuple(group.num_rows for group in groups), sum(group.total_byte_size for group in groups), schema)


@dataclass(frozen=True)
class Tables:
    """A checked tables folder. Files are in name order; every file of a table is read as the same schema."""

    uri: str
    identity: str
    items: tuple[TableFile, ...]
    interactions: tuple[TableFile, ...]
    users: tuple[TableFile, ...]
    items_schema: pa.Schema
    interactions_schema: pa.Schema
    users_schema: pa.Schema | None

    @property
    def num_rows(self) -> dict[str, int]:
        """Rows of each table."""
        return {name: sum(file.num_rows for file in getattr(self, name)) for name in TABLE_NAMES}


def open_tables(uri: str) -> Tables:
    """Check a tables folder: readable Parquet, whole where it has a manifest, the columns and types of the contract.

    A folder without a manifest (brought by a user) is identified by the hashes of its files.
    """
    names = {table: [f"{table}/{entry}" for entry in list_folder(join_uri(uri, table)) if entry.endswith(".parquet")] for table in TABLE_NAMES}
    manifest = read_manifest(uri, TABLES_KIND) if find_manifest(uri) is not None else None
    for table in ("items", "interactions"):
        if not names[table]:
            raise InputError(
                f"'{uri}/{table}/' has no .parquet file",
                "tables folder with items/ and interactions/",
                "run jobs.convert first, or set inputs.tables to your folder",
            )
    found = [name for table in TABLE_NAMES for name in names[table]]
    check_footers(uri, found)
    if manifest is not None:
        if strange := sorted(set(found) - set(manifest["files"])):
            raise InputError(f"shard '{uri}/{strange[0]}' is not in the manifest of '{uri}'", "only what the converter wrote", "remove it, or convert again")
        if outside := [name for name in manifest["files"] if ".." in name.split("/") or name.startswith("/")]:
            raise InputError(f"the manifest of '{uri}' names '{outside[0]}'", "files inside the folder", "convert again")
        verify_files(uri, manifest)
        identity = manifest["fingerprint"]
    else:
        filesystem, root = open_storage(uri)
        identity = fingerprint([[name, hash_file(filesystem, f"{root}/{name}")] for name in sorted(found)])
    items, items_schema = _open_files(uri, "items", names["items"])
    interactions, interactions_schema = _open_files(uri, "interactions", names["interactions"])
    users, users_schema = _open_files(uri, "users", names["users"]) if names["users"] else ((), None)
    return Tables(uri, identity, items, interactions, users, items_schema, interactions_schema, users_schema)


@dataclass(frozen=True)
class Piece:
    """Row groups of one file that follow one another: what a task reads at once."""

    file: int
    """place among the table's files"""
    groups: tuple[int, ...]
    first_row: int
    """row in the file of the first one"""
    num_rows: int


def pieces_of(files: Sequence[TableFile], max_rows: int) -> list[Piece]:
    """The pieces of a table, in order, of `max_rows` at most where row groups are smaller."""
    pieces = []
    for number, file in enumerate(files):
        groups: list[int] = []
        first_row = num_rows = 0
        for group, size in enumerate(file.row_group_rows):
            if groups and num_rows + size > max_rows:
                pieces.append(Piece(number, tuple(groups), first_row, num_rows))
                groups, first_row, num_rows = [], first_row + num_rows, 0
            groups.append(group)
            num_rows += size
        pieces.append(Piece(number, tuple(groups), first_row, num_rows))
    return pieces


def read_piece(file: TableFile, piece: Piece, columns: Sequence[str], encoded: Sequence[str] = ()) -> pa.Table:
    """The named columns of a piece, those in `encoded` as dictionaries of strings: few values instead of many rows."""
    encoded = [name for name in columns if name in encoded]
    parquet = _open_parquet(file.uri, encoded)
    present = set(parquet.schema_arrow.names)
    with _refusing_damage(file.uri):
        table = parquet.read_row_groups(list(piece.groups), columns=[name for name in columns if name in present])
    plain = conform(table, pa.schema([file.schema.field(name) for name in columns if name not in encoded]))
    return pa.table({name: _as_dictionary(table, name) if name in encoded else plain[name] for name in columns})


def write_tables(uri: str, tables: Iterable[pa.Table], schema: pa.Schema) -> None:
    """One Parquet file of tables that follow one another, in row groups of ROWS_PER_GROUP: the same bytes however the rows are cut into tables."""
    filesystem, path = open_storage(uri)
    with storage_failures("write", uri), pq.ParquetWriter(path, schema, filesystem=filesystem, write_page_checksum=True) as writer:
        waiting = schema.empty_table()
        for table in tables:
            waiting = pa.concat_tables([waiting, table])
            while waiting.num_rows >= ROWS_PER_GROUP:
                writer.write_table(waiting.slice(0, ROWS_PER_GROUP).combine_chunks())
                waiting = waiting.slice(ROWS_PER_GROUP)
        if waiting.num_rows:
            writer.write_table(waiting.combine_chunks())


def _as_dictionary(table: pa.Table, name: str) -> pa.DictionaryArray:
    """A column of strings of any form as one dictionary array, nulls among its indices."""
    if name not in table.column_names:
        return pa.nulls(table.num_rows, pa.string()).dictionary_encode()
    column = table[name]
    if not pa.types.is_dictionary(column.type):
        column = column.cast(pa.string()).dictionary_encode()
    ids = column.unify_dictionaries().combine_chunks()
    ids = ids.chunk(0) if isinstance(ids, pa.ChunkedArray) else ids
    return pa.DictionaryArray.from_arrays(ids.indices.cast(pa.int32()), ids.dictionary.cast(pa.string()))


def iterate_pieces(files: tuple[TableFile, ...], columns: list[str]) -> Iterator[tuple[int, int, pa.Table]]:
    """(place of the file among `files`, row in it of the piece's first row, the named columns) of each row group, one in memory at a time."""
    for number, file in enumerate(files):
        parquet, first_row = _open_parquet(file.uri), 0
        schema = pa.schema([file.schema.field(name) for name in columns])
        for group, num_rows in enumerate(file.row_group_rows):
            yield number, first_row, _read_group(parquet, file.uri, group, schema)
            first_row += num_rows


def iterate_rows(file: TableFile, rows: np.ndarray) -> Iterator[pa.Table]:
    """These rows of one file, in their order, about READ_BYTES in memory at a time, from the row groups that hold any of them. rows: ascending."""
    starts = np.cumsum([0, *file.row_group_rows])
    groups = [group for group, (first, stop) in enumerate(pairwise(starts)) if np.searchsorted(rows, first) < np.searchsorted(rows, stop)]
    parquet, columns = _open_parquet(file.uri), set(file.schema.names)
    present = [name for name in parquet.schema_arrow.names if name in columns]
    batch_size = max(1, READ_BYTES * file.num_rows // max(READ_BYTES, file.size_bytes))
    for group in groups:
        start, last = starts[group], rows[np.searchsorted(rows, starts[group + 1]) - 1]
        with _refusing_damage(file.uri):
            for batch in parquet.iter_batches(batch_size, row_groups=[group], columns=present):
                own = rows[np.searchsorted(rows, start) : np.searchsorted(rows, start + batch.num_rows)]
                if len(own):
                    yield conform(pa.Table.from_batches([batch]).take(pa.array(own - start)), file.schema)
                start += batch.num_rows
                if start > last:
                    break


def _read_group(parquet: pq.ParquetFile, uri: str, group: int, schema: pa.Schema) -> pa.Table:
    present = set(parquet.schema_arrow.names)
    with _refusing_damage(uri):
        piece = parquet.read_row_group(group, columns=[name for name in schema.names if name in present])
    return conform(piece, schema)


def _open_parquet(uri: str, encoded: Sequence[str] = ()) -> pq.ParquetFile:
    filesystem, path = open_storage(uri)
    with _refusing_damage(uri):
        return pq.ParquetFile(path, filesystem=filesystem, page_checksum_verification=True, read_dictionary=list(encoded) or None)


@contextmanager
def _refusing_damage(uri: str) -> Iterator[None]:
    """What pyarrow raises for a damaged footer or page as an InputError that names the shard."""
    try:
        with storage_failures("read", uri):
            yield
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(f"shard '{uri}' cannot be read ({error})", "a whole Parquet file", "write it again, or remove it") from error


def open_file(uri: str, name: str) -> TableFile:
    """A Parquet file of ours, to be read in pieces as it is."""
    parquet = _open_parquet(join_uri(uri, name))
    return TableFile.of(join_uri(uri, name), name, parquet.metadata, parquet.schema_arrow)


def _open_files(uri: str, table: str, names: list[str]) -> tuple[tuple[TableFile, ...], pa.Schema]:
    """All files of one table and the schema that they are read as."""
    opened = [(join_uri(uri, name), name, _open_parquet(join_uri(uri, name))) for name in names]
    schema, warnings = unify(table, [(file_uri, parquet.schema_arrow.remove_metadata()) for file_uri, _, parquet in opened])
    for warning in warnings[:MAX_WARNINGS]:
        logger.warning("tables | %s", warning)
    if len(warnings) > MAX_WARNINGS:
        logger.warning("tables | %d more of %s", len(warnings) - MAX_WARNINGS, table)
    return tuple(TableFile.of(file_uri, name, parquet.metadata, schema) for file_uri, name, parquet in opened), schema
