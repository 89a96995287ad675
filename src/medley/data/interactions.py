"""Raw interactions → clean ones in parts by user, a piece of a table at a time: bad rows to quarantine, items numbered, events weighed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from medley.data.behaviour import BehaviourConfig
from medley.data.numbering import ItemNumbers
from medley.data.partitions import partition_of, split_rows, stable_hash, write_parts
from medley.data.tables import Piece, Tables, read_piece
from medley.data.validate import Quarantine, check_interactions
from medley.schema import DWELL_SECONDS, EVENT, INTERACTIONS_SCHEMA, ITEM_ID, ITEM_INDEX, SPLIT, SPLITS, TIMESTAMP, USER_ID, WEIGHT, InputError

IS_TARGET = "is_target"
ROW = "row"
"""place of a row in its piece"""
USER_CODE = "user_code"
"""place of a row's user among the users of its part"""

ENCODED = (USER_ID, ITEM_ID, EVENT, SPLIT)
"""columns read as dictionaries"""


@dataclass(frozen=True)
class EventRules:
    """What the configuration says of single rows."""

    events: Mapping[str, float]
    target_events: Sequence[str]
    behaviour: BehaviourConfig

    def check_columns(self, columns: Sequence[str]) -> None:
        """An InputError for a setting whose column the interactions do not have."""
        for setting, is_set, column in (
            ("data.events", self.events, EVENT),
            ("data.target_events", self.target_events, EVENT),
            ("data.behaviour.min_dwell_seconds", self.behaviour.min_dwell_seconds, DWELL_SECONDS),
            ("data.behaviour.target_min_dwell_seconds", self.behaviour.target_min_dwell_seconds, DWELL_SECONDS),
        ):
            if is_set and column not in columns:
                raise InputError(
                    f"{setting} is set, but the interactions have no column '{column}'", f"a filled column '{column}'", f"add it, or leave {setting} out"
                )


def clean_piece(uri: str, piece: Piece, tables: Tables, items: ItemNumbers, rules: EventRules, num_parts: int) -> dict[str, Any]:
    """Write a piece's clean rows and report them; the parts of the file are each part's user ids and its rows, in turn.

    Rows: user_code, item_index, the columns that the table has of timestamp, value, event, dwell_seconds, split; weight and is_target where the rules
    make them differ; row. In the order of the table.
    Steps: 1. faulty rows and bounces leave; 2. ids become numbers; 3. events become weight and is_target; 4. rows go to the parts of their users.
    """
    quarantine, file = Quarantine(), tables.interactions[piece.file]
    columns = [name for name in INTERACTIONS_SCHEMA.names if name in tables.interactions_schema.names]
    raw = read_piece(file, piece, columns, ENCODED)
    item_numbers = items.find(_dictionary(raw, ITEM_ID).dictionary)
    table, rows = check_interactions(raw, file.name, piece.first_row, item_numbers >= 0, quarantine)
    table, rows = _without_bounces(table, rows, file.name, rules.behaviour.min_dwell_seconds, quarantine)
    table, rows = _weighed(table, rows, file.name, rules.events, quarantine)
    table = _with_targets(table, rules)
    item_codes = _dictionary(table, ITEM_ID).indices.to_numpy()
    users, codes = _users(_dictionary(table, USER_ID))
    table = table.set_column(table.column_names.index(ITEM_ID), ITEM_INDEX, pa.array(item_numbers[item_codes]))
    table = table.drop_columns([USER_ID]).append_column(ROW, pa.array((rows - piece.first_row).astype(np.int32)))

    part_of_user = partition_of(stable_hash(users), num_parts)
    order = np.argsort(part_of_user, kind="stable")
    ends = np.cumsum(np.bincount(part_of_user, minlength=num_parts))
    starts = ends - np.diff(ends, prepend=0)
    place = np.empty(len(order), dtype=np.int32)
    place[order] = np.arange(len(order)) - starts[part_of_user[order]]
    table = table.add_column(0, USER_CODE, pa.array(place[codes]))
    parts = []
    for start, end, part in zip(starts, ends, split_rows(table, part_of_user[codes], num_parts), strict=True):
        parts += [pa.table({USER_ID: users.take(pa.array(order[start:end]))}), part]
    return {**write_parts(uri, parts), **_figures(table), "quarantine": quarantine.as_json()}


@dataclass(frozen=True)
class Figures:
    """Of all clean rows; times in microseconds."""

    num_rows: int
    num_timed: int
    first_time: int
    last_time: int
    num_split: int
    num_test: int
    """rows that a split column says are test"""
    bad_splits: list[str | None]
    """some values of the split column that name no split"""


