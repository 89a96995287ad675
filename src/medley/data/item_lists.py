"""One list of items per user in compressed rows: what users have seen, what they like next."""

from dataclasses import dataclass
from typing import Self

import numpy as np


@dataclass(frozen=True)
class ItemLists:
    """The items of user u are items[offsets[u]:offsets[u + 1]], sorted, without repeats. offsets: (V + 1,) int64; items: int32."""

    offsets: np.ndarray
    items: np.ndarray

    @classmethod
    def from_pairs(cls, users: np.ndarray, items: np.ndarray, num_users: int) -> Self:
        """Lists of the unique (user, item) pairs."""
        order = np.lexsort((items, users))
        users, items = users[order].astype(np.int64), items[order].astype(np.int32)
        is_first = np.ones(len(users), dtype=bool)
        is_first[1:] = (users[1:] != users[:-1]) | (items[1:] != items[:-1])
        counts = np.bincount(users[is_first], minlength=num_users)
        return cls(np.concatenate([[0], np.cumsum(counts)]).astype(np.int64), items[is_first])

    @property
    def lengths(self) -> np.ndarray:
        """Number of items of each user, (V,) int64."""
        return np.diff(self.offsets)

    def of(self, user: int) -> np.ndarray:
        """The items of one user."""
        return self.items[self.offsets[user] : self.offsets[user + 1]]

    def pairs(self, users: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(row in `users`, item) for every item of every listed user."""
        lengths = self.offsets[users + 1] - self.offsets[users]
        rows = np.repeat(np.arange(len(users)), lengths)
        starts = np.repeat(self.offsets[users] - np.concatenate([[0], np.cumsum(lengths)[:-1]]), lengths)
        return rows, self.items[starts + np.arange(len(rows))]

    def contain(self, users: np.ndarray, items: np.ndarray) -> np.ndarray:
        """Whether each (user, item) pair is in the lists, (pairs,) bool."""
        own_users = np.repeat(np.arange(len(self.offsets) - 1), self.lengths)
        if not len(own_users) or not len(users):
            return np.zeros(len(users), dtype=bool)
        width = int(max(self.items.max(), items.max())) + 1
        # In order already, so that nothing need be sorted or hashed.
        own_keys, keys = own_users * width + self.items, users.astype(np.int64) * width + items
        return own_keys[np.searchsorted(own_keys, keys).clip(max=len(own_keys) - 1)] == keys
