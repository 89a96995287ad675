"""The input tables: what a converter wrote or a user brought; checked at the door."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from medley.data.contract import conform, unify
from medley.data.footers import check_footers
from medley.manifest import find_manifest, fingerprint, hash_file, join_uri, list_folder, open_storage, read_manifest, verify_files
from medley.schema import InputError

logger = logging.getLogger(__name__)

TABLES_KIND = "tables"
TABLE_NAMES = ("items", "interactions", "users")
MAX_WARNINGS = 10


@dataclass(frozen=True)
class TableFile:
    """One Parquet file of a table, its row groups' sizes and the schema it is read as: that of its table."""

    uri: str
    name: str
    """`items/part-0.parquet`"""
    row_group_rows: tuple[int, ...]
    schema: pa.Schema

    @property
    def num_rows(self) -> int:
        """Rows of all row groups."""
        return sum(self.row_group_rows)


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


def read_table(files: tuple[TableFile, ...], columns: list[str]) -> pa.Table:
    """The named columns of a whole table."""
    return pa.concat_tables(piece for _, _, piece in iterate_pieces(files, columns))


def iterate_pieces(files: tuple[TableFile, ...], columns: list[str]) -> Iterator[tuple[int, int, pa.Table]]:
    """(place of the file among `files`, row in it of the piece's first row, the named columns) of each row group, one in memory at a time."""
    for number, file in enumerate(files):
        parquet, first_row = _open_parquet(file.uri), 0
        schema = pa.schema([file.schema.field(name) for name in columns])
        for group, num_rows in enumerate(file.row_group_rows):
            yield number, first_row, _read_group(parquet, file.uri, group, schema)
            first_row += num_rows


def iterate_rows(file: TableFile, first: int, stop: int) -> Iterator[dict]:
    """Rows first…stop of one file as dicts, one row group in memory at a time."""
    parquet, start = _open_parquet(file.uri), 0
    for group, num_rows in enumerate(file.row_group_rows):
        if start < stop and start + num_rows > first:
            piece = _read_group(parquet, file.uri, group, file.schema)
            yield from piece.slice(max(0, first - start), min(stop, start + num_rows) - max(first, start)).to_pylist()
        start += num_rows


def _read_group(parquet: pq.ParquetFile, uri: str, group: int, schema: pa.Schema) -> pa.Table:
    present = set(parquet.schema_arrow.names)
    with _refusing_damage(uri):
        piece = parquet.read_row_group(group, columns=[name for name in schema.names if name in present])
    return conform(piece, schema)


def _open_parquet(uri: str) -> pq.ParquetFile:
    filesystem, path = open_storage(uri)
    with _refusing_damage(uri):
        return pq.ParquetFile(path, filesystem=filesystem, page_checksum_verification=True)


@contextmanager
def _refusing_damage(uri: str) -> Iterator[None]:
    """What pyarrow raises for a damaged footer or page as an InputError that names the shard."""
    try:
        yield
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(f"shard '{uri}' cannot be read ({error})", "a whole Parquet file", "write it again, or remove it") from error


def _open_files(uri: str, table: str, names: list[str]) -> tuple[tuple[TableFile, ...], pa.Schema]:
    """All files of one table and the schema that they are read as."""
    opened = [(join_uri(uri, name), name, _open_parquet(join_uri(uri, name))) for name in names]
    schema, warnings = unify(table, [(file_uri, parquet.schema_arrow.remove_metadata()) for file_uri, _, parquet in opened])
    for warning in warnings[:MAX_WARNINGS]:
        logger.warning("tables | %s", warning)
    if len(warnings) > MAX_WARNINGS:
        logger.warning("tables | %d more of %s", len(warnings) - MAX_WARNINGS, table)
    files = []
    for file_uri, name, parquet in opened:
        sizes = tuple(parquet.metadata.row_group(group).num_rows for group in range(parquet.num_row_groups))
        files.append(TableFile(file_uri, name, sizes, schema))
    return tuple(files), schema
