"""The finished interactions: numbered, proved apart, and merged from all parts into files in time order."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from medley.data.assign import LEFT_OUT, arrays, sort_times
from medley.data.attributes import Attributes
from medley.data.interactions import IS_TARGET
from medley.data.keep import KEPT_TABLE, NUMBERS_TABLE, SAMPLE_TABLE
from medley.data.leaks import check_leaks
from medley.data.partitions import num_partitions, split_rows, write_buffer, write_parts
from medley.data.settle import ROWS_TABLE, USERS_TABLE
from medley.data.split import TRAIN
from medley.data.steps import StepFiles
from medley.data.validate import Quarantine
from medley.data.values import ValuesConfig, centre_values, transform_values
from medley.schema import ITEM_INDEX, PREPARED_INTERACTIONS_SCHEMA, SPLIT, TIMESTAMP, USER_ID, USER_INDEX, VALUE, WEIGHT

SAMPLES_PER_FILE = 1024
"""rows of a file that its bounds are estimated from: sizes are within a few per cent"""

Bound = tuple[int, int]
"""(time, user number): the first row of a file stands here or after"""


def file_bounds(kept: StepFiles, offsets: Sequence[int], num_base: int, num_rows_of: Sequence[int], rows_per_file: int) -> list[list[Bound]]:
    """For each split the bounds between its files, so that each holds about `rows_per_file` rows: quantiles of the parts' samples.

    offsets: new users of the parts before each.
    """
    samples = [kept.read(part, SAMPLE_TABLE) for part in range(len(kept))]
    split, times = (np.concatenate([sample[name].to_numpy() for sample in samples]) for name in (SPLIT, TIMESTAMP))
    users = np.concatenate([_shifted(sample[USER_INDEX].to_numpy(), num_base, offset) for sample, offset in zip(samples, offsets, strict=False)])
    bounds = []
    for number, num_rows in enumerate(num_rows_of):
        rows = np.flatnonzero(split == number)
        rows = rows[np.lexsort((users[rows], times[rows]))]
        num_files = num_partitions(num_rows, rows_per_file) if len(rows) else 1
        places = rows[(np.arange(1, num_files) * len(rows)) // num_files]
        bounds.append([(int(times[place]), int(users[place])) for place in places])
    return bounds


def number_part(
    uri: str,
    part: int,
    settled: StepFiles,
    kept: StepFiles,
    attributes: Attributes | None,
    base_users: StepFiles | None,
    offsets: Sequence[int],
    num_base: int,
    rows_per_chunk: int,
    kind: str,
    held_out_N: np.ndarray,
    values: ValuesConfig,
    train_mean: float | None,
    bounds: Sequence[Sequence[Bound]],
) -> dict[str, Any]:
    """Write a part's rows with their users' final numbers and its users (a task); refuses rows that leak from one split into another.

    The file has a table for each file of each split; then the part's users of each chunk of the base's numbers, then its new ones.
    """
    rows, users_table = settled.read(part, ROWS_TABLE), settled.read(part, USERS_TABLE)
    split = kept.read(part, KEPT_TABLE)[SPLIT].to_numpy()
    numbers = _shifted(kept.read(part, NUMBERS_TABLE)[USER_INDEX].to_numpy(), num_base, offsets[part])
    is_kept = split != LEFT_OUT
    if not is_kept.all():
        rows, split = rows.filter(pa.array(is_kept)), split[is_kept]
    codes, items, _ = arrays(rows)
    users, times = numbers[codes], sort_times(rows)
    check_leaks(kind, split, users, items, times, held_out_N)
    columns: dict[str, pa.Array | pa.ChunkedArray] = {USER_INDEX: pa.array(users), ITEM_INDEX: rows[ITEM_INDEX]}
    if VALUE in rows.column_names:
        transformed, _ = transform_values(pc.fill_null(rows[VALUE], np.nan).to_numpy(), values)
        columns[VALUE] = pa.array(centre_values(transformed, codes, split == TRAIN, train_mean, values), from_pandas=True)  # NaN becomes null
    columns[WEIGHT] = rows[WEIGHT] if WEIGHT in rows.column_names else pa.array(np.ones(len(split), dtype=np.float32))
    columns[IS_TARGET] = rows[IS_TARGET] if IS_TARGET in rows.column_names else pa.array(np.ones(len(split), dtype=bool))
    if TIMESTAMP in rows.column_names:
        columns[TIMESTAMP] = rows[TIMESTAMP]
    fields = ((field, columns.get(field.name)) for field in PREPARED_INTERACTIONS_SCHEMA)
    table = pa.table([pa.nulls(len(split), field.type) if column is None else column for field, column in fields], PREPARED_INTERACTIONS_SCHEMA)
    first_file = np.cumsum([0, *(len(own) + 1 for own in bounds)])
    file = np.zeros(len(split), dtype=np.int32)
    for number, own in enumerate(bounds):
        is_own = split == number
        file[is_own] = first_file[number] + file_of_row(times[is_own], users[is_own], own)
    tables = split_rows(table, file, int(first_file[-1]))
    quarantine = Quarantine()
    known, new = _users(part, users_table, numbers, num_base, attributes, base_users, quarantine)
    tables += [*split_rows(known, known[USER_INDEX].to_numpy() // rows_per_chunk, num_partitions(num_base, rows_per_chunk)), new] if base_users else [new]
    return {**write_parts(uri, tables), "quarantine": quarantine.as_json()}


def file_of_row(times: np.ndarray, users: np.ndarray, bounds: Sequence[Bound]) -> np.ndarray:
    """(rows,) the place of each row's file among those that the bounds part."""
    moments = np.unique([time for time, _ in bounds])

    def place(times: np.ndarray, users: np.ndarray) -> np.ndarray:
        # Odd at a bound's moment, even between two: as one number with the user it is compared at once.
        between = np.searchsorted(moments, times, side="left") + np.searchsorted(moments, times, side="right")
        return (between << 32) + users

    return np.searchsorted(place(*np.array(bounds, dtype=np.int64).reshape(-1, 2).T), place(times, users), side="right")


