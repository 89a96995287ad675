"""MovieLens-1M as its split lists say it, and the ranking metrics of performance tables on it, in plain numpy: shared by our runs and the peers."""

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np

RAW = Path(__file__).resolve().parents[3] / "shared" / "data" / "ml1m"


@dataclass(frozen=True)
class Lists:
    """(user, item) numbers of a split, and what they are called."""

    users: np.ndarray
    items: np.ndarray

    @classmethod
    def read(cls, path: Path) -> Self:
        """A file of lines `user item item …`."""
        lines = [[int(word) for word in line.split()] for line in path.read_text().splitlines() if line.strip()]
        return cls(np.repeat([line[0] for line in lines], [len(line) - 1 for line in lines]), np.array([item for line in lines for item in line[1:]]))


def read_names(raw: Path, file: str, number: str, name: str) -> list[str]:
    """Names in the order of their numbers."""
    with (raw / file).open() as lines:
        by_number = {int(row[number]): row[name] for row in csv.DictReader(lines)}
    return [by_number[place] for place in range(len(by_number))]


def ranking_metrics(top: np.ndarray, wanted: Lists) -> dict[str, float]:
    """ndcg and recall at 10 and 20, means over users that want anything. top: (users, 20) item numbers, best first, -1 past the last.

    Binary gain; the ideal list is cut at min(k, number wanted).
    """
    num_users = len(top)
    num_wanted = np.bincount(wanted.users, minlength=num_users)
    keys = np.unique(wanted.users.astype(np.int64) * 1_000_000 + wanted.items)
    is_hit = np.isin(np.arange(num_users)[:, None] * 1_000_000 + top, keys) & (top >= 0)
    discount = 1 / np.log2(np.arange(20) + 2)
    asked = num_wanted > 0
    figures = {}
    for k in (10, 20):
        ideal = np.cumsum(discount)[np.minimum(num_wanted[asked], k) - 1]
        figures[f"ndcg{k}"] = float(np.mean((is_hit[asked, :k] * discount[:k]).sum(axis=1) / ideal))
        figures[f"recall{k}"] = float(np.mean(is_hit[asked, :k].sum(axis=1) / num_wanted[asked]))
    return figures


def top_20(scores: np.ndarray, left_out: Lists) -> np.ndarray:
    """The 20 best items of every user by a matrix of scores, which is changed: items left out are -inf."""
    scores[left_out.users, left_out.items] = -np.inf
    best = np.argpartition(-scores, 20, axis=1)[:, :20]
    order = np.argsort(-np.take_along_axis(scores, best, axis=1), axis=1, kind="stable")
    return np.take_along_axis(best, order, axis=1)
