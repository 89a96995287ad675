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


def filter_by_train(
    users: np.ndarray, items: np.ndarray, times: np.ndarray | None, is_train: np.ndarray, behaviour: BehaviourConfig, core: CoreConfig
) -> list[tuple[str, str, np.ndarray]]:
    """(column, reason, bool mask of the rows left out) per rule, in the order of the rules; no row is in two masks.

    users, items: numbers from 0; times: int64 microseconds; is_train: bool; all (rows,). Only train rows decide.
    """
    dropped = []
    is_kept = np.ones(len(users), dtype=bool)

    def drop(column: str, reason: str, mask: np.ndarray) -> None:
        nonlocal is_kept
        dropped.append((column, reason, mask & is_kept))
        is_kept = is_kept & ~mask

    for unit, limit, span in (
        ("minute", behaviour.max_events_per_minute, MINUTE_MICROSECONDS),
        ("day", behaviour.max_events_per_day, DAY_MICROSECONDS),
    ):
        if limit is None:
            continue
        if times is None:
            raise InputError(
                f"data.behaviour.max_events_per_{unit} is set, but some interactions have no timestamp",
                "a timestamp in every row",
                "add them, or set it to null",
            )
        rows = is_train & is_kept
        drop("user_id", f"user has more than {limit} events in a {unit}", np.isin(users, users_above_rate(users[rows], times[rows], limit, span)))
    if behaviour.drop_one_off_items:
        rows = is_train & is_kept
        drop("item_id", "item that one user had", rows & np.isin(items, one_off_items(users[rows], items[rows])))
    if core.users > 1 or core.items > 1:
        rows = is_train & is_kept
        core_users, core_items = k_core(users[rows], items[rows], core.users, core.items)
        fallen_users = np.setdiff1d(users[rows], core_users)
        drop("user_id", f"user is not in the core of {core.users} items", np.isin(users, fallen_users))
        drop("item_id", f"item is not in the core of {core.items} users", is_train & ~np.isin(items, core_items))
    return dropped


def users_above_rate(users: np.ndarray, times: np.ndarray, limit: int, span: int) -> np.ndarray:
    """Users with more than `limit` rows less than `span` apart. times and span in the same unit."""
    order = np.lexsort((times, users))
    users, times = users[order], times[order]
    is_dense = (users[limit:] == users[:-limit]) & (times[limit:] - times[:-limit] < span)
    return np.unique(users[limit:][is_dense])


def one_off_items(users: np.ndarray, items: np.ndarray) -> np.ndarray:
    """Items that a single user had, however often."""
    _, items = _distinct_pairs(users, items)
    found, num_users = np.unique(items, return_counts=True)
    return found[num_users == 1]


def k_core(users: np.ndarray, items: np.ndarray, min_items: int, min_users: int) -> tuple[np.ndarray, np.ndarray]:
    """(users, items) of the largest set in which each user has `min_items` of the items and each item `min_users` of the users. Numbers from 0."""
    users, items = _distinct_pairs(users, items)
    while True:
        is_kept = (np.bincount(users)[users] >= min_items) & (np.bincount(items)[items] >= min_users)
        if is_kept.all():
            return np.unique(users), np.unique(items)
        users, items = users[is_kept], items[is_kept]


def _distinct_pairs(users: np.ndarray, items: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    width = int(items.max(initial=0)) + 1
    pairs = np.sort(users.astype(np.int64) * width + items)
    return np.divmod(pairs[np.append(True, pairs[1:] != pairs[:-1])[: len(pairs)]], width)
