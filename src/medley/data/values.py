"""Ratings and strengths as the loss wants them: clipped, logarithmic, without the mean; the means are those of train."""

from collections.abc import Sequence
from fractions import Fraction
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, model_validator

from medley.schema import InputError


class ValuesConfig(BaseModel):
    """What is done to `value`: first the clip, then the logarithm, then the mean is taken off. Evaluation measures errors in the result's unit."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["none", "global_mean", "user_mean"] = "none"
    """whose train mean is taken off; a user without train values has the mean of all"""
    clip: tuple[float, float] | None = None
    """smallest and largest value; others become these and are counted in statistics.json"""
    log: bool = False
    """takes log(1 + value); values of -1 or less are refused"""

    @model_validator(mode="after")
    def _check_clip(self) -> "ValuesConfig":
        if self.clip is not None and not self.clip[0] < self.clip[1]:
            raise ValueError(f"data.values.clip={list(self.clip)}; expected [smallest, largest]; exchange them")
        return self


def transform_values(values: np.ndarray, config: ValuesConfig) -> tuple[np.ndarray, int]:
    """(float64 values after clip and logarithm, how many were clipped). NaN: no value, stays so."""
    has_value = np.isfinite(values)
    result, num_clipped = values.astype(np.float64), 0
    if config.clip is not None:
        low, high = config.clip
        num_clipped = int((has_value & ((result < low) | (result > high))).sum())
        result = np.clip(result, low, high)
    if config.log:
        if (result[has_value] <= -1).any():
            raise InputError(
                f"data.values.log is set, and a value is {result[has_value].min():g}", "values above -1", "set data.values.clip, or leave the log out"
            )
        result = np.log1p(result)
    return result, num_clipped


def summarise_values(values: np.ndarray) -> dict[str, Any]:
    """Count, sum and sum of squares of the values that are there, exact, as JSON: parts of the data add up to the same however they are cut."""
    values = values[np.isfinite(values)]
    return {"count": len(values), "sum": str(exact_sum(values)), "squares": str(exact_sum(values * values))}


def train_statistics(summaries: Sequence[dict[str, Any]]) -> dict[str, float]:
    """train_mean and train_deviation from the parts' summaries; nothing where there are no values."""
    count = sum(summary["count"] for summary in summaries)
    if count == 0:
        return {}
    mean, squares = (sum(Fraction(summary[name]) for summary in summaries) / count for name in ("sum", "squares"))
    return {"train_mean": float(mean), "train_deviation": float(max(squares - mean * mean, Fraction(0))) ** 0.5}


def centre_values(values: np.ndarray, users: np.ndarray, is_train: np.ndarray, train_mean: float | None, config: ValuesConfig) -> np.ndarray:
    """float32 values without the mean of all or of their user. users: numbers from 0, each with all its rows; all arrays (rows,)."""
    rows = is_train & np.isfinite(values)
    if train_mean is not None and config.kind == "global_mean":
        values = values - train_mean
    elif train_mean is not None and config.kind == "user_mean":
        num_users = int(users.max(initial=-1)) + 1
        num_values, sums = np.bincount(users[rows], minlength=num_users), np.bincount(users[rows], weights=values[rows], minlength=num_users)
        values = values - np.where(num_values > 0, sums / np.maximum(num_values, 1), train_mean)[users]
    return values.astype(np.float32)


def exact_sum(values: np.ndarray) -> Fraction:
    """The sum of finite float64 values without rounding: those of one exponent add up as whole numbers."""
    scaled = values * 2.0**20
    if len(values) == 0 or (np.abs(scaled).max() < 2**40 and (scaled == np.rint(scaled)).all()):  # stars and counts, millions at once
        return Fraction(int(scaled.astype(np.int64).sum()), 2**20)
    mantissas, exponents = np.frexp(values)
    whole = (mantissas * 2.0**53).astype(np.int64)
    total = Fraction(0)
    for exponent in np.unique(exponents):
        rows = exponents == exponent
        # In halves: 2^53 times a million rows is more than 64 bits hold.
        number = (int((whole[rows] >> 27).sum()) << 27) + int((whole[rows] & (2**27 - 1)).sum())
        total += Fraction(number) * Fraction(2) ** (int(exponent) - 53)
    return total
