"""Groups of items and users by hand."""

import numpy as np
import pyarrow as pa

from medley.data.item_lists import ItemLists
from medley.training.slices import activity_groups, attribute_groups, item_groups, user_groups


def test_the_tail_are_the_warm_items_beyond_those_that_hold_four_fifths_of_the_interactions() -> None:
    # 100 interactions: 50 + 29 = 79 are fewer than 80, so the third item is still head; then it is full.
    groups = item_groups(np.array([1, 29, 0, 50, 19, 1]), {})
    assert {name: items.tolist() for name, items in groups.items()} == {"all": [0, 1, 2, 3, 4, 5], "warm": [0, 1, 3, 4, 5], "cold": [2], "tail": [0, 5]}


def test_items_without_a_modality_are_a_group_where_there_are_any() -> None:
    groups = item_groups(np.array([1, 1, 1]), {"image": np.array([True, False, True]), "text": np.ones(3, dtype=bool)})
    assert groups["without image"].tolist() == [1]
    assert "without text" not in groups


def test_users_are_grouped_by_equal_numbers_of_train_items() -> None:
    groups = activity_groups(np.array([0, 1, 2, 3, 4, 5, 6, 7, 8]))
    assert {name: np.flatnonzero(mask).tolist() for name, mask in groups.items()} == {
        "no train items": [0],
        "1 to 2 train items": [1, 2],
        "3 to 4 train items": [3, 4],
        "5 to 6 train items": [5, 6],
        "7 to 8 train items": [7, 8],
    }


def test_users_with_the_same_number_stay_together() -> None:
    groups = activity_groups(np.array([3, 3, 3, 3, 3, 9]))
    assert {name: int(mask.sum()) for name, mask in groups.items()} == {"3 to 3 train items": 5, "9 to 9 train items": 1}
    assert activity_groups(np.zeros(2, dtype=int)).keys() == {"no train items"}


def test_an_attribute_groups_its_values_and_the_unknown() -> None:
    groups = attribute_groups(pa.chunked_array([["SE", None], ["DE", "SE"]]))
    assert {name: mask.tolist() for name, mask in groups.items()} == {
        "DE": [False, False, True, False],
        "SE": [True, False, False, True],
        "unknown": [False, True, False, False],
    }


def test_only_columns_that_group_users_are_slices() -> None:
    users = pa.table(
        {
            "user_index": pa.array(range(30), pa.int32()),
            "user_id": [f"u{number}" for number in range(30)],
            "zip": [str(number) for number in range(30)],
            "planet": ["Earth"] * 30,
            "tags": [["a"]] * 30,
            "age": [20 + number % 3 for number in range(30)],
        }
    )
    lists = ItemLists.from_pairs(np.arange(30), np.zeros(30, dtype=int), 30)
    groups = user_groups(lists, users)
    assert set(groups) == {"activity", "age"}
    assert {name: int(mask.sum()) for name, mask in groups["age"].items()} == {"20": 10, "21": 10, "22": 10}
    assert set(user_groups(lists, None)) == {"activity"}
