"""The bad shards and interactions of the reliability list (cases 1 to 38), each with its outcome; and tables made at random."""

import json
import math
import struct
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from medley.data.behaviour import BehaviourConfig
from medley.data.footers import check_footers
from medley.data.interactions import EventRules, clean_piece, sum_figures
from medley.data.numbering import number_items
from medley.data.partitions import ROWS_PER_PARTITION
from medley.data.prepare import DataConfig, prepare
from medley.data.settle import ROWS_TABLE, USERS_TABLE, Sources, settle_part
from medley.data.split import SplitConfig
from medley.data.steps import Steps
from medley.data.tables import TABLES_KIND, TableFile, iterate_pieces, iterate_rows, open_tables, pieces_of
from medley.data.validate import MAX_ROWS_PER_REASON, Quarantine, QuarantineConfig, check_item_ids
from medley.manifest import encode_manifest, write_manifest
from medley.schema import INTERACTIONS_SCHEMA, QUARANTINE_SCHEMA, InputError

SECOND = 1_000_000
ITEMS = {"item_id": [f"item {number}" for number in range(200)], "text": ["words"] * 200}
SHARD = "items/part-1.parquet"


def read_table(files: tuple[TableFile, ...], columns: list[str]) -> pa.Table:
    return pa.concat_tables(piece for _, _, piece in iterate_pieces(files, columns))


def write(path: Path, table: Any, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    table = table if isinstance(table, pa.Table) else pa.table(table)
    pq.write_table(table, path, **{"write_page_checksum": True, "compression": "none", "use_dictionary": False} | options)
    return path


def write_tables(root: Path, has_manifest: bool = False) -> Path:
    """Good tables of two item shards; the cases break the second one."""
    write(root / "items" / "part-0.parquet", ITEMS)
    write(root / SHARD, {"item_id": ["other 1", "other 2"], "text": ["more", "words"]})
    write(root / "interactions" / "part-0.parquet", {"user_id": ["u", "v"], "item_id": ["item 0", "item 1"]})
    if has_manifest:
        write_manifest(str(root), TABLES_KIND, "f", parents={}, counts={}, config={})
    return root


def change(edit: Callable[[bytearray], Any]) -> Callable[[Path], Any]:
    """A case that edits the bytes of the second item shard; the edit returns new bytes, or changes them in place."""

    def apply(root: Path) -> None:
        content = bytearray((root / SHARD).read_bytes())
        edited = edit(content)
        (root / SHARD).write_bytes(content if edited is None else edited)

    return apply


def replace(columns: dict[str, Any]) -> Callable[[Path], Any]:
    return lambda root: write(root / SHARD, columns)


def flip_in_footer(content: bytearray) -> None:
    content[-20] ^= 1


def flip_in_page(root: Path) -> None:
    path = root / "items" / "part-0.parquet"
    content = bytearray(path.read_bytes())
    content[pq.read_metadata(path).row_group(0).column(0).data_page_offset + 60] ^= 1
    path.write_bytes(content)


def encrypt(root: Path) -> None:
    import pyarrow.parquet.encryption as encryption

    class Keys(encryption.KmsClient):
        def __init__(self, _: Any):
            super().__init__()

        def wrap_key(self, key_bytes: bytes, _: str) -> bytes:
            return key_bytes.hex().encode()

    factory, connection = encryption.CryptoFactory(Keys), encryption.KmsConnectionConfig()
    config = encryption.EncryptionConfiguration(footer_key="k", column_keys={"k": ["item_id"]})
    with pq.ParquetWriter(
        root / SHARD, pa.schema([("item_id", pa.string())]), encryption_properties=factory.file_encryption_properties(connection, config)
    ) as writer:
        writer.write_table(pa.table({"item_id": ["a"]}))


def extension(root: Path) -> None:
    metadata = {b"ARROW:extension:name": b"ray.data.arrow_tensor", b"ARROW:extension:metadata": b"\x80\x04cos\nsystem\n"}
    schema = pa.schema([pa.field("item_id", pa.string()), pa.field("vector", pa.list_(pa.float32()), metadata=metadata)])
    write(root / SHARD, pa.table({"item_id": ["a"], "vector": [[1.0]]}, schema=schema))


def column_twice(root: Path) -> None:
    write(root / SHARD, pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["item_id", "item_id"]))


def link_outside(root: Path) -> None:
    outside = write(root.parent / "outside.parquet", {"item_id": ["a"], "text": ["b"]})
    (root / SHARD).unlink()
    (root / SHARD).symlink_to(outside)


