"""Tables → a prepared data set: contiguous ids, cleaned media in shards, train/valid/test interactions, quarantine, statistics.

Each step is a list of tasks over pieces of the tables or over parts of the users (partitions.py), whose files wait in `FINGERPRINT.work/`, so that a
run after an interrupted one continues and no process holds more than a part: 1. number the items (numbering.py); 2. clean the interactions
(interactions.py), settle repeats and conflicts (settle.py), check the budget for faulty rows; 3. split them (selection.py finds the cuts),
leave out what the rules learn from train (assign.py, keep.py), prove that nothing leaks, number the users, normalise the values (outputs.py);
4. clean the items' media into shards (item_shards.py); 5. write users, item facts, interactions, quarantine, statistics, manifest.
A user's rows are in one part, and numbers of items as such (8 bytes an item) in one process.

    items/part-00000.arrow   the items' modality columns, equally many rows each (Arrow IPC, memory-mapped by the stream)
    item_facts.parquet       item_index, item_id, title, train_count and the small attribute columns
    users.parquet            user_index, user_id, attribute columns
    train|valid|test/part-00000.parquet   PREPARED_INTERACTIONS_SCHEMA, in time order within a file and from file to file
    quarantine.parquet       what was left out or counted as missing, where it stands and why
"""

import logging
import time
from typing import Any

from medley.data.base import ITEM_FACTS, PREPARED_KIND, USERS, open_base
from medley.data.config import DataConfig
from medley.data.item_shards import SHARDS_STEP, facts_schema, item_facts, write_item_shards
from medley.data.numbering import ItemNumbers, number_items
from medley.data.outputs import users_in_order, write_file
from medley.data.partitions import ROWS_PER_PARTITION
from medley.data.prepare_interactions import Plan, PreparedInteractions, prepare_interactions
from medley.data.shards import items_per_shard
from medley.data.steps import Steps
from medley.data.tables import Tables, open_tables, write_tables
from medley.data.validate import Quarantine
from medley.manifest import (
    StagedFolder,
    absolute_uri,
    find_manifest,
    fingerprint,
    join_uri,
    list_folder,
    remove_folder,
    staged_folder,
    verify_files,
    write_json,
    write_parquet,
)
from medley.owner import owned
from medley.schema import ITEM_ID, SPLITS, InputError
from medley.storage import beside_uri

logger = logging.getLogger(__name__)

LAYOUT = 3
"""of a prepared folder; part of its identity"""
ROWS_PER_FILE = 2**20
"""of train, valid and test; a file is merged by one process"""


def prepared_fingerprint(tables: Tables, config: DataConfig, seed: int) -> str:
    """The identity of a prepared set: tables, settings, seed."""
    return fingerprint(PREPARED_KIND, LAYOUT, tables.identity, config.identity, seed)


def prepare(
    tables_uri: str,
    prepared_root: str,
    config: DataConfig,
    seed: int,
    *,
    rows_per_partition: int = ROWS_PER_PARTITION,
    rows_per_file: int = ROWS_PER_FILE,
) -> dict[str, Any]:
    """Write `prepared_root/FINGERPRINT/`, or find it complete; needs a Ray session. Returns its uri, counts and seconds.

    rows_per_partition bounds the memory of a process and changes no byte; rows_per_file cuts the interactions' files.
    """
    started = time.monotonic()
    tables = open_tables(absolute_uri(tables_uri))
    identity = prepared_fingerprint(tables, config, seed)
    root = absolute_uri(prepared_root)
    uri = join_uri(root, identity)
    manifest = find_manifest(uri)
    is_reused = manifest is not None
    if manifest is None:
        base = open_base(config.base) if config.base else None
        num_rows = max(*tables.num_rows.values(), *((base.num_items, base.num_users) if base else ()))
        work_uri = beside_uri(uri, ".work")
        with owned(beside_uri(uri, ".owner"), "prepared set"):
            _remove_leftovers(root, identity)
            steps = Steps(join_uri(work_uri, f"{rows_per_partition}-{rows_per_file}"), Quarantine(), is_inline=num_rows <= rows_per_partition)
            plan = Plan(steps, tables, base, config, seed, rows_per_partition, rows_per_file)
            with staged_folder(uri) as stage:
                try:
                    manifest = _prepare(plan, identity, stage)
                except InputError:
                    # What a verdict over the data asks to be corrected makes another fingerprint; a task's error may be its node's storage.
                    if not steps.has_failed_task:
                        remove_folder(work_uri)
                    raise
            remove_folder(work_uri)
    else:
        verify_files(uri, manifest)
    return {"prepared": uri, "fingerprint": identity, "reused": is_reused, "seconds": round(time.monotonic() - started, 1), **manifest["counts"]}


