"""Rows into Parquet files of a table, one row group in memory at a time; and the rows that were left out, with the reason."""

import posixpath
from collections.abc import Mapping
from typing import Any, Self

import pyarrow as pa
import pyarrow.parquet as pq

from medley import schema
from medley.manifest import StagedFolder, open_storage

ITEMS_PER_GROUP, ITEMS_PER_FILE = 100, 1_000
"""Items carry media: a row group is what is held in memory at once, here and in prepare."""
ROWS_PER_GROUP, ROWS_PER_FILE = 100_000, 2_000_000


class TableWriter:
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


class Quarantine(TableWriter):
    """The rows of `quarantine.parquet`, and the first reason of each table for the message when nothing is left."""

    def __init__(self, stage: StagedFolder):
        super().__init__(stage, "quarantine.parquet", {field.name: field.type for field in schema.QUARANTINE_SCHEMA}, ROWS_PER_GROUP)
        self.first_reasons: dict[str, str] = {}

    def report(self, table: str, identity: str, column: str, reason: str, num_rows: int = 1) -> None:
        """Add one row of the quarantine."""
        self.first_reasons.setdefault(table, f"{identity}: {reason}")
        self.add({"table": table, "id": identity, "column": column or None, "reason": reason, "num_rows": num_rows})
