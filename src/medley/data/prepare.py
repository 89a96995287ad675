"""Tables → a prepared data set: contiguous ids, cleaned media in shards, train/valid/test interactions, quarantine, statistics.

Steps: 1. check the tables; 2. number the items (rows of items/, first of equal ids kept); 3. clean the interactions, check the budget for
faulty rows; 4. split them, leave out what the rules learn from train, prove that nothing leaks, normalise the values; 5. Ray tasks clean the
items' media into shards, which wait in `FINGERPRINT.work/` so that a run after an interrupted one keeps them; 6. write users, item facts,
interactions, quarantine, statistics, manifest.

    items/part-00000.arrow   the items' modality columns, `ITEMS_PER_SHARD` rows each (Arrow IPC, memory-mapped by the stream)
    item_facts.parquet       item_index, item_id, title, train_count and the small attribute columns
    users.parquet            user_index, user_id, attribute columns
    train|valid|test.parquet PREPARED_INTERACTIONS_SCHEMA, in time order
    quarantine.parquet       what was left out or counted as missing, where it stands and why
"""

import logging
import time
from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, ConfigDict, Field

from medley.data.behaviour import BehaviourConfig, CoreConfig, filter_by_train
from medley.data.interactions import clean_interactions, leave_out
from medley.data.item_shards import write_item_shards
from medley.data.leaks import check_leaks
from medley.data.repeats import ConflictRule
from medley.data.split import TEST, TRAIN, SplitConfig, assign_split, held_out_parts, keep_together, split_kind
from medley.data.tables import Tables, iterate_pieces, open_tables, read_table
from medley.data.validate import Quarantine, QuarantineConfig, check_item_ids
from medley.data.values import ValuesConfig, normalise_values
from medley.manifest import (
    StagedFolder,
    absolute_uri,
    find_manifest,
    fingerprint,
    join_uri,
    remove_folder,
    staged_folder,
    verify_files,
    write_json,
    write_parquet,
)
from medley.media import MediaConfig
from medley.schema import (
    ITEM_ID,
    ITEM_INDEX,
    PREPARED_INTERACTIONS_SCHEMA,
    SPLITS,
    TIMESTAMP,
    TITLE,
    USER_ID,
    USER_INDEX,
    VALUE,
    InputError,
)

logger = logging.getLogger(__name__)

PREPARED_KIND = "prepared"


