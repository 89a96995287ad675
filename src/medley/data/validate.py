"""Which rows of the tables may be used: bad ones go to quarantine with shard, row, id, column and reason; too many of them fail the run."""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, ConfigDict, Field, field_validator

from medley.schema import DWELL_SECONDS, ITEM_ID, QUARANTINE_SCHEMA, TIMESTAMP, USER_ID, VALUE, InputError

MAX_ID_BYTES = 1024
MAX_ROWS_PER_REASON = 1000
"""rows of one table, column and reason that stand in quarantine.parquet one by one; the others are one row that counts them"""
LATEST_MICROSECONDS = 4_102_444_800_000_000
"""2100-01-01 UTC; a fixed moment, not today, so that the same tables are always prepared to the same bytes"""

REASONS = (
    "id is empty",
    "id is longer than",
    "id is no UTF-8",
    "id holds a NUL character",
    "item id stands in an earlier row",
    "user id stands in an earlier row",
    "unknown item",
    "value is NaN or infinite",
    "time is 1970-01-01 00:00 or before",
    "time is in or after the year 2100",
    "dwell time is",
    "event kind has no weight",
    "equal to an earlier row",
    "contradicts another row",
    "user has more than",
    "user is not in the core",
    "item is not in the core",
    "item that one user had",
    "text is empty",
    "vector holds",
    "image",
    "audio",
    "none of JPEG, PNG, WebP",
    "decoder",
)
"""how the reasons of all steps begin"""

Fault = tuple[str, str, Callable[[pa.ChunkedArray | pa.Array], pa.ChunkedArray | pa.Array]]
"""(column, reason, function of the column → bool, True where it is bad; null counts as good). Of a dictionary column it sees the dictionary, and a null."""


class QuarantineConfig(BaseModel):
    """How many faulty rows a run bears. Rows that a rule of the configuration leaves out (repeats, behaviour, core) are reported, but are no faults."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_share: float = Field(default=0.5, ge=0, le=1)
    """largest share of a table's rows left out as faulty; more fails the run"""
    max_rows: int | None = Field(default=None, ge=0)
    """largest number of rows of a table left out as faulty; null: no limit"""
    max_share_by_reason: dict[str, float] = Field(default_factory=dict)
    """largest share of a table's rows for single reasons, of rows left out and of values that count as missing: the beginning of what
    quarantine.parquet calls them, where figures are not compared; `text is empty`, `image` for all faults of images"""

    @field_validator("max_share_by_reason")
    @classmethod
    def _check_reasons(cls, shares: dict[str, float]) -> dict[str, float]:
        for named in shares:
            if not any(_begins(reason, named) or _begins(named, reason) for reason in REASONS):
                raise ValueError(f"data.quarantine.max_share_by_reason names '{named}'; expected the beginning of one of {', '.join(REASONS)}; correct it")
        return shares


