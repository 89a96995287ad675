"""Bots, one-off items, the core, repeats and values by hand."""

from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import pyarrow as pa
import pytest

from medley.data.behaviour import BehaviourConfig, CoreConfig, bot_rows, count_users, distinct_pairs, fallen_rows, users_above_rate
from medley.data.repeats import find_conflicts, find_repeats
from medley.data.values import ValuesConfig, centre_values, exact_sum, summarise_values, train_statistics, transform_values
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
    [(column, reason, mask)] = bot_rows(users, times, np.ones(len(users), dtype=bool), BehaviourConfig(max_events_per_day=1000))
    assert (column, reason) == ("user_id", "user has more than 1000 events in a day")
    assert np.bincount(users[mask], minlength=2).tolist() == [1_000_000, 0]


def test_pairs_count_once_however_often_a_user_had_an_item():
    users, items = distinct_pairs(np.array([0, 0, 1, 1, 2]), np.array([5, 5, 6, 7, 6]))
    assert (users.tolist(), items.tolist()) == ([0, 1, 1, 2], [5, 6, 7, 6])
    assert [part.tolist() for part in distinct_pairs(np.zeros(0, dtype=np.int32), np.zeros(0, dtype=np.int32))] == [[], []]


def test_only_train_rows_of_one_off_items_are_left_out():
    users, items, is_train = np.array([0, 1, 1, 1]), np.array([0, 0, 1, 1]), np.array([True, True, True, False])
    [(column, _, mask)] = fallen_rows(users, items, is_train, np.array([False, True]), None, CoreConfig())
    assert (column, mask.tolist()) == ("item_id", [False, False, True, False])


def test_a_round_of_the_core_counts_the_users_who_have_enough_of_the_kept_items():
    # A square of users 0, 1 and items 0, 1, and a tail that falls link by link: 1-2, 2-2, 2-3.
    users, items = np.array([0, 0, 1, 1, 1, 2, 2]), np.array([0, 1, 0, 1, 2, 2, 3])
    assert count_users(users, items, np.array([True, True, True, True]), min_items=2).tolist() == [2, 2, 2, 1]
    assert count_users(users, items, np.array([True, True, True, False]), min_items=2).tolist() == [2, 2, 1, 0]
    assert count_users(users, items, np.array([False] * 4), min_items=2).tolist() == [0, 0, 0, 0]


def test_users_outside_the_core_lose_all_rows_and_newcomers_stay():
    users, items = np.array([0, 0, 1, 1, 2]), np.array([0, 1, 0, 2, 0])
    is_train = np.array([True, True, True, False, False])
    (user_id, _, fallen), (item_id, _, outside) = fallen_rows(users, items, is_train, None, np.array([True, False, True]), CoreConfig(items=2))
    assert (user_id, fallen.tolist()) == ("user_id", [False] * 5)
    assert (item_id, outside.tolist()) == ("item_id", [False, True, False, False, False])
    (_, _, fallen), _ = fallen_rows(users, items, is_train, None, np.array([True, True, True]), CoreConfig(users=2))
    assert fallen.tolist() == [False, False, True, True, False]


def test_a_rate_without_times_is_refused():
    with pytest.raises(InputError, match=r"data\.behaviour\.max_events_per_minute is set, but some interactions have no timestamp"):
        bot_rows(np.zeros(1), None, np.ones(1, dtype=bool), BehaviourConfig(max_events_per_minute=1))


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
    is_train_row, settings = np.array(is_train or [True] * len(values)), ValuesConfig(**config)
    transformed, num_clipped = transform_values(np.array(values, dtype=np.float32), settings)
    statistics = train_statistics([summarise_values(transformed[is_train_row])])
    result = centre_values(transformed, np.array([0, 0, 1, 2])[: len(values)], is_train_row, statistics["train_mean"], settings)
    return result.tolist(), {"num_clipped": num_clipped, **statistics}


def test_values_are_clipped_then_logarithmic_then_without_the_mean():
    values, statistics = normalised([-5, 0, 99], clip=(0, np.e - 1), log=True, kind="global_mean")
    assert values == pytest.approx([-1 / 3, -1 / 3, 2 / 3])
    assert statistics == {"num_clipped": 2, "train_mean": pytest.approx(1 / 3), "train_deviation": pytest.approx(np.sqrt(2) / 3)}


def test_means_are_those_of_train_and_missing_values_stay_missing():
    values, _ = normalised([4, 100, np.nan, 8], [True, False, True, False], kind="user_mean")
    np.testing.assert_array_equal(values, [0, 96, np.nan, 4])


def test_ratings_that_are_all_equal_become_zero():
    assert normalised([3, 3, 3, 3], kind="user_mean") == ([0, 0, 0, 0], {"num_clipped": 0, "train_mean": 3.0, "train_deviation": 0.0})


def test_a_logarithm_of_minus_one_is_refused():
    with pytest.raises(InputError, match=r"data\.values\.log is set, and a value is -1"):
        normalised([-1], log=True)


def test_sums_are_exact_and_the_same_however_the_values_are_cut():
    values = np.random.default_rng(0).normal(size=5000) * 10.0 ** np.random.default_rng(1).integers(-20, 20, 5000)
    assert exact_sum(values) == sum(map(Fraction, values.tolist()))
    assert exact_sum(values[:1234]) + exact_sum(values[1234:]) == exact_sum(values[::-1])
    assert exact_sum(np.array([1e300, 1.0, -1e300])) == 1
    assert train_statistics([summarise_values(np.array([1.0, 2.0])), summarise_values(np.array([np.nan, 6.0]))])["train_mean"] == 3
    assert train_statistics([summarise_values(np.array([np.nan]))]) == {}


def test_a_clip_from_large_to_small_is_refused():
    with pytest.raises(ValueError, match="exchange them"):
        ValuesConfig(clip=(5, 1))
