"""Which split a part's rows belong to, what the rules learn from train alone, and what they leave out."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from medley.data.behaviour import BehaviourConfig, CoreConfig, LeftOut, bot_rows, count_users, distinct_pairs, fallen_rows
from medley.data.interactions import USER_CODE
from medley.data.partitions import write_parts
from medley.data.selection import KEY
from medley.data.settle import KEYS_TABLE, ROWS_TABLE, USERS_TABLE, Sources, report_left_out
from medley.data.split import TRAIN, SplitConfig, assign_parts
from medley.data.steps import StepFiles, Steps
from medley.data.validate import Quarantine
from medley.schema import ITEM_INDEX, SPLIT, TIMESTAMP, USER_ID

LEFT_OUT = -1
ASSIGNED_TABLE, PAIRS_TABLE, COUNTS_TABLE = 0, 1, 2
"""tables of a part's file: SPLIT of each row; the different train pairs; how many users each item has"""


def assign_part(
    uri: str,
    part: int,
    settled: StepFiles,
    sources: Sources,
    kind: str,
    config: SplitConfig,
    cuts: Sequence[int],
    held_out_N: np.ndarray,
    behaviour: BehaviourConfig,
    has_pairs: bool,
) -> dict[str, Any]:
    """Write each row's split, LEFT_OUT for the rows of bots (a task). has_pairs: whether a later rule wants the train pairs."""
    rows = settled.read(part, ROWS_TABLE)
    users, items, times = arrays(rows)
    if kind == "shipped":
        keys = rows[SPLIT].to_numpy()
    elif kind == "last_out":
        assert times is not None
        keys = times
    else:
        keys = settled.read(part, KEYS_TABLE)[KEY].to_numpy()
    split = assign_parts(kind, config, cuts, users, items, keys)
    split = np.where(held_out_N[items] >= 0, held_out_N[items], split)
    quarantine = Quarantine()
    left_out = bot_rows(users, times, split == TRAIN, behaviour)
    _leave_out(left_out, split, rows, settled.read(part, USERS_TABLE), sources, quarantine)
    tables = [pa.table({SPLIT: split})]
    if has_pairs:
        pair_users, pair_items = distinct_pairs(users[split == TRAIN], items[split == TRAIN])
        tables += [pa.table({USER_CODE: pair_users.astype(np.int32), ITEM_INDEX: pair_items.astype(np.int32)}), sparse(pair_items)]
    return {**write_parts(uri, tables), "quarantine": quarantine.as_json()}


def learn_core(steps: Steps, assigned: StepFiles, num_items: int, behaviour: BehaviourConfig, core: CoreConfig) -> tuple[np.ndarray | None, np.ndarray | None]:
    """(bool mask of one-off items, bool mask of the core's items), (N,), None where the rule is off: numbers of users, added up over the parts.

    A round of the core asks each part how many users every item has that has not fallen; the items that fall are few after the first rounds.
    """
    is_one_off_N, is_kept_N = None, np.ones(num_items, dtype=bool)
    if behaviour.drop_one_off_items:
        is_one_off_N = summed(assigned, COUNTS_TABLE, num_items) == 1
        is_kept_N &= ~is_one_off_N
    if not has_core(core):
        return is_one_off_N, None
    round_ = 0
    while True:
        name = f"core-{round_}"
        files = steps.files(name, steps.run(name, core_round, [(part,) for part in range(len(assigned))], assigned, is_kept_N, core.users))
        is_core_N = is_kept_N & (summed(files, 0, num_items) >= core.items)
        if (is_core_N == is_kept_N).all():
            return is_one_off_N, is_core_N
        is_kept_N, round_ = is_core_N, round_ + 1


def has_core(core: CoreConfig) -> bool:
    """Whether the core leaves anything out."""
    return core.users > 1 or core.items > 1


def core_round(uri: str, part: int, assigned: StepFiles, is_kept_N: np.ndarray, min_items: int) -> dict[str, Any]:
    """How many users of a part each kept item has, who have enough of the kept items (a task)."""
    pairs = assigned.read(part, PAIRS_TABLE)
    counts_N = count_users(pairs[USER_CODE].to_numpy(), pairs[ITEM_INDEX].to_numpy(), is_kept_N, min_items)
    found = np.flatnonzero(counts_N)
    return write_parts(uri, [pa.table({ITEM_INDEX: found.astype(np.int32), "count": counts_N[found]})])


def leave_out_fallen(
    rows: pa.Table,
    split: np.ndarray,
    users_table: pa.Table,
    sources: Sources,
    is_one_off_N: np.ndarray | None,
    is_core_N: np.ndarray | None,
    core: CoreConfig,
    quarantine: Quarantine,
) -> None:
    """Set the split of one-off items' rows and of those outside the core to LEFT_OUT, and report them."""
    users, items, _ = arrays(rows)
    is_kept = split != LEFT_OUT
    left_out = [(*rule, mask & is_kept) for *rule, mask in fallen_rows(users, items, split == TRAIN, is_one_off_N, is_core_N, core)]
    _leave_out(left_out, split, rows, users_table, sources, quarantine)


def _leave_out(
    left_out: Sequence[LeftOut],
    split: np.ndarray,
    rows: pa.Table,
    users_table: pa.Table,
    sources: Sources,
    quarantine: Quarantine,
) -> None:
    for column, reason, mask in left_out:
        if mask.any():
            dropped = rows.filter(pa.array(mask))
            report_left_out(dropped, users_table[USER_ID].combine_chunks().take(dropped[USER_CODE]), column, reason, sources, quarantine)
            split[mask] = LEFT_OUT


def arrays(rows: pa.Table) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """(users, items, times in microseconds or None where any row has none)."""
    has_times = TIMESTAMP in rows.column_names and rows[TIMESTAMP].null_count == 0
    times = rows[TIMESTAMP].cast(pa.int64()).to_numpy() if has_times else None
    return rows[USER_CODE].to_numpy(), rows[ITEM_INDEX].to_numpy(), times


def sort_times(rows: pa.Table) -> np.ndarray:
    """(rows,) int64 microseconds, rows without a time after all others."""
    last = np.iinfo(np.int64).max
    return pc.fill_null(rows[TIMESTAMP].cast(pa.int64()), last).to_numpy() if TIMESTAMP in rows.column_names else np.full(rows.num_rows, last)


def sparse(items: np.ndarray) -> pa.Table:
    """item_index, count: how often each item that is there stands among these."""
    counts = np.bincount(items)
    found = np.flatnonzero(counts)
    return pa.table({ITEM_INDEX: found.astype(np.int32), "count": counts[found].astype(np.int32)})


def summed(files: StepFiles, table: int, num_items: int) -> np.ndarray:
    """(N,) int64: the sparse counts of all parts together."""
    total_N = np.zeros(num_items, dtype=np.int64)
    for part in range(len(files)):
        counts = files.read(part, table)
        total_N[counts[ITEM_INDEX].to_numpy()] += counts["count"].to_numpy()
    return total_N
