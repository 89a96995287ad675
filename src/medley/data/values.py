"""Ratings and strengths as the loss wants them: clipped, logarithmic, without the mean; the means are those of train."""

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


def normalise_values(values: np.ndarray, users: np.ndarray, is_train: np.ndarray, config: ValuesConfig) -> tuple[np.ndarray, dict[str, Any]]:
    """(float32 values, statistics of the train values). NaN: no value, stays so. users: numbers from 0. All arrays (rows,)."""
    has_value = np.isfinite(values)
    result = values.astype(np.float64)
    statistics: dict[str, Any] = {}
    if config.clip is not None:
        low, high = config.clip
        statistics["num_clipped"] = int((has_value & ((result < low) | (result > high))).sum())
        result = np.clip(result, low, high)
    if config.log:
        if (result[has_value] <= -1).any():
            raise InputError(
                f"data.values.log is set, and a value is {result[has_value].min():g}", "values above -1", "set data.values.clip, or leave the log out"
            )
        result = np.log1p(result)
    rows = is_train & has_value
    if not rows.any():
        return result.astype(np.float32), statistics
    mean = result[rows].mean()
    statistics |= {"train_mean": float(mean), "train_deviation": float(result[rows].std())}
    if config.kind == "global_mean":
        result = result - mean
    elif config.kind == "user_mean":
        num_users = int(users.max()) + 1
        num_values, sums = np.bincount(users[rows], minlength=num_users), np.bincount(users[rows], weights=result[rows], minlength=num_users)
        result = result - np.where(num_values > 0, sums / np.maximum(num_values, 1), mean)[users]
    return result.astype(np.float32), statistics
