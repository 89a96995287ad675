"""Tables are checked at the door: what is missing, misnamed, mistyped or damaged is named."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from medley.data.tables import TABLES_KIND, TableFile, iterate_pieces, iterate_rows, open_tables
from medley.manifest import write_manifest
from medley.schema import InputError

ITEMS = {"item_id": ["a", "b"], "text": ["one", "two"]}
INTERACTIONS = {"user_id": ["u", "v"], "item_id": ["a", "b"]}


def read_table(files: tuple[TableFile, ...], columns: list[str]) -> pa.Table:
    return pa.concat_tables(piece for _, _, piece in iterate_pieces(files, columns))


def ids_of(pieces: Iterable[pa.Table]) -> list[str]:
    return [id_ for piece in pieces for id_ in piece["item_id"].to_pylist()]


def write(root: Path, name: str, columns: dict[str, Any], file: str = "part-0.parquet", **options: Any) -> Path:
    """One Parquet file of a table."""
    path = root / name / file
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path, **options)
    return path


def write_all(root: Path, items: dict[str, Any] = ITEMS, interactions: dict[str, Any] = INTERACTIONS) -> str:
    write(root, "items", items)
    write(root, "interactions", interactions)
    return str(root)


def refused(uri: str) -> InputError:
    with pytest.raises(InputError) as caught:
        open_tables(uri)
    return caught.value


def flip_page_byte(path: Path, column: int) -> None:
    """Change one byte of a column's data and leave the footer as it is."""
    content = bytearray(path.read_bytes())
    content[pq.read_metadata(path).row_group(0).column(column).data_page_offset + 60] ^= 1
    path.write_bytes(content)


def test_whole_tables_are_opened_with_the_sizes_of_their_row_groups(tmp_path: Path):
    write(tmp_path, "items", {"item_id": list("abcde")}, row_group_size=2)
    write(tmp_path, "items", {"item_id": list("fg")}, file="part-1.parquet")
    write(tmp_path, "interactions", INTERACTIONS)
    write(tmp_path, "users", {"user_id": ["u"], "country": ["SE"]})
    tables = open_tables(str(tmp_path))
    assert [file.row_group_rows for file in tables.items] == [(2, 2, 1), (2,)]
    assert (len(tables.interactions), tables.users_schema.names) == (1, ["user_id", "country"])
    assert read_table(tables.items, ["item_id"])["item_id"].to_pylist() == list("abcdefg")


@pytest.mark.parametrize(("first", "stop", "expected"), [(0, 5, "abcde"), (1, 3, "bc"), (2, 4, "cd"), (4, 5, "e"), (3, 3, "")])
def test_rows_are_read_over_row_groups(tmp_path: Path, first: int, stop: int, expected: str):
    write(tmp_path, "items", {"item_id": list("abcde")}, row_group_size=2)
    write(tmp_path, "interactions", INTERACTIONS)
    file = open_tables(str(tmp_path)).items[0]
    assert "".join(ids_of(iterate_rows(file, np.arange(first, stop)))) == expected


def test_row_groups_without_a_wanted_row_are_not_read(tmp_path: Path):
    ids = {"item_id": [f"item {number}" for number in range(300)]}
    path = write(tmp_path, "items", ids, row_group_size=100, write_page_checksum=True, use_dictionary=False, compression="none")
    write(tmp_path, "interactions", INTERACTIONS)
    content = bytearray(path.read_bytes())
    content[pq.read_metadata(path).row_group(1).column(0).data_page_offset + 60] ^= 1
    path.write_bytes(content)
    file = open_tables(str(tmp_path)).items[0]
    assert ids_of(iterate_rows(file, np.array([3, 99, 200]))) == ["item 3", "item 99", "item 200"]


@pytest.mark.parametrize("name", ["items", "interactions"])
def test_a_missing_table_is_refused(tmp_path: Path, name: str):
    write_all(tmp_path)
    (tmp_path / name / "part-0.parquet").unlink()
    error = refused(str(tmp_path))
    assert error.got == f"'{tmp_path}/{name}/' has no .parquet file"
    assert "jobs.convert" in error.remedy


def test_an_absent_folder_is_refused(tmp_path: Path):
    assert "has no .parquet file" in refused(str(tmp_path / "absent")).got


def test_a_misnamed_column_is_refused_with_the_likely_one(tmp_path: Path):
    error = refused(write_all(tmp_path, interactions={"user": ["u"], "item_id": ["a"]}))
    assert error.got == f"shard '{tmp_path}/interactions/part-0.parquet' has columns user, item_id"
    assert (error.expected, error.remedy) == ("a column 'user_id' (string)", "did you mean 'user'? rename it")


def test_a_missing_column_without_a_likely_one_is_to_be_added(tmp_path: Path):
    assert refused(write_all(tmp_path, items={"zzz": ["a"]})).remedy == "add the column"


def test_a_users_table_needs_user_ids(tmp_path: Path):
    write_all(tmp_path)
    write(tmp_path, "users", {"userid": ["u"]})
    assert refused(str(tmp_path)).remedy == "did you mean 'userid'? rename it"


@pytest.mark.parametrize(
    ("items", "interactions", "column", "found"),
    [
        ({"item_id": [1, 2]}, INTERACTIONS, "item_id", "int64"),
        ({"item_id": ["a"], "image": ["path.png"]}, INTERACTIONS, "image", "string"),
        ({"item_id": ["a"], "text": [b"bytes"]}, INTERACTIONS, "text", "binary"),
        (ITEMS, {**INTERACTIONS, "timestamp": [1, 2]}, "timestamp", "int64"),
        (ITEMS, {**INTERACTIONS, "value": ["5", "4"]}, "value", "string"),
    ],
)
def test_a_column_of_the_wrong_type_is_refused(tmp_path: Path, items: dict, interactions: dict, column: str, found: str):
    error = refused(write_all(tmp_path, items, interactions))
    assert f"column '{column}' of '{tmp_path}/" in error.got
    assert error.got.endswith(f"has type {found}")
    assert error.remedy == "cast the column"


