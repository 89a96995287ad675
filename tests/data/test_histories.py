"""Histories by hand: the past and nothing but the past, the target left out."""

import numpy as np

from medley.data.histories import Histories

#                  row: 0   1   2   3   4   5   6
USERS = np.array([0, 1, 0, 0, 0, 1, 0], dtype=np.int32)
ITEMS = np.array([10, 20, 11, 12, 13, 21, 10], dtype=np.int32)
TIMES = np.array([1, 1, 2, 2, 3, 4, 5])


def before(histories: Histories, *rows: int) -> list[list[int]]:
    return [history.tolist() for history in histories.before_rows(np.array(rows, dtype=np.int64), USERS[list(rows)])]


def test_a_row_sees_the_items_before_it_oldest_first():
    histories = Histories.of_train(USERS, ITEMS, TIMES, num_users=3, length=10)
    assert before(histories, 0, 4, 6) == [[], [10, 11, 12], [10, 11, 12, 13]]
    assert before(histories, 1, 5) == [[], [20]]


def test_rows_of_the_same_moment_see_the_same_past_and_not_each_other():
    histories = Histories.of_train(USERS, ITEMS, TIMES, num_users=3, length=10)
    assert before(histories, 2, 3) == [[10], [10]]


def test_only_the_most_recent_items_are_kept():
    histories = Histories.of_train(USERS, ITEMS, TIMES, num_users=3, length=2)
    assert before(histories, 2, 4, 6) == [[10], [11, 12], [12, 13]]


def test_the_order_of_the_rows_does_not_matter_with_timestamps():
    backwards = Histories.of_train(USERS[::-1].copy(), ITEMS[::-1].copy(), TIMES[::-1].copy(), num_users=3, length=10)
    last = len(USERS) - 1
    found = backwards.before_rows(np.array([last - 5, last - 4]), np.array([1, 0]))
    assert found[0].tolist() == [20]
    assert sorted(found[1].tolist()) == [10, 11, 12]


def test_no_row_ever_sees_its_own_time_or_later():
    random = np.random.default_rng(0)
    users, items, times = random.integers(0, 20, 500), random.integers(0, 60, 500), random.integers(0, 30, 500)
    histories = Histories.of_train(users, items, times, num_users=20, length=500)
    for row, history in enumerate(histories.before_rows(np.arange(500), users)):
        is_past = (users == users[row]) & (times < times[row])
        assert sorted(history.tolist()) == sorted(items[is_past].tolist())


def test_without_timestamps_a_row_sees_the_users_other_items():
    histories = Histories.of_train(USERS[:6], ITEMS[:6], None, num_users=3, length=10)
    assert before(histories, 0, 2, 4) == [[11, 12, 13], [10, 12, 13], [10, 11, 12]]
    assert before(histories, 1, 5) == [[21], [20]]


def test_without_timestamps_the_length_is_kept_after_the_target_is_left_out():
    histories = Histories.of_train(USERS[:6], ITEMS[:6], None, num_users=3, length=2)
    assert before(histories, 0, 2, 4) == [[12, 13], [12, 13], [11, 12]]


def test_without_timestamps_an_item_had_in_two_rows_is_left_out_of_both_histories():
    histories = Histories.of_train(USERS, ITEMS, None, num_users=3, length=10)
    assert before(histories, 0, 6) == [[11, 12, 13], [11, 12, 13]]
    assert before(histories, 2) == [[10, 12, 13, 10]]


def test_at_the_end_of_training_everything_is_past():
    for times in (TIMES, None):
        histories = Histories.of_train(USERS, ITEMS, times, num_users=3, length=3)
        assert [history.tolist() for history in histories.at_end(np.array([1, 0, 2]))] == [[20, 21], [12, 13, 10], []]