def sum_figures(reports: Sequence[Mapping[str, Any]]) -> Figures:
    """What clean_piece reported of all pieces."""
    timed = [report for report in reports if report.get("num_timed")]
    return Figures(
        num_rows=sum(report["num_rows"] for report in reports),
        num_timed=sum(report["num_timed"] for report in timed),
        first_time=min((report["first_time"] for report in timed), default=0),
        last_time=max((report["last_time"] for report in timed), default=0),
        num_split=sum(report.get("num_split", 0) for report in reports),
        num_test=sum(report.get("num_test", 0) for report in reports),
        bad_splits=[name for report in reports for name in report.get("bad_splits", [])][:3],
    )


def _figures(table: pa.Table) -> dict[str, Any]:
    """What the driver must know of the rows: how many, their times, the values of their split column."""
    figures: dict[str, Any] = {"num_rows": table.num_rows}
    if TIMESTAMP in table.column_names:
        times = table[TIMESTAMP].cast(pa.int64())
        bounds = pc.min_max(times)
        figures |= {"num_timed": len(times) - times.null_count, "first_time": bounds["min"].as_py(), "last_time": bounds["max"].as_py()}
    if SPLIT in table.column_names:
        counts = {entry["values"]: entry["counts"] for entry in pc.value_counts(table[SPLIT].combine_chunks().cast(pa.string())).to_pylist()}
        figures["num_test"] = counts.get(SPLITS[-1], 0)
        figures["num_split"] = sum(count for name, count in counts.items() if name is not None)
        figures["bad_splits"] = [name for name in counts if name not in SPLITS][:3]
    return figures


def _dictionary(table: pa.Table, column: str) -> pa.DictionaryArray:
    chunks = table[column].combine_chunks()
    return chunks.chunk(0) if isinstance(chunks, pa.ChunkedArray) else chunks


def _users(ids: pa.DictionaryArray) -> tuple[pa.Array, np.ndarray]:
    """(users that have rows, place among them of each row's). Ids of quarantined rows may be megabytes long: nobody should hash them."""
    codes = ids.indices.to_numpy()
    is_used = np.zeros(len(ids.dictionary), dtype=bool)
    is_used[codes] = True
    return ids.dictionary.filter(pa.array(is_used)), (np.cumsum(is_used) - 1)[codes]


def _with_targets(table: pa.Table, rules: EventRules) -> pa.Table:
    """The table with is_target, where any rule says what counts as relevant in evaluation."""
    is_target = np.ones(table.num_rows, dtype=bool)
    if rules.target_events:
        is_target &= pc.is_in(table[EVENT].cast(pa.string()), value_set=pa.array(rules.target_events, pa.string())).to_numpy()
    if rules.behaviour.target_min_dwell_seconds:
        is_target &= pc.fill_null(pc.greater_equal(table[DWELL_SECONDS], rules.behaviour.target_min_dwell_seconds), True).to_numpy()
    elif not rules.target_events:
        return table
    return table.append_column(IS_TARGET, pa.array(is_target))


def _without_bounces(table: pa.Table, rows: np.ndarray, shard: str, min_seconds: float, quarantine: Quarantine) -> tuple[pa.Table, np.ndarray]:
    if not min_seconds:
        return table, rows
    is_bounce = pc.fill_null(pc.less(table[DWELL_SECONDS], min_seconds), False).to_numpy()
    return _split_off(table, rows, is_bounce, shard, DWELL_SECONDS, "dwell time is below data.behaviour.min_dwell_seconds", False, quarantine)


def _weighed(table: pa.Table, rows: np.ndarray, shard: str, events: Mapping[str, float], quarantine: Quarantine) -> tuple[pa.Table, np.ndarray]:
    """The table with its weights; unknown events are faults, events that weigh 0 leave without a word. Without events every row weighs 1."""
    if not events:
        return table, rows
    kinds = pa.array(list(events), pa.string())
    is_unknown = pc.invert(pc.is_in(table[EVENT].cast(pa.string()), value_set=kinds)).to_numpy()
    table, rows = _split_off(table, rows, is_unknown, shard, EVENT, "event kind has no weight in data.events", True, quarantine)
    weights = np.array(list(events.values()), dtype=np.float32)[pc.index_in(table[EVENT].cast(pa.string()), value_set=kinds).to_numpy()]
    table = table.append_column(WEIGHT, pa.array(weights))
    return table.filter(pa.array(weights > 0)), rows[weights > 0]


def _split_off(
    table: pa.Table, rows: np.ndarray, mask: np.ndarray, shard: str, column: str, reason: str, is_fault: bool, quarantine: Quarantine
) -> tuple[pa.Table, np.ndarray]:
    if not mask.any():
        return table, rows
    quarantine.report("interactions", column, reason, table[USER_ID].filter(pa.array(mask)), [shard] * int(mask.sum()), rows[mask], is_fault)
    return table.filter(pa.array(~mask)), rows[~mask]
