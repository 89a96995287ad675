"""Bots, one-off items, the core, repeats and values by hand."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pytest

from medley.data.behaviour import BehaviourConfig, CoreConfig, filter_by_train, k_core, one_off_items, users_above_rate
from medley.data.repeats import find_conflicts, find_repeats
from medley.data.values import ValuesConfig, normalise_values
from medley.schema import InputError

KEY = ["user_id", "item_index", "timestamp"]


def test_a_bot_has_more_events_than_the_limit_in_less_than_the_span():
    users = np.array([0, 0, 0, 1, 1, 1, 2, 2, 2])
    times = np.array([0, 30, 59, 0, 30, 60, 100, 120, 110])
    assert users_above_rate(users, times, limit=2, span=60).tolist() == [0, 2]
    assert users_above_rate(users, times, limit=3, span=60).tolist() == []


def test_a_user_of_a_million_events_in_a_day_is_a_bot_and_an_eager_one_is_none():
    users = np.append(np.zeros(1_000_000, dtype=np.int64), np.ones(200, dtype=np.int64))
    times = np.append(np.arange(1_000_000) * 86_400, np.arange(200) * 400_000_000)
    config = BehaviourConfig(max_events_per_day=1000)
    [(column, reason, mask)] = filter_by_train(users, np.arange(len(users)), times, np.ones(len(users), dtype=bool), config, CoreConfig())
    assert (column, reason) == ("user_id", "user has more than 1000 events in a day")
    assert np.bincount(users[mask], minlength=2).tolist() == [1_000_000, 0]


def test_an_item_that_one_user_had_often_is_one_off():
    assert one_off_items(np.array([0, 0, 1, 1, 2]), np.array([5, 5, 6, 7, 6])).tolist() == [5, 7]


def test_only_train_rows_decide_and_valid_rows_of_dropped_items_stay():
    users, items, is_train = np.array([0, 1, 1, 1]), np.array([0, 0, 1, 1]), np.array([True, True, True, False])
    [(column, _, mask)] = filter_by_train(users, items, None, is_train, BehaviourConfig(drop_one_off_items=True), CoreConfig())
    assert (column, mask.tolist()) == ("item_id", [False, False, True, False])


def test_the_core_is_the_fixed_point():
    # A square of users 0, 1 and items 0, 1, and a tail that falls link by link: 1-2, 2-2, 2-3.
    users, items = np.array([0, 0, 1, 1, 1, 2, 2]), np.array([0, 1, 0, 1, 2, 2, 3])
    core_users, core_items = k_core(users, items, 2, 2)
    assert (core_users.tolist(), core_items.tolist()) == ([0, 1], [0, 1])
    assert [part.tolist() for part in k_core(users, items, 3, 3)] == [[], []]


def test_the_core_counts_partners_and_not_rows():
    users, items = np.array([0, 0, 0]), np.array([4, 4, 4])
    assert k_core(users, items, 2, 1)[0].tolist() == []


def test_a_rate_without_times_is_refused():
    with pytest.raises(InputError, match=r"data\.behaviour\.max_events_per_minute is set, but some interactions have no timestamp"):
        filter_by_train(np.zeros(1), np.zeros(1), None, np.ones(1, dtype=bool), BehaviourConfig(max_events_per_minute=1), CoreConfig())


def rows(times: Sequence[int | None], values: Sequence[float | None]) -> pa.Table:
    return pa.table({"user_id": ["u"] * len(times), "item_index": [0] * len(times), "timestamp": times, "value": pa.array(values, pa.float32())})


def test_repeats_are_rows_equal_in_every_column():
    assert find_repeats(rows([1, 1, 1, None, None], [2, 3, 2, None, None])).tolist() == [False, False, True, False, True]


@pytest.mark.parametrize(
    ("rule", "dropped"),
    [("last", [True, True, False, False]), ("first", [False, True, True, False]), ("max_value", [True, False, True, False])],
)
def test_one_of_the_contradicting_rows_stays(rule: str, dropped: list[bool]):
    assert find_conflicts(rows([1, 1, 1, 2], [3, 5, None, 4]), KEY, rule).tolist() == dropped


def test_of_equal_values_the_last_stays():
    assert find_conflicts(rows([1, 1], [5, 5]), KEY, "max_value").tolist() == [True, False]


def test_rows_without_a_time_contradict_nothing():
    assert find_conflicts(rows([None, None], [1, 2]), KEY, "error").tolist() == [False, False]


def test_contradictions_may_be_refused():
    with pytest.raises(InputError, match="1 groups of interactions contradict each other, for example those of .*'user_id': 'u'"):
        find_conflicts(rows([1, 1], [1, 2]), KEY, "error")


def normalised(values: list[float], is_train: list[bool] | None = None, **config) -> tuple[list[float], dict]:
    is_train_row = np.array(is_train or [True] * len(values))
    result, statistics = normalise_values(np.array(values, dtype=np.float32), np.array([0, 0, 1, 2])[: len(values)], is_train_row, ValuesConfig(**config))
    return result.tolist(), statistics


def test_values_are_clipped_then_logarithmic_then_without_the_mean():
    values, statistics = normalised([-5, 0, 99], clip=(0, np.e - 1), log=True, kind="global_mean")
    assert values == pytest.approx([-1 / 3, -1 / 3, 2 / 3])
    assert statistics == {"num_clipped": 2, "train_mean": pytest.approx(1 / 3), "train_deviation": pytest.approx(np.sqrt(2) / 3)}


def test_means_are_those_of_train_and_missing_values_stay_missing():
    values, _ = normalised([4, 100, np.nan, 8], [True, False, True, False], kind="user_mean")
    np.testing.assert_array_equal(values, [0, 96, np.nan, 4])


def test_ratings_that_are_all_equal_become_zero():
    assert normalised([3, 3, 3, 3], kind="user_mean") == ([0, 0, 0, 0], {"train_mean": 3.0, "train_deviation": 0.0})


def test_a_logarithm_of_minus_one_is_refused():
    with pytest.raises(InputError, match=r"data\.values\.log is set, and a value is -1"):
        normalised([-1], log=True)


def test_a_clip_from_large_to_small_is_refused():
    with pytest.raises(ValueError, match="exchange them"):
        ValuesConfig(clip=(5, 1))
