"""The tables as they were brought: contract, drift, damage and repeats, before any work. Footers first; then three columns of the log in pieces."""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from medley.data.contract import CONTRACTS, unify
from medley.data.findings import Finding
from medley.data.footers import check_footers
from medley.data.tables import TABLE_NAMES, TableFile, iterate_pieces
from medley.manifest import join_uri, list_folder, open_storage
from medley.schema import INTERACTIONS_SCHEMA, TIMESTAMP, USER_ID, InputError

MAX_COUNTED_ROWS = 5_000_000
"""Interactions whose hashes are held at once, 16 bytes each; of a longer log every row of a sample of the users is counted."""

ContractClass = Literal["compatible", "needs a mapping", "breaking", "unreadable"]
"""of a table's columns, as contract.py tells them apart; unreadable: a file is broken, so nobody knows"""


@dataclass(frozen=True)
class ColumnReport:
    """One column of a table, from the footers alone."""

    type: str
    num_missing: int | None
    """nulls; None where the footers do not say"""
    is_in_contract: bool


@dataclass
class TableReport:
    """One table."""

    num_files: int
    num_rows: int = 0
    size_bytes: int = 0
    contract: ContractClass = "compatible"
    columns: dict[str, ColumnReport] = field(default_factory=dict)
    first_time: str | None = None
    """earliest timestamp, ISO 8601"""
    last_time: str | None = None


@dataclass(frozen=True)
class RepeatsReport:
    """Exact repeats among the interactions: rows equal to an earlier one in every column."""

    num_counted_rows: int
    num_repeats: int
    num_users: int
    """of the counted rows"""
    one_user_in: int
    """1: all users were counted"""

    @property
    def how(self) -> str:
        """What was counted."""
        return "all rows" if self.one_user_in == 1 else f"all {self.num_counted_rows:,} rows of one user in {self.one_user_in}"


@dataclass
class TablesReport:
    """A tables folder."""

    uri: str
    tables: dict[str, TableReport] = field(default_factory=dict)
    repeats: RepeatsReport | None = None

    @property
    def is_readable(self) -> bool:
        """Whether all required tables are there and can be read by the contract."""
        return {"items", "interactions"} <= set(self.tables) and all(table.contract == "compatible" for table in self.tables.values())


def report_tables(uri: str, wanted_columns: Mapping[str, str], max_counted_rows: int = MAX_COUNTED_ROWS) -> tuple[TablesReport, list[Finding]]:
    """What is in a tables folder and what is wrong with it; never raises for what the tables hold.

    wanted_columns: setting → the column of the items table that it reads.
    """
    report, findings = TablesReport(uri), []
    files: dict[str, tuple[TableFile, ...]] = {}
    for table in TABLE_NAMES:
        names = [f"{table}/{entry}" for entry in list_folder(join_uri(uri, table)) if entry.endswith(".parquet")]
        if not names:
            if table != "users":
                findings.append(Finding("error", f"'{uri}/{table}/' has no .parquet file", "run jobs.convert first, or set inputs.tables to your folder"))
            continue
        report.tables[table] = TableReport(len(names))
        try:
            check_footers(uri, names)
        except InputError as error:
            report.tables[table].contract = "unreadable"
            findings.append(Finding.of_mistake(error))
            continue
        try:
            files[table] = _read_footers(uri, table, names, report.tables[table], findings)
        except InputError as error:
            report.tables[table].contract = "needs a mapping" if "rename it" in error.remedy else "breaking"
            findings.append(Finding.of_mistake(error))
    findings += _check_items(report, wanted_columns) if "items" in files else []
    findings += _check_times(report.tables["interactions"]) if "interactions" in files else []
    if "interactions" in files:
        try:
            report.repeats = count_repeats(files["interactions"], max_counted_rows)
        except InputError as error:
            findings.append(Finding.of_mistake(error))
        else:
            if report.repeats.num_repeats:
                share = report.repeats.num_repeats / report.repeats.num_counted_rows
                what = f"{report.repeats.num_repeats:,} interactions ({share:.1%}) are equal to an earlier row (counted: {report.repeats.how})"
                findings.append(Finding("warning", what, "jobs.prepare leaves them out; count events in the converter if repeats mean something"))
    if not findings:
        sizes = ", ".join(f"{table.num_rows:,} {name}" for name, table in report.tables.items())
        findings.append(Finding("ok", f"tables in '{uri}': {sizes}; columns as the contract says"))
    return report, findings


def _read_footers(uri: str, table: str, names: Sequence[str], report: TableReport, findings: list[Finding]) -> tuple[TableFile, ...]:
    filesystem, root = open_storage(uri)
    footers = []
    for name in names:
        path = f"{root}/{name}"
        with filesystem.open_input_file(path) as file:
            footers.append(pq.read_metadata(file))
        report.size_bytes += filesystem.get_file_info(path).size
        report.num_rows += footers[-1].num_rows
    schemas = [footer.schema.to_arrow_schema().remove_metadata() for footer in footers]
    schema, warnings = unify(table, [(join_uri(uri, name), schema) for name, schema in zip(names, schemas, strict=True)])
    findings += [Finding("warning", warning, "write all shards with one schema, unless it is meant") for warning in warnings]
    contract = CONTRACTS[table].names
    for column in schema:
        report.columns[column.name] = ColumnReport(str(column.type), _num_missing(footers, column.name), column.name in contract)
    if table == "interactions" and TIMESTAMP in schema.names:
        report.first_time, report.last_time = (str(moment) if moment is not None else None for moment in time_range(footers))
    return tuple(TableFile.of(join_uri(uri, name), name, footer, schema) for name, footer in zip(names, footers, strict=True))


