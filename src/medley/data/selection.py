"""The exact values at given ranks among rows that no process holds: a histogram of all parts, then the values of the one bin."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from medley.data.partitions import write_parts
from medley.data.steps import StepFiles, Steps

NUM_BINS = 2**16
MAX_GATHERED = 2**20
"""Rows whose values come together in one process; a fuller bin is divided again."""

KEY = "key"

Range = tuple[int, int]
"""smallest and largest value"""


def select_ranks(
    steps: Steps, step: str, keys: StepFiles, table: int, num_rows: int, bounds: Range, ranks: Sequence[int], max_gathered: int = MAX_GATHERED
) -> list[int]:
    """The values that stand at `ranks` (from 0) of the sorted int64 keys, of which there are num_rows, within the bounds.

    keys: files whose table number `table` has a column `key`. (Selection in passes over the data: Munro and Paterson 1980.)
    """
    places = [(bounds, num_rows, rank) for rank in ranks]  # where each value is: its range, the rows in it, its rank among them
    tasks = [(part,) for part in range(len(keys))]
    for round_ in range(64):
        wide = sorted({place for place, count, _ in places if count > max_gathered and place[0] < place[1]})
        if not wide:
            break
        files = steps.files(f"{step}-{round_}", steps.run(f"{step}-{round_}", count_bins, tasks, keys, table, wide))
        totals = {place: sum(files.read(part, number)["count"].to_numpy() for part in range(len(files))) for number, place in enumerate(wide)}
        places = [_narrowed(place, rank, totals[place]) if place in totals else (place, count, rank) for place, count, rank in places]
    narrow = sorted({place for place, _, _ in places})
    files = steps.files(step, steps.run(step, gather_values, tasks, keys, table, narrow))
    values = {place: np.concatenate([files.read(part, number)[KEY].to_numpy() for part in range(len(files))]) for number, place in enumerate(narrow)}
    return [place[0] if place[0] == place[1] else int(np.partition(values[place], rank)[rank]) for place, _, rank in places]


def _narrowed(place: Range, rank: int, counts: np.ndarray) -> tuple[Range, int, int]:
    """The bin of the value at `rank`, the rows in it, the value's rank among them."""
    until = np.cumsum(counts)
    found = int(np.searchsorted(until, rank, side="right"))
    first = place[0] + found * _width(place)
    return (first, min(place[1], first + _width(place) - 1)), int(counts[found]), rank - int(until[found] - counts[found])


def _width(place: Range) -> int:
    return -(-(place[1] - place[0] + 1) // NUM_BINS)


def count_bins(uri: str, part: int, keys: StepFiles, table: int, ranges: Sequence[Range]) -> dict[str, Any]:
    """The keys of a part in equal bins of each range (a task)."""
    values, counts = keys.read(part, table)[KEY].to_numpy(), []
    for first, last in ranges:
        within = values[(values >= first) & (values <= last)]
        # As unsigned: from the first to the last is more than int64 can say.
        bins = (within.view(np.uint64) - np.uint64(first % 2**64)) // np.uint64(_width((first, last)))
        counts.append(pa.table({"count": np.bincount(bins.astype(np.int64), minlength=NUM_BINS)}))
    return write_parts(uri, counts)


def gather_values(uri: str, part: int, keys: StepFiles, table: int, ranges: Sequence[Range]) -> dict[str, Any]:
    """The keys of a part in each range (a task); none where the range says it all."""
    values = keys.read(part, table)[KEY].to_numpy()
    within = [values[(values >= first) & (values <= last)] if first < last else values[:0] for first, last in ranges]
    return write_parts(uri, [pa.table({KEY: found}) for found in within])
