"""What is in a prepared set: counts, coverage, popularity, activity, times, repeats, quarantine. Columns are read in pieces.

Memory grows with the number of items and users only (8 bytes each), never with the interactions.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from medley.data.findings import Finding
from medley.data.prepared import PreparedData
from medley.data.report_tables import time_range
from medley.manifest import join_uri, open_storage, read_json, verify_files
from medley.schema import ITEM_INDEX, SPLITS, TIMESTAMP, USER_INDEX, VALUE

MAX_COUNTED_PAIRS = 5_000_000
"""User-item pairs held at once, 8 bytes each; of more rows a sample of the users is counted."""
NUM_TIME_BINS, NUM_VALUE_BINS, NUM_CURVE_POINTS = 48, 20, 101
TOP_SHARES = (0.01, 0.1, 0.5)
PIECE_ROWS = 1 << 18


@dataclass
class SplitReport:
    """One of train, valid and test."""

    num_rows: int = 0
    num_users: int = 0
    num_items: int = 0
    num_new_users: int = 0
    """users without a train row"""
    num_cold_items: int = 0
    """items without a train row"""
    num_cold_rows: int = 0
    """rows whose item has no train row"""
    first_time: str | None = None
    """ISO 8601, UTC"""
    last_time: str | None = None
    rows_over_time: list[int] = field(default_factory=list)
    """rows in equal parts of the whole set's time range"""


@dataclass
class PreparedReport:
    """A prepared set in figures."""

    uri: str
    fingerprint: str
    num_items: int
    num_users: int
    splits: dict[str, SplitReport] = field(default_factory=dict)
    coverage: dict[str, int] = field(default_factory=dict)
    """column of the items → items that have it"""
    num_cold_items: int = 0
    """items without a train row"""
    gini: float = 0.0
    """of the train rows over all items: 0 all equal, 1 one item has all"""
    top_shares: dict[str, float] = field(default_factory=dict)
    """share of the train rows that the most popular 1 %, 10 %, 50 % of the items hold"""
    popularity_curve: list[float] = field(default_factory=list)
    """share of the train rows that the most popular 0 %, 1 % … 100 % of the items hold"""
    activity: dict[str, float] = field(default_factory=dict)
    """train rows per user: quantiles over the users with any"""
    activity_counts: dict[int, int] = field(default_factory=dict)
    """train rows, rounded down to a power of two → users"""
    first_time: str | None = None
    last_time: str | None = None
    values: dict[str, float] = field(default_factory=dict)
    """of train: smallest, largest, mean, share of rows without"""
    value_counts: list[int] = field(default_factory=list)
    """train rows in equal parts between the smallest and largest value"""
    num_repeated_pairs: int = 0
    """train rows whose user had the item before"""
    pairs_counted: str = ""
    """which rows that was counted over"""
    quarantine: list[dict[str, object]] = field(default_factory=list)
    """table, column, reason, num_rows, an example's shard and row; most rows first"""


def report_prepared(data: PreparedData) -> tuple[PreparedReport, list[Finding]]:
    """Read a prepared set once, files' hashes checked first; an InputError where it is damaged."""
    report = PreparedReport(data.uri, data.identity, data.num_items, data.num_users)
    _read_splits(data, report)
    if any(name == "statistics.json" for name in data.manifest["files"]):
        verify_files(data.uri, data.manifest, prefix="statistics.json")
        report.coverage = dict(read_json(join_uri(data.uri, "statistics.json"))["coverage"])
    report.quarantine = _quarantine(data)
    return report, _judge(report)


def files_of(data: PreparedData, name: str) -> list[str]:
    """The files of a table of the set: `NAME.parquet`, or the parts in a folder `NAME/`."""
    return sorted(file for file in data.manifest["files"] if file == f"{name}.parquet" or (file.startswith(f"{name}/") and file.endswith(".parquet")))


def pieces_of(data: PreparedData, name: str, columns: list[str] | None) -> Iterator[pa.RecordBatch]:
    """The named columns (None: all) of a table of the set, PIECE_ROWS rows at a time."""
    filesystem, root = open_storage(data.uri)
    for file in files_of(data, name):
        with filesystem.open_input_file(f"{root}/{file}") as stream:
            yield from pq.ParquetFile(stream, page_checksum_verification=True).iter_batches(PIECE_ROWS, columns=columns)


