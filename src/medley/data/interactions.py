"""Raw interactions → clean ones, a row group at a time: bad rows to quarantine, items numbered, events weighed, repeats and conflicts settled."""

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from medley.data.behaviour import BehaviourConfig
from medley.data.repeats import ConflictRule, find_conflicts, find_repeats
from medley.data.tables import Tables, iterate_pieces
from medley.data.validate import Quarantine, check_interactions
from medley.schema import DWELL_SECONDS, EVENT, INTERACTIONS_SCHEMA, ITEM_ID, ITEM_INDEX, SPLIT, TIMESTAMP, USER_ID, USER_INDEX, WEIGHT, InputError

IS_TARGET = "is_target"
FILE, ROW = "file", "row"
"""where a row stands: number of its interactions file, row in it"""
REPEAT_REASON = "equal to an earlier row"


def clean_interactions(
    tables: Tables,
    item_ids: pa.Array,
    *,
    events: Mapping[str, float],
    target_events: Sequence[str],
    conflicts: ConflictRule,
    behaviour: BehaviourConfig,
    quarantine: Quarantine,
) -> tuple[pa.Table, pa.Array]:
    """(user_index, item_index, timestamp, value, split (those that the table has), weight, is_target, file, row; in the order of the tables; user ids).

    user_index is a place among the user ids, which stand in the order of their first rows.

    Steps per row group: 1. faulty rows and bounces leave; 2. ids become numbers, so that no column of them is ever whole;
    3. events become weight and is_target.
    Over all rows: 4. exact repeats leave; 5. of rows with one user, item, time and split the rule keeps one.
    """
    columns = [name for name in INTERACTIONS_SCHEMA.names if name in tables.interactions_schema.names]
    for setting, is_set, column in (
        ("data.events", events, EVENT),
        ("data.target_events", target_events, EVENT),
        ("data.behaviour.min_dwell_seconds", behaviour.min_dwell_seconds, DWELL_SECONDS),
        ("data.behaviour.target_min_dwell_seconds", behaviour.target_min_dwell_seconds, DWELL_SECONDS),
    ):
        if is_set and column not in columns:
            raise InputError(
                f"{setting} is set, but the interactions have no column '{column}'", f"a filled column '{column}'", f"add it, or leave {setting} out"
            )
    pieces, user_numbers = [], dict[str, int]()
    for number, first_row, raw in iterate_pieces(tables.interactions, columns):
        shard = tables.interactions[number].name
        piece, rows = check_interactions(raw, shard, first_row, item_ids, quarantine)
        piece, rows = _without_bounces(piece, rows, shard, behaviour.min_dwell_seconds, quarantine)
        piece, rows = _weighed(piece, rows, shard, events, quarantine)
        is_target = np.ones(piece.num_rows, dtype=bool)
        if target_events:
            is_target &= pc.is_in(piece[EVENT], value_set=pa.array(target_events, pa.string())).to_numpy()
        if behaviour.target_min_dwell_seconds:
            is_target &= pc.fill_null(pc.greater_equal(piece[DWELL_SECONDS], behaviour.target_min_dwell_seconds), True).to_numpy()
        piece = piece.append_column(IS_TARGET, pa.array(is_target))
        piece = piece.set_column(piece.column_names.index(ITEM_ID), ITEM_INDEX, pc.index_in(piece[ITEM_ID], value_set=item_ids))
        piece = piece.set_column(piece.column_names.index(USER_ID), USER_INDEX, _numbered(piece[USER_ID], user_numbers))
        file = pa.array(np.full(piece.num_rows, number, dtype=np.int32))
        pieces.append(piece.append_column(FILE, file).append_column(ROW, pa.array(rows.astype(np.int64))))
    table = pa.concat_tables(pieces)
    if table.num_rows == 0:
        raise _nothing_left(quarantine)
    user_ids = pa.array(list(user_numbers), pa.string())
    table = leave_out(table, "*", REPEAT_REASON, find_repeats(table.drop_columns([FILE, ROW])), user_ids, tables, quarantine)
    if TIMESTAMP in table.column_names:
        key = [USER_INDEX, ITEM_INDEX, TIMESTAMP, *([SPLIT] if SPLIT in table.column_names and table[SPLIT].null_count == 0 else [])]
        reason = f"contradicts another row of its user, item and time (data.conflicts: {conflicts})"
        table = leave_out(table, "*", reason, find_conflicts(table, key, conflicts), user_ids, tables, quarantine)
    if target_events and not pc.any(table[IS_TARGET]).as_py():
        raise InputError(
            f"no interaction is one of data.target_events={list(target_events)}", "some of them", "see the events of the table; correct the setting"
        )
    return table.drop_columns([name for name in (EVENT, DWELL_SECONDS) if name in table.column_names]).combine_chunks(), user_ids


