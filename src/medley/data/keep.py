"""What stays of a part's rows when every rule has spoken: splits, users to be numbered, values and figures for the whole."""

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from medley.data.assign import ASSIGNED_TABLE, LEFT_OUT, arrays, leave_out_fallen, sort_times, sparse
from medley.data.behaviour import CoreConfig
from medley.data.leaks import time_range
from medley.data.partitions import mix, write_parts
from medley.data.settle import HASH, ROWS_TABLE, USERS_TABLE, Sources
from medley.data.split import TRAIN
from medley.data.steps import StepFiles
from medley.data.validate import Quarantine
from medley.data.values import ValuesConfig, summarise_values, transform_values
from medley.schema import SPLIT, SPLITS, TIMESTAMP, USER_ID, USER_INDEX, VALUE

KEPT_TABLE, NUMBERS_TABLE, SAMPLE_TABLE, TRAIN_TABLE = 0, 1, 2, 3
"""tables of a part's file: SPLIT of each row; the number of each user; a sample of the rows; train rows of each item"""


def keep_part(
    uri: str,
    part: int,
    settled: StepFiles,
    assigned: StepFiles,
    base_users: StepFiles | None,
    num_base: int,
    sources: Sources,
    held_out_N: np.ndarray,
    masks: tuple[np.ndarray | None, np.ndarray | None],
    core: CoreConfig,
    values: ValuesConfig,
    sample_every: int,
) -> dict[str, Any]:
    """Write each row's split, LEFT_OUT for those left out, and what the whole must know (a task).

    A user's number is the base's, or num_base and its place among the part's new ones that have any row, or -1. masks: as learn_core returns them.
    sample_every: one of so many rows is in the sample; 0: none.
    """
    rows, users_table = settled.read(part, ROWS_TABLE), settled.read(part, USERS_TABLE)
    split = assigned.read(part, ASSIGNED_TABLE)[SPLIT].to_numpy().copy()
    quarantine = Quarantine()
    leave_out_fallen(rows, split, users_table, sources, *masks, core, quarantine)
    users, items, times = arrays(rows)
    is_kept, is_train = split != LEFT_OUT, split == TRAIN

    has_rows = np.zeros(users_table.num_rows, dtype=bool)
    has_rows[users[is_kept]] = True
    numbers = np.full(users_table.num_rows, -1, dtype=np.int32)
    if base_users:
        known = base_users.read_all(part)
        place = pc.index_in(users_table[USER_ID], value_set=known[USER_ID].combine_chunks())
        numbers[pc.is_valid(place).to_numpy()] = known[USER_INDEX].to_numpy()[place.drop_null().to_numpy()]
    is_new = has_rows & (numbers < 0)
    numbers[is_new] = num_base + np.arange(is_new.sum(), dtype=np.int32)

    report: dict[str, Any] = {"num_new_users": int(is_new.sum()), "num_rows_of": [int((split == number).sum()) for number in range(len(SPLITS))]}
    if TIMESTAMP in rows.column_names:
        report["num_timed_train"] = int(pc.is_valid(rows[TIMESTAMP]).to_numpy()[is_train].sum())
    if times is not None:
        is_free = is_kept & (held_out_N[items] < 0)
        report["time_ranges"] = [time_range(times[is_free & (split == number)]) for number in range(len(SPLITS))]
    if VALUE in rows.column_names:
        transformed, report["num_clipped"] = transform_values(pc.fill_null(rows[VALUE], np.nan).to_numpy()[is_kept], values)
        report["values"] = summarise_values(transformed[is_train[is_kept]])

    # Chosen by what a row says, so that the files' bounds are the same however many parts there are.
    seen = np.flatnonzero(is_kept) if sample_every else np.zeros(0, dtype=np.int64)
    moments = sort_times(rows.take(pa.array(seen)))
    key = mix(mix(users_table[HASH].to_numpy()[users[seen]], items[seen]), moments)
    is_sampled = key % np.uint64(max(1, sample_every)) == 0
    seen, moments = seen[is_sampled], moments[is_sampled]
    sample = pa.table({SPLIT: split[seen], TIMESTAMP: moments, USER_INDEX: numbers[users[seen]]})
    tables = [pa.table({SPLIT: split}), pa.table({USER_INDEX: numbers}), sample, sparse(items[is_train])]
    return {**write_parts(uri, tables), **report, "quarantine": quarantine.as_json()}
