"""The data report: figures that can be counted by hand, contract classes, and a page that runs nothing."""

import html
import re
import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from medley.data import report_prepared as prepared_module
from medley.data.findings import Finding
from medley.data.prepared import PreparedData
from medley.data.report_html import data_page
from medley.data.report_plots import columns_plot
from medley.data.report_prepared import PreparedReport, report_prepared
from medley.data.report_samples import Sample, draw_samples
from medley.data.report_tables import count_repeats, hash_column, report_tables
from medley.data.report_text import prepared_text, tables_text
from medley.data.tables import TableFile

MOMENT = datetime(2020, 1, 1, tzinfo=UTC)
LOG = {"user_id": ["ann", "bob"], "item_id": ["a", "a"], "timestamp": pa.array([MOMENT, MOMENT], pa.timestamp("us", "UTC"))}


def write_tables(folder: Path, interactions: list[dict[str, Any]], items: dict[str, Any] | None = None) -> str:
    """A tables folder with one shard of interactions for each of the column dicts."""
    for name in ("items", "interactions"):
        (folder / name).mkdir()
    pq.write_table(pa.table(items or {"item_id": ["a", "b"], "text": ["x", None]}), folder / "items" / "0.parquet")
    for number, columns in enumerate(interactions):
        pq.write_table(pa.table(columns), folder / "interactions" / f"{number}.parquet")
    return str(folder)


def test_tables_that_keep_the_contract_are_counted_from_their_footers(tmp_path: Path) -> None:
    report, findings = report_tables(write_tables(tmp_path, [LOG, LOG]), {"model.encoders.text": "text"})
    assert report.tables["items"].columns["text"].num_missing == 1
    assert report.tables["interactions"].num_rows == 4
    assert report.tables["interactions"].contract == "compatible"
    assert report.tables["interactions"].first_time == "2020-01-01T00:00:00.000000"
    assert report.repeats is not None
    assert (report.repeats.num_repeats, report.repeats.num_users, report.repeats.how) == (2, 2, "all rows")
    assert [finding.level for finding in findings] == ["warning"]  # the repeats
    assert "all rows" in "\n".join(tables_text(report))


@pytest.mark.parametrize(
    ("columns", "contract"),
    [
        ({**LOG, "timestamp": pa.array([0, 1], pa.timestamp("ms", "UTC"))}, "compatible"),
        ({"user": ["ann"], "item_id": ["a"]}, "needs a mapping"),
        ({"user_id": ["ann"], "item_id": ["a"], "Timestamp": [1]}, "needs a mapping"),
        ({"user_id": [1], "item_id": ["a"]}, "breaking"),
        ({"who": ["ann"], "item_id": ["a"]}, "breaking"),
    ],
)
def test_columns_are_compatible_need_a_mapping_or_break_the_contract(columns: dict[str, Any], contract: str, tmp_path: Path) -> None:
    report, findings = report_tables(write_tables(tmp_path, [columns]), {})
    assert report.tables["interactions"].contract == contract
    assert any(finding.level == "error" for finding in findings) == (contract != "compatible")


def test_drift_between_shards_is_named_with_the_shard(tmp_path: Path) -> None:
    fewer = {name: LOG[name] for name in ("user_id", "item_id")}
    _, findings = report_tables(write_tables(tmp_path, [LOG, fewer]), {})
    assert any(re.search(r"1\.parquet' has no column timestamp: read as null", finding.what) for finding in findings)
    assert any("2 of 4 interactions have no timestamp" in finding.what for finding in findings)


def test_a_broken_shard_is_unreadable_and_the_other_table_is_still_reported(tmp_path: Path) -> None:
    uri = write_tables(tmp_path, [LOG])
    (tmp_path / "items" / "1.parquet").write_bytes(b"CSV,")
    report, findings = report_tables(uri, {})
    assert (report.tables["items"].contract, report.tables["interactions"].contract) == ("unreadable", "compatible")
    assert any("begins with b'CSV,'" in finding.what for finding in findings)