class Quarantine:
    """What was left out or counted as missing, in the order it was found."""

    def __init__(self) -> None:
        self.counts: Counter[tuple[str, str, str]] = Counter()
        """(table, column, reason without its figures) → rows"""
        self.faults: Counter[tuple[str, str]] = Counter()
        """(table, reason) → rows left out as faulty"""
        self._listed: list[dict[str, Any]] = []
        self._num_listed: Counter[tuple[str, str, str]] = Counter()

    def report(self, table: str, column: str, reason: str, ids: pa.Array | pa.ChunkedArray, shards: Iterable[str], rows: Iterable[int], is_fault: bool) -> None:
        """Rows left out for one reason. ids, shards, rows: what each row is called and where it stands; equally long."""
        if not len(ids):
            return
        key = (table, column, reason)
        room = MAX_ROWS_PER_REASON - self._num_listed[key]
        for id_, shard, row in zip(readable_ids(ids.slice(0, max(room, 0))), shards, rows, strict=False):
            self._listed.append({"table": table, "id": id_, "column": column, "reason": reason, "num_rows": 1, "shard": shard, "row": int(row)})
            self._num_listed[key] += 1
        self.counts[key] += len(ids)
        if is_fault:
            self.faults[table, reason] += len(ids)

    def report_missing(self, rows: Iterable[dict[str, Any]]) -> None:
        """Values that count as missing while their row is kept: dicts of QUARANTINE_SCHEMA, where shard and row may be absent."""
        for row in rows:
            self.counts[row["table"], row["column"], _without_figures(row["reason"])] += row["num_rows"]
            self._list(row)

    def as_json(self) -> list[Any]:
        """What `merge` takes, in another process."""
        return [self._listed, [[*key, count] for key, count in self.counts.items()], [[*key, count] for key, count in self.faults.items()]]

    def merge(self, found: list[Any]) -> None:
        """Add what another one found (its as_json) after what this one has."""
        listed, counts, faults = found
        for row in listed:
            self._list(row)
        for *key, count in counts:
            self.counts[tuple(key)] += count
        for *key, count in faults:
            self.faults[tuple(key)] += count

    def _list(self, row: dict[str, Any]) -> None:
        key = (row["table"], row["column"], _without_figures(row["reason"]) if "shard" not in row else row["reason"])
        if self._num_listed[key] < MAX_ROWS_PER_REASON:
            self._listed.append(row)
            self._num_listed[key] += 1

    @property
    def num_rows(self) -> int:
        """Everything reported."""
        return self.counts.total()

    def by_reason(self) -> dict[str, int]:
        """ "table.column: reason" → rows."""
        return {f"{table}.{column}: {reason}": count for (table, column, reason), count in self.counts.items()}

    def table(self) -> pa.Table:
        """QUARANTINE_SCHEMA; num_rows sums to the rows reported."""
        rest = (self.counts - self._num_listed).items()
        counted = [{"table": table, "column": column, "reason": reason, "num_rows": count} for (table, column, reason), count in rest]
        return pa.Table.from_pylist([*self._listed, *counted], QUARANTINE_SCHEMA)

    def check_budget(self, config: QuarantineConfig, num_rows: Mapping[str, int]) -> None:
        """An InputError with the rows per reason when more rows of a table are faulty than the configuration bears. num_rows: table → its rows."""
        for table, num_all in num_rows.items():
            reasons = {reason: count for (name, reason), count in self.faults.items() if name == table}
            num_bad, listed = sum(reasons.values()), ", ".join(f"{reason}: {count}" for reason, count in reasons.items())
            if num_bad > config.max_share * num_all:
                self._refuse(f"{num_bad} of {num_all} rows of {table} are faulty ({listed})", f"a share of {config.max_share} at most", "max_share", table)
            if config.max_rows is not None and num_bad > config.max_rows:
                self._refuse(f"{num_bad} rows of {table} are faulty ({listed})", f"{config.max_rows} at most", "max_rows", table)
            for named, share in config.max_share_by_reason.items():
                num_named = sum(count for (name, _, reason), count in self.counts.items() if name == table and _begins(reason, named))
                if num_named > share * num_all:
                    got = f"{num_named} of {num_all} rows of {table} have: {named}"
                    self._refuse(got, f"a share of {share} at most", "max_share_by_reason", table, named)

    def _refuse(self, got: str, expected: str, setting: str, table: str, named: str = "") -> None:
        rows = [row for row in self._listed if row["table"] == table and _begins(row["reason"], named)][:3]
        places = [
            f"{row['shard']} row {row['row']} (id {row['id']!r}): {row['reason']}" if row.get("shard") else f"id {row['id']!r}: {row['reason']}" for row in rows
        ]
        raise InputError(f"{got}; for example {'; '.join(places)}", expected, f"correct the tables, or raise data.quarantine.{setting}")


def check_interactions(piece: pa.Table, shard: str, first_row: int, is_known_item: np.ndarray, quarantine: Quarantine) -> tuple[pa.Table, np.ndarray]:
    """The good rows of a piece of an interactions table and their row numbers in the shard. A bad row is reported for its first fault.

    The piece's id columns are dictionaries; is_known_item: bool for each entry of the items' one.
    """
    return _keep_good(piece, shard, first_row, "interactions", _interaction_faults(is_known_item, piece.column_names), quarantine)


def check_item_ids(piece: pa.Table, shard: str, first_row: int, quarantine: Quarantine) -> tuple[pa.Table, np.ndarray]:
    """The rows with usable item ids, and their row numbers in the shard."""
    return _keep_good(piece, shard, first_row, "items", _id_faults(ITEM_ID), quarantine)


def check_user_ids(piece: pa.Table, shard: str, first_row: int, quarantine: Quarantine) -> tuple[pa.Table, np.ndarray]:
    """The rows of a users table with usable ids, and their row numbers in the shard."""
    return _keep_good(piece, shard, first_row, "users", _id_faults(USER_ID), quarantine)