def column_statistics(footer: pq.FileMetaData, column: str) -> list[Any]:
    """The statistics of a flat column in each row group, None where there are none; empty where the file lacks the column."""
    places = [place for place in range(footer.num_columns) if footer.schema.column(place).path.split(".")[0] == column]
    if len(places) != 1:
        return [] if not places else [None]
    chunks = (footer.row_group(group).column(places[0]) for group in range(footer.num_row_groups))
    return [chunk.statistics if chunk.is_stats_set else None for chunk in chunks]


def _num_missing(footers: Sequence[pq.FileMetaData], column: str) -> int | None:
    missing = 0
    for footer in footers:
        statistics = column_statistics(footer, column)
        if any(entry is None or not entry.has_null_count for entry in statistics):
            return None
        missing += sum(entry.null_count for entry in statistics) if statistics else footer.num_rows
    return missing


def time_range(footers: Sequence[pq.FileMetaData]) -> tuple[np.datetime64 | None, np.datetime64 | None]:
    """The earliest and latest timestamp (UTC) that the footers know of."""
    found = []
    for footer in footers:
        entries = column_statistics(footer, TIMESTAMP)
        if entries:
            unit = footer.schema.to_arrow_schema().field(TIMESTAMP).type.unit
            # Raw numbers: what stands there may be beyond the years that Python's dates know.
            found += [np.datetime64(raw, unit) for entry in entries if entry is not None and entry.has_min_max for raw in (entry.min_raw, entry.max_raw)]
    return (min(found), max(found)) if found else (None, None)


def _check_items(report: TablesReport, wanted_columns: Mapping[str, str]) -> list[Finding]:
    table = report.tables["items"]
    findings = []
    for setting, column in wanted_columns.items():
        if column not in table.columns:
            remedy = "correct the setting, or add the column"
            findings.append(Finding("error", f"{setting} reads column '{column}', the items have {', '.join(table.columns)}", remedy))
            continue
        missing = table.columns[column].num_missing
        if missing and missing > table.num_rows / 2:
            findings.append(Finding("warning", f"{missing:,} of {table.num_rows:,} items have no '{column}'", f"{setting} learns from the others alone"))
    return findings


def _check_times(table: TableReport) -> list[Finding]:
    if TIMESTAMP not in table.columns:
        return [
            Finding(
                "warning", "the interactions have no column 'timestamp'", "histories have no order and nothing can be split by time; add times if you have them"
            )
        ]
    missing = table.columns[TIMESTAMP].num_missing
    if missing:
        return [Finding("warning", f"{missing:,} of {table.num_rows:,} interactions have no timestamp", "times count only where every row has one")]
    if table.last_time is not None and np.datetime64(table.last_time) > np.datetime64("now"):
        return [Finding("warning", f"the newest interaction is of {table.last_time}, in the future", "are seconds read as another unit?")]
    return []


def count_repeats(files: tuple[TableFile, ...], max_counted_rows: int = MAX_COUNTED_ROWS) -> RepeatsReport:
    """Rows equal to an earlier one in every column of the contract, by 64-bit hashes, one row group in memory at a time.

    Above max_counted_rows every row of one user in k is counted, chosen by a hash of the id: repeats share their user, so none is torn apart.
    """
    num_rows = sum(file.num_rows for file in files)
    one_user_in = max(1, math.ceil(num_rows / max_counted_rows))
    names = [name for name in INTERACTIONS_SCHEMA.names if name in files[0].schema.names]
    rows, users = [], []
    for _, _, piece in iterate_pieces(files, names):
        user_hash = hash_column(piece[USER_ID])
        is_counted = user_hash % np.uint64(one_user_in) == 0
        combined = np.zeros(piece.num_rows, dtype=np.uint64)
        for name in names:
            combined = combined * np.uint64(0x9E3779B97F4A7C15) ^ (user_hash if name == USER_ID else hash_column(piece[name]))
            combined ^= combined >> np.uint64(29)
        rows.append(combined[is_counted])
        users.append(np.unique(user_hash[is_counted]))
    hashes = np.concatenate(rows)
    return RepeatsReport(len(hashes), len(hashes) - len(np.unique(hashes)), len(np.unique(np.concatenate(users))), one_user_in)


def hash_column(column: pa.ChunkedArray) -> np.ndarray:
    """(rows,) uint64: equal values have equal hashes; nulls have one of their own."""
    if pa.types.is_string(column.type):
        encoded = column.combine_chunks().dictionary_encode()
        values = encoded.dictionary.cast(pa.binary()).to_pylist()
        digests = [int.from_bytes(hashlib.blake2b(value, digest_size=8).digest(), "little") for value in values]
        codes = encoded.indices.fill_null(len(digests)).to_numpy(zero_copy_only=False)
        return np.array([*digests, 1], dtype=np.uint64)[codes]
    if pa.types.is_timestamp(column.type):
        column = column.cast(pa.int64())
    numbers = column.fill_null(0).to_numpy()
    bits = numbers.view(np.uint32 if numbers.itemsize == 4 else np.uint64).astype(np.uint64)
    # No 32-bit value reaches this number, and as a time it is the one furthest in the past.
    return np.where(column.is_null().to_numpy(), np.uint64(2**63), bits)