def write_file(uri: str, table: int, numbered: StepFiles) -> dict[str, Any]:
    """Table `table` of all parts as one Parquet file in time order (a task)."""
    sink = pa.BufferOutputStream()
    encodings = {TIMESTAMP: "DELTA_BINARY_PACKED"}  # a fifth smaller than with dictionaries of all columns, in half the time
    pq.write_table(in_time_order(numbered.read_all(table)), sink, use_dictionary=[VALUE, WEIGHT], column_encoding=encodings, write_page_checksum=True)
    return write_buffer(uri, sink.getvalue())


def users_in_order(numbered: StepFiles, first_table: int) -> Iterator[pa.Table]:
    """All users in order of their numbers: the base's by chunk of numbers, each from all parts, then every part's new ones."""
    last_table = numbered.num_tables(0) - 1
    for table in range(first_table, last_table):
        yield numbered.read_all(table).sort_by(USER_INDEX)
    for part in range(len(numbered)):
        yield numbered.read(part, last_table)


def in_time_order(table: pa.Table) -> pa.Table:
    """The rows by time (rows without one last), user and item; equal ones in their order."""
    times = sort_times(table)
    # Numpy sorts plain numbers several times faster than rows of several columns; few rows share their time.
    order = np.argsort(times)
    ordered = times[order]
    is_same = ordered[1:] == ordered[:-1]
    if is_same.any():
        slots = np.flatnonzero(np.append(is_same, False) | np.append(False, is_same))
        rows = np.sort(order[slots])
        users, items = (table[name].to_numpy()[rows] for name in (USER_INDEX, ITEM_INDEX))
        order[slots] = rows[np.lexsort((items, users, times[rows]))]
    if (order[1:] > order[:-1]).all():
        return table
    return table.take(pa.array(order))


def _shifted(numbers: np.ndarray, num_base: int, offset: int) -> np.ndarray:
    """Numbers of a part's users among those of all."""
    return np.where(numbers >= num_base, numbers + np.int32(offset), numbers)


def _users(
    part: int,
    users_table: pa.Table,
    numbers: np.ndarray,
    num_base: int,
    attributes: Attributes | None,
    base_users: StepFiles | None,
    quarantine: Quarantine,
) -> tuple[pa.Table, pa.Table]:
    """(the base's users, the new ones): user_index, user_id, the attributes of the users table or null; in order of their numbers."""
    is_new = numbers >= num_base
    new = pa.table({USER_INDEX: pa.array(numbers[is_new]), USER_ID: users_table[USER_ID].filter(pa.array(is_new))})
    known = new.slice(0, 0)
    if base_users:
        known = base_users.read_all(part).select([USER_INDEX, USER_ID]).sort_by(USER_INDEX)
    if attributes is None:
        return known, new
    facts = attributes.of_part(part, quarantine)
    return _with_attributes(known, facts), _with_attributes(new, facts)


def _with_attributes(users: pa.Table, facts: pa.Table) -> pa.Table:
    place = pc.index_in(users[USER_ID].combine_chunks(), value_set=facts[USER_ID].combine_chunks())
    for name in facts.column_names:
        if name != USER_ID:
            users = users.append_column(name, facts[name].combine_chunks().take(place))
    return users
