"""How far a mean over users can be trusted: percentile bootstrap intervals, and paired comparison of two rankings of the same users.

Users are what is drawn: each is one independent observation, their items are not (Sakai 2006; Smucker, Allan and Carterette 2007).
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

CONFIDENCE = 0.95
"""of every interval that is reported"""
DRAWS_IN_MEMORY = 1 << 20
"""Users drawn at a time, over all resamples of a piece: 8 MB, so that they stay in the processor's cache."""


@dataclass(frozen=True)
class Estimate:
    """A mean over users. low, high: ends of its interval. num_users: those that have a value. All NaN for no user; no interval for one."""

    mean: float
    low: float
    high: float
    num_users: int


@dataclass(frozen=True)
class Difference(Estimate):
    """Mean of (ours − theirs) over the users that have both values. p_value: two-sided, of no difference at all."""

    p_value: float


def estimate_means(values_VM: np.ndarray, num_resamples: int, seed: int) -> list[Estimate]:
    """Mean of each column over its users and its percentile interval (Efron 1979), all columns on the same resamples.

    values_VM: float, NaN where a user does not count for a column. A resample draws as many users as there are, with replacement, and means
    those that count. The same seed and number of users give the same resamples.
    """
    counts_M = np.isfinite(values_VM).sum(axis=0)
    means_M = _mean_columns(values_VM)
    if not len(values_VM) or not num_resamples:
        return [Estimate(float(mean), np.nan, np.nan, int(count)) for mean, count in zip(means_M, counts_M, strict=True)]
    resampled_RM = _resampled_means(values_VM, num_resamples, seed)
    tail = (1 - CONFIDENCE) / 2
    ends = np.full((2, values_VM.shape[1]), np.nan)
    has_interval_M = counts_M > 1
    ends[:, has_interval_M] = np.nanquantile(resampled_RM[:, has_interval_M], [tail, 1 - tail], axis=0)
    return [Estimate(float(mean), float(low), float(high), int(count)) for mean, low, high, count in zip(means_M, *ends, counts_M, strict=True)]


def compare_paired(ours_VM: np.ndarray, theirs_VM: np.ndarray, num_resamples: int, seed: int) -> list[Difference]:
    """Mean difference of each column over the users that have both values, its bootstrap interval, and the p value of a randomisation test.

    The test (Fisher 1935; recommended for rankings by Smucker, Allan and Carterette 2007) turns the sign of each user's difference at random:
    p is the share of such draws whose mean is at least as far from 0 as the one seen, itself counted, so never below 1 / (num_resamples + 1).
    """
    differences_VM = ours_VM - theirs_VM
    estimates = estimate_means(differences_VM, num_resamples, seed)
    filled_VM = np.nan_to_num(differences_VM, nan=0.0)
    seen_M, num_extreme_M = np.abs(filled_VM.sum(axis=0)), np.zeros(differences_VM.shape[1])
    rng = np.random.default_rng([seed, 1])
    for size in _pieces(num_resamples, len(filled_VM)):
        signs_RV = rng.integers(0, 2, size=(size, len(filled_VM)), dtype=np.int8) * 2.0 - 1.0
        # The last digits of a sum depend on its order: without the margin, a draw that repeats what was seen might not count.
        num_extreme_M += (np.abs(signs_RV @ filled_VM) >= seen_M - 1e-12 * (1 + seen_M)).sum(axis=0)
    p_values_M = (num_extreme_M + 1) / (num_resamples + 1)
    return [Difference(e.mean, e.low, e.high, e.num_users, float(p) if e.num_users else np.nan) for e, p in zip(estimates, p_values_M, strict=True)]


def _resampled_means(values_VM: np.ndarray, num_resamples: int, seed: int) -> np.ndarray:
    """(R, M) mean of each column in each resample; NaN where a resample has none of its users."""
    num_users = len(values_VM)
    # Half the digits are plenty for an interval, and twice as fast.
    is_known_VM = np.isfinite(values_VM).astype(np.float32)
    filled_VM = np.nan_to_num(values_VM, nan=0.0).astype(np.float32)
    rng = np.random.default_rng([seed, 0])
    parts = []
    for size in _pieces(num_resamples, num_users):
        drawn_RV = rng.integers(0, num_users, size=(size, num_users))
        drawn_RV += num_users * np.arange(size)[:, None]
        # How often each user was drawn turns the resampling of all columns into two matrix products.
        times_RV = np.bincount(drawn_RV.ravel(), minlength=size * num_users).reshape(size, num_users).astype(np.float32)
        known_RM = times_RV @ is_known_VM
        parts.append(np.divide(times_RV @ filled_VM, known_RM, out=np.full_like(known_RM, np.nan), where=known_RM > 0))
    return np.concatenate(parts)


def _pieces(num_resamples: int, num_users: int) -> Iterator[int]:
    """Sizes of the pieces in which resamples are drawn."""
    step = max(1, DRAWS_IN_MEMORY // max(1, num_users))
    for start in range(0, num_resamples, step):
        yield min(step, num_resamples - start)


def _mean_columns(values_VM: np.ndarray) -> np.ndarray:
    """NaN-leaving mean of each column; NaN for a column of nothing else."""
    count_M = np.isfinite(values_VM).sum(axis=0)
    return np.divide(np.nansum(values_VM, axis=0), count_M, out=np.full(values_VM.shape[1], np.nan), where=count_M > 0)
