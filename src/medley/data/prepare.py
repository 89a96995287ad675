"""Tables → a prepared data set: contiguous ids, cleaned media in shards, train/valid/test interactions, quarantine, statistics.

Steps: 1. check the tables; 2. number the items (rows of items/, first of equal ids kept); 3. Ray tasks clean the items' media and write
shards; 4. clean, weight and split the interactions, number the users; 5. write users, item facts, quarantine, statistics, manifest.

    items/part-00000.arrow   the items' modality columns, `ITEMS_PER_SHARD` rows each (Arrow IPC, memory-mapped by the stream)
    item_facts.parquet       item_index, item_id, title, train_count and the small attribute columns
    users.parquet            user_index, user_id, attribute columns
    train|valid|test.parquet PREPARED_INTERACTIONS_SCHEMA, in time order
    quarantine.parquet       what was left out or counted as missing, and why
"""

import logging
import time
from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
from pydantic import BaseModel, ConfigDict, Field
from ray.exceptions import RayTaskError

from medley.data.clean import clean_shard
from medley.data.shards import ITEMS_PER_SHARD
from medley.data.split import SplitConfig, assign_split, has_values
from medley.data.tables import Tables, open_tables, read_table
from medley.manifest import StagedFolder, absolute_uri, find_manifest, fingerprint, join_uri, staged_folder, verify_files, write_json, write_parquet
from medley.media import MediaConfig
from medley.schema import (
    EVENT,
    INTERACTIONS_SCHEMA,
    ITEM_ID,
    ITEM_INDEX,
    PREPARED_INTERACTIONS_SCHEMA,
    QUARANTINE_SCHEMA,
    SPLITS,
    TIMESTAMP,
    TITLE,
    USER_ID,
    USER_INDEX,
    VALUE,
    WEIGHT,
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
    min_user_interactions: int = Field(default=1, ge=1)
    """users with fewer are left out (one pass)"""
    min_item_interactions: int = Field(default=0, ge=0)
    """interactions with items that have fewer are left out (one pass); the items stay, as cold ones"""
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
    else:
        verify_files(uri, manifest)
    return {"prepared": uri, "fingerprint": identity, "reused": is_reused, "seconds": round(time.monotonic() - started, 1), **manifest["counts"]}


def _write_prepared(tables: Tables, config: DataConfig, seed: int, stage: StagedFolder) -> dict[str, Any]:
    item_rows, quarantine = _number_items(tables)
    shard_reports = _clean_items(tables, config.media, item_rows, stage)
    quarantine += [row for report in shard_reports for row in report["quarantine"]]
    item_ids = pa.array([id_ for id_, _, _ in item_rows], pa.string())

    interactions, dropped = _clean_interactions(tables, config, item_ids)
    quarantine += dropped
    users = _number_users(tables, interactions)
    part = assign_split(interactions, config.split, seed)
    prepared = _prepared_interactions(interactions, users, item_ids, config)
    parts = {name: _in_time_order(prepared.filter(pa.array(part == number))) for number, name in enumerate(SPLITS)}
    for name, table in parts.items():
        if table.num_rows == 0:
            raise InputError(
                f"the '{name}' split is empty ({prepared.num_rows} interactions in all)", "interactions in every split", "change data.split or add data"
            )
        write_parquet(stage.path(f"{name}.parquet"), table)

    train_count = np.bincount(parts["train"][ITEM_INDEX].to_numpy(), minlength=len(item_ids))
    write_parquet(stage.path("item_facts.parquet"), _item_facts(tables, item_rows, train_count))
    write_parquet(stage.path("users.parquet"), users)
    write_parquet(stage.path("quarantine.parquet"), pa.Table.from_pylist(quarantine, QUARANTINE_SCHEMA))
    coverage = sum((Counter(report["coverage"]) for report in shard_reports), Counter())
    counts = {
        "num_items": len(item_ids),
        "num_users": users.num_rows,
        "num_cold_items": int((train_count == 0).sum()),
        **{f"num_{name}": table.num_rows for name, table in parts.items()},
        "num_quarantined": sum(row["num_rows"] for row in quarantine),
    }
    reasons: Counter[str] = Counter()
    for row in quarantine:
        reasons[f"{row['table']}.{row['column']}: {_reason_kind(row['reason'])}"] += row["num_rows"]
    has_times = parts["train"][TIMESTAMP].null_count == 0
    write_json(stage.path("statistics.json"), {"counts": counts, "coverage": dict(coverage), "quarantine": dict(reasons), "has_timestamps": has_times})
    for row in quarantine[:10]:
        logger.warning("quarantine | %s %s column %s | %s | %d rows", row["table"], row["id"], row["column"], row["reason"], row["num_rows"])
    if len(quarantine) > 10:
        logger.warning("quarantine | %d more entries in quarantine.parquet: %s", len(quarantine) - 10, dict(reasons))
    return {**counts, "columns": [name for name in tables.items_schema.names if name != ITEM_ID], "has_timestamps": has_times}


def _reason_kind(reason: str) -> str:
    """The reason without its figures, so that equal faults count together."""
    return "".join("#" if character.isdigit() else character for character in reason)


def _number_items(tables: Tables) -> tuple[list[tuple[str, int, int]], list[dict[str, Any]]]:
    """(item_id, file number, row in the file) in item_index order, and what was left out: empty ids, repeats after the first."""
    kept: list[tuple[str, int, int]] = []
    quarantine, seen = [], set()
    for number, file in enumerate(tables.items):
        ids = read_table((file,), [ITEM_ID])[ITEM_ID].to_pylist()
        for row, id_ in enumerate(ids):
            if not id_ or id_ in seen:
                reason = "item id is empty" if not id_ else "item id stands in an earlier row; the first is kept"
                quarantine.append({"table": "items", "id": id_, "column": ITEM_ID, "reason": reason, "num_rows": 1})
                continue
            seen.add(id_)
            kept.append((id_, number, row))
    return kept, quarantine


def _clean_items(tables: Tables, media: MediaConfig, item_rows: list[tuple[str, int, int]], stage: StagedFolder) -> list[dict[str, Any]]:
    """One Ray task per shard; what a task returns is small (counts and quarantine rows)."""
    task = ray.remote(num_cpus=1, max_retries=3)(clean_shard)
    tables_ref = ray.put(tables)
    pending = [
        task.remote(tables_ref, media, item_rows[first : first + ITEMS_PER_SHARD], stage.path("items", f"part-{number:05d}.arrow"))
        for number, first in enumerate(range(0, len(item_rows), ITEMS_PER_SHARD))
    ]
    reports = []
    for number, reference in enumerate(pending, start=1):
        try:
            reports.append(ray.get(reference))
        except RayTaskError as error:
            # Ray's own error shows the task's traceback; a mistake in the tables needs only its message.
            raise (error.cause if isinstance(error.cause, InputError) else error) from None
        if number % 20 == 0 or number == len(pending):
            logger.info("prepare | %d of %d item shards", number, len(pending))
    return reports


def _clean_interactions(tables: Tables, config: DataConfig, item_ids: pa.Array) -> tuple[pa.Table, list[dict[str, Any]]]:
    """Good interactions with their item_index and weight; the others as quarantine rows, one per reason and id."""
    table = read_table(tables.interactions, [name for name in INTERACTIONS_SCHEMA.names if name in tables.interactions_schema.names])
    quarantine: list[dict[str, Any]] = []

    def drop(mask: pa.Array, column: str, reason: str, by_id: str | None = None) -> None:
        nonlocal table
        num_bad = pc.sum(mask).as_py() or 0
        if not num_bad:
            return
        if by_id:
            counted = pc.value_counts(table.filter(mask)[by_id]).to_pylist()
            rows = [(entry["values"], entry["counts"]) for entry in sorted(counted, key=lambda entry: str(entry["values"]))]
        else:
            rows = [(None, num_bad)]
        quarantine.extend({"table": "interactions", "id": id_, "column": column, "reason": reason, "num_rows": count} for id_, count in rows)
        table = table.filter(pc.invert(mask))

    for column in (USER_ID, ITEM_ID):
        drop(pc.or_kleene(pc.is_null(table[column]), pc.equal(pc.fill_null(table[column], ""), "")), column, "id is empty")
    drop(pc.is_null(pc.index_in(table[ITEM_ID], value_set=item_ids)), ITEM_ID, "unknown item", by_id=ITEM_ID)
    if VALUE in table.column_names:
        drop(pc.fill_null(pc.invert(pc.is_finite(table[VALUE])), False), VALUE, "value is NaN or infinite")
    for setting, kinds in (("data.events", config.events), ("data.target_events", config.target_events)):
        if kinds and not has_values(table, EVENT):
            raise InputError(f"{setting} is set, but the interactions have no events", f"a filled column '{EVENT}'", f"add it, or leave {setting} empty")
    if config.events:
        known = pa.array(list(config.events), pa.string())
        drop(pc.is_null(pc.index_in(table[EVENT], value_set=known)), EVENT, "event kind has no weight in data.events", by_id=EVENT)
        weights = pa.array(list(config.events.values()), pa.float32())
        table = table.append_column(WEIGHT, pc.take(weights, pc.index_in(table[EVENT], value_set=known)))
        table = table.filter(pc.greater(table[WEIGHT], 0))
    else:
        table = table.append_column(WEIGHT, pa.array(np.ones(table.num_rows, dtype=np.float32)))
    is_repeat = _repeats(table)
    drop(pa.array(is_repeat), "*", "equal to an earlier row")
    table = _at_least(table, ITEM_ID, config.min_item_interactions)
    table = _at_least(table, USER_ID, config.min_user_interactions)
    if table.num_rows == 0:
        raise InputError("no interaction is left after cleaning", "known items, weighted events", "see the warnings; check ids and data.events")
    return table.combine_chunks(), quarantine


def _repeats(table: pa.Table) -> np.ndarray:
    """True for rows equal to an earlier row in every column."""
    numbered = table.append_column("row", pa.array(np.arange(table.num_rows)))
    first = numbered.group_by(table.column_names).aggregate([("row", "min")])["row_min"].to_numpy()
    is_repeat = np.ones(table.num_rows, dtype=bool)
    is_repeat[first] = False
    return is_repeat


def _at_least(table: pa.Table, column: str, minimum: int) -> pa.Table:
    if minimum <= 1:
        return table
    counts = table.group_by(column).aggregate([([], "count_all")])
    kept = counts.filter(pc.greater_equal(counts["count_all"], minimum))[column]
    return table.filter(pc.is_in(table[column], value_set=kept.combine_chunks()))


def _number_users(tables: Tables, interactions: pa.Table) -> pa.Table:
    """user_index in the order of the ids, user_id, and the attributes of the users table (null where a user is not in it)."""
    ids = pc.unique(interactions[USER_ID])
    ids = ids.take(pc.sort_indices(ids))
    users = pa.table({USER_INDEX: pa.array(np.arange(len(ids), dtype=np.int32)), USER_ID: ids})
    if tables.users_schema is None:
        return users
    attributes = read_table(tables.users, tables.users_schema.names)
    place = pc.index_in(ids, value_set=attributes[USER_ID].combine_chunks())
    for name in attributes.column_names:
        if name != USER_ID:
            users = users.append_column(name, attributes[name].combine_chunks().take(place))
    return users


def _prepared_interactions(interactions: pa.Table, users: pa.Table, item_ids: pa.Array, config: DataConfig) -> pa.Table:
    num_rows = interactions.num_rows
    is_target = pa.array(np.ones(num_rows, dtype=bool))
    if config.target_events:
        is_target = pc.fill_null(pc.is_in(interactions[EVENT], value_set=pa.array(config.target_events, pa.string())), False)
    nothing = {TIMESTAMP: pa.nulls(num_rows, pa.timestamp("us", tz="UTC")), VALUE: pa.nulls(num_rows, pa.float32())}
    columns = {
        USER_INDEX: pc.index_in(interactions[USER_ID], value_set=users[USER_ID].combine_chunks()),
        ITEM_INDEX: pc.index_in(interactions[ITEM_ID], value_set=item_ids),
        TIMESTAMP: interactions[TIMESTAMP] if TIMESTAMP in interactions.column_names else nothing[TIMESTAMP],
        VALUE: interactions[VALUE] if VALUE in interactions.column_names else nothing[VALUE],
        WEIGHT: interactions[WEIGHT],
        "is_target": is_target,
    }
    return pa.table(columns).cast(PREPARED_INTERACTIONS_SCHEMA)


def _in_time_order(table: pa.Table) -> pa.Table:
    return table.sort_by([(TIMESTAMP, "ascending"), (USER_INDEX, "ascending"), (ITEM_INDEX, "ascending")]).combine_chunks()


def _item_facts(tables: Tables, item_rows: list[tuple[str, int, int]], train_count: np.ndarray) -> pa.Table:
    """item_index, item_id, train_count and every scalar column that is no modality (title, genre, …)."""
    scalar = [field.name for field in tables.items_schema if _is_fact(field)]
    starts = np.concatenate([[0], np.cumsum([sum(file.row_group_rows) for file in tables.items])])
    rows = np.array([starts[number] + row for _, number, row in item_rows], dtype=np.int64)
    facts = read_table(tables.items, [ITEM_ID, *scalar]).take(pa.array(rows)).combine_chunks()
    facts = facts.add_column(0, ITEM_INDEX, pa.array(np.arange(len(rows), dtype=np.int32)))
    if TITLE not in facts.column_names:
        facts = facts.append_column(TITLE, pa.nulls(len(rows), pa.string()))
    return facts.append_column("train_count", pa.array(train_count.astype(np.int64)))


def _is_fact(field: pa.Field) -> bool:
    is_scalar = not (pa.types.is_nested(field.type) or pa.types.is_binary(field.type) or pa.types.is_large_binary(field.type))
    return is_scalar and field.name not in (ITEM_ID, "text")
