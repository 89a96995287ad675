"""All clean rows of a part's users together: their users in order, repeats and conflicts settled."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from medley.data.interactions import IS_TARGET, ROW, USER_CODE
from medley.data.partitions import crowded_rows, hash_order, mix, stable_hash, write_parts
from medley.data.repeats import ConflictRule, find_conflicts, find_repeats
from medley.data.selection import KEY
from medley.data.split import random_keys
from medley.data.steps import StepFiles
from medley.data.tables import Piece, TableFile
from medley.data.validate import MAX_ROWS_PER_REASON, Quarantine
from medley.schema import DWELL_SECONDS, EVENT, ITEM_INDEX, SPLIT, SPLITS, TIMESTAMP, USER_ID

PIECE = "piece"
"""number of the piece that a row stands in"""
HASH = "hash"
USERS_TABLE, ROWS_TABLE, KEYS_TABLE = 0, 1, 2
"""tables of a part's file"""
REPEAT_REASON = "equal to an earlier row"


@dataclass(frozen=True)
class Sources:
    """Where interactions stand: the files of the table, and the pieces that tasks read."""

    files: Sequence[TableFile]
    pieces: Sequence[Piece]


def settle_part(
    uri: str,
    part: int,
    clean: StepFiles,
    sources: Sources,
    conflicts: ConflictRule,
    has_split: bool,
    kind: str,
    seed: int,
) -> dict[str, Any]:
    """Write a part's users (user_id, hash; in order of both), its rows (as clean_piece leaves them, with their piece) and report them (a task).

    For the splits by time and at random a third table has the key that each row is cut by.

    1. The pieces' users become one list; 2. exact repeats leave; 3. of rows with one user, item, time (and split, where all rows have one) the rule
    keeps one. event and dwell_seconds have done their work then. split becomes the place among SPLITS (null: -1).
    """
    users = [clean.read(task, 2 * part)[USER_ID].combine_chunks() for task in range(len(clean))]
    tables = [clean.read(task, 2 * part + 1) for task in range(len(clean))]
    encoded = pa.concat_arrays(users).dictionary_encode()
    ids = encoded.dictionary
    hashes = stable_hash(ids)
    order = hash_order(hashes, ids)
    rank = np.empty(len(ids), dtype=np.int32)
    rank[order] = np.arange(len(ids))
    code_of_entry = rank[encoded.indices.to_numpy()]
    first_entry = np.concatenate([[0], np.cumsum([len(entries) for entries in users])])
    codes = np.concatenate([code_of_entry[start:][table[USER_CODE].to_numpy()] for start, table in zip(first_entry, tables, strict=False)])
    piece = np.repeat(np.arange(len(tables), dtype=np.int32), [table.num_rows for table in tables])
    table = pa.concat_tables(tables).set_column(0, USER_CODE, pa.array(codes)).append_column(PIECE, pa.array(piece))
    ids, hashes = ids.take(pa.array(order)), hashes[order]

    quarantine = Quarantine()
    keys = row_keys(hashes[codes], table)
    crowded = crowded_rows(keys)
    if crowded.any():
        is_dropped = np.zeros(table.num_rows, dtype=bool)
        some = _named(table.filter(pa.array(crowded)), ids)
        key = [USER_ID, ITEM_INDEX, TIMESTAMP, *([SPLIT] if has_split else [])] if TIMESTAMP in table.column_names else []
        contradicts = f"contradicts another row of its user, item and time (data.conflicts: {conflicts})"
        is_repeat = find_repeats(some.drop_columns([PIECE, ROW]))
        is_conflict = np.zeros_like(is_repeat)
        if key:
            is_conflict[~is_repeat] = find_conflicts(some.filter(pa.array(~is_repeat)), key, conflicts)
        for reason, mask in ((REPEAT_REASON, is_repeat), (contradicts, is_conflict)):
            report_left_out(some.filter(pa.array(mask)), some[USER_ID].filter(pa.array(mask)), "*", reason, sources, quarantine)
        is_dropped[np.flatnonzero(crowded)[is_repeat | is_conflict]] = True
        table, keys = table.filter(pa.array(~is_dropped)), keys[~is_dropped]
    if SPLIT in table.column_names:
        splits = pc.fill_null(pc.index_in(table[SPLIT].cast(pa.string()), value_set=pa.array(SPLITS)), -1).cast(pa.int8())
        table = table.set_column(table.column_names.index(SPLIT), SPLIT, splits)
    table = table.drop_columns([name for name in (EVENT, DWELL_SECONDS) if name in table.column_names]).combine_chunks()
    parts = [pa.table({USER_ID: ids, HASH: hashes}), table]
    if kind == "time":
        parts.append(pa.table({KEY: table[TIMESTAMP].cast(pa.int64())}))
    elif kind == "random":
        parts.append(pa.table({KEY: random_keys(keys, seed)}))
    num_targets = pc.sum(table[IS_TARGET]).as_py() or 0 if IS_TARGET in table.column_names else table.num_rows
    return {**write_parts(uri, parts), "num_rows": table.num_rows, "num_targets": num_targets, "quarantine": quarantine.as_json()}


def row_keys(user_hashes: np.ndarray, table: pa.Table) -> np.ndarray:
    """(rows,) uint64: equal for rows with equal user, item and time. user_hashes: of each row."""
    keys = mix(user_hashes, table[ITEM_INDEX].to_numpy())
    if TIMESTAMP in table.column_names:
        keys = mix(keys, pc.fill_null(table[TIMESTAMP].cast(pa.int64()), -1).to_numpy())
    return keys


def report_left_out(rows: pa.Table, ids: pa.Array | pa.ChunkedArray, column: str, reason: str, sources: Sources, quarantine: Quarantine) -> None:
    """Report rows that a rule of the configuration (no fault of theirs) leaves out. ids: their users."""
    if rows.num_rows == 0:
        return
    listed = rows.slice(0, MAX_ROWS_PER_REASON)
    piece_of_row = [sources.pieces[number] for number in listed[PIECE].to_numpy()]
    shards = [sources.files[piece.file].name for piece in piece_of_row]
    places = listed[ROW].to_numpy() + np.array([piece.first_row for piece in piece_of_row])
    quarantine.report("interactions", column, reason, ids, shards, places, is_fault=False)


def _named(table: pa.Table, ids: pa.Array) -> pa.Table:
    """The table with user ids, and strings where it had dictionaries, which each piece has of its own."""
    table = table.set_column(0, USER_ID, ids.take(table[USER_CODE].combine_chunks()))
    for name in (EVENT, SPLIT):
        if name in table.column_names:
            table = table.set_column(table.column_names.index(name), name, table[name].cast(pa.string()))
    return table
