"""The proof that nothing of valid and test is in train; runs at the end of every prepare."""

from collections.abc import Sequence

import numpy as np

from medley.data.partitions import crowded_rows, mix
from medley.data.split import TEST, TRAIN, VALID
from medley.schema import SPLITS, InputError


def check_leaks(kind: str, split: np.ndarray, users: np.ndarray, items: np.ndarray, times: np.ndarray, held_out_N: np.ndarray) -> None:
    """An InputError for a row whose user, item and time stand in two splits, a train row after a cut, a held-out item in the wrong split.

    split: int8 as in assign_parts; users, items: numbers; times: int64 as sort_times gives them, so that rows without one are twins of each other
    alone; all (rows,). held_out_N: the split of a held-out item, else -1.
    """
    pairs = users.astype(np.int64) * len(held_out_N) + items
    columns = [pairs, times]
    # Only rows that share a key can be twins, and few do.
    crowded = np.flatnonzero(crowded_rows(mix(pairs.astype(np.uint64), times)))
    order = crowded[np.lexsort([column[crowded] for column in (split, *columns)])]
    is_twin = np.all([column[order][1:] == column[order][:-1] for column in columns], axis=0)
    shared = np.flatnonzero(is_twin & (split[order][1:] != split[order][:-1]))
    if len(shared):
        row, other = order[shared[0]], order[shared[0] + 1]
        raise InputError(
            f"{len(shared)} interactions stand in two splits, the first (user number {users[row]}, item number {items[row]}) "
            f"in {SPLITS[split[row]]} and {SPLITS[split[other]]}",
            "every user, item and time in one split",
            "remove them from one split, or set data.split.kind=time or random",
        )
    held_out = held_out_N[items]
    is_free = held_out < 0
    _refuse((~is_free & (split != held_out)).sum(), "rows of held-out items stand in another split")
    if kind == "time":
        check_time_order([time_range(times[is_free & (split == number)]) for number in range(len(SPLITS))])
    if kind == "last_out":
        last = np.full(users.max(initial=-1) + 1, np.iinfo(np.int64).min)
        np.maximum.at(last, users[split == TRAIN], times[split == TRAIN])
        _refuse((is_free & (split != TRAIN) & (times < last[users])).sum(), "held-out rows are before a train row of their user")


def time_range(times: np.ndarray) -> tuple[int, int]:
    """(first, last) of some times; of none, one that is after and before all others."""
    limits = np.iinfo(np.int64)
    return int(times.min(initial=limits.max)), int(times.max(initial=limits.min))


def check_time_order(ranges: Sequence[tuple[int, int]]) -> None:
    """Fails where a split's last time is not before the first one of a later split; with the time_range of each, over all parts of the data."""
    for earlier, later in ((TRAIN, VALID), (VALID, TEST), (TRAIN, TEST)):
        _refuse(int(ranges[earlier][1] >= ranges[later][0]), f"{SPLITS[earlier]} rows are not before the first {SPLITS[later]} row")


def _refuse(num_rows: int, what: str) -> None:
    """What our own split must never do: a defect of the library."""
    assert num_rows == 0, f"leak check: {num_rows} {what}"