def test_a_time_in_the_future_is_a_warning_however_far_it_is(tmp_path: Path) -> None:
    far = {**LOG, "timestamp": pa.array([0, 2**62], pa.timestamp("us", "UTC"))}
    _, findings = report_tables(write_tables(tmp_path, [far]), {})
    assert any("in the future" in finding.what for finding in findings)


def test_repeats_are_equal_in_every_column_and_nulls_are_equal_too(tmp_path: Path) -> None:
    columns = {
        "user_id": ["ann", "ann", "ann", "ann", None, None],
        "item_id": ["a", "a", "a", "b", "a", "a"],
        "value": pa.array([1, 1, 2, None, None, None], pa.float32()),
        "event": ["buy", "buy", "buy", "buy", None, None],
    }
    report, _ = report_tables(write_tables(tmp_path, [columns]), {})
    assert report.repeats is not None
    assert report.repeats.num_repeats == 2


def test_of_a_long_log_every_row_of_a_sample_of_the_users_is_counted(tmp_path: Path) -> None:
    users = [f"user {number % 100}" for number in range(1000)]
    pq.write_table(pa.table({"user_id": users, "item_id": ["a"] * 1000}), tmp_path / "log.parquet", row_group_size=130)
    schema = pa.schema([("user_id", pa.string()), ("item_id", pa.string())])
    file = TableFile(str(tmp_path / "log.parquet"), "log", (*[130] * 7, 90), 0, schema)
    counted = count_repeats((file,), max_counted_rows=250)
    assert counted.one_user_in == 4
    # Each user has ten equal rows: the first of them is no repeat.
    assert counted.num_counted_rows == 10 * counted.num_users
    assert counted.num_repeats == 9 * counted.num_users
    assert 10 < counted.num_users < 45
    assert "one user in 4" in counted.how


def test_equal_values_have_equal_hashes_and_a_null_has_its_own() -> None:
    for column in (
        pa.chunked_array([["a", "b", None], ["a"]]),
        pa.chunked_array([pa.array([1.5, -0.25, None], pa.float32()), pa.array([1.5], pa.float32())]),
        pa.chunked_array([pa.array([7, -1, None, 7], pa.timestamp("us", "UTC"))]),
    ):
        first, second, null, again = hash_column(column).tolist()
        assert first == again
        assert len({first, second, null}) == 3


def test_the_figures_of_a_prepared_set_are_those_counted_by_hand(hand_prepared: str) -> None:
    report, findings = report_prepared(PreparedData.open(hand_prepared))
    train, valid, test = (report.splits[name] for name in ("train", "valid", "test"))
    assert (train.num_rows, train.num_users, train.num_items) == (6, 3, 4)
    assert (valid.num_rows, valid.num_users, valid.num_items, valid.num_cold_items, valid.num_cold_rows) == (3, 2, 3, 1, 1)
    assert (test.num_rows, test.num_new_users, test.num_cold_rows) == (1, 0, 1)
    assert report.num_cold_items == 1
    # Items hold 2, 2, 1, 1, 0 of 6 train rows: half of the items hold 4/6 and half of the third item's 1/6.
    assert report.top_shares["50%"] == 0.75
    assert report.gini == pytest.approx(1 / 3, abs=1e-5)
    assert (report.popularity_curve[0], report.popularity_curve[20], report.popularity_curve[80]) == (0.0, round(1 / 3, 5), 1.0)
    assert (report.activity["least"], report.activity["median"], report.activity["most"], report.activity["mean"]) == (1, 2, 3, 2)
    assert report.activity_counts == {1: 1, 2: 2}
    assert (report.values["least"], report.values["most"], report.values["share_missing"]) == (1.5, 1.5, round(1 / 6, 5))
    # 21 microseconds in 48 parts: train in the first, test in the last.
    assert (sum(train.rows_over_time), sum(valid.rows_over_time), test.rows_over_time[-1]) == (6, 3, 1)
    assert report.num_repeated_pairs == 0
    assert [finding.level for finding in findings] == ["ok"]
    assert "Gini 0.333" in "\n".join(prepared_text(report))


