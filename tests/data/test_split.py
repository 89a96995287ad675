"""Train, valid and test by hand: shipped, by time, at random, and how `auto` chooses."""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pydantic import ValidationError

from medley.data.split import SplitConfig, assign_split, split_kind
from medley.schema import InputError

TIME_TYPE = pa.timestamp("us", tz="UTC")


def interactions(**columns: Any) -> pa.Table:
    """A table of these columns, `timestamp` as microseconds and `split` as strings."""
    types = {"timestamp": TIME_TYPE, "split": pa.string()}
    return pa.table({name: pa.array(values, types.get(name)) for name, values in columns.items()})


def parts(table: pa.Table, seed: int = 0, **config: Any) -> list[int]:
    return assign_split(table, SplitConfig(**config), seed).tolist()


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
    assert parts(interactions(user_id=["u"] * 10), seed=0, kind="random") == [0, 0, 1, 0, 2, 0, 0, 0, 0, 0]


def test_shipped_parts_are_taken_as_they_are():
    assert parts(interactions(split=["test", "train", "valid", "train"])) == [2, 0, 1, 0]


def test_a_shipped_part_of_another_name_is_refused_with_its_values():
    with pytest.raises(InputError, match=r"holds \['dev', None\]; expected one of train, valid, test in every row"):
        parts(interactions(split=["train", "dev", None, "dev"]))


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
    assert split_kind(interactions(**columns), SplitConfig()) == expected


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
