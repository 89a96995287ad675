"""Tables → a prepared data set: contiguous ids, cleaned media in shards, train/valid/test interactions, quarantine, statistics.

Each step is a list of tasks over pieces of the tables or over parts of the users (partitions.py), whose files wait in `FINGERPRINT.work/`, so that a
run after an interrupted one continues and no process holds more than a part: 1. number the items (numbering.py); 2. clean the interactions
(interactions.py), settle repeats and conflicts (settle.py), check the budget for faulty rows; 3. split them (selection.py finds the cuts),
leave out what the rules learn from train (assign.py, keep.py), prove that nothing leaks, number the users, normalise the values (outputs.py);
4. clean the items' media into shards (item_shards.py); 5. write users, item facts, interactions, quarantine, statistics, manifest.
A user's rows are in one part, and numbers of items as such (8 bytes an item) in one process.

    items/part-00000.arrow   the items' modality columns, `ITEMS_PER_SHARD` rows each (Arrow IPC, memory-mapped by the stream)
    item_facts.parquet       item_index, item_id, title, train_count and the small attribute columns
    users.parquet            user_index, user_id, attribute columns
    train|valid|test/part-00000.parquet   PREPARED_INTERACTIONS_SCHEMA, in time order within a file and from file to file
    quarantine.parquet       what was left out or counted as missing, where it stands and why
"""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from medley.data.assign import assign_part, has_core, learn_core, summed
from medley.data.base import ITEM_FACTS, PREPARED_KIND, USERS, BaseSet, base_identity, open_base
from medley.data.behaviour import BehaviourConfig, CoreConfig
from medley.data.interactions import EventRules, clean_piece, sum_figures
from medley.data.item_shards import facts_schema, item_facts, move_item_shards, write_item_shards
from medley.data.keep import TRAIN_TABLE, keep_part
from medley.data.leaks import check_time_order
from medley.data.numbering import ItemNumbers, number_items, scatter_ids
from medley.data.outputs import SAMPLES_PER_FILE, file_bounds, number_part, users_in_order, write_file
from medley.data.partitions import ROWS_PER_PARTITION, num_partitions
from medley.data.repeats import ConflictRule
from medley.data.selection import select_ranks
from medley.data.settle import KEYS_TABLE, Sources, settle_part
from medley.data.split import TEST, TRAIN, VALID, SplitConfig, cut_ranks, has_test, split_kind
from medley.data.steps import Report, StepFiles, Steps
from medley.data.tables import Tables, open_tables, pieces_of, write_tables
from medley.data.validate import Quarantine, QuarantineConfig
from medley.data.values import ValuesConfig, train_statistics
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
from medley.schema import ITEM_ID, SPLIT, SPLITS, USER_ID, USER_INDEX, InputError
from medley.storage import beside_uri

logger = logging.getLogger(__name__)

LAYOUT = 2
"""of a prepared folder; part of its identity"""
ROWS_PER_FILE = 2**20
"""of train, valid and test; a file is merged by one process"""


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
    base: str | None = None
    """URI of an earlier prepared set (PREPARED_ROOT/FINGERPRINT) whose users and items keep their numbers; new ones follow, in the same order as
    without it. An item that left the tables stays in the catalogue without content or title, a user without interactions stays in the list. null:
    numbers from nothing"""

    @property
    def identity(self) -> list[Any]:
        """What decides the prepared bytes beside the tables and the seed; an InputError where the base is none."""
        return [self.model_dump(mode="json", exclude={"base"}), base_identity(self.base) if self.base else None]


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
    uri = join_uri(absolute_uri(prepared_root), identity)
    manifest = find_manifest(uri)
    is_reused = manifest is not None
    if manifest is None:
        work_uri = beside_uri(uri, ".work")
        base = open_base(config.base) if config.base else None
        num_rows = max(sum(file.num_rows for file in files) for files in (tables.items, tables.interactions))
        steps = Steps(join_uri(work_uri, f"{rows_per_partition}-{rows_per_file}"), Quarantine(), is_inline=num_rows <= rows_per_partition)
        with staged_folder(uri) as stage:
            try:
                # Interactions first: a fault in them shows before the long work on media.
                items = number_items(steps, tables, base, config.split, seed, rows_per_partition)
                interactions = _prepare_interactions(steps, tables, base, items, config, seed, rows_per_partition, rows_per_file)
            except InputError:
                remove_folder(work_uri)  # what must be corrected makes another fingerprint
                raise
            counts = _write_prepared(steps, tables, items, interactions, config, stage)
            parents = {"tables": tables.identity, **({"base": base.identity} if base else {})}
            manifest = stage.commit(PREPARED_KIND, identity, parents=parents, counts=counts, config={"data": config.model_dump(mode="json"), "seed": seed})
        remove_folder(work_uri)
    else:
        verify_files(uri, manifest)
    return {"prepared": uri, "fingerprint": identity, "reused": is_reused, "seconds": round(time.monotonic() - started, 1), **manifest["counts"]}