def _read_splits(data: PreparedData, report: PreparedReport) -> None:
    ranges = {split: _time_range(data, split) for split in SPLITS}
    known = [moment for pair in ranges.values() if pair is not None for moment in pair]
    whole = (min(known), max(known)) if known else None
    report.first_time, report.last_time = _iso(whole)
    train_count_N, train_count_V = np.zeros(data.num_items, dtype=np.int64), np.zeros(data.num_users, dtype=np.int64)
    pairs = _PairCounter(int(data.manifest["counts"].get("num_train", 0)), data.num_items)
    for split in SPLITS:
        counted = report.splits[split] = SplitReport()
        counted.first_time, counted.last_time = _iso(ranges[split])
        count_N = train_count_N if split == "train" else np.zeros_like(train_count_N)
        count_V = train_count_V if split == "train" else np.zeros_like(train_count_V)
        bins = np.zeros(NUM_TIME_BINS, dtype=np.int64)
        for piece in pieces_of(data, split, [USER_INDEX, ITEM_INDEX, TIMESTAMP]):
            users, items = piece[USER_INDEX].to_numpy(), piece[ITEM_INDEX].to_numpy()
            counted.num_rows += len(users)
            np.add.at(count_N, items, 1)
            np.add.at(count_V, users, 1)
            if split == "train":
                pairs.add(users, items)
            if whole is not None:
                bins += _binned(piece[TIMESTAMP].drop_null().cast(pa.int64()).to_numpy(), *whole)
        counted.rows_over_time = bins.tolist() if whole is not None else []
        counted.num_users, counted.num_items = int((count_V > 0).sum()), int((count_N > 0).sum())
        counted.num_new_users, counted.num_cold_items = int(((count_V > 0) & (train_count_V == 0)).sum()), int(((count_N > 0) & (train_count_N == 0)).sum())
        counted.num_cold_rows = int(count_N[train_count_N == 0].sum())
    report.num_repeated_pairs, report.pairs_counted = pairs.result()
    _measure_popularity(report, train_count_N)
    _measure_activity(report, train_count_V)
    _measure_values(data, report)


def _time_range(data: PreparedData, split: str) -> tuple[int, int] | None:
    """(earliest, latest) time of a split in microseconds, from the footers; its files' hashes are checked here."""
    filesystem, root = open_storage(data.uri)
    footers = []
    for file in files_of(data, split):
        verify_files(data.uri, data.manifest, prefix=file)
        with filesystem.open_input_file(f"{root}/{file}") as stream:
            footers.append(pq.read_metadata(stream))
    first, last = time_range(footers)
    return None if first is None or last is None else (int(first.astype("M8[us]").astype(int)), int(last.astype("M8[us]").astype(int)))


def _iso(moments: tuple[int, int] | None) -> tuple[str | None, str | None]:
    if moments is None:
        return None, None
    first, last = (str(np.datetime64(moment, "us").astype("M8[s]")) for moment in moments)
    return first, last


def _binned(microseconds: np.ndarray, first: int, last: int) -> np.ndarray:
    places = (microseconds - first) / max(1, last - first) * NUM_TIME_BINS
    return np.bincount(places.astype(np.int64).clip(0, NUM_TIME_BINS - 1), minlength=NUM_TIME_BINS)


class _PairCounter:
    """Counts user-item pairs that come again: of all users, or of one user in k where there are too many rows."""

    def __init__(self, num_rows: int, num_items: int):
        self.one_user_in = max(1, math.ceil(num_rows / MAX_COUNTED_PAIRS))
        self.num_items = num_items
        self.pairs: list[np.ndarray] = []

    def add(self, users: np.ndarray, items: np.ndarray) -> None:
        is_counted = users % self.one_user_in == 0
        self.pairs.append(users[is_counted].astype(np.int64) * self.num_items + items[is_counted])

    def result(self) -> tuple[int, str]:
        """(rows whose pair was there before, what was counted)."""
        pairs = np.concatenate([np.zeros(0, dtype=np.int64), *self.pairs])
        which = "all train rows" if self.one_user_in == 1 else f"the {len(pairs):,} train rows of one user in {self.one_user_in}"
        return len(pairs) - len(np.unique(pairs)), which