def test_repeated_pairs_are_counted_for_a_sample_of_the_users_where_they_are_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepared_module, "MAX_COUNTED_PAIRS", 4)
    counter = prepared_module._PairCounter(num_rows=8, num_items=10)
    counter.add(np.array([0, 0, 1, 1]), np.array([5, 5, 6, 6]))
    counter.add(np.array([0, 2, 2, 3]), np.array([5, 1, 2, 3]))
    assert counter.result() == (2, "the 5 train rows of one user in 2")


def test_a_damaged_file_of_the_set_is_refused(hand_prepared: str, tmp_path: Path) -> None:
    shutil.copytree(hand_prepared, tmp_path / "copy")
    name = next(path for path in (tmp_path / "copy").rglob("*.parquet") if "train" in str(path.relative_to(tmp_path)))
    content = bytearray(name.read_bytes())
    content[100] ^= 1
    name.write_bytes(content)
    with pytest.raises(ValueError, match="SHA-256"):
        report_prepared(PreparedData.open(str(tmp_path / "copy")))


EVIL = '</style><script>alert(1)</script><img src=x onerror="alert(2)">'


def evil_report() -> PreparedReport:
    report = PreparedReport("out/prepared", "0123", 5, 3, coverage={EVIL: 3}, activity={"least": 1.0}, activity_counts={1: 3})
    report.splits = {name: prepared_module.SplitReport(num_rows=1, num_users=1, num_items=1) for name in ("train", "valid", "test")}
    report.popularity_curve = [0.0, 1.0]
    report.quarantine = [{"table": "items", "column": EVIL, "reason": EVIL, "num_rows": 2, "shard": EVIL, "row": 1, "id": EVIL}]
    return report


def test_nothing_that_users_wrote_becomes_markup_and_nothing_is_loaded_from_anywhere() -> None:
    sample = Sample(EVIL, EVIL, 3, EVIL, {EVIL: [EVIL]}, b"\xff\xd8\xff", np.array([[-1, 1], [-0.5, 0.25]]), 0.5)
    text = data_page(EVIL, [Finding("error", EVIL, EVIL)], None, evil_report(), [sample])
    assert "<script" not in text
    assert "<img src=x" not in text
    assert text.count("</style>") == text.count("<style>")
    assert len(re.findall(r"&lt;script&gt;alert\(1\)", text)) >= 12
    assert not re.findall(r"""(?:src|href)=["'](?!data:)""", text)
    assert "default-src 'none'" in html.unescape(text)
    assert "<title>sound of 0.50 s</title>" in text


def test_a_set_without_times_values_and_samples_still_has_a_page() -> None:
    report = evil_report()
    text = data_page("plain", [], None, report, [])
    assert "The interactions have no times." in text
    assert "Samples" not in text


def test_columns_reach_the_height_of_their_value_on_an_axis_that_ends_at_a_whole_tick() -> None:
    drawing = str(columns_plot({"rows": [50, 100]}, ["a", "b"], "place", "rows"))
    heights = [float(height) for height in re.findall(r'<rect [^>]*height="([\d.]+)"', drawing)]
    assert heights[1] == pytest.approx(2 * heights[0], rel=0.01)
    assert re.findall(r'text-anchor="end">([^<]+)<', drawing) == ["0", "25", "50", "75", "100"]


def test_samples_show_what_training_sees_of_an_item_of_each_part_of_the_catalogue(tiny_prepared: str) -> None:
    samples = draw_samples(PreparedData.open(tiny_prepared), num_samples=8)
    # 120 items in 8 parts of 15.
    assert [int(sample.item_id.removeprefix("item-")) // 15 for sample in samples] == list(range(8))
    assert all(sample.picture is None or sample.picture.startswith(b"\xff\xd8\xff") for sample in samples)
    assert sum(sample.picture is not None for sample in samples) > 4
    waves = [sample for sample in samples if sample.wave is not None]
    assert len(waves) > 4
    assert all(sample.seconds == pytest.approx(0.25) and np.abs(sample.wave).max() <= 1 for sample in waves if sample.wave is not None)