def test_shards_with_other_columns_and_widths_are_read_as_one_table(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    write(tmp_path, "items", {"item_id": ["a"], "text": ["one"], "year": pa.array([1999], pa.int16())})
    wider = {"item_id": pa.array(["b"]).dictionary_encode(), "year": pa.array([2000], pa.int64()), "genre": pa.array(["x"], pa.large_string())}
    write(tmp_path, "items", wider, file="part-1.parquet")
    write(tmp_path, "interactions", {**INTERACTIONS, "value": [4, 5], "device": ["tv", "tv"]})
    tables = open_tables(str(tmp_path))
    expected = [
        {"item_id": "a", "text": "one", "year": 1999, "genre": None},
        {"item_id": "b", "text": None, "year": 2000, "genre": "x"},
    ]
    assert [row for file in tables.items for piece in iterate_rows(file, np.array([0])) for row in piece.to_pylist()] == expected
    assert read_table(tables.items, ["year", "genre"]).to_pylist() == [{"year": 1999, "genre": None}, {"year": 2000, "genre": "x"}]
    assert tables.interactions_schema.field("value").type == pa.float32()
    assert "part-0.parquet' has no column genre: read as null" in caplog.text
    assert "part-1.parquet' has no column text: read as null" in caplog.text
    assert "column 'device' of interactions has no meaning here and is not read" in caplog.text


def test_a_shard_with_another_kind_of_column_is_refused_by_name(tmp_path: Path):
    write(tmp_path, "items", {"item_id": ["a"], "year": [1999]})
    write(tmp_path, "items", {"item_id": ["b"], "year": ["MM"]}, file="part-1.parquet")
    write(tmp_path, "interactions", INTERACTIONS)
    error = refused(str(tmp_path))
    assert error.got == f"shard '{tmp_path}/items/part-1.parquet' differs in year: string (before: int64)"


def test_a_file_that_is_no_parquet_is_refused_by_name(tmp_path: Path):
    write_all(tmp_path)
    (tmp_path / "items" / "part-1.parquet").write_bytes(b"half a file")
    assert f"shard '{tmp_path}/items/part-1.parquet' cannot be read" in refused(str(tmp_path)).got


def test_a_flipped_byte_under_a_manifest_is_refused_by_the_name_of_its_file(tmp_path: Path):
    write_all(tmp_path, items={"item_id": [f"item {number}" for number in range(100)]})
    write_manifest(str(tmp_path), TABLES_KIND, "f", parents={}, counts={}, config={})
    assert open_tables(str(tmp_path)).identity == "f"
    flip_page_byte(tmp_path / "items" / "part-0.parquet", 0)
    assert "file 'items/part-0.parquet' in" in refused(str(tmp_path)).got


def test_a_folder_of_another_kind_is_refused(tmp_path: Path):
    write_all(tmp_path)
    write_manifest(str(tmp_path), "prepared", "f", parents={}, counts={}, config={})
    assert "holds kind 'prepared'" in refused(str(tmp_path)).got


def test_a_flipped_byte_without_a_manifest_is_noticed_by_its_page_when_read(tmp_path: Path):
    ids = {"item_id": [f"item {number}" for number in range(100)]}
    path = write(tmp_path, "items", ids, write_page_checksum=True, use_dictionary=False, compression="none")
    write(tmp_path, "interactions", INTERACTIONS)
    flip_page_byte(path, 0)
    tables = open_tables(str(tmp_path))
    with pytest.raises(InputError, match=r"items/part-0\.parquet' cannot be read"):
        read_table(tables.items, ["item_id"])
    with pytest.raises(InputError, match=r"items/part-0\.parquet' cannot be read"):
        list(iterate_rows(tables.items[0], np.arange(100)))


def test_tables_without_a_manifest_are_known_by_their_bytes(tmp_path: Path):
    first = open_tables(write_all(tmp_path / "one")).identity
    assert open_tables(write_all(tmp_path / "two")).identity == first
    assert open_tables(write_all(tmp_path / "three", items={**ITEMS, "text": ["one", "TWO"]})).identity != first


def test_times_of_other_units_and_zones_are_read_as_utc_microseconds_and_never_wrap(tmp_path: Path):
    write(tmp_path, "items", ITEMS)
    times = pa.array([1_600_000_000, None, 10**16, -(10**16)], pa.timestamp("ms", tz="Europe/Stockholm"))
    write(tmp_path, "interactions", {"user_id": list("uvwx"), "item_id": list("abab"), "timestamp": times})
    tables = open_tables(str(tmp_path))
    found = read_table(tables.interactions, ["timestamp"])["timestamp"]
    assert found.type == pa.timestamp("us", tz="UTC")
    limit = (2**63 - 1) // 1000 * 1000
    assert found.cast(pa.int64()).to_pylist() == [1_600_000_000_000, None, limit, -limit]


def test_times_without_a_zone_are_refused(tmp_path: Path):
    error = refused(write_all(tmp_path, interactions={**INTERACTIONS, "timestamp": pa.array([1, 2], pa.timestamp("us"))}))
    assert error.got.endswith("has type timestamp[us]")