def _remove_leftovers(root: str, identity: str) -> None:
    """Half-written folders of runs that were killed; their finished steps are in the `.work` folder."""
    for name in list_folder(root):
        if name.startswith(f"{identity}.tmp-"):
            remove_folder(join_uri(root, name))


def _prepare(plan: Plan, identity: str, stage: StagedFolder) -> dict[str, Any]:
    """Steps 1 to 5; returns the manifest."""
    config, base = plan.config, plan.base
    # Interactions first: a fault in them shows before the long work on media.
    items = number_items(plan.steps, plan.tables, base, config.split, plan.seed, plan.rows_per_partition)
    interactions = prepare_interactions(plan, items)
    counts = _write_prepared(plan, items, interactions, stage)
    parents = {"tables": plan.tables.identity, **({"base": base.identity} if base else {})}
    return stage.commit(PREPARED_KIND, identity, parents=parents, counts=counts, config={"data": config.model_dump(mode="json"), "seed": plan.seed})


def _write_prepared(plan: Plan, items: ItemNumbers, interactions: PreparedInteractions, stage: StagedFolder) -> dict[str, Any]:
    """Steps 4 and 5: all files but the manifest; returns the counts."""
    steps, tables = plan.steps, plan.tables
    size = items_per_shard(sum(file.size_bytes for file in tables.items) / max(1, tables.num_rows["items"]))
    shards, coverage = write_item_shards(steps, tables, plan.config.media, items, size)
    quarantine = steps.quarantine
    quarantine.check_budget(plan.config.quarantine, tables.num_rows)
    numbered, first_users = interactions.numbered, sum(interactions.num_files)
    steps.run("files", write_file, [(table,) for table in range(first_users)], numbered)
    names = [f"{split}/part-{number:05d}.parquet" for split, count in zip(SPLITS, interactions.num_files, strict=True) for number in range(count)]
    write_tables(stage.path(ITEM_FACTS), item_facts(tables, items, interactions.train_count_N), facts_schema(tables))
    write_tables(stage.path(USERS), users_in_order(numbered, first_users), numbered.read(0, first_users).schema)
    write_parquet(stage.path("quarantine.parquet"), quarantine.table())
    counts = {
        "num_items": items.num_items,
        "items_per_shard": size,
        "num_users": interactions.num_users,
        "num_cold_items": int((interactions.train_count_N == 0).sum()),
        **{f"num_{name}": count for name, count in zip(SPLITS, interactions.num_rows_of, strict=True)},
        "num_quarantined": quarantine.num_rows,
    }
    has_times, by_reason = interactions.has_timestamps, quarantine.by_reason()
    statistics = {"counts": counts, "coverage": coverage, "quarantine": by_reason, "values": interactions.value_statistics, "has_timestamps": has_times}
    write_json(stage.path("statistics.json"), statistics)
    for reason, count in by_reason.items():
        logger.warning("quarantine | %s | %d", reason, count)
    # Last: where files have to move, a run that ends before would have to make them again.
    steps.place(SHARDS_STEP, shards, stage)
    steps.place("files", names, stage)
    return {**counts, "columns": [name for name in tables.items_schema.names if name != ITEM_ID], "has_timestamps": has_times}
