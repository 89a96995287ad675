"""The plan: every row once per epoch, in an order that only the seed and the epoch decide."""

import numpy as np
import pytest

from medley.data.plan import Plan, derive_seed, epoch_order

SIZES = [(1, 1, 1), (1, 4, 4), (3, 4, 4), (4, 4, 4), (15, 4, 4), (16, 4, 4), (17, 4, 4), (1000, 7, 3), (1000, 512, 8)]


def micro_batches(plan: Plan, epoch: int) -> dict[tuple[int, int], list[int]]:
    """(global batch, micro-batch) → its rows."""
    places = [(number, micro) for number in range(plan.num_global_batches) for micro in range(plan.num_micro_batches)]
    return {place: plan.rows(epoch, *place).tolist() for place in places}


@pytest.mark.parametrize(("num_rows", "micro_batch_size", "num_micro_batches"), SIZES)
def test_every_row_comes_exactly_once_per_epoch(num_rows: int, micro_batch_size: int, num_micro_batches: int):
    plan = Plan(num_rows, micro_batch_size, num_micro_batches, seed=1)
    for epoch in (0, 1):
        found = micro_batches(plan, epoch)
        assert sorted(row for rows in found.values() for row in rows) == list(range(num_rows))
        assert max(len(rows) for rows in found.values()) <= micro_batch_size


@pytest.mark.parametrize(("num_rows", "micro_batch_size", "num_micro_batches"), SIZES)
def test_only_the_last_global_batch_is_short_and_its_rows_are_shared_evenly(num_rows: int, micro_batch_size: int, num_micro_batches: int):
    plan = Plan(num_rows, micro_batch_size, num_micro_batches, seed=1)
    sizes = [[len(plan.rows(0, number, micro)) for micro in range(num_micro_batches)] for number in range(plan.num_global_batches)]
    assert all(size == [micro_batch_size] * num_micro_batches for size in sizes[:-1])
    assert max(sizes[-1]) - min(sizes[-1]) <= 1
    assert [sum(size) for size in sizes] == [plan.num_rows_in(number) for number in range(plan.num_global_batches)]


def test_with_fewer_rows_than_micro_batches_some_get_none():
    plan = Plan(num_rows=3, micro_batch_size=2, num_micro_batches=4, seed=0)
    assert plan.num_global_batches == 1
    assert [len(plan.rows(0, 0, micro)) for micro in range(4)] == [1, 1, 1, 0]


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_ranks_share_out_the_same_micro_batches_whatever_their_number(world_size: int):
    plan = Plan(num_rows=101, micro_batch_size=5, num_micro_batches=4, seed=3)
    expected = micro_batches(plan, epoch=2)
    taken = {}
    for rank in range(world_size):
        epoch_order.cache_clear()  # every rank is a process of its own
        own = Plan(101, 5, 4, seed=3)
        taken |= {(number, micro): own.rows(2, number, micro).tolist() for number in range(own.num_global_batches) for micro in range(rank, 4, world_size)}
    assert taken == expected


def test_epochs_and_seeds_have_orders_of_their_own():
    orders = [epoch_order(50, seed, epoch).tolist() for seed in (0, 1) for epoch in (0, 1, 2)]
    assert len({tuple(order) for order in orders}) == 6


def test_orders_and_seeds_are_those_of_every_machine_and_process():
    # Hard-coded: a run that was started elsewhere, or last year, must be resumed in the same order.
    assert epoch_order(10, 7, 0).tolist() == [7, 8, 0, 6, 5, 3, 4, 2, 1, 9]
    assert epoch_order(10, 7, 1).tolist() == [5, 0, 9, 3, 2, 8, 1, 6, 7, 4]
    assert Plan(10, 2, 2, seed=7).rows(0, 0, 0).tolist() == [7, 8]
    assert derive_seed(0, "order", 0) == 6230928577095065118
    assert Plan(10, 2, 2, seed=7).step_seed(1, 2, 3) == derive_seed(7, "step", 1, 2, 3) == 8885520690569016853


def test_seeds_of_different_purposes_and_places_differ_and_fit_in_63_bits():
    purposes = [("init",), ("split",), *(("order", epoch) for epoch in range(20))]
    purposes += [("step", epoch, number, micro) for epoch in range(5) for number in range(10) for micro in range(4)]
    seeds = [derive_seed(seed, *purpose) for seed in (0, 1, 2**40) for purpose in purposes]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_the_order_cannot_be_changed_by_who_asks_for_it():
    with pytest.raises(ValueError, match="read-only"):
        epoch_order(10, 0, 0)[0] = 5
    assert Plan(10, 2, 2, seed=0).rows(0, 0, 0).dtype == np.int64


@pytest.mark.parametrize(
    ("start", "expected"),
    [(0, [(0, 4), (4, 8), (8, 10)]), (3, [(3, 4), (4, 8), (8, 10)]), (4, [(4, 8), (8, 10)]), (9, [(9, 10)]), (10, [])],
)
def test_a_late_start_only_shortens_the_first_window(start: int, expected: list[tuple[int, int]]):
    plan = Plan(num_rows=37, micro_batch_size=2, num_micro_batches=2, seed=0)
    assert plan.num_global_batches == 10
    assert list(plan.windows(start, window_global_batches=4)) == expected