@dataclass(frozen=True)
class _Interactions:
    """The finished interactions, in files of the step `numbered`."""

    numbered: StepFiles
    num_files: tuple[int, ...]
    """of each split: its tables come after those of the splits before it, then the tables of users"""
    num_rows_of: tuple[int, ...]
    num_users: int
    train_count_N: np.ndarray
    has_timestamps: bool
    value_statistics: dict[str, Any]


def _prepare_interactions(
    steps: Steps, tables: Tables, base: BaseSet | None, items: ItemNumbers, config: DataConfig, seed: int, rows_per_partition: int, rows_per_file: int
) -> _Interactions:
    """Steps 2 and 3: all that is done with interactions, but for their files."""
    rules = EventRules(config.events, config.target_events, config.behaviour)
    rules.check_columns(tables.interactions_schema.names)
    pieces = pieces_of(tables.interactions, rows_per_partition)
    num_all = _num_rows(tables)
    num_base = base.num_users if base else 0
    num_parts = num_partitions(max(num_all["interactions"], num_base, sum(file.num_rows for file in tables.users)), rows_per_partition)
    parts = [(part,) for part in range(num_parts)]
    base_users = attributes = None
    if base:
        base_users = scatter_ids(steps, "base_users", base.user_files, [USER_ID, USER_INDEX], num_parts, rows_per_partition)
    if tables.users_schema is not None:
        columns = [USER_ID, *(name for name in tables.users_schema.names if name != USER_ID)]
        attributes = scatter_ids(steps, "attributes", tables.users, columns, num_parts, rows_per_partition)

    found = steps.run("clean", clean_piece, [(piece,) for piece in pieces], tables, items, rules, num_parts)
    figures = sum_figures(found)
    if figures.num_rows == 0:
        raise _nothing_left(steps.quarantine)
    kind = split_kind(config.split, figures.num_rows, figures.num_timed, figures.num_split)
    if kind == "shipped" and figures.bad_splits:
        raise InputError(f"column '{SPLIT}' of the interactions holds {figures.bad_splits}", f"one of {', '.join(SPLITS)} in every row", "correct the column")
    held_out_N = items.held_out()
    if not has_test(kind, config.split, figures.num_test):
        held_out_N = np.where(held_out_N == TEST, VALID, held_out_N)

    sources = Sources(tables.interactions, pieces)
    clean, has_split = steps.files("clean", found), figures.num_split == figures.num_rows
    found = steps.run("settled", settle_part, parts, clean, sources, config.conflicts, has_split, kind, seed)
    settled, num_rows = steps.files("settled", found), sum(report["num_rows"] for report in found)
    if config.target_events and sum(report["num_targets"] for report in found) == 0:
        raise InputError(
            f"no interaction is one of data.target_events={list(config.target_events)}", "some of them", "see the events of the table; correct the setting"
        )
    steps.quarantine.check_budget(config.quarantine, num_all)
    cuts: list[int] = []
    if kind in ("time", "random"):
        bounds = (figures.first_time, figures.last_time) if kind == "time" else (0, 2**63 - 1)
        cuts = select_ranks(steps, "cuts", settled, KEYS_TABLE, num_rows, bounds, cut_ranks(config.split, num_rows))

    has_pairs = config.behaviour.drop_one_off_items or has_core(config.k_core)
    found = steps.run("assigned", assign_part, parts, settled, sources, kind, config.split, cuts, held_out_N, config.behaviour, has_pairs)
    assigned = steps.files("assigned", found)
    masks = learn_core(steps, assigned, items.num_items, config.behaviour, config.k_core)
    sample_every = max(1, rows_per_file // SAMPLES_PER_FILE) if num_rows > rows_per_file else 0
    shared = (base_users, num_base, sources, held_out_N, masks, config.k_core, config.values, sample_every)
    found = steps.run("kept", keep_part, parts, settled, assigned, *shared)
    kept = steps.files("kept", found)
    num_rows_of = tuple(sum(report["num_rows_of"][number] for report in found) for number in range(len(SPLITS)))
    if sum(num_rows_of) == 0:
        raise _nothing_left(steps.quarantine)
    _check_parts(num_rows_of, may_lack_test=not has_test(kind, config.split, 0))
    if kind == "time":
        ranges = [[report["time_ranges"][number] for report in found] for number in range(len(SPLITS))]
        check_time_order([(min(first for first, _ in each), max(last for _, last in each)) for each in ranges])
    statistics = _value_statistics(found, config.values)

    offsets = np.concatenate([[0], np.cumsum([report["num_new_users"] for report in found])]).tolist()
    bounds_of = file_bounds(kept, offsets, num_base, num_rows_of, rows_per_file)
    shared_ = (attributes, base_users, offsets, num_base, rows_per_partition, kind, held_out_N, config.values, statistics.get("train_mean"), bounds_of)
    numbered = steps.files("numbered", steps.run("numbered", number_part, parts, settled, kept, *shared_))
    has_times = sum(report.get("num_timed_train", 0) for report in found) == num_rows_of[TRAIN]
    train_count_N = summed(kept, TRAIN_TABLE, items.num_items)
    num_files = tuple(len(bounds) + 1 for bounds in bounds_of)
    return _Interactions(numbered, num_files, num_rows_of, num_base + offsets[-1], train_count_N, has_times, statistics)


def _write_prepared(steps: Steps, tables: Tables, items: ItemNumbers, interactions: _Interactions, config: DataConfig, stage: StagedFolder) -> dict[str, Any]:
    """Steps 4 and 5: all files but the manifest; returns the counts."""
    coverage = write_item_shards(steps, tables, config.media, items)
    steps.quarantine.check_budget(config.quarantine, _num_rows(tables))  # of values that cannot be read, too
    numbered, first_users = interactions.numbered, sum(interactions.num_files)
    steps.run("files", write_file, [(table,) for table in range(first_users)], numbered)
    names = [f"{split}/part-{number:05d}.parquet" for split, count in zip(SPLITS, interactions.num_files, strict=True) for number in range(count)]
    write_tables(stage.path(ITEM_FACTS), item_facts(tables, items, interactions.train_count_N), facts_schema(tables))
    write_tables(stage.path(USERS), users_in_order(numbered, first_users), numbered.read(0, first_users).schema)
    quarantine = steps.quarantine
    write_parquet(stage.path("quarantine.parquet"), quarantine.table())
    counts = {
        "num_items": items.num_items,
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
    # Last: what is moved, a run after an interruption could not find.
    steps.move("files", names, stage)
    move_item_shards(steps, items, stage)
    return {**counts, "columns": [name for name in tables.items_schema.names if name != ITEM_ID], "has_timestamps": has_times}


def _num_rows(tables: Tables) -> dict[str, int]:
    """Rows of the tables that have a budget."""
    return {name: sum(file.num_rows for file in files) for name, files in (("items", tables.items), ("interactions", tables.interactions))}


def _value_statistics(reports: Sequence[Report], config: ValuesConfig) -> dict[str, Any]:
    """What the parts say of the values together; nothing where there is no such column."""
    if not any("values" in report for report in reports):
        return {}
    clipped = {"num_clipped": sum(report["num_clipped"] for report in reports)} if config.clip is not None else {}
    return {**clipped, **train_statistics([report["values"] for report in reports])}


def _check_parts(num_rows_of: Sequence[int], may_lack_test: bool) -> None:
    for number, name in enumerate(SPLITS):
        if num_rows_of[number] == 0 and not (may_lack_test and number == TEST):
            raise InputError(
                f"the '{name}' split is empty ({sum(num_rows_of)} interactions in all)", "interactions in every split", "change data.split or add data"
            )


def _nothing_left(quarantine: Quarantine) -> InputError:
    reasons = "; ".join(f"{reason}: {count}" for reason, count in quarantine.by_reason().items())
    return InputError(f"no interaction is left after cleaning ({reasons})", "known items, weighted events", "check the ids and the settings under data")
