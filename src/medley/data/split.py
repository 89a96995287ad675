"""Train, valid, test: as shipped, by global time, each user's last rows, or at random; some items may be held out whole."""

import hashlib
from fractions import Fraction
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, ConfigDict, Field

from medley.data.plan import derive_seed
from medley.schema import ITEM_INDEX, SPLIT, SPLITS, TIMESTAMP, USER_INDEX, InputError

TRAIN, VALID, TEST = range(len(SPLITS))


class SplitConfig(BaseModel):
    """How interactions are divided."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["auto", "shipped", "time", "last_out", "random"] = "auto"
    """auto: shipped where the data have a split column, else time where there are timestamps, else random"""
    last_out: Literal[1, 2] = 2
    """kind last_out: 2: each user's last row is test, the one before valid; 1: the last row is valid, there is no test"""
    valid_share: float = Field(default=0.1, gt=0, lt=0.5)
    """share of the interactions"""
    test_share: float = Field(default=0.1, gt=0, lt=0.5)
    """share of the interactions"""
    cold_item_share: float = Field(default=0.0, ge=0, lt=0.5)
    """share of the catalogue held out whole: chosen by seed and item id, no row of such an item is in train; its rows are all valid or all test"""


def has_values(table: pa.Table, column: str) -> bool:
    """Whether a column is there and has any value."""
    return column in table.column_names and table[column].null_count < table.num_rows


def split_kind(table: pa.Table, config: SplitConfig) -> str:
    """The kind that `auto` stands for in these interactions, or the one asked for; a kind the data cannot give is an InputError."""
    needed = {"shipped": SPLIT, "time": TIMESTAMP, "last_out": TIMESTAMP}
    if config.kind == "auto":
        return next((kind for kind in ("shipped", "time") if has_values(table, needed[kind])), "random")
    column = needed.get(config.kind)
    if column and not has_values(table, column):
        raise InputError(
            f"data.split.kind={config.kind}, but the interactions have no values in column '{column}'", f"a filled '{column}'", "use data.split.kind=auto"
        )
    return config.kind


def assign_split(table: pa.Table, config: SplitConfig, seed: int) -> np.ndarray:
    """(rows,) int8: 0 train, 1 valid, 2 test.

    time: cut at two moments so that the shares are met by count; rows of the same moment stay together, in the later part.
    last_out: by user and time, of equal times the larger item number is the later; users with fewer than last_out + 1 rows are train.
    """
    kind = split_kind(table, config)
    num_rows = table.num_rows
    cuts = _cuts(config, num_rows)
    if kind == "shipped":
        numbers = pc.index_in(table[SPLIT], value_set=pa.array(SPLITS))
        if numbers.null_count:
            bad = pc.unique(pc.filter(table[SPLIT], pc.is_null(numbers))).to_pylist()[:3]
            raise InputError(f"column '{SPLIT}' of the interactions holds {bad}", f"one of {', '.join(SPLITS)} in every row", "correct the column")
        return numbers.to_numpy().astype(np.int8)
    if kind in ("time", "last_out"):
        if table[TIMESTAMP].null_count:
            raise InputError(
                f"{table[TIMESTAMP].null_count} of {num_rows} interactions have no {TIMESTAMP}",
                "all or none with one",
                "fill them, or use data.split.kind=random",
            )
        times = table[TIMESTAMP].cast(pa.int64()).to_numpy()
        if kind == "last_out":
            return _last_out(table[USER_INDEX].to_numpy(), table[ITEM_INDEX].to_numpy(), times, config.last_out)
        by_time = np.sort(times)
        return np.searchsorted(by_time[cuts], times, side="right").astype(np.int8)
    order = np.random.Generator(np.random.Philox(derive_seed(seed, "split"))).permutation(num_rows)
    part = np.empty(num_rows, dtype=np.int8)
    part[order] = np.searchsorted(cuts, np.arange(num_rows), side="right")
    return part


def _cuts(config: SplitConfig, num_rows: int) -> list[int]:
    """Where valid and test begin among the rows, rounded down. In decimals as the user wrote them: in floats (1 - 0.06 - 0.14) times 10 is below 8."""
    valid, test = Fraction(str(config.valid_share)), Fraction(str(config.test_share))
    return [int((1 - valid - test) * num_rows), int((1 - test) * num_rows)]


def _last_out(users: np.ndarray, items: np.ndarray, times: np.ndarray, num_last: int) -> np.ndarray:
    order = np.lexsort((items, times, users))
    sorted_users = users[order]
    starts = np.flatnonzero(np.append(True, sorted_users[1:] != sorted_users[:-1]))
    lengths = np.diff(np.append(starts, len(users)))
    from_end = np.repeat(starts + lengths, lengths) - 1 - np.arange(len(users))
    parts_from_end = np.array([VALID] if num_last == 1 else [TEST, VALID], dtype=np.int8)
    is_last = (from_end < num_last) & np.repeat(lengths > num_last, lengths)
    part = np.full(len(users), TRAIN, dtype=np.int8)
    part[order[is_last]] = parts_from_end[from_end[is_last]]
    return part


def held_out_parts(item_ids: list[str], config: SplitConfig, seed: int, has_test: bool) -> np.ndarray:
    """(N,) int8: the part that takes all rows of a held-out item, -1 for the other items.

    Each id alone decides with the seed, so that an item stays held out when the catalogue grows. Without a test split they are all valid.
    """
    parts = np.full(len(item_ids), -1, dtype=np.int8)
    if config.cold_item_share == 0:
        return parts
    valid_share = config.valid_share / (config.valid_share + config.test_share) if has_test else 1.0
    for place, item_id in enumerate(item_ids):
        draw = int.from_bytes(hashlib.blake2b(f"{seed}:{item_id}".encode(), digest_size=8).digest()) / 2**64
        if draw < config.cold_item_share:
            parts[place] = VALID if draw < config.cold_item_share * valid_share else TEST
    return parts


def keep_together(part: np.ndarray, *keys: np.ndarray) -> np.ndarray:
    """The parts with rows of equal keys in one part, that of the first of them: a row's twin (viewed, bought) must not stand in another split."""
    order = np.lexsort(keys)  # stable: of equal rows the first stands first
    is_first = np.append(True, ~np.all([key[order][1:] == key[order][:-1] for key in keys], axis=0))
    together = np.empty_like(part)
    together[order] = part[order][is_first][np.cumsum(is_first) - 1]
    return together
