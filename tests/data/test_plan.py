"""The plan: every row once per epoch, in an order that only the seed and the epoch decide."""

import itertools
import time
import tracemalloc
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from medley.data import plan as plan_module
from medley.data.plan import BLOCKS_PER_WINDOW, ROWS_PER_BLOCK, Plan, derive_seed, shuffled_rows
from medley.data.sampling import PopularitySampling

SIZES = [(1, 1, 1), (1, 4, 4), (3, 4, 4), (4, 4, 4), (15, 4, 4), (16, 4, 4), (17, 4, 4), (1000, 7, 3), (1000, 512, 8)]
ROWS_PER_WINDOW = ROWS_PER_BLOCK * BLOCKS_PER_WINDOW


def epoch_order(num_rows: int, seed: int, epoch: int) -> np.ndarray:
    """A whole epoch's rows in their order."""
    return shuffled_rows(num_rows, seed, epoch, 0, num_rows)


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Windows of 3 blocks of 4 rows, so that small numbers of rows fill many of them."""
    monkeypatch.setattr(plan_module, "ROWS_PER_BLOCK", 4)
    monkeypatch.setattr(plan_module, "BLOCKS_PER_WINDOW", 3)
    forget_orders()
    yield
    forget_orders()


def forget_orders() -> None:
    """As in a process of its own."""
    plan_module._window.cache_clear()
    plan_module._block_order.cache_clear()


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
        forget_orders()  # every rank is a process of its own
        own = Plan(101, 5, 4, seed=3)
        taken |= {(number, micro): own.rows(2, number, micro).tolist() for number in range(own.num_global_batches) for micro in range(rank, 4, world_size)}
    assert taken == expected


def test_epochs_and_seeds_have_orders_of_their_own():
    orders = [epoch_order(50, seed, epoch).tolist() for seed in (0, 1) for epoch in (0, 1, 2)]
    assert len({tuple(order) for order in orders}) == 6


def test_orders_and_seeds_are_those_of_every_machine_and_process():
    # Hard-coded: a run that was started elsewhere, or last year, must be resumed in the same order.
    assert epoch_order(10, 7, 0).tolist() == [9, 8, 7, 5, 4, 0, 3, 1, 6, 2]
    assert epoch_order(10, 7, 1).tolist() == [5, 7, 2, 8, 1, 3, 9, 4, 6, 0]
    assert Plan(10, 2, 2, seed=7).rows(0, 0, 0).tolist() == [9, 8]
    assert derive_seed(0, "order", 0) == 6741988865739157799
    assert Plan(10, 2, 2, seed=7).step_seed(1, 2, 3) == derive_seed(7, "step", 1, 2, 3) == 309421074260108494


def test_a_purpose_that_ends_in_zeros_has_a_seed_of_its_own():
    seeds = [derive_seed(1), derive_seed(1, 0), derive_seed(1, "x"), derive_seed(1, "x", 0), derive_seed(1, "x", 0, 0)]
    assert len(set(seeds)) == 5


def test_seeds_of_different_purposes_and_places_differ_and_fit_in_63_bits():
    purposes = [("init",), ("split",), *(("order", epoch) for epoch in range(20))]
    purposes += [("step", epoch, number, micro) for epoch in range(5) for number in range(10) for micro in range(4)]
    seeds = [derive_seed(seed, *purpose) for seed in (0, 1, 2**40) for purpose in purposes]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_the_order_cannot_be_changed_by_who_asks_for_it():
    with pytest.raises(ValueError, match="read-only"):
        shuffled_rows(10, 0, 0, 0, 10)[0] = 5
    assert Plan(10, 2, 2, seed=0).rows(0, 0, 0).dtype == np.int64


@pytest.mark.parametrize("draw", range(30))
@pytest.mark.usefixtures("small_blocks")
def test_after_20_kills_anywhere_and_resumes_at_other_world_sizes_no_row_is_missing_or_twice(draw: int):
    random = np.random.default_rng(draw)
    num_rows, micro_batch_size, seed = (int(random.integers(1, high)) for high in (300, 10, 2**40))
    kills, world_sizes = random.integers(0, 10**6, 20).tolist(), random.choice([1, 2, 4], 21).tolist()
    whole = Plan(num_rows, micro_batch_size, 4, seed)
    trained: list[list[int]] = []
    stops = sorted(kill % (whole.num_global_batches + 1) for kill in kills)
    for (start, stop), world_size in zip(itertools.pairwise([0, *stops, whole.num_global_batches]), world_sizes, strict=True):
        forget_orders()
        for number in range(start, stop):
            by_rank = [[whole.rows(1, number, micro).tolist() for micro in range(rank, 4, world_size)] for rank in range(world_size)]
            trained.append(sorted(row for rank in by_rank for rows in rank for row in rows))
    assert sorted(row for rows in trained for row in rows) == list(range(num_rows))
    in_one_go = [sorted(row for micro in range(4) for row in whole.rows(1, number, micro).tolist()) for number in range(whole.num_global_batches)]
    assert trained == in_one_go


@pytest.mark.parametrize("draw", range(30))
@pytest.mark.usefixtures("small_blocks")
def test_any_stretch_of_an_epoch_is_the_same_whether_or_not_what_stands_before_was_read(draw: int):
    random = np.random.default_rng(draw)
    num_rows, seed, places = int(random.integers(1, 200)), int(random.integers(2**32)), random.integers(0, 10**6, 8).tolist()
    whole = epoch_order(num_rows, seed, 3)
    for start, stop in itertools.pairwise(place % (num_rows + 1) for place in places):
        if start < stop:
            forget_orders()
            assert shuffled_rows(num_rows, seed, 3, start, stop).tolist() == whole[start:stop].tolist()


@pytest.mark.usefixtures("small_blocks")
def test_a_window_mixes_blocks_from_everywhere_and_epochs_mix_other_ones():
    blocks_of_epoch = [{row // 4 for row in shuffled_rows(400, 0, epoch, 0, 12).tolist()} for epoch in range(3)]
    assert [len(blocks) for blocks in blocks_of_epoch] == [3, 3, 3]
    assert len(set(map(frozenset, blocks_of_epoch))) == 3
    assert shuffled_rows(400, 0, 0, 0, 12).tolist() != sorted(shuffled_rows(400, 0, 0, 0, 12).tolist())


@pytest.mark.usefixtures("small_blocks")
def test_up_to_a_window_every_order_is_as_likely_as_any_other():
    found = [tuple(epoch_order(4, seed, 0).tolist()) for seed in range(2400)] + [tuple(epoch_order(4, 0, epoch).tolist()) for epoch in range(2400)]
    counts = np.array([found.count(order) for order in itertools.permutations(range(4))])
    assert counts.sum() == 4800
    # Chi-square with 23 degrees of freedom: above 49.7 once in a thousand times.
    assert ((counts - 200) ** 2 / 200).sum() < 49.7


def test_every_row_comes_once_across_windows_of_full_size():
    num_rows = 2 * ROWS_PER_WINDOW + 3 * ROWS_PER_BLOCK + 17
    assert np.array_equal(np.sort(epoch_order(num_rows, 5, 0)), np.arange(num_rows))


def test_any_place_among_two_billion_rows_is_reached_at_once_and_in_little_memory():
    plan = Plan(num_rows=2_000_000_000, micro_batch_size=512, num_micro_batches=4, seed=0)
    forget_orders()
    tracemalloc.start()
    started = time.process_time()
    for number in (976_000, 500_000, 3):
        rows = plan.rows(9, number, 1)
        assert len(set(rows.tolist())) == 512
        assert rows.min() >= 0
        assert rows.max() < 2_000_000_000
    seconds = (time.process_time() - started) / 3
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    forget_orders()
    assert seconds < 0.5  # about 0.05 on an idle core; all rows at once would take minutes and 16 GB
    assert peak_bytes < 100e6


POPULAR = PopularitySampling(train_items=np.repeat([0, 1, 2], [900, 90, 10]), train_count_N=np.array([900, 90, 10, 0]), exponent=1.0)


@pytest.mark.parametrize(("exponent", "expected"), [(0.0, [900, 90, 10, 0]), (1.0, [333.33, 333.33, 333.33, 0]), (0.5, [697.8, 220.7, 73.6, 0])])
def test_an_exponent_draws_rows_alike_items_alike_or_between(exponent: float, expected: list[float]):
    # 0.5: in proportion to the roots 30, 9.487 and 3.162, 42.649 in all.
    sampling = replace(POPULAR, exponent=exponent)
    plan = Plan(1000, 50, 2, seed=4, sampling=sampling)
    assert plan.expected_count_N(POPULAR.train_count_N).tolist() == pytest.approx([1000 * value / sum(expected) for value in expected], rel=1e-3)
    rows = np.concatenate([plan.rows(0, number, micro) for number in range(10) for micro in range(2)])
    assert np.bincount(POPULAR.train_items[rows], minlength=4) == pytest.approx(np.array(expected), rel=0.06, abs=1.0)
    copies = np.bincount(rows, minlength=1000)
    for item in range(3):  # a row comes as often as expected, to within one
        assert np.ptp(copies[POPULAR.train_items == item]) <= 1


@pytest.mark.usefixtures("small_blocks")
def test_sampled_rows_are_decided_by_seed_and_epoch_and_any_stretch_of_them_is_the_same():
    rows = [shuffled_rows(1000, seed, epoch, 0, 1000, POPULAR).tolist() for seed, epoch in ((0, 0), (0, 1), (1, 0))]
    assert len(set(map(tuple, rows))) == 3
    for start, stop in ((0, 5), (7, 40), (990, 1000)):
        forget_orders()
        assert shuffled_rows(1000, 0, 0, start, stop, POPULAR).tolist() == rows[0][start:stop]


def test_without_sampling_counts_are_those_of_the_rows():
    assert Plan(1000, 50, 2, seed=4).expected_count_N(POPULAR.train_count_N) is POPULAR.train_count_N
