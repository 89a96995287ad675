"""The input tables: what a converter wrote or a user brought; checked at the door."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches

import pyarrow as pa
import pyarrow.parquet as pq

from medley.manifest import find_manifest, fingerprint, hash_file, join_uri, list_folder, open_storage, read_manifest, verify_files
from medley.schema import AUDIO, IMAGE, INTERACTIONS_SCHEMA, ITEM_ID, TEXT, USER_ID, InputError

TABLES_KIND = "tables"


@dataclass(frozen=True)
class TableFile:
    """One Parquet file of a table and its row groups' sizes."""

    uri: str
    row_group_rows: tuple[int, ...]


@dataclass(frozen=True)
class Tables:
    """A checked tables folder. Files are in name order; every file of a table has the same schema."""

    uri: str
    identity: str
    items: tuple[TableFile, ...]
    interactions: tuple[TableFile, ...]
    users: tuple[TableFile, ...]
    items_schema: pa.Schema
    interactions_schema: pa.Schema
    users_schema: pa.Schema | None


def open_tables(uri: str) -> Tables:
    """Check a tables folder: whole where it has a manifest, readable Parquet, the columns and types of the contract.

    A folder without a manifest (brought by a user) is identified by the hashes of its files.
    """
    names = {name: [entry for entry in list_folder(join_uri(uri, name)) if entry.endswith(".parquet")] for name in ("items", "interactions", "users")}
    for name in ("items", "interactions"):
        if not names[name]:
            raise InputError(
                f"'{uri}/{name}/' has no .parquet file",
                "tables folder with items/ and interactions/",
                "run jobs.convert first, or set inputs.tables to your folder",
            )
    if find_manifest(uri) is not None:
        manifest = read_manifest(uri, TABLES_KIND)
        verify_files(uri, manifest)
        identity = manifest["fingerprint"]
    else:
        filesystem, root = open_storage(uri)
        identity = fingerprint([[name, entry, hash_file(filesystem, f"{root}/{name}/{entry}")] for name in sorted(names) for entry in names[name]])
    items, items_schema = _open_files(uri, "items", names["items"])
    interactions, interactions_schema = _open_files(uri, "interactions", names["interactions"])
    users, users_schema = _open_files(uri, "users", names["users"]) if names["users"] else ((), None)
    _check_items(items_schema, uri)
    _check_interactions(interactions_schema, uri)
    if users_schema is not None:
        _require_column(users_schema, USER_ID, pa.string(), f"{uri}/users")
    return Tables(uri, identity, items, interactions, users, items_schema, interactions_schema, users_schema)


def read_table(files: tuple[TableFile, ...], columns: list[str]) -> pa.Table:
    """The named columns of a whole table."""
    pieces = []
    for file in files:
        with _refusing_damage(file.uri):
            pieces.append(_open_parquet(file.uri).read(columns=columns))
    return pa.concat_tables(pieces)


def iterate_rows(file: TableFile, first: int, stop: int) -> Iterator[dict]:
    """Rows first…stop of one file as dicts, one row group in memory at a time."""
    parquet, start = _open_parquet(file.uri), 0
    for group, num_rows in enumerate(file.row_group_rows):
        if start < stop and start + num_rows > first:
            with _refusing_damage(file.uri):
                piece = parquet.read_row_group(group)
            yield from piece.slice(max(0, first - start), min(stop, start + num_rows) - max(first, start)).to_pylist()
        start += num_rows


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


def _open_files(uri: str, name: str, entries: list[str]) -> tuple[tuple[TableFile, ...], pa.Schema]:
    """Footers of all files of one table; a file whose columns differ from the first one's is an InputError."""
    files, schema = [], None
    for entry in entries:
        file_uri = join_uri(uri, name, entry)
        parquet = _open_parquet(file_uri)
        found = parquet.schema_arrow.remove_metadata()
        schema = schema or found
        if not found.equals(schema):
            changed = sorted({str(field) for field in found} ^ {str(field) for field in schema})
            raise InputError(f"shard '{file_uri}' differs in {changed[:4]}", f"the columns and types of '{entries[0]}'", "write all shards with one schema")
        files.append(TableFile(file_uri, tuple(parquet.metadata.row_group(group).num_rows for group in range(parquet.num_row_groups))))
    assert schema is not None
    return tuple(files), schema


def _require_column(schema: pa.Schema, name: str, type_: pa.DataType, place: str) -> None:
    if name not in schema.names:
        hint = get_close_matches(name, schema.names, n=1)
        raise InputError(
            f"table '{place}' has columns {', '.join(schema.names)}",
            f"a column '{name}' ({type_})",
            f"did you mean '{hint[0]}'? rename it" if hint else "add the column",
        )
    if schema.field(name).type != type_:
        raise InputError(f"column '{name}' of '{place}' has type {schema.field(name).type}", f"{type_}", "cast the column")


def _check_items(schema: pa.Schema, uri: str) -> None:
    place = f"{uri}/items"
    _require_column(schema, ITEM_ID, pa.string(), place)
    for name, type_ in ((TEXT, pa.string()), (IMAGE, pa.binary()), (AUDIO, pa.binary())):
        if name in schema.names:
            _require_column(schema, name, type_, place)


def _check_interactions(schema: pa.Schema, uri: str) -> None:
    for field in INTERACTIONS_SCHEMA:
        if not field.nullable or field.name in schema.names:
            _require_column(schema, field.name, field.type, f"{uri}/interactions")
