"""The most recent train items of a user: before a train interaction, or at the end of training; never the future."""

from dataclasses import dataclass
from typing import Self

import numpy as np


@dataclass(frozen=True)
class Histories:
    """Every user's train items in time order, in compressed rows.

    offsets: (V + 1,) int64 into items; items: int32. start_of_row, stop_of_row: per train row, its user's items strictly before its time.
    Without timestamps the history of a row is the user's other train items: start to stop is all of them and `target_of_row` is left out.
    """

    offsets: np.ndarray
    items: np.ndarray
    stop_of_row: np.ndarray
    target_of_row: np.ndarray | None
    length: int

    @classmethod
    def of_train(cls, users: np.ndarray, items: np.ndarray, timestamps: np.ndarray | None, num_users: int, length: int) -> Self:
        """Histories of the train rows (users, items, timestamps as int64), at most `length` items each."""
        num_rows = len(users)
        order = np.lexsort((np.arange(num_rows), timestamps, users)) if timestamps is not None else np.lexsort((np.arange(num_rows), users))
        offsets = np.concatenate([[0], np.cumsum(np.bincount(users, minlength=num_users))]).astype(np.int64)
        place_of_row = np.empty(num_rows, dtype=np.int64)
        place_of_row[order] = np.arange(num_rows)
        if timestamps is None:
            return cls(offsets, items[order].astype(np.int32), offsets[users + 1], place_of_row, length)
        # Rows of one user with the same time see the same past: they stop where the first of them stands.
        sorted_users, sorted_times = users[order], timestamps[order]
        is_first = np.ones(num_rows, dtype=bool)
        is_first[1:] = (sorted_users[1:] != sorted_users[:-1]) | (sorted_times[1:] != sorted_times[:-1])
        first_of_tie = np.maximum.accumulate(np.where(is_first, np.arange(num_rows), 0))
        return cls(offsets, items[order].astype(np.int32), first_of_tie[place_of_row], None, length)

    def before_rows(self, rows: np.ndarray, users: np.ndarray) -> list[np.ndarray]:
        """For each train row the item numbers of its history, oldest first."""
        histories = []
        for row, user in zip(rows, users, strict=True):
            start, stop = self.offsets[user], self.stop_of_row[row]
            if self.target_of_row is None:
                histories.append(self.items[max(start, stop - self.length) : stop])
            else:
                # A user may have had the item in several rows (viewed, then bought): all of them are the target.
                others = self.items[start:stop]
                histories.append(others[others != self.items[self.target_of_row[row]]][-self.length :])
        return histories

    def at_end(self, users: np.ndarray) -> list[np.ndarray]:
        """For each user the last `length` train items, oldest first."""
        return [self.items[max(self.offsets[user], self.offsets[user + 1] - self.length) : self.offsets[user + 1]] for user in users]
