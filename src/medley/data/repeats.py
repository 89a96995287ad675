"""Rows that say the same twice, and rows that contradict each other."""

from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from medley.schema import VALUE, InputError

ConflictRule = Literal["last", "first", "max_value", "error"]


def find_repeats(table: pa.Table) -> np.ndarray:
    """(rows,) bool: True for rows equal to an earlier row in every column."""
    numbered = table.append_column("row", pa.array(np.arange(table.num_rows)))
    first = numbered.group_by(table.column_names).aggregate([("row", "min")])["row_min"].to_numpy()
    is_repeat = np.ones(table.num_rows, dtype=bool)
    is_repeat[first] = False
    return is_repeat


def find_conflicts(table: pa.Table, key: list[str], rule: ConflictRule) -> np.ndarray:
    """(rows,) bool: True for the rows to leave out among those equal in the columns `key`; the rule says which one stays.

    last, first: by place in the tables. max_value: the largest `value`, the last of equal ones; a row without a value is below all.
    error: an InputError where there is any. Rows with a null in `key` are in no conflict.
    """
    places = pa.array(np.arange(table.num_rows))
    is_known = np.ones(table.num_rows, dtype=bool)
    for column in key:
        is_known &= pc.is_valid(table[column]).to_numpy()
    numbered = table.select(key).append_column("row", places).filter(pa.array(is_known))
    crowded = numbered.group_by(key).aggregate([("row", "min"), ("row", "count")])
    crowded = crowded.filter(pc.greater(crowded["row_count"], 1))
    is_dropped = np.zeros(table.num_rows, dtype=bool)
    if crowded.num_rows == 0:
        return is_dropped
    if rule == "error":
        example = {name: str(crowded[name][0]) for name in key}
        raise InputError(
            f"{crowded.num_rows} groups of interactions contradict each other, for example those of {example}",
            "one row per user, item and time",
            "correct them, or set data.conflicts to last, first or max_value",
        )
    rows = numbered.join(crowded.rename_columns([*key, "group", "size"]), key, join_type="inner")
    row, group = rows["row"].to_numpy(), rows["group"].to_numpy()
    rank = {"first": -row, "last": row, "max_value": row}[rule]
    strength = np.zeros(len(row))
    if rule == "max_value" and VALUE in table.column_names:
        strength = pc.fill_null(table[VALUE], -np.inf).to_numpy()[row]
    order = np.lexsort((rank, strength, group))
    is_winner = np.append(group[order][1:] != group[order][:-1], True)
    is_dropped[row[order][~is_winner]] = True
    return is_dropped
