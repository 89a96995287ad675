"""Intervals and paired tests against numbers that can be counted out, and against the theory of the mean."""

import numpy as np
import pytest

from medley.metrics import bootstrap
from medley.metrics.bootstrap import compare_paired, estimate_means


def test_a_mean_leaves_out_users_that_do_not_count_and_its_interval_lies_between_the_values() -> None:
    (estimate,) = estimate_means(np.array([[0.0], [1.0], [np.nan], [0.5]]), 2000, seed=0)
    assert (estimate.mean, estimate.num_users) == (0.5, 3)
    # Of three values 0, ½, 1 drawn three times: P(all 0) = 1/27 > 2.5 %, so the interval is the whole range.
    assert (estimate.low, estimate.high) == (0.0, 1.0)


def test_users_that_are_all_alike_leave_no_doubt() -> None:
    (estimate,) = estimate_means(np.full((7, 1), 0.25), 100, seed=3)
    assert (estimate.mean, estimate.low, estimate.high) == (0.25, 0.25, 0.25)


def test_the_interval_of_many_users_is_that_of_the_normal_distribution() -> None:
    values_V1 = np.random.default_rng(0).normal(0.3, 0.2, size=(2500, 1))
    (estimate,) = estimate_means(values_V1, 4000, seed=1)
    half = 1.96 * values_V1.std() / 50
    assert estimate.low == pytest.approx(values_V1.mean() - half, abs=0.07 * half)
    assert estimate.high == pytest.approx(values_V1.mean() + half, abs=0.07 * half)


def test_intervals_hold_the_truth_about_as_often_as_they_promise() -> None:
    rng = np.random.default_rng(5)
    found = [estimate_means(rng.binomial(1, 0.3, size=(200, 1)).astype(float), 300, seed=number)[0] for number in range(200)]
    assert 0.89 <= np.mean([estimate.low <= 0.3 <= estimate.high for estimate in found]) <= 0.99


def test_nobody_gives_no_number_and_one_user_no_interval() -> None:
    nobody, one = estimate_means(np.array([[np.nan, 0.4], [np.nan, np.nan]]), 50, seed=0)
    assert np.isnan([nobody.mean, nobody.low, nobody.high]).all()
    assert (one.mean, one.num_users) == (0.4, 1)
    assert np.isnan([one.low, one.high]).all()
    (empty,) = estimate_means(np.zeros((0, 1)), 50, seed=0)
    assert np.isnan(empty.mean)


def test_a_column_has_the_same_interval_whatever_stands_beside_it_and_however_the_draws_are_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    values_VM = np.random.default_rng(2).random((50, 3))
    together = estimate_means(values_VM, 64, seed=9)
    assert estimate_means(values_VM[:, 1:2], 64, seed=9)[0].low == pytest.approx(together[1].low, abs=1e-6)
    assert estimate_means(values_VM, 64, seed=9) == together
    monkeypatch.setattr(bootstrap, "DRAWS_IN_MEMORY", 130)
    assert [e.high for e in estimate_means(values_VM, 64, seed=9)] == pytest.approx([e.high for e in together], abs=1e-6)


def test_the_p_value_is_the_share_of_signs_that_are_as_extreme() -> None:
    # Four users, all better by 1: of the 16 ways to turn signs two are as extreme (all or none), 1/8.
    (difference,) = compare_paired(np.ones((4, 1)), np.zeros((4, 1)), 20_000, seed=0)
    assert difference.mean == 1
    assert difference.p_value == pytest.approx(1 / 8, abs=0.01)


def test_rankings_that_are_the_same_cannot_be_told_apart() -> None:
    values_V1 = np.random.default_rng(0).random((30, 1))
    (difference,) = compare_paired(values_V1, values_V1, 500, seed=0)
    assert (difference.mean, difference.low, difference.high, difference.p_value) == (0, 0, 0, 1)


def test_a_small_difference_on_the_same_users_is_seen_where_two_intervals_overlap() -> None:
    rng = np.random.default_rng(1)
    theirs_V1 = rng.random((400, 1))
    ours_V1 = theirs_V1 + rng.normal(0.01, 0.02, size=(400, 1))
    ours, theirs = (estimate_means(values_V1, 1000, seed=0)[0] for values_V1 in (ours_V1, theirs_V1))
    (difference,) = compare_paired(ours_V1, theirs_V1, 1000, seed=0)
    assert ours.low < theirs.high
    assert difference.low > 0
    assert difference.p_value == pytest.approx(1 / 1001)


def test_only_users_that_both_have_are_compared() -> None:
    (difference,) = compare_paired(np.array([[0.5], [np.nan], [0.7]]), np.array([[0.4], [0.9], [np.nan]]), 10, seed=0)
    assert (difference.mean, difference.num_users) == (pytest.approx(0.1), 1)
    (nobody,) = compare_paired(np.array([[np.nan]]), np.array([[1.0]]), 10, seed=0)
    assert np.isnan(nobody.p_value)
