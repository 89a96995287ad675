"""What people did, as training wants it: dwell times, bots, items that one user had, the k-core. Rules are off by default and learned from train alone."""

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from medley.schema import InputError

MINUTE_MICROSECONDS = 60_000_000
DAY_MICROSECONDS = 24 * 60 * MINUTE_MICROSECONDS


class BehaviourConfig(BaseModel):
    """Rules against noise; what each leaves out is counted in quarantine.parquet and statistics.json."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    min_dwell_seconds: float = Field(default=0, ge=0)
    """rows with a shorter dwell time are bounces and left out of every split; rows without one stay; 0: off"""
    target_min_dwell_seconds: float = Field(default=0, ge=0)
    """rows with a shorter dwell time train, but do not count as relevant in evaluation; 0: off"""
    max_events_per_minute: int | None = Field(default=None, ge=1)
    """users with more train rows than this within any 60 seconds are bots: all their rows are left out; null: off"""
    max_events_per_day: int | None = Field(default=None, ge=1)
    """the same within any 24 hours; null: off"""
    drop_one_off_items: bool = False
    """leaves out the train rows of items that a single user had in train; the items stay, as cold ones"""


class CoreConfig(BaseModel):
    """The k-core of train: users and items with fewer partners are left out, again and again until none is (Batagelj and Zaversnik 2003).

    Partners are different items of a user, different users of an item. A user who falls out leaves every split; a user who has no train row
    (first seen later) stays. An item that falls out loses its train rows and stays in the catalogue as a cold one.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    users: int = Field(default=1, ge=1)
    """different items a user must have in train"""
    items: int = Field(default=1, ge=1)
    """different users an item must have in train"""


LeftOut = tuple[str, str, np.ndarray]
"""(column, reason, bool mask of the rows left out)"""


def bot_rows(users: np.ndarray, times: np.ndarray | None, is_train: np.ndarray, config: BehaviourConfig) -> list[LeftOut]:
    """All rows of users whose train rows are too dense, per rule; no row is in two masks. times: int64 microseconds; all (rows,)."""
    dropped, is_kept = [], np.ones(len(users), dtype=bool)
    for unit, limit, span in (("minute", config.max_events_per_minute, MINUTE_MICROSECONDS), ("day", config.max_events_per_day, DAY_MICROSECONDS)):
        if limit is None:
            continue
        if times is None:
            raise InputError(
                f"data.behaviour.max_events_per_{unit} is set, but some interactions have no timestamp",
                "a timestamp in every row",
                "add them, or set it to null",
            )
        rows = is_train & is_kept
        mask = is_kept & np.isin(users, users_above_rate(users[rows], times[rows], limit, span))
        dropped.append(("user_id", f"user has more than {limit} events in a {unit}", mask))
        is_kept &= ~mask
    return dropped


def fallen_rows(
    users: np.ndarray, items: np.ndarray, is_train: np.ndarray, is_one_off_N: np.ndarray | None, is_core_N: np.ndarray | None, core: CoreConfig
) -> list[LeftOut]:
    """What one-off items and the core leave out, per rule; no row is in two masks. None: the rule is off.

    Train rows of one-off items and of items outside the core; all rows of users who have train rows, but none in the core.
    """
    dropped = []
    if is_one_off_N is not None:
        mask = is_train & is_one_off_N[items]
        dropped.append(("item_id", "item that one user had", mask))
        is_train = is_train & ~mask
    if is_core_N is not None:
        core_users, _ = distinct_pairs(users[is_train & is_core_N[items]], items[is_train & is_core_N[items]])
        found, num_items = np.unique(core_users, return_counts=True)
        has_fallen = np.isin(users, np.setdiff1d(users[is_train], found[num_items >= core.users]))
        if dropped:
            has_fallen &= ~dropped[0][2]
        dropped.append(("user_id", f"user is not in the core of {core.users} items", has_fallen))
        dropped.append(("item_id", f"item is not in the core of {core.items} users", is_train & ~is_core_N[items] & ~has_fallen))
    return dropped


def users_above_rate(users: np.ndarray, times: np.ndarray, limit: int, span: int) -> np.ndarray:
    """Users with more than `limit` rows less than `span` apart. times and span in the same unit."""
    order = np.lexsort((times, users))
    users, times = users[order], times[order]
    is_dense = (users[limit:] == users[:-limit]) & (times[limit:] - times[:-limit] < span)
    return np.unique(users[limit:][is_dense])


def count_users(users: np.ndarray, items: np.ndarray, is_kept_N: np.ndarray, min_items: int) -> np.ndarray:
    """(N,) int32: users of each kept item who have `min_items` of the kept items. users, items: distinct pairs of numbers from 0."""
    is_kept = is_kept_N[items]
    users, items = users[is_kept], items[is_kept]
    items = items[np.bincount(users)[users] >= min_items]
    return np.bincount(items, minlength=len(is_kept_N)).astype(np.int32)


def distinct_pairs(users: np.ndarray, items: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The different pairs, in order."""
    width = int(items.max(initial=0)) + 1
    pairs = np.sort(users.astype(np.int64) * width + items)
    return np.divmod(pairs[np.append(True, pairs[1:] != pairs[:-1])[: len(pairs)]], width)
