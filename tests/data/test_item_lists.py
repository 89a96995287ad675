"""Lists of items per user in compressed rows, by hand."""

import numpy as np

from medley.data.item_lists import ItemLists

LISTS = ItemLists.from_pairs(np.array([2, 0, 2, 0, 2, 0], dtype=np.int32), np.array([7, 5, 1, 5, 7, 3], dtype=np.int32), num_users=4)


def test_a_list_is_sorted_and_without_repeats():
    assert [LISTS.of(user).tolist() for user in range(4)] == [[3, 5], [], [1, 7], []]
    assert LISTS.lengths.tolist() == [2, 0, 2, 0]
    assert (LISTS.offsets.tolist(), LISTS.offsets.dtype, LISTS.items.dtype) == ([0, 2, 2, 4, 4], np.int64, np.int32)


def test_pairs_name_the_row_of_the_asked_users():
    rows, items = LISTS.pairs(np.array([2, 1, 0, 2]))
    assert rows.tolist() == [0, 0, 2, 2, 3, 3]
    assert items.tolist() == [1, 7, 3, 5, 1, 7]


def test_nobody_and_nothing_give_empty_answers():
    for users in (np.array([], dtype=np.int64), np.array([1, 3])):
        rows, items = LISTS.pairs(users)
        assert (rows.tolist(), items.tolist()) == ([], [])
    nothing = ItemLists.from_pairs(np.array([], dtype=np.int32), np.array([], dtype=np.int32), num_users=2)
    assert (nothing.lengths.tolist(), nothing.items.tolist()) == ([0, 0], [])


def test_a_pair_is_found_where_the_lists_hold_it() -> None:
    lists = ItemLists.from_pairs(np.array([2, 0, 2]), np.array([5, 1, 0]), num_users=4)
    users, items = np.array([0, 0, 1, 2, 2, 2, 3]), np.array([1, 5, 1, 0, 5, 7, 0])
    assert lists.contain(users, items).tolist() == [True, False, False, True, True, False, False]
    assert lists.contain(users[:0], items[:0]).tolist() == []
    assert ItemLists.from_pairs(users[:0], items[:0], 4).contain(users, items).tolist() == [False] * 7
