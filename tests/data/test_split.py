"""Train, valid and test by hand: shipped, by time, at random, and how `auto` chooses."""

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from pydantic import ValidationError

from medley.data.leaks import check_leaks
from medley.data.partitions import mix
from medley.data.split import SplitConfig, assign_parts, cut_ranks, held_out_parts, random_keys, split_kind
from medley.schema import InputError

TIME_TYPE = pa.timestamp("us", tz="UTC")


def interactions(**columns: Any) -> pa.Table:
    """A table of these columns, `timestamp` as microseconds and `split` as strings."""
    types = {"timestamp": TIME_TYPE, "split": pa.string(), "user_index": pa.int32(), "item_index": pa.int32()}
    return pa.table({name: pa.array(values, types.get(name)) for name, values in columns.items()})


def kind_of(table: pa.Table, config: SplitConfig) -> str:
    filled = {name: table.num_rows - table[name].null_count if name in table.column_names else 0 for name in ("timestamp", "split")}
    return split_kind(config, table.num_rows, filled["timestamp"], filled["split"])


def parts(table: pa.Table, seed: int = 0, **config: Any) -> list[int]:
    """The part of each row, the cuts found by sorting; a row's number stands for its user, item and time."""
    settings = SplitConfig(**config)
    kind = kind_of(table, settings)
    keys = random_keys(mix(np.zeros(table.num_rows, dtype=np.uint64), np.arange(table.num_rows)), seed)
    if kind == "shipped":
        keys = pc.index_in(table["split"], value_set=pa.array(["train", "valid", "test"])).to_numpy()
    elif kind != "random":
        keys = table["timestamp"].cast(pa.int64()).to_numpy()
    users, items = (table[name].to_numpy() if name in table.column_names else keys for name in ("user_index", "item_index"))
    return assign_parts(kind, settings, np.sort(keys)[cut_ranks(settings, table.num_rows)].tolist(), users, items, keys).tolist()


def test_time_puts_the_newest_tenth_into_test_and_the_tenth_before_into_valid():
    times = [30, 10, 90, 20, 60, 50, 80, 40, 70, 0]
    assert parts(interactions(timestamp=times)) == [0, 0, 2, 0, 0, 0, 1, 0, 0, 0]


def test_time_keeps_rows_of_one_moment_together_in_the_later_part():
    # Cuts fall at the 9th and the 10th of ten rows; five rows share the moment of the 9th.
    assert parts(interactions(timestamp=[0, 1, 2, 3, 8, 8, 8, 8, 8, 9])) == [0, 0, 0, 0, 1, 1, 1, 1, 1, 2]
    assert parts(interactions(timestamp=[0, 1, 2, 3, 4, 5, 6, 9, 9, 9])) == [0, 0, 0, 0, 0, 0, 0, 2, 2, 2]


def test_time_takes_the_asked_shares():
    table = interactions(timestamp=list(range(20)))
    assert np.bincount(parts(table, valid_share=0.25, test_share=0.25)).tolist() == [10, 5, 5]


def test_no_row_of_train_is_later_than_one_of_valid_or_test():
    times = np.random.default_rng(0).integers(0, 40, 300)
    part = np.array(parts(interactions(timestamp=times.tolist())))
    assert times[part == 0].max() < times[part == 1].min()
    assert times[part == 1].max() < times[part == 2].min()


def test_random_takes_the_exact_shares_and_only_the_seed_decides():
    table = interactions(user_id=["u"] * 200)
    part = parts(table, seed=3)
    assert np.bincount(part).tolist() == [160, 20, 20]
    assert part == parts(table, seed=3)
    assert part != parts(table, seed=4)
    assert part != sorted(part)


def test_random_is_the_same_on_every_machine():
    assert parts(interactions(user_id=["u"] * 10), seed=0, kind="random") == [2, 0, 0, 0, 0, 1, 0, 0, 0, 0]


def test_shipped_parts_are_taken_as_they_are():
    assert parts(interactions(split=["test", "train", "valid", "train"])) == [2, 0, 1, 0]


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({"split": ["train", "test"], "timestamp": [1, 2]}, "shipped"),
        ({"split": [None, None], "timestamp": [1, 2]}, "time"),
        ({"timestamp": [1, 2]}, "time"),
        ({"timestamp": [None, None]}, "random"),
        ({"user_id": ["a", "b"]}, "random"),
    ],
)
def test_auto_prefers_shipped_then_time_then_random(columns: dict[str, Any], expected: str):
    assert kind_of(interactions(**columns), SplitConfig()) == expected


def test_a_kind_may_be_chosen_against_auto():
    table = interactions(split=["train"] * 10, timestamp=list(range(10)))
    assert np.bincount(parts(table, kind="random")).tolist() == [8, 1, 1]
    assert parts(table, kind="time")[-2:] == [1, 2]


@pytest.mark.parametrize(("kind", "column"), [("shipped", "split"), ("time", "timestamp")])
def test_a_kind_that_the_data_cannot_give_is_refused(kind: str, column: str):
    with pytest.raises(InputError, match=rf"data\.split\.kind={kind}, but the interactions have no values in column '{column}'"):
        parts(interactions(user_id=["a"]), kind=kind)