def readable_ids(ids: pa.Array | pa.ChunkedArray) -> list[str | None]:
    """Ids as a person may read them: bytes that are no UTF-8 replaced, cut at 100 characters."""
    if pa.types.is_dictionary(ids.type):
        ids = ids.cast(ids.type.value_type)
    return [None if id_ is None else id_.decode(errors="replace")[:100] for id_ in ids.cast(pa.binary()).to_pylist()]


def _keep_good(piece: pa.Table, shard: str, first_row: int, name: str, faults: Iterable[Fault], quarantine: Quarantine) -> tuple[pa.Table, np.ndarray]:
    rows = first_row + np.arange(piece.num_rows)
    for column, reason, is_bad in faults:
        mask = _bad_rows(piece[column], is_bad)
        if mask.any():
            id_column = column if column in (USER_ID, ITEM_ID) else USER_ID
            bad = pa.array(mask)
            quarantine.report(name, column, reason, piece[id_column].filter(bad), [shard] * int(mask.sum()), rows[mask], is_fault=True)
            piece, rows = piece.filter(pc.invert(bad)), rows[~mask]
    return piece, rows


def _bad_rows(column: pa.ChunkedArray, is_bad: Callable[[pa.ChunkedArray | pa.Array], pa.ChunkedArray | pa.Array]) -> np.ndarray:
    """(rows,) bool, of a dictionary's few values instead of its many rows."""
    if not pa.types.is_dictionary(column.type):
        return pc.fill_null(is_bad(column), False).to_numpy(zero_copy_only=False)
    ids = column.combine_chunks()
    # A null row is the last of the judged values.
    is_bad_value = pc.fill_null(is_bad(pa.concat_arrays([ids.dictionary, pa.nulls(1, ids.dictionary.type)])), False).to_numpy(zero_copy_only=False)
    if not is_bad_value[: len(is_bad_value) - (ids.null_count == 0)].any():
        return np.zeros(len(ids), dtype=bool)
    return is_bad_value[pc.fill_null(ids.indices, len(ids.dictionary)).to_numpy()]


def _id_faults(column: str) -> Iterator[Fault]:
    yield column, "id is empty", lambda ids: pc.equal(pc.fill_null(pc.binary_length(ids), 0), 0)
    yield column, f"id is longer than {MAX_ID_BYTES} bytes", lambda ids: pc.greater(pc.binary_length(ids), MAX_ID_BYTES)
    yield column, "id is no UTF-8", _is_no_utf8
    yield column, "id holds a NUL character", lambda ids: pc.match_substring(ids, "\0")


def _interaction_faults(is_known_item: np.ndarray, columns: list[str]) -> Iterator[Fault]:
    yield from _id_faults(USER_ID)
    yield from _id_faults(ITEM_ID)
    yield ITEM_ID, "unknown item", lambda _: pa.array(~np.append(is_known_item, True))
    if VALUE in columns:
        yield VALUE, "value is NaN or infinite", lambda values: pc.invert(pc.is_finite(values))
    if TIMESTAMP in columns:
        yield TIMESTAMP, "time is 1970-01-01 00:00 or before", lambda times: pc.less_equal(times.cast(pa.int64()), 0)
        reason = "time is in or after the year 2100 (milliseconds read as seconds?)"
        yield TIMESTAMP, reason, lambda times: pc.greater_equal(times.cast(pa.int64()), LATEST_MICROSECONDS)
    if DWELL_SECONDS in columns:
        reason = "dwell time is negative, NaN or infinite"
        yield DWELL_SECONDS, reason, lambda seconds: pc.or_(pc.invert(pc.is_finite(seconds)), pc.less(seconds, 0))


def _without_figures(reason: str) -> str:
    return re.sub(r"\d", "#", reason)


def _begins(reason: str, beginning: str) -> bool:
    return _without_figures(reason).startswith(_without_figures(beginning))


def _is_no_utf8(ids: pa.ChunkedArray | pa.Array) -> pa.Array:
    try:
        ids.validate(full=True)
        return pa.array(np.zeros(len(ids), dtype=bool))
    except pa.ArrowInvalid:
        contents = ids.cast(pa.binary()).to_pylist()
        return pa.array([id_ is not None and id_.decode(errors="ignore").encode() != id_ for id_ in contents], pa.bool_())
