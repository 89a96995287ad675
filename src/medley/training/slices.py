"""The parts that are measured apart: groups of items, ranked and counted apart from the others, and groups of users, whose values are averaged apart.

Items   all · warm: with a train interaction · cold: without · tail: warm, but outside the most popular items that together hold HEAD_SHARE of
        the train interactions · without MODALITY: lacking one that an encoder of the run reads
Users   activity: without train items, then QUANTILES groups of equal size by their number of train items ·
        every attribute column of the users table with at most MAX_VALUES values
"""

from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from medley.data.item_lists import ItemLists
from medley.data.prepared import PreparedData
from medley.schema import USER_ID, USER_INDEX

HEAD_SHARE = 0.8
QUANTILES = 4
MAX_VALUES = 20
UNKNOWN = "unknown"
"""the group of users whose attribute is null"""

UserGroups = dict[str, dict[str, np.ndarray]]
"""dimension → name of the group → (V,) bool"""


def item_groups(train_count_N: np.ndarray, present_mask_N: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Name → item indices, ascending. present_mask_N: modality → which items have it; one that no item lacks makes no group."""
    is_warm_N = train_count_N > 0
    masks = {"all": np.ones(len(train_count_N), dtype=bool), "warm": is_warm_N, "cold": ~is_warm_N, "tail": is_warm_N & ~_is_head(train_count_N)}
    masks |= {f"without {name}": ~mask_N for name, mask_N in present_mask_N.items() if not mask_N.all()}
    return {name: np.flatnonzero(mask_N) for name, mask_N in masks.items()}


def _is_head(train_count_N: np.ndarray) -> np.ndarray:
    """The fewest items that together hold HEAD_SHARE of the train interactions; of equally popular ones those of the smaller index."""
    order = np.argsort(-train_count_N, kind="stable")
    before = np.cumsum(train_count_N[order]) - train_count_N[order]
    is_head_N = np.zeros(len(train_count_N), dtype=bool)
    is_head_N[order] = before < HEAD_SHARE * train_count_N.sum()
    return is_head_N


def user_groups(train_lists: ItemLists, users: pa.Table | None) -> UserGroups:
    """Activity, then every attribute column that groups users: neither an id nor a list, two to MAX_VALUES values. users: None without a users table."""
    groups = {"activity": activity_groups(train_lists.lengths)}
    columns = dict(zip(users.column_names, users.columns, strict=True)) if users is not None else {}
    for name, column in columns.items():
        if name in (USER_INDEX, USER_ID) or pa.types.is_nested(column.type) or pa.types.is_binary(column.type):
            continue
        if 2 <= len(pc.unique(column.drop_null())) <= MAX_VALUES:
            groups[name] = attribute_groups(column)
    return groups


def activity_groups(num_train_items_V: np.ndarray) -> dict[str, np.ndarray]:
    """Users by how many train items they have; equal numbers stay together, so groups may be uneven and fewer."""
    groups = {"no train items": num_train_items_V == 0} if (num_train_items_V == 0).any() else {}
    known = num_train_items_V[num_train_items_V > 0]
    shares = np.arange(1, QUANTILES + 1) / QUANTILES
    edges = np.unique(np.quantile(known, shares, method="inverted_cdf").astype(np.int64)) if len(known) else known
    low = 1
    for high in edges:
        is_in_V = (num_train_items_V >= low) & (num_train_items_V <= high)
        groups[f"{num_train_items_V[is_in_V].min()} to {high} train items"] = is_in_V
        low = high + 1
    return groups


def attribute_groups(values: pa.ChunkedArray) -> dict[str, np.ndarray]:
    """Users by the value of an attribute, in the order of the values; nulls are a group of their own."""
    known = pc.unique(values.drop_null())
    known = known.take(pc.sort_indices(known))
    codes = pc.fill_null(pc.index_in(values, value_set=known), -1).to_numpy()
    groups = {str(value): codes == number for number, value in enumerate(known.to_pylist())}
    return groups | ({UNKNOWN: codes == -1} if (codes == -1).any() else {})


def groups_of(data: PreparedData) -> UserGroups:
    """Those of a prepared set."""
    return user_groups(data.train_lists, data.users if "users.parquet" in data.manifest["files"] else None)
