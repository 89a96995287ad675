"""Train, valid, test: as shipped, by global time, each user's last rows, or at random; some items may be held out whole."""

import hashlib
from collections.abc import Sequence
from fractions import Fraction
from typing import Literal

import numpy as np
import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field

from medley.data.partitions import mix
from medley.data.plan import derive_seed
from medley.schema import SPLIT, SPLITS, TIMESTAMP, InputError

TRAIN, VALID, TEST = range(len(SPLITS))


class SplitConfig(BaseModel):
    """How interactions are divided."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["auto", "shipped", "time", "last_out", "random"] = "auto"
    """auto: shipped where the data have a split column, else time where there are timestamps, else random"""
    last_out: Literal[1, 2] = 2
    """kind last_out: 2: each user's last row is test, the one before valid; 1: the last row is valid, there is no test"""
    valid_share: float = Field(default=0.1, gt=0, lt=0.5)
    """share of the interactions; kind random: a row's user, item and time decide with the seed, so that its twins (viewed, bought) stand beside it"""
    test_share: float = Field(default=0.1, gt=0, lt=0.5)
    """share of the interactions"""
    cold_item_share: float = Field(default=0.0, ge=0, lt=0.5)
    """share of the catalogue held out whole: chosen by seed and item id, no row of such an item is in train; its rows are all valid or all test"""


def split_kind(config: SplitConfig, num_rows: int, num_timed: int, num_split: int) -> str:
    """The kind that `auto` stands for in these interactions, or the one asked for; a kind the data cannot give is an InputError.

    num_timed, num_split: how many of the rows have a timestamp, a value in column `split`.
    """
    num_filled = {"shipped": num_split, "time": num_timed, "last_out": num_timed, "random": num_rows}
    kind = config.kind
    if kind == "auto":
        kind = "shipped" if num_split else "time" if num_timed else "random"
    column = SPLIT if kind == "shipped" else TIMESTAMP
    if num_filled[kind] == 0:
        raise InputError(
            f"data.split.kind={kind}, but the interactions have no values in column '{column}'", f"a filled '{column}'", "use data.split.kind=auto"
        )
    if kind != "shipped" and num_filled[kind] < num_rows:
        raise InputError(
            f"{num_rows - num_filled[kind]} of {num_rows} interactions have no {column}",
            "all or none with one",
            "fill them, or use data.split.kind=random",
        )
    return kind


def has_test(kind: str, config: SplitConfig, num_shipped: int) -> bool:
    """Whether the kind makes a test split. num_shipped: rows that the data say are test."""
    return {"shipped": num_shipped > 0, "last_out": config.last_out == 2}.get(kind, True)


def assign_parts(
    kind: str,
    config: SplitConfig,
    cuts: Sequence[int],
    users: np.ndarray,
    items: np.ndarray,
    keys: np.ndarray,
) -> np.ndarray:
    """(rows,) int8: 0 train, 1 valid, 2 test. keys: what the kind goes by, all (rows,).

    shipped: the key is the part. time, random: cut at two keys (times, hashes) so that the shares are met by count; rows of the same key stay
    together, in the later part. last_out: by user and key (time), of equal times the larger item number is the later; users with fewer than
    last_out + 1 rows are train.
    """
    if kind == "shipped":
        return keys.astype(np.int8)
    if kind == "last_out":
        return _last_out(users, items, keys, config.last_out)
    return ((keys >= cuts[0]).astype(np.int8) + (keys >= cuts[1])).astype(np.int8)


def random_keys(row_keys: np.ndarray, seed: int) -> np.ndarray:
    """(rows,) int64 from 0: what rows are cut by at random; equal for equal uint64 row keys, independent between seeds."""
    return (mix(row_keys, derive_seed(seed, "split")) >> np.uint64(1)).view(np.int64)


def cut_ranks(config: SplitConfig, num_rows: int) -> list[int]:
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


def held_out_parts(item_ids: pa.Array, config: SplitConfig, seed: int) -> np.ndarray:
    """(N,) int8: the part that takes all rows of a held-out item, -1 for the other items.

    Each id alone decides with the seed, so that an item stays held out when the catalogue grows.
    """
    parts = np.full(len(item_ids), -1, dtype=np.int8)
    if config.cold_item_share == 0:
        return parts
    valid_share = config.valid_share / (config.valid_share + config.test_share)
    for place, item_id in enumerate(item_ids.to_pylist()):
        draw = int.from_bytes(hashlib.blake2b(f"{seed}:{item_id}".encode(), digest_size=8).digest()) / 2**64
        if draw < config.cold_item_share:
            parts[place] = VALID if draw < config.cold_item_share * valid_share else TEST
    return parts
