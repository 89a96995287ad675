"""Train, valid, test: as shipped, by global time, or at random."""

from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, ConfigDict, Field

from medley.data.plan import derive_seed
from medley.schema import SPLIT, SPLITS, TIMESTAMP, InputError


class SplitConfig(BaseModel):
    """How interactions are divided."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["auto", "shipped", "time", "random"] = "auto"
    """auto: shipped where the data have a split column, else time where there are timestamps, else random"""
    valid_share: float = Field(default=0.1, gt=0, lt=0.5)
    """share of the interactions"""
    test_share: float = Field(default=0.1, gt=0, lt=0.5)
    """share of the interactions"""


def has_values(table: pa.Table, column: str) -> bool:
    """Whether a column is there and has any value."""
    return column in table.column_names and table[column].null_count < table.num_rows


def split_kind(table: pa.Table, config: SplitConfig) -> str:
    """The kind that `auto` stands for in these interactions, or the one asked for; a kind the data cannot give is an InputError."""
    needed = {"shipped": SPLIT, "time": TIMESTAMP}
    if config.kind == "auto":
        return next((kind for kind, column in needed.items() if has_values(table, column)), "random")
    column = needed.get(config.kind)
    if column and not has_values(table, column):
        raise InputError(
            f"data.split.kind={config.kind}, but the interactions have no values in column '{column}'", f"a filled '{column}'", "use data.split.kind=auto"
        )
    return config.kind


def assign_split(table: pa.Table, config: SplitConfig, seed: int) -> np.ndarray:
    """(rows,) int8: 0 train, 1 valid, 2 test.

    time: cut at two moments so that the shares are met by count; rows of the same moment stay together, in the later part.
    """
    kind = split_kind(table, config)
    num_rows = table.num_rows
    shares = (1 - config.valid_share - config.test_share, 1 - config.test_share)
    if kind == "shipped":
        numbers = pc.index_in(table[SPLIT], value_set=pa.array(SPLITS))
        if numbers.null_count:
            bad = pc.unique(pc.filter(table[SPLIT], pc.is_null(numbers))).to_pylist()[:3]
            raise InputError(f"column '{SPLIT}' of the interactions holds {bad}", f"one of {', '.join(SPLITS)} in every row", "correct the column")
        return numbers.to_numpy().astype(np.int8)
    if kind == "time":
        if table[TIMESTAMP].null_count:
            raise InputError(
                f"{table[TIMESTAMP].null_count} of {num_rows} interactions have no {TIMESTAMP}",
                "all or none with one",
                "fill them, or use data.split.kind=random",
            )
        times = table[TIMESTAMP].cast(pa.int64()).to_numpy()
        by_time = np.sort(times)
        cuts = [by_time[int(share * num_rows)] for share in shares]
        return np.searchsorted(cuts, times, side="right").astype(np.int8)
    order = np.random.Generator(np.random.Philox(derive_seed(seed, "split"))).permutation(num_rows)
    part = np.empty(num_rows, dtype=np.int8)
    part[order] = np.searchsorted([int(share * num_rows) for share in shares], np.arange(num_rows), side="right")
    return part