class DataConfig(BaseModel):
    """What `prepare` does with the tables."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    split: SplitConfig = SplitConfig()
    events: dict[str, float] = Field(default_factory=dict)
    """weight of each event kind, 0 drops it; empty: every event weighs 1"""
    target_events: tuple[str, ...] = ()
    """event kinds that count as relevant in evaluation; empty: all that are kept"""
    conflicts: ConflictRule = "last"
    """which of several rows with one user, item, time and split stays: the last or first in the tables, the one with the largest value; error: none may be"""
    behaviour: BehaviourConfig = BehaviourConfig()
    k_core: CoreConfig = CoreConfig()
    values: ValuesConfig = ValuesConfig()
    quarantine: QuarantineConfig = QuarantineConfig()
    media: MediaConfig = MediaConfig()

    @property
    def identity(self) -> list[Any]:
        """What decides the prepared bytes beside the tables and the seed."""
        return [self.model_dump(mode="json")]


def prepared_fingerprint(tables: Tables, config: DataConfig, seed: int) -> str:
    """The identity of a prepared set: tables, settings, seed."""
    return fingerprint(PREPARED_KIND, tables.identity, config.identity, seed)


def prepare(tables_uri: str, prepared_root: str, config: DataConfig, seed: int) -> dict[str, Any]:
    """Write `prepared_root/FINGERPRINT/`, or find it complete; needs a Ray session. Returns its uri, counts and seconds."""
    started = time.monotonic()
    tables = open_tables(absolute_uri(tables_uri))
    identity = prepared_fingerprint(tables, config, seed)
    uri = join_uri(absolute_uri(prepared_root), identity)
    manifest = find_manifest(uri)
    is_reused = manifest is not None
    if manifest is None:
        with staged_folder(uri) as stage:
            counts = _write_prepared(tables, config, seed, stage)
            manifest = stage.commit(
                PREPARED_KIND, identity, parents={"tables": tables.identity}, counts=counts, config={"data": config.model_dump(mode="json"), "seed": seed}
            )
        remove_folder(_work_uri(uri))
    else:
        verify_files(uri, manifest)
    return {"prepared": uri, "fingerprint": identity, "reused": is_reused, "seconds": round(time.monotonic() - started, 1), **manifest["counts"]}


def _work_uri(uri: str) -> str:
    """The folder beside the prepared set for what an interrupted run has done."""
    return f"{uri}.work"


def _write_prepared(tables: Tables, config: DataConfig, seed: int, stage: StagedFolder) -> dict[str, Any]:
    quarantine = Quarantine()
    item_rows = _number_items(tables, quarantine)
    item_ids = pa.array([id_ for id_, _, _ in item_rows], pa.string())
    # Interactions first: a fault in them shows before the long work on media.
    interactions, user_ids = clean_interactions(
        tables,
        item_ids,
        events=config.events,
        target_events=config.target_events,
        conflicts=config.conflicts,
        behaviour=config.behaviour,
        quarantine=quarantine,
    )
    num_rows = {name: sum(file.num_rows for file in files) for name, files in (("items", tables.items), ("interactions", tables.interactions))}
    quarantine.check_budget(config.quarantine, num_rows)
    users, parts, value_statistics = _split_interactions(tables, interactions, user_ids, item_ids, config, seed, quarantine)
    shard_reports = write_item_shards(tables, config.media, item_rows, _work_uri(stage.final_uri), stage)
    for report in shard_reports:
        quarantine.report_missing(report["quarantine"])

    for name, table in parts.items():
        write_parquet(stage.path(f"{name}.parquet"), table)
    train_count = np.bincount(parts["train"][ITEM_INDEX].to_numpy(), minlength=len(item_ids))
    write_parquet(stage.path("item_facts.parquet"), _item_facts(tables, item_rows, train_count))
    write_parquet(stage.path("users.parquet"), users)
    write_parquet(stage.path("quarantine.parquet"), quarantine.table())
    counts = {
        "num_items": len(item_ids),
        "num_users": users.num_rows,
        "num_cold_items": int((train_count == 0).sum()),
        **{f"num_{name}": table.num_rows for name, table in parts.items()},
        "num_quarantined": quarantine.num_rows,
    }
    has_times = parts["train"][TIMESTAMP].null_count == 0
    coverage = sum((Counter(report["coverage"]) for report in shard_reports), Counter())
    write_json(
        stage.path("statistics.json"),
        {"counts": counts, "coverage": dict(coverage), "quarantine": quarantine.by_reason(), "values": value_statistics, "has_timestamps": has_times},
    )
    for reason, count in quarantine.by_reason().items():
        logger.warning("quarantine | %s | %d", reason, count)
    return {**counts, "columns": [name for name in tables.items_schema.names if name != ITEM_ID], "has_timestamps": has_times}


def _split_interactions(
    tables: Tables, interactions: pa.Table, user_ids: pa.Array, item_ids: pa.Array, config: DataConfig, seed: int, quarantine: Quarantine
) -> tuple[pa.Table, dict[str, pa.Table], dict[str, Any]]:
    """(users, split → its rows in time order, statistics of the values); the splits are proved apart."""
    part = assign_split(interactions, config.split, seed)
    kind = split_kind(interactions, config.split)
    held_out_N = held_out_parts(item_ids.to_pylist(), config.split, seed, has_test=bool((part == TEST).any()))
    code, item, moment = _rows(interactions)
    if kind == "random":
        part = keep_together(part, *([code, item] if moment is None else [code, item, moment]))
    part = np.where(held_out_N[item] >= 0, held_out_N[item], part)
    is_dropped = np.zeros(len(part), dtype=bool)
    for column, reason, mask in filter_by_train(code, item, moment, part == TRAIN, config.behaviour, config.k_core):
        leave_out(interactions, column, reason, mask, user_ids, tables, quarantine)
        is_dropped |= mask
    interactions, part = interactions.filter(pa.array(~is_dropped)), part[~is_dropped]
    _check_parts(part, may_lack_test=kind == "shipped" or (kind == "last_out" and config.split.last_out == 1))

    users, number_of_code = _number_users(tables, user_ids, np.unique(code[~is_dropped]))
    user_index = pa.array(number_of_code[interactions[USER_INDEX].to_numpy()])
    interactions = interactions.set_column(interactions.column_names.index(USER_INDEX), USER_INDEX, user_index)
    user, item, moment = _rows(interactions)
    check_leaks(kind, part, user, item, moment, held_out_N)
    statistics: dict[str, Any] = {}
    if VALUE in interactions.column_names:
        values = pc.fill_null(interactions[VALUE], np.nan).to_numpy()
        values, statistics = normalise_values(values, user, part == TRAIN, config.values)
        values = pa.array(values, from_pandas=True)  # NaN becomes null
        interactions = interactions.set_column(interactions.column_names.index(VALUE), VALUE, values)
    prepared = pa.table(
        [
            interactions[field.name] if field.name in interactions.column_names else pa.nulls(interactions.num_rows, field.type)
            for field in PREPARED_INTERACTIONS_SCHEMA
        ],
        PREPARED_INTERACTIONS_SCHEMA.names,
    ).cast(PREPARED_INTERACTIONS_SCHEMA)
    return users, {name: _in_time_order(prepared.filter(pa.array(part == number))) for number, name in enumerate(SPLITS)}, statistics


def _rows(interactions: pa.Table) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """(users, items, times in microseconds or None where any row has none) as arrays."""
    has_times = TIMESTAMP in interactions.column_names and interactions[TIMESTAMP].null_count == 0
    moment = interactions[TIMESTAMP].cast(pa.int64()).to_numpy() if has_times else None
    return interactions[USER_INDEX].to_numpy(), interactions[ITEM_INDEX].to_numpy(), moment


def _check_parts(part: np.ndarray, may_lack_test: bool) -> None:
    for number, name in enumerate(SPLITS):
        if not (part == number).any() and not (may_lack_test and number == TEST):
            raise InputError(f"the '{name}' split is empty ({len(part)} interactions in all)", "interactions in every split", "change data.split or add data")


def _number_items(tables: Tables, quarantine: Quarantine) -> list[tuple[str, int, int]]:
    """(item_id, file number, row in the file) in item_index order; unusable ids and repeats after the first are left out."""
    kept: list[tuple[str, int, int]] = []
    seen: set[str] = set()
    for number, first_row, raw in iterate_pieces(tables.items, [ITEM_ID]):
        shard, repeats = tables.items[number].name, []
        piece, rows = check_item_ids(raw, shard, first_row, quarantine)
        for place, (id_, row) in enumerate(zip(piece[ITEM_ID].to_pylist(), rows.tolist(), strict=True)):
            if id_ in seen:
                repeats.append(place)
                continue
            seen.add(id_)
            kept.append((id_, number, row))
        reason = "item id stands in an earlier row; the first is kept"
        quarantine.report("items", ITEM_ID, reason, piece[ITEM_ID].take(pa.array(repeats, pa.int64())), [shard] * len(repeats), rows[repeats], is_fault=True)
    return kept


def _number_users(tables: Tables, user_ids: pa.Array, kept: np.ndarray) -> tuple[pa.Table, np.ndarray]:
    """(user_index in the order of the ids, user_id, the attributes of the users table or null; place in user_ids → user_index, int32).

    kept: places in user_ids of the users with any interaction.
    """
    ids = user_ids.take(pa.array(kept))
    order = pc.sort_indices(ids)
    ids = ids.take(order)
    numbers = np.arange(len(ids), dtype=np.int32)
    number_of_code = np.full(len(user_ids), -1, dtype=np.int32)
    number_of_code[kept[order.to_numpy()]] = numbers
    users = pa.table({USER_INDEX: pa.array(numbers), USER_ID: ids})
    if tables.users_schema is None:
        return users, number_of_code
    attributes = read_table(tables.users, tables.users_schema.names)
    place = pc.index_in(ids, value_set=attributes[USER_ID].combine_chunks())
    for name in attributes.column_names:
        if name != USER_ID:
            users = users.append_column(name, attributes[name].combine_chunks().take(place))
    return users, number_of_code


def _in_time_order(table: pa.Table) -> pa.Table:
    return table.sort_by([(TIMESTAMP, "ascending"), (USER_INDEX, "ascending"), (ITEM_INDEX, "ascending")]).combine_chunks()


def _item_facts(tables: Tables, item_rows: list[tuple[str, int, int]], train_count: np.ndarray) -> pa.Table:
    """item_index, item_id, train_count and every scalar column that is no modality (title, genre, …)."""
    scalar = [field.name for field in tables.items_schema if _is_fact(field)]
    starts = np.concatenate([[0], np.cumsum([file.num_rows for file in tables.items])])
    rows = np.array([starts[number] + row for _, number, row in item_rows], dtype=np.int64)
    facts = read_table(tables.items, [ITEM_ID, *scalar]).take(pa.array(rows)).combine_chunks()
    facts = facts.add_column(0, ITEM_INDEX, pa.array(np.arange(len(rows), dtype=np.int32)))
    if TITLE not in facts.column_names:
        facts = facts.append_column(TITLE, pa.nulls(len(rows), pa.string()))
    return facts.append_column("train_count", pa.array(train_count.astype(np.int64)))


def _is_fact(field: pa.Field) -> bool:
    is_scalar = not (pa.types.is_nested(field.type) or pa.types.is_binary(field.type) or pa.types.is_large_binary(field.type))
    return is_scalar and field.name not in (ITEM_ID, "text")