def leave_out(table: pa.Table, column: str, reason: str, is_dropped: np.ndarray, user_ids: pa.Array, tables: Tables, quarantine: Quarantine) -> pa.Table:
    """The table without the rows that a rule of the configuration (no fault of theirs) leaves out, each reported."""
    if not is_dropped.any():
        return table
    dropped = table.filter(pa.array(is_dropped))
    shards = (tables.interactions[number].name for number in dropped[FILE].to_numpy())
    quarantine.report("interactions", column, reason, user_ids.take(dropped[USER_INDEX]), shards, dropped[ROW].to_numpy(), is_fault=False)
    left = table.filter(pa.array(~is_dropped))
    if left.num_rows == 0:
        raise _nothing_left(quarantine)
    return left


def _numbered(ids: pa.ChunkedArray, numbers: dict[str, int]) -> pa.Array:
    """int32 number of each id; ids that are new are added to `numbers`."""
    encoded = ids.combine_chunks().dictionary_encode()
    codes = np.array([numbers.setdefault(id_, len(numbers)) for id_ in encoded.dictionary.to_pylist()], dtype=np.int32)
    return pa.array(codes[encoded.indices.to_numpy()])


def _nothing_left(quarantine: Quarantine) -> InputError:
    reasons = "; ".join(f"{reason}: {count}" for reason, count in quarantine.by_reason().items())
    return InputError(f"no interaction is left after cleaning ({reasons})", "known items, weighted events", "check the ids and the settings under data")


def _without_bounces(piece: pa.Table, rows: np.ndarray, shard: str, min_seconds: float, quarantine: Quarantine) -> tuple[pa.Table, np.ndarray]:
    if not min_seconds:
        return piece, rows
    is_bounce = pc.fill_null(pc.less(piece[DWELL_SECONDS], min_seconds), False).to_numpy()
    return _split_off(piece, rows, is_bounce, shard, DWELL_SECONDS, "dwell time is below data.behaviour.min_dwell_seconds", False, quarantine)


def _weighed(piece: pa.Table, rows: np.ndarray, shard: str, events: Mapping[str, float], quarantine: Quarantine) -> tuple[pa.Table, np.ndarray]:
    """The piece with its weights; unknown events are faults, events that weigh 0 leave without a word."""
    if not events:
        return piece.append_column(WEIGHT, pa.array(np.ones(piece.num_rows, dtype=np.float32))), rows
    kinds = pa.array(list(events), pa.string())
    is_unknown = pc.invert(pc.is_in(piece[EVENT], value_set=kinds)).to_numpy()
    piece, rows = _split_off(piece, rows, is_unknown, shard, EVENT, "event kind has no weight in data.events", True, quarantine)
    weights = np.array(list(events.values()), dtype=np.float32)[pc.index_in(piece[EVENT], value_set=kinds).to_numpy()]
    piece = piece.append_column(WEIGHT, pa.array(weights))
    return piece.filter(pa.array(weights > 0)), rows[weights > 0]


def _split_off(
    piece: pa.Table, rows: np.ndarray, mask: np.ndarray, shard: str, column: str, reason: str, is_fault: bool, quarantine: Quarantine
) -> tuple[pa.Table, np.ndarray]:
    ids = piece[USER_ID].filter(pa.array(mask))
    quarantine.report("interactions", column, reason, ids, [shard] * len(ids), rows[mask], is_fault)
    return piece.filter(pa.array(~mask)), rows[~mask]