def test_times_that_some_rows_lack_are_refused():
    with pytest.raises(InputError, match=r"1 of 3 interactions have no timestamp; .*use data\.split\.kind=random"):
        parts(interactions(timestamp=[1, None, 3]))
    assert len(parts(interactions(timestamp=[1, None, 3]), kind="random")) == 3


@pytest.mark.parametrize("shares", [{"valid_share": 0}, {"test_share": 0.5}])
def test_shares_that_leave_a_part_empty_are_refused(shares: dict[str, float]):
    with pytest.raises(ValidationError):
        SplitConfig(**shares)


@pytest.mark.parametrize("kind", ["random", "time"])
def test_shares_are_met_exactly_where_their_floats_fall_short(kind: str):
    # 10 rows: 0.6 of a row is valid and rounds to none before the cut at 8; in floats (1 - 0.06 - 0.14) * 10 is 7.99…, one row too few for train.
    table = interactions(timestamp=list(range(10)))
    assert sorted(parts(table, kind=kind, valid_share=0.06, test_share=0.14)) == [0] * 8 + [2] * 2


def test_last_out_takes_each_users_last_row_for_test_and_the_one_before_for_valid():
    # user 0 has four rows, two of them at the last moment (the larger item is the later), user 1 three, user 2 two.
    table = interactions(user_index=[0, 0, 0, 0, 1, 1, 1, 2, 2], item_index=[9, 1, 2, 3, 5, 6, 7, 8, 9], timestamp=[1, 2, 4, 4, 30, 20, 10, 1, 2])
    assert parts(table, kind="last_out") == [0, 0, 1, 2, 2, 1, 0, 0, 0]
    assert parts(table, kind="last_out", last_out=1) == [0, 0, 0, 1, 1, 0, 0, 0, 1]


def test_last_out_needs_times():
    with pytest.raises(InputError, match=r"data\.split\.kind=last_out, but the interactions have no values in column 'timestamp'"):
        parts(interactions(user_index=[0], item_index=[0]), kind="last_out")


def test_held_out_items_are_chosen_by_seed_and_id_alone():
    config = SplitConfig(cold_item_share=0.2, valid_share=0.1, test_share=0.3)
    ids = [f"item {number}" for number in range(4000)]
    chosen = held_out_parts(pa.array(ids), config, seed=0)
    # 800 expected, a quarter of them valid; three standard deviations are 76 and 37.
    assert abs(int((chosen >= 0).sum()) - 800) < 76
    assert abs(int((chosen == 1).sum()) - 200) < 42
    assert held_out_parts(pa.array([*ids[::-1], "one more"]), config, 0)[:-1].tolist() == chosen[::-1].tolist()
    assert held_out_parts(pa.array(ids), config, 1).tolist() != chosen.tolist()


def test_rows_of_one_key_are_in_one_part_at_random():
    keys = random_keys(np.array([5, 7, 5, 9], dtype=np.uint64), seed=0)
    assert keys[0] == keys[2]
    assert len(set(keys.tolist())) == 3


NOTHING_HELD_OUT = np.full(4, -1, dtype=np.int8)

NO_TIME = np.iinfo(np.int64).max


def leaks(kind: str, part: list[int], users: list[int], items: list[int], times: list[int] | None, held_out: np.ndarray = NOTHING_HELD_OUT) -> None:
    check_leaks(
        kind, np.array(part, dtype=np.int8), np.array(users), np.array(items), np.full(len(part), NO_TIME) if times is None else np.array(times), held_out
    )


def test_splits_that_are_apart_pass_the_leak_check():
    leaks("time", [0, 0, 1, 2], [0, 1, 0, 0], [0, 1, 1, 2], [1, 2, 3, 4])
    leaks("shipped", [0, 1, 2], [0, 0, 0], [0, 0, 0], [3, 2, 1])
    leaks("random", [2, 1, 0], [0, 0, 0], [0, 1, 2], None)


@pytest.mark.parametrize("times", [None, [7, 7]])
def test_a_row_in_two_splits_is_a_leak(times: list[int] | None):
    with pytest.raises(InputError, match=r"1 interactions stand in two splits, the first \(user number 3, item number 2\) in train and test"):
        leaks("shipped", [2, 0], [3, 3], [2, 2], times)


@pytest.mark.parametrize(("kind", "times", "message"), [("time", [1, 5, 4], "1 train rows are not before"), ("last_out", [1, 5, 4], "before a train row")])
def test_train_rows_after_the_cut_are_a_leak(kind: str, times: list[int], message: str):
    with pytest.raises(AssertionError, match=message):
        leaks(kind, [0, 0, 1], [0, 0, 0], [0, 1, 2], times)


def test_a_held_out_item_in_train_is_a_leak():
    with pytest.raises(AssertionError, match="rows of held-out items"):
        leaks("random", [0, 1], [0, 1], [2, 3], None, np.array([-1, -1, 1, 1], dtype=np.int8))
