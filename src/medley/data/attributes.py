"""The users table: its rows in parts by user id, bad and repeated ones reported."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from medley.data.partitions import partition_of, split_rows, stable_hash, write_parts
from medley.data.steps import StepFiles, Steps
from medley.data.tables import Piece, TableFile, pieces_of, read_piece
from medley.data.validate import Quarantine, check_user_ids
from medley.schema import USER_ID

FILE, ROW = "file", "row"
"""where a row stands: place of its file in the table, row in it"""
REPEAT_REASON = "user id stands in an earlier row; the first is kept"


@dataclass(frozen=True)
class Attributes:
    """The users table in parts. Tables 2k and 2k + 1 of each file: rows of part k (user_id, attribute columns), and where they stand."""

    rows: StepFiles
    file_names: tuple[str, ...]

    def of_part(self, part: int, quarantine: Quarantine) -> pa.Table:
        """The part's users, each once; rows with the id of an earlier one are reported."""
        table, places = self.rows.read_all(2 * part), self.rows.read_all(2 * part + 1)
        codes = table[USER_ID].combine_chunks().dictionary_encode().indices.to_numpy()
        is_repeat = np.ones(len(codes), dtype=bool)
        is_repeat[np.unique(codes, return_index=True)[1]] = False
        if not is_repeat.any():
            return table
        repeats = places.filter(pa.array(is_repeat))
        shards = [self.file_names[file] for file in repeats[FILE].to_pylist()]
        ids = table[USER_ID].filter(pa.array(is_repeat))
        quarantine.report("users", USER_ID, REPEAT_REASON, ids, shards, repeats[ROW].to_pylist(), is_fault=True)
        return table.filter(pa.array(~is_repeat))


def scatter_attributes(steps: Steps, files: Sequence[TableFile], columns: Sequence[str], num_parts: int, rows_per_partition: int) -> Attributes:
    """Run the step `attributes`. columns: those of the table, with user_id."""
    tasks = [(piece,) for piece in pieces_of(files, rows_per_partition)]
    reports = steps.run("attributes", scatter_rows, tasks, tuple(files), tuple(columns), num_parts)
    return Attributes(steps.files("attributes", reports), tuple(file.name for file in files))


def scatter_rows(uri: str, piece: Piece, files: Sequence[TableFile], columns: Sequence[str], num_parts: int) -> dict[str, Any]:
    """One piece's usable rows by part (a task)."""
    quarantine, file = Quarantine(), files[piece.file]
    table, rows = check_user_ids(read_piece(file, piece, columns), file.name, piece.first_row, quarantine)
    table = table.combine_chunks()
    places = pa.table({FILE: np.full(len(rows), piece.file, dtype=np.int32), ROW: rows.astype(np.int64)})
    part = partition_of(stable_hash(table[USER_ID].combine_chunks()), num_parts)
    both = zip(split_rows(table, part, num_parts), split_rows(places, part, num_parts), strict=True)
    return {**write_parts(uri, [own for pair in both for own in pair]), "quarantine": quarantine.as_json()}
