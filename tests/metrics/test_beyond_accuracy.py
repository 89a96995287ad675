"""Coverage, Gini, novelty, diversity and popularity by hand."""

import math

import numpy as np
import pytest
import torch

from medley.metrics.beyond_accuracy import coverage, diversity, gini, mean_popularity, novelty

LISTS_BK = torch.tensor([[0, 1], [2, -1], [-1, -1]])


def test_coverage_is_the_share_of_items_that_are_shown() -> None:
    assert coverage(np.array([3, 0, 1, 0])) == 0.5


@pytest.mark.parametrize(("shown", "expected"), [([2, 2, 2, 2], 0.0), ([0, 0, 0, 8], 0.75), ([0, 1], 0.5), ([1, 3], 0.25), ([3, 1], 0.25)])
def test_gini_by_hand(shown: list[int], expected: float) -> None:
    # [1, 3]: mean absolute difference over all ordered pairs is 1, half of it over the mean 2 is ¼.
    assert gini(np.array(shown)) == pytest.approx(expected)


def test_gini_of_nothing_shown_is_nan() -> None:
    assert math.isnan(gini(np.zeros(3, dtype=int)))


def test_novelty_is_the_self_information_of_the_items() -> None:
    # 7 users: shares (3 + 1) / 8, (0 + 1) / 8, (1 + 1) / 8, so 1, 3 and 2 bits.
    assert novelty(LISTS_BK, torch.tensor([3, 0, 1]), 7).tolist() == pytest.approx([2.0, 2.0, math.nan], nan_ok=True)


def test_mean_popularity_is_over_the_items_there_are() -> None:
    assert mean_popularity(LISTS_BK, torch.tensor([10, 4, 1])).tolist() == pytest.approx([7.0, 1.0, math.nan], nan_ok=True)


def test_diversity_is_the_mean_distance_of_the_pairs() -> None:
    half = math.sqrt(0.5)
    units_ND = torch.tensor([[1.0, 0.0], [0.0, 1.0], [half, half], [0.0, 0.0]])
    lists_BK = torch.tensor([[0, 1, 2], [0, 0, -1], [0, 3, 1], [3, 0, -1]])
    # Pairs of the first list: 1 − 0, 1 − √½, 1 − √½. Item 3 has no vector: its pairs do not count.
    expected = [1 - 2 * half / 3, 0.0, 1.0, math.nan]
    assert diversity(lists_BK, units_ND).tolist() == pytest.approx(expected, abs=1e-6, nan_ok=True)