def _measure_popularity(report: PreparedReport, train_count_N: np.ndarray) -> None:
    report.num_cold_items = int((train_count_N == 0).sum())
    held = np.concatenate([[0], np.cumsum(np.sort(train_count_N)[::-1])]) / max(1, train_count_N.sum())
    share = np.linspace(0, 1, len(held))
    report.popularity_curve = [round(float(value), 5) for value in np.interp(np.linspace(0, 1, NUM_CURVE_POINTS), share, held)]
    report.top_shares = {f"{top:.0%}": round(float(np.interp(top, share, held)), 5) for top in TOP_SHARES}
    # Twice the area between the curve (most popular first) and the diagonal.
    report.gini = round(float(2 * np.trapezoid(held, share) - 1), 5)


def _measure_activity(report: PreparedReport, train_count_V: np.ndarray) -> None:
    active = train_count_V[train_count_V > 0]
    if not len(active):
        return
    quantiles = {"least": 0.0, "median": 0.5, "90 %": 0.9, "99 %": 0.99, "most": 1.0}
    report.activity = {name: float(np.quantile(active, quantile)) for name, quantile in quantiles.items()} | {"mean": round(float(active.mean()), 3)}
    powers, counts = np.unique(np.floor(np.log2(active)).astype(int), return_counts=True)
    report.activity_counts = {2**power: int(count) for power, count in zip(powers.tolist(), counts.tolist(), strict=True)}


def _measure_values(data: PreparedData, report: PreparedReport) -> None:
    """Two passes: the range, then the histogram."""
    low, high, total, num_known = math.inf, -math.inf, 0.0, 0
    for piece in pieces_of(data, "train", [VALUE]):
        known = piece[VALUE].drop_null().to_numpy()
        if len(known):
            low, high, total, num_known = (
                min(low, float(known.min())),
                max(high, float(known.max())),
                total + float(known.sum(dtype=np.float64)),
                num_known + len(known),
            )
    if not num_known:
        return
    num_rows = report.splits["train"].num_rows
    report.values = {"least": low, "most": high, "mean": round(total / num_known, 5), "share_missing": round(1 - num_known / num_rows, 5)}
    counts = np.zeros(NUM_VALUE_BINS, dtype=np.int64)
    if high > low:
        for piece in pieces_of(data, "train", [VALUE]):
            counts += np.histogram(piece[VALUE].drop_null().to_numpy(), NUM_VALUE_BINS, (low, high))[0]
        report.value_counts = counts.tolist()


def _quarantine(data: PreparedData) -> list[dict[str, object]]:
    lines: dict[tuple[str, str, str], dict[str, object]] = {}
    for file in files_of(data, "quarantine"):
        verify_files(data.uri, data.manifest, prefix=file)
    for piece in pieces_of(data, "quarantine", ["table", "column", "reason", "num_rows", "shard", "row", "id"]):
        for row in piece.to_pylist():
            key = (row["table"], row["column"], row["reason"])
            line = lines.setdefault(key, {"table": key[0], "column": key[1], "reason": key[2], "num_rows": 0, "shard": None, "row": None, "id": None})
            line["num_rows"] += row["num_rows"]
            if line["id"] is None:
                line |= {name: row[name] for name in ("shard", "row", "id")}
    return sorted(lines.values(), key=lambda line: -int(str(line["num_rows"])))


def _judge(report: PreparedReport) -> list[Finding]:
    findings = []
    train = report.splits["train"]
    for name, split in report.splits.items():
        if not split.num_rows:
            findings.append(Finding("warning", f"the {name} split is empty", "leave it out of evaluate.splits, or choose another data.split"))
        elif name != "train" and split.num_new_users > split.num_users / 2:
            remedy = "they are ranked by what evaluate.given_share folds in, else by the mean user"
            findings.append(Finding("warning", f"{split.num_new_users:,} of {split.num_users:,} users of {name} have no train row", remedy))
    if report.num_cold_items > report.num_items / 2:
        remedy = "only their content can rank them: use encoders, or clean the catalogue"
        findings.append(Finding("warning", f"{report.num_cold_items:,} of {report.num_items:,} items have no train row", remedy))
    if report.num_repeated_pairs and report.num_repeated_pairs > train.num_rows / 2:
        findings.append(
            Finding("warning", "most train rows repeat an earlier user-item pair", "rankings leave known items out: is a repeat what you want to predict?")
        )
    if not findings:
        findings.append(Finding("ok", f"prepared set '{report.uri}': {report.num_items:,} items, {report.num_users:,} users, {train.num_rows:,} train rows"))
    return findings
