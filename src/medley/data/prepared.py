"""A prepared data set as the later rooms read it: interactions as arrays, ids, facts, item shards."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from medley.data.base import ITEM_FACTS, PREPARED_KIND, USERS
from medley.data.item_lists import ItemLists
from medley.data.shards import ItemShards, ItemStore
from medley.data.tables import open_file
from medley.manifest import join_uri, read_manifest, read_parquet, verify_files
from medley.schema import ITEM_INDEX, SPLITS, TIMESTAMP, USER_INDEX, VALUE, WEIGHT, InputError


@dataclass(frozen=True)
class Interactions:
    """One split in time order. users, items: int32; values, weights: float32 (value NaN where there is none); timestamps: int64 µs or None."""

    users: np.ndarray
    items: np.ndarray
    values: np.ndarray
    weights: np.ndarray
    is_target: np.ndarray
    timestamps: np.ndarray | None

    def __len__(self) -> int:
        return len(self.users)

    @classmethod
    def from_tables(cls, tables: Iterable[pa.Table], num_rows: int) -> Self:
        """From tables of PREPARED_INTERACTIONS_SCHEMA with num_rows rows in all; one of them is in memory beside the arrays."""
        types = {USER_INDEX: np.int32, ITEM_INDEX: np.int32, VALUE: np.float32, WEIGHT: np.float32, "is_target": np.bool_, TIMESTAMP: np.int64}
        arrays: dict[str, np.ndarray] = {name: np.empty(num_rows, dtype=type_) for name, type_ in types.items()}
        start, has_times = 0, num_rows > 0
        for table in tables:
            place = slice(start, start + table.num_rows)
            has_times &= table[TIMESTAMP].null_count == 0
            for name, array in arrays.items():
                array[place] = (pc.fill_null(table[name].cast(pa.int64()), 0) if name == TIMESTAMP else table[name]).to_numpy()
            start += table.num_rows
        assert start == num_rows
        return cls(
            users=arrays[USER_INDEX],
            items=arrays[ITEM_INDEX],
            values=arrays[VALUE],
            weights=arrays[WEIGHT],
            is_target=arrays["is_target"],
            timestamps=arrays[TIMESTAMP] if has_times else None,
        )


@dataclass(frozen=True)
class PreparedData:
    """A finished prepared set; tables are read on first use, every file's hash checked before."""

    uri: str
    manifest: Mapping[str, Any]

    @classmethod
    def open(cls, uri: str) -> Self:
        """Read and check the manifest; item shards are checked when first read."""
        return cls(uri, read_manifest(uri, PREPARED_KIND))

    @property
    def identity(self) -> str:
        """The fingerprint."""
        return str(self.manifest["fingerprint"])

    @property
    def num_items(self) -> int:
        """Items of the catalogue."""
        return int(self.manifest["counts"]["num_items"])

    @property
    def num_users(self) -> int:
        """Users with any interaction, and all users of the base set."""
        return int(self.manifest["counts"]["num_users"])

    @property
    def columns(self) -> list[str]:
        """Columns of the items table, without the id."""
        return list(self.manifest["counts"]["columns"])

    def _table(self, name: str) -> pa.Table:
        verify_files(self.uri, self.manifest, prefix=name)
        return read_parquet(join_uri(self.uri, name))

    def interactions(self, split: str) -> Interactions:
        """train, valid or test; one that the folder lacks is an InputError."""
        names = sorted(name for name in self.manifest["files"] if name.startswith(f"{split}/"))
        if not names:
            raise InputError(f"the prepared set '{self.uri}' has no files '{split}/'", "a set that this version prepared", "run jobs.prepare again")
        verify_files(self.uri, self.manifest, prefix=f"{split}/")
        num_rows = sum(open_file(self.uri, name).num_rows for name in names)
        return Interactions.from_tables((read_parquet(join_uri(self.uri, name)) for name in names), num_rows)

    @cached_property
    def train(self) -> Interactions:
        """The train split."""
        return self.interactions("train")

    @cached_property
    def item_facts(self) -> pa.Table:
        """item_index, item_id, title, train_count and attribute columns."""
        return self._table(ITEM_FACTS)

    @cached_property
    def users(self) -> pa.Table:
        """user_index, user_id and attribute columns."""
        return self._table(USERS)

    @cached_property
    def train_count_N(self) -> np.ndarray:
        """Train interactions of each item, int64."""
        return self.item_facts["train_count"].to_numpy().copy()  # torch wants writable memory

    @cached_property
    def train_lists(self) -> ItemLists:
        """What each user had in train."""
        return ItemLists.from_pairs(self.train.users, self.train.items, self.num_users)

    def item_lists(self, *splits: str) -> ItemLists:
        """What each user had in these splits together."""
        if splits == ("train",):
            return self.train_lists
        parts = [self.train if split == "train" else self.interactions(split) for split in splits]
        users, items = (np.concatenate([getattr(part, name) for part in parts]) for name in ("users", "items"))
        return ItemLists.from_pairs(users, items, self.num_users)

    def targets(self, split: str) -> ItemLists:
        """Each user's relevant items in a split: target events on items not already had in an earlier split, since rankings leave those out.

        A split that the data do not have is an InputError.
        """
        part = self.interactions(split)
        if len(part) == 0:
            raise InputError(
                f"the prepared set '{self.uri}' has no '{split}' interactions",
                "a split that the data have",
                f"set evaluate.splits without '{split}', or choose another data.split",
            )
        users, items = part.users[part.is_target], part.items[part.is_target]
        earlier_users, earlier_items = self.item_lists(*SPLITS[: SPLITS.index(split)]).pairs(np.arange(self.num_users))
        is_new = ~np.isin(users.astype(np.int64) * self.num_items + items, earlier_users * self.num_items + earlier_items)
        return ItemLists.from_pairs(users[is_new], items[is_new], self.num_users)

    def item_store(self) -> ItemStore:
        """Reader of the modality columns."""
        return ItemStore(self.item_shards)

    @property
    def item_shards(self) -> ItemShards:
        """Where the modality columns lie."""
        return ItemShards.of(self.uri, self.manifest)

    def user_categories(self, column: str) -> np.ndarray:
        """(V,) int64 category of an attribute column, numbered from 1 in the order of the values; 0 where it is null."""
        values = self.users[column].combine_chunks()
        known = pc.unique(values.drop_null())
        known = known.take(pc.sort_indices(known))
        return pc.fill_null(pc.add(pc.index_in(values, value_set=known), 1), 0).to_numpy().astype(np.int64)
