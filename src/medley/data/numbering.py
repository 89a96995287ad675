"""Item ids → numbers from 0 in the order of their first rows, and the ids' own places in the tables; no process holds all ids.

With a base set its items keep their numbers, the others follow. Steps, each a list of tasks: 1. `item_ids`, `base_items`: ids go to parts by
hash; 2. `item_firsts`: in each part of equal ids the first row is kept; 3. `item_places`: what was kept stands in order of the numbers again.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from medley.data.base import BaseSet
from medley.data.partitions import num_partitions, partition_of, split_rows, stable_hash, write_parts
from medley.data.split import SplitConfig, held_out_parts
from medley.data.steps import StepFiles, Steps
from medley.data.tables import Piece, TableFile, Tables, pieces_of, read_piece
from medley.data.validate import Quarantine, check_item_ids
from medley.schema import ITEM_ID, ITEM_INDEX

FILE, ROW, ORDER = "file", "row", "order"
"""where an item stands: place of its file in the table (-1: in none), row in it; ORDER: what a part is sorted by"""
HELD_OUT = "held_out"
ITEMS_PER_TABLE = 2**13
"""so that a shard's task reads a few hundred kilobytes of them"""
REPEAT_REASON = "item id stands in an earlier row; the first is kept"


@dataclass(frozen=True)
class ItemNumbers:
    """The finished numbering. File k of `places` holds the items from number starts[k] on, ITEMS_PER_TABLE in a table: item_id, file, row, held_out."""

    places: StepFiles
    starts: tuple[int, ...]
    """one more than there are files; the last is the number of items"""

    @property
    def num_items(self) -> int:
        """Items of the catalogue."""
        return self.starts[-1]

    def find(self, ids: pa.Array) -> np.ndarray:
        """(ids,) int32: the number of each item id, -1 for unknown ones. One file of ids is in memory at a time."""
        numbers = np.full(len(ids), -1, dtype=np.int32)
        for task, start in enumerate(self.starts[:-1]):
            place = pc.fill_null(pc.index_in(ids, value_set=self._read(task)[ITEM_ID].combine_chunks()), -1).to_numpy()
            numbers = np.where(place >= 0, place + np.int32(start), numbers)
        return numbers

    def rows(self, first: int, stop: int) -> pa.Table:
        """item_id, file, row of the items first…stop, in order of their numbers."""
        files = range(int(np.searchsorted(self.starts, first, side="right")) - 1, int(np.searchsorted(self.starts, stop, side="left")))
        return pa.concat_tables(self._read(file, max(first - self.starts[file], 0), stop - self.starts[file]) for file in files)

    def held_out(self) -> np.ndarray:
        """(N,) int8: the split of each item that is held out of train, else -1."""
        return np.concatenate([self._read(file)[HELD_OUT].to_numpy() for file in range(len(self.places))])

    def _read(self, file: int, first: int = 0, stop: int | None = None) -> pa.Table:
        """Rows first…stop of a file, reading only the tables that hold them."""
        num_rows = self.starts[file + 1] - self.starts[file]
        stop = num_rows if stop is None else min(stop, num_rows)
        tables = range(first // ITEMS_PER_TABLE, max(1, -(-stop // ITEMS_PER_TABLE)))
        start = tables[0] * ITEMS_PER_TABLE
        return pa.concat_tables(self.places.read(file, table) for table in tables).slice(first - start, stop - first)


def number_items(steps: Steps, tables: Tables, base: BaseSet | None, split: SplitConfig, seed: int, rows_per_partition: int) -> ItemNumbers:
    """Run the steps."""
    num_rows = sum(file.num_rows for file in tables.items) + (base.num_items if base else 0)
    num_parts = num_partitions(num_rows, rows_per_partition)
    pieces = pieces_of(tables.items, rows_per_partition)
    found = steps.run("item_ids", scatter_item_ids, [(piece,) for piece in pieces], tables, num_parts)
    known = scatter_ids(steps, "base_items", base.item_files, [ITEM_ID, ITEM_INDEX], num_parts, rows_per_partition) if base else None
    num_chunks = num_partitions(base.num_items, rows_per_partition) if base else 0
    shared = (tables, pieces, steps.files("item_ids", found), known, num_chunks, rows_per_partition)
    kept = steps.files("item_firsts", steps.run("item_firsts", keep_first, [(part,) for part in range(num_parts)], *shared))
    places = steps.run("item_places", place_items, [(number,) for number in range(num_chunks + len(pieces))], kept, split, seed)
    starts = np.concatenate([[0], np.cumsum([report["num_rows"] for report in places])])
    return ItemNumbers(steps.files("item_places", places), tuple(starts.tolist()))


def scatter_ids(steps: Steps, step: str, files: Sequence[TableFile], columns: Sequence[str], num_parts: int, rows_per_partition: int) -> StepFiles:
    """The columns of a table, of which the first is an id, in parts by its hash. For tables of ours: every row has an id."""
    pieces = pieces_of(files, rows_per_partition)
    reports = steps.run(step, scatter_piece, [(piece,) for piece in pieces], tuple(files), tuple(columns), num_parts)
    return steps.files(step, reports)


def scatter_piece(uri: str, piece: Piece, files: Sequence[TableFile], columns: Sequence[str], num_parts: int) -> dict[str, Any]:
    """One piece's rows by part (a task)."""
    table = read_piece(files[piece.file], piece, columns).combine_chunks()
    part = partition_of(stable_hash(table[columns[0]].combine_chunks()), num_parts)
    return write_parts(uri, split_rows(table, part, num_parts))


def scatter_item_ids(uri: str, piece: Piece, tables: Tables, num_parts: int) -> dict[str, Any]:
    """One piece's usable item ids and their rows by part (a task)."""
    quarantine, file = Quarantine(), tables.items[piece.file]
    table, rows = check_item_ids(read_piece(file, piece, [ITEM_ID]), file.name, piece.first_row, quarantine)
    table = table.append_column(ROW, pa.array(rows.astype(np.int64))).combine_chunks()
    part = partition_of(stable_hash(table[ITEM_ID].combine_chunks()), num_parts)
    return {**write_parts(uri, split_rows(table, part, num_parts)), "quarantine": quarantine.as_json()}


def keep_first(
    uri: str, part: int, tables: Tables, pieces: Sequence[Piece], found: StepFiles, known: StepFiles | None, num_chunks: int, chunk_size: int
) -> dict[str, Any]:
    """The first of equal ids of a part (a task): a table per chunk of the base's numbers, then one per piece, with the new items alone."""
    own = [found.read(task, part) for task in range(len(found))]
    base = [known.read(task, part) for task in range(len(known))] if known else []
    num_base = sum(table.num_rows for table in base)
    ids = pa.chunked_array([table[ITEM_ID].combine_chunks() for table in [*base, *own]], pa.string()).combine_chunks()
    codes = ids.dictionary_encode().indices.to_numpy()
    # Codes are given in order of first rows, so that an id is new where its code is; the base's ids come first and are all different.
    place = np.arange(num_base, len(ids))
    order = np.argsort(codes[num_base:], kind="stable")
    is_first = np.zeros(len(place), dtype=bool)
    is_first[order] = np.append(True, np.diff(codes[num_base:][order]) != 0)[: len(order)]
    is_new = is_first & (codes[num_base:] >= num_base)

    quarantine, rows, start = Quarantine(), np.concatenate([table[ROW].to_numpy() for table in own]), 0
    piece_of_row = np.repeat(np.arange(len(own)), [table.num_rows for table in own])
    for piece, table in zip(pieces, own, strict=True):
        is_repeat = ~is_first[start : start + table.num_rows]
        if is_repeat.any():
            repeats = table.filter(pa.array(is_repeat))
            shard = tables.items[piece.file].name
            quarantine.report("items", ITEM_ID, REPEAT_REASON, repeats[ITEM_ID], [shard] * repeats.num_rows, repeats[ROW].to_numpy(), is_fault=True)
        start += table.num_rows
    file_of_row = np.array([piece.file for piece in pieces], dtype=np.int32)[piece_of_row]
    kept = pa.table({ITEM_ID: ids.take(pa.array(place)), FILE: pa.array(file_of_row), ROW: rows, ORDER: rows})
    new = split_rows(kept.filter(pa.array(is_new)), piece_of_row[is_new], len(own))
    if not base:
        return {**write_parts(uri, new), "quarantine": quarantine.as_json()}
    numbers = np.concatenate([table[ITEM_INDEX].to_numpy() for table in base]).astype(np.int64)
    file_of_known, row_of_known = np.full(num_base, -1, dtype=np.int32), np.full(num_base, -1)
    is_again = is_first & (codes[num_base:] < num_base)
    file_of_known[codes[num_base:][is_again]] = file_of_row[is_again]
    row_of_known[codes[num_base:][is_again]] = rows[is_again]
    again = pa.table({ITEM_ID: ids.slice(0, num_base), FILE: pa.array(file_of_known), ROW: row_of_known, ORDER: numbers})
    return {**write_parts(uri, [*split_rows(again, numbers // chunk_size, num_chunks), *new]), "quarantine": quarantine.as_json()}


def place_items(uri: str, number: int, kept: StepFiles, split: SplitConfig, seed: int) -> dict[str, Any]:
    """Table `number` of every part together, in order (a task)."""
    table = kept.read_all(number).sort_by(ORDER).drop_columns([ORDER])
    held_out = held_out_parts(table[ITEM_ID], split, seed)
    table = table.append_column(HELD_OUT, pa.array(held_out)).combine_chunks()
    tables = [table.slice(first, ITEMS_PER_TABLE) for first in range(0, max(1, table.num_rows), ITEMS_PER_TABLE)]
    return {**write_parts(uri, tables), "num_rows": table.num_rows}