def name_outside(root: Path) -> None:
    manifest = json.loads((root / "manifest.json").read_text())
    manifest["files"]["items/../../outside.parquet"] = manifest["files"][SHARD]
    (root / "manifest.json").write_bytes(encode_manifest(manifest))


REFUSED_SHARDS = {
    "1 empty file": (change(lambda _: b""), r"1 of 3 shards are broken: shard '.*items/part-1\.parquet' cannot be read \(empty file\)"),
    "2 only PAR1": (change(lambda _: b"PAR1"), r"part-1\.parquet' cannot be read \(cut after 4 bytes\)"),
    "3 cut at 50 %": (change(lambda content: content[: len(content) // 2]), "does not end like a Parquet file: cut"),
    "4 footer of 2^31": (change(lambda content: content[:-8] + struct.pack("<I", 2**31) + b"PAR1"), "footer of 2,147,483,648 bytes in a file of"),
    "6 bit in the footer": (change(flip_in_footer), r"items/part-1\.parquet"),
    "7 wrong magic": (change(lambda _: b"item_id,text\na,words\n"), "begins with b'item': no Parquet file"),
    "8 encrypted": (encrypt, r"cannot be read \(encrypted\)"),
    "9 no rows": (replace({"item_id": pa.array([], pa.string()), "text": pa.array([], pa.string())}), r"cannot be read \(no rows\)"),
    "11 extension type": (extension, "a column has an extension type; write its storage type"),
    "12 missing column": (
        replace({"itemid": ["a"], "text": ["b"]}),
        r"has columns itemid, text; expected a column 'item_id' \(string\); did you mean 'itemid'\? rename it",
    ),
    "14 numbers for string ids": (replace({"item_id": [1], "text": ["b"]}), "column 'item_id' of '.*part-1.*' has type int64; expected string"),
    "17 list of binary": (replace({"item_id": ["a"], "image": [[b"b"]]}), "column 'image' of '.*part-1.*' has type list<.*binary>; expected binary"),
    "18 column twice": (column_twice, "has the column 'item_id' twice"),
    "19 named and absent": (lambda root: (root / SHARD).unlink(), r"file 'items/part-1\.parquet' is missing"),
    "20 present and not named": (lambda root: write(root / "items/part-2.parquet", ITEMS), r"items/part-2\.parquet' is not in the manifest"),
    "21 changed since": (replace({"item_id": ["c"], "text": ["d"]}), r"file 'items/part-1\.parquet' in .* has SHA-256"),
    "23 link outside": (link_outside, "a link to '.*outside.parquet', outside the tables folder"),
    "24 name outside": (name_outside, r"names 'items/\.\./\.\./outside\.parquet'; expected files inside the folder"),
}
WITH_MANIFEST = ("6", "19", "20", "21", "24")


@pytest.mark.parametrize("case", REFUSED_SHARDS)
def test_a_bad_shard_is_refused_by_name(case: str, tmp_path: Path):
    root = write_tables(tmp_path / "tables", has_manifest=case.startswith(WITH_MANIFEST))
    break_it, message = REFUSED_SHARDS[case]
    break_it(root)
    with pytest.raises(InputError, match=message):
        open_tables(str(root))


def test_case_5_a_flipped_bit_in_a_page_is_refused_when_it_is_read(tmp_path: Path):
    root = write_tables(tmp_path)
    flip_in_page(root)
    tables = open_tables(str(root))
    with pytest.raises(InputError, match=r"items/part-0\.parquet' cannot be read"):
        read_table(tables.items, ["item_id"])


def test_case_10_a_row_group_above_the_limit_is_refused(tmp_path: Path):
    root = write_tables(tmp_path)
    with pytest.raises(InputError, match=r"row group 0 holds [\d,]+ bytes, limit 1,000; write smaller row groups"):
        check_footers(str(root), ["items/part-0.parquet"], max_row_group_bytes=1000)


def test_every_broken_shard_is_named_at_once(tmp_path: Path):
    root = write_tables(tmp_path)
    (root / SHARD).write_bytes(b"")
    (root / "interactions" / "part-0.parquet").write_bytes(b"PAR1")
    with pytest.raises(InputError) as caught:
        open_tables(str(root))
    assert caught.value.got.startswith("2 of 3 shards are broken")
    assert "part-1.parquet' cannot be read (empty file); shard" in caught.value.got


def test_the_code_of_an_extension_type_does_not_run(tmp_path: Path):
    class Loud(pa.ExtensionType):
        calls = 0

        def __init__(self) -> None:
            super().__init__(pa.int64(), "test.loud")

        def __arrow_ext_serialize__(self) -> bytes:
            return b"x" * 200

        @classmethod
        def __arrow_ext_deserialize__(cls, *_: Any) -> "Loud":
            cls.calls += 1
            return cls()

    root = write_tables(tmp_path)
    pa.register_extension_type(Loud())
    try:
        write(root / SHARD, {"item_id": ["a"], "loud": pa.ExtensionArray.from_storage(Loud(), pa.array([1]))})
        before = Loud.calls
        with pytest.raises(InputError, match="extension type"):
            open_tables(str(root))
        assert Loud.calls == before
    finally:
        pa.unregister_extension_type("test.loud")


ACCEPTED_SHARDS = {
    "13 extra column": {"item_id": ["a"], "text": ["b"], "more": [1]},
    "15 required": pa.table({"item_id": ["a"]}, schema=pa.schema([pa.field("item_id", pa.string(), nullable=False)])),
    "16 dictionary": {"item_id": pa.array(["a"]).dictionary_encode(), "text": pa.array(["b"], pa.large_string())},
    "38 a number too large for int64": {"item_id": ["9223372036854775808"]},
}


@pytest.mark.parametrize("case", ACCEPTED_SHARDS)
def test_a_compatible_shard_is_read_like_the_others(case: str, tmp_path: Path):
    root = write_tables(tmp_path)
    write(root / SHARD, ACCEPTED_SHARDS[case])
    tables = open_tables(str(root))
    assert tables.items_schema.field("item_id").type == pa.string()
    assert len(next(iterate_rows(tables.items[1], np.array([0])))["item_id"][0].as_py()) in (1, 19)


def test_case_22_a_shard_given_twice_counts_once(tmp_path: Path):
    root = write_tables(tmp_path)
    (root / "interactions" / "part-1.parquet").write_bytes((root / "interactions" / "part-0.parquet").read_bytes())
    table, quarantine = clean(root)
    assert (table.num_rows, quarantine.by_reason()) == (2, {"interactions.*: equal to an earlier row": 2})


@pytest.mark.parametrize("name", ["a b.parquet", "%2e%2e.parquet", "line\nbreak.parquet", "é" * 123 + ".parquet", "..a.parquet"])
def test_case_24_shards_of_odd_names_are_read(name: str, tmp_path: Path):
    root = write_tables(tmp_path)
    (root / SHARD).rename(root / "items" / name)
    assert read_table(open_tables(str(root)).items, ["item_id"]).num_rows == 202


def clean(root: Path, events: dict[str, float] | None = None, target_events: tuple[str, ...] = (), conflicts: str = "last") -> tuple[pa.Table, Quarantine]:
    """The clean interactions of the tables under `root`, with a column of user ids, and what was left out."""
    tables, quarantine = open_tables(str(root)), Quarantine()
    rules = EventRules(events or {}, target_events, BehaviourConfig())
    with tempfile.TemporaryDirectory() as work:
        steps = Steps(work, quarantine, is_inline=True)
        items = number_items(steps, tables, None, SplitConfig(), 0, ROWS_PER_PARTITION)
        pieces = pieces_of(tables.interactions, ROWS_PER_PARTITION)
        reports = steps.run("clean", clean_piece, [(piece,) for piece in pieces], tables, items, rules, 1)
        figures = sum_figures(reports)
        sources, has_split = Sources(tables.interactions, pieces), figures.num_split == figures.num_rows
        reports = steps.run("settled", settle_part, [(0,)], steps.files("clean", reports), sources, conflicts, has_split, "shipped", 0)
        settled = steps.files("settled", reports)
        table, ids = settled.read(0, ROWS_TABLE), settled.read(0, USERS_TABLE)["user_id"].combine_chunks()
    return table.append_column("user_id", ids.take(table["user_code"].combine_chunks())), quarantine


def interactions(root: Path, *rows: dict[str, Any]) -> Path:
    """Tables with these interactions after a good one; what a row lacks is as in the good one."""
    good = {"user_id": "ann", "item_id": "item 0", "timestamp": SECOND, "event": "view", "value": 3.0, "dwell_seconds": 1.0, "split": "train"}
    schema = pa.schema([field.with_nullable(True) for field in INTERACTIONS_SCHEMA])
    write_tables(root)
    write(root / "interactions" / "part-0.parquet", pa.Table.from_pylist([good, *({**good, "user_id": "bob", **row} for row in rows)], schema))
    return root


QUARANTINED = {
    "25 exact repeat": ([{}, {}], "*", "equal to an earlier row"),
    "26 two ratings": ([{"value": 1.0}, {"value": 2.0}], "*", "contradicts another row of its user, item and time (data.conflicts: last)"),
    "27 NaN": ([{"value": math.nan}], "value", "value is NaN or infinite"),
    "27 infinite": ([{"value": -math.inf}], "value", "value is NaN or infinite"),
    "28 time 0": ([{"timestamp": 0}], "timestamp", "time is 1970-01-01 00:00 or before"),
    "28 negative": ([{"timestamp": -5}], "timestamp", "time is 1970-01-01 00:00 or before"),
    "28 ms for s": ([{"timestamp": 1_600_000_000_000 * SECOND}], "timestamp", "time is in or after the year 2100 (milliseconds read as seconds?)"),
    "28 year 2100": ([{"timestamp": 4_102_444_800 * SECOND}], "timestamp", "time is in or after the year 2100 (milliseconds read as seconds?)"),
    "29 unknown item": ([{"item_id": "nowhere"}], "item_id", "unknown item"),
    "34 null user": ([{"user_id": None}], "user_id", "id is empty"),
    "34 null item": ([{"item_id": None}], "item_id", "id is empty"),
    "34 empty string": ([{"user_id": ""}], "user_id", "id is empty"),
    "34 NUL": ([{"user_id": "a\0b"}], "user_id", "id holds a NUL character"),
    "34 10 KB": ([{"user_id": "x" * 10_240}], "user_id", "id is longer than 1024 bytes"),
    "dwell": ([{"dwell_seconds": -1.0}], "dwell_seconds", "dwell time is negative, NaN or infinite"),
}


@pytest.mark.parametrize("case", QUARANTINED)
def test_a_bad_interaction_goes_to_quarantine_and_the_good_ones_stay(case: str, tmp_path: Path):
    rows, column, reason = QUARANTINED[case]
    table, quarantine = clean(interactions(tmp_path, *rows))
    assert table.num_rows == len(rows)  # the good one, and one of each pair
    [row] = quarantine.table().to_pylist()
    assert (row["table"], row["column"], row["reason"], row["num_rows"]) == ("interactions", column, reason, 1)
    # Of two contradicting rows the last stays, of anything else the bad row is the last.
    assert (row["shard"], row["row"]) == ("interactions/part-0.parquet", 1 if case.startswith("26") else len(rows))


def test_an_id_that_is_no_utf8_goes_to_quarantine(tmp_path: Path):
    root = write_tables(tmp_path)
    ids = pa.Array.from_buffers(pa.string(), 2, pa.array([b"ok", b"\xff\xfe"]).buffers())
    write(root / "interactions" / "part-0.parquet", {"user_id": ids, "item_id": ["item 0", "item 0"]})
    table, quarantine = clean(root)
    assert table["user_id"].to_pylist() == ["ok"]
    assert quarantine.table()["reason"].to_pylist() == ["id is no UTF-8"]
    assert quarantine.table()["id"].to_pylist() == ["\ufffd\ufffd"]


ACCEPTED = {
    "27 6 of 5": [{"value": 6.0}],
    "27 -1": [{"value": -1.0}],
    "30 unknown user": [{"user_id": "nobody has told us"}],
    "31 one event": [{"user_id": "once"}],
    "34 emoji": [{"user_id": "🦆"}],
    "35 all the same item": [{"user_id": f"user {number}"} for number in range(50)],
    "37 equal ratings": [{"item_id": f"item {number}"} for number in range(50)],
    "38 a number too large for int64": [{"user_id": "9223372036854775808"}],
    "no time, value, event": [{"timestamp": None, "value": None, "event": None, "dwell_seconds": None}],
}


@pytest.mark.parametrize("case", ACCEPTED)
def test_an_odd_interaction_that_may_be_true_is_kept(case: str, tmp_path: Path):
    table, quarantine = clean(interactions(tmp_path, *ACCEPTED[case]))
    assert (table.num_rows, quarantine.num_rows) == (1 + len(ACCEPTED[case]), 0)


@pytest.mark.parametrize(
    ("settings_", "message"),
    [({"target_events": ("buy",)}, r"no interaction is one of data\.target_events=\['buy'\]"), ({"events": {"view": 0.0}}, "no interaction is left")],
)
def test_case_36_without_a_positive_event_the_run_is_refused(settings_: dict[str, Any], message: str, tmp_path: Path):
    with pytest.raises(InputError, match=message):
        prepare(str(interactions(tmp_path / "tables")), str(tmp_path / "prepared"), DataConfig(**settings_), seed=0)


def test_case_27_a_rating_that_is_a_string_is_refused(tmp_path: Path):
    root = write_tables(tmp_path)
    write(root / "interactions" / "part-0.parquet", {"user_id": ["u"], "item_id": ["item 0"], "value": ["5"]})
    with pytest.raises(InputError, match="column 'value' of '.*' has type string; expected float"):
        open_tables(str(root))


def test_a_nearly_right_column_name_needs_a_mapping(tmp_path: Path):
    root = write_tables(tmp_path)
    write(root / "interactions" / "part-0.parquet", {"user_id": ["u"], "item_id": ["item 0"], "Timestamps": [1]})
    with pytest.raises(InputError, match="has a column 'Timestamps' and no 'timestamp'; .*rename it to 'timestamp', or drop it"):
        open_tables(str(root))


def test_rows_beyond_the_cap_are_counted_in_one_row():
    quarantine = Quarantine()
    ids = pa.table({"item_id": [""] * (MAX_ROWS_PER_REASON + 7)})
    piece, rows = check_item_ids(ids, SHARD, 0, quarantine)
    table = quarantine.table()
    assert (piece.num_rows, len(rows), table.num_rows, quarantine.num_rows) == (0, 0, MAX_ROWS_PER_REASON + 1, MAX_ROWS_PER_REASON + 7)
    assert table.to_pylist()[-1] == {"table": "items", "id": None, "column": "item_id", "reason": "id is empty", "num_rows": 7, "shard": None, "row": None}


def test_a_budget_that_is_kept_lets_the_run_pass():
    quarantine = Quarantine()
    check_item_ids(pa.table({"item_id": ["", "a"]}), SHARD, 0, quarantine)
    quarantine.check_budget(QuarantineConfig(max_share=0.5, max_rows=1, max_share_by_reason={"id is empty": 0.5}), {"items": 2})
    with pytest.raises(InputError, match=r"1 of 3 rows of items are faulty \(id is empty: 1\); for example items/part-1\.parquet row 0 \(id ''\)"):
        quarantine.check_budget(QuarantineConfig(max_share=0.3), {"items": 3})


def test_what_others_report_may_lack_its_place():
    quarantine = Quarantine()
    quarantine.report_missing([{"table": "items", "id": "a", "column": "image", "reason": f"{size} bytes", "num_rows": 1} for size in (5, 6)])
    assert quarantine.table().schema.equals(QUARANTINE_SCHEMA)
    assert quarantine.by_reason() == {"items.image: # bytes": 2}


TEXTS = st.one_of(st.none(), st.text(max_size=3), st.sampled_from(["item 0", "item 1"]))
RANDOM_ROWS = st.lists(
    st.fixed_dictionaries(
        {
            "user_id": TEXTS,
            "item_id": TEXTS,
            "timestamp": st.one_of(st.none(), st.integers(-5, 5), st.integers(-(2**63), 2**63 - 1)),
            "event": TEXTS,
            "value": st.one_of(st.none(), st.floats(width=32)),
            "dwell_seconds": st.one_of(st.none(), st.floats(width=32)),
            "split": TEXTS,
        }
    ),
    max_size=12,
)


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=RANDOM_ROWS, conflicts=st.sampled_from(["last", "first", "max_value", "error"]), events=st.sampled_from([{}, {"view": 1.0, "": 2.0}]))
def test_tables_made_at_random_give_good_rows_or_our_error(tmp_path: Path, rows: list[dict[str, Any]], conflicts: str, events: dict[str, float]):
    root = interactions(tmp_path, *rows)
    try:
        table, quarantine = clean(root, conflicts=conflicts, events=events)
    except InputError:
        with pytest.raises(InputError, match="contradict"):
            clean(root, conflicts=conflicts, events=events)
        assert conflicts == "error"
        return
    assert table.num_rows + quarantine.num_rows == 1 + len(rows)
    times, values = table["timestamp"].drop_null().cast(pa.int64()).to_numpy(), table["value"].drop_null().to_numpy()
    assert ((times > 0) & (times < 4_102_444_800 * SECOND)).all()
    assert np.isfinite(values).all()
    assert all(user and "\0" not in user for user in table["user_id"].to_pylist())
    assert table["item_index"].null_count == 0
