"""Precomputed vectors meet their items by id, whatever the order; what does not fit is counted or refused."""

import json
import logging
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError
from ruamel.yaml import YAML

from medley.data.convert import convert
from medley.data.convert.catalogue import CatalogueConfig
from medley.data.convert.catalogue_mapping import FeatureFile
from medley.data.convert.movielens import MovieLensConfig
from medley.manifest import read_parquet
from medley.schema import InputError

VECTORS = np.array([[3, 30], [9, 90], [1, 10]])


def run(tmp_path: Path, source: dict[str, str]) -> tuple[dict, pa.Table]:
    """Items 1, 2 and 3 with the feature column `clip`; returns counts and the items."""
    (tmp_path / "items.jsonl").write_text("".join(json.dumps({"id": number}) + "\n" for number in (1, 2, 3)))
    (tmp_path / "log.csv").write_text("user,item\na,1\n")
    mapping = {"items": {"file": "items.jsonl", "id": "id", "features": {"clip": source}}, "interactions": {"file": "log.csv", "user": "user", "item": "item"}}
    with (tmp_path / "mapping.yaml").open("w") as stream:
        YAML(typ="safe").dump(mapping, stream)
    result = convert(CatalogueConfig(raw=str(tmp_path), mapping=str(tmp_path / "mapping.yaml")), str(tmp_path / "tables"))
    return result, read_parquet(str(tmp_path / "tables" / "items"))


def write_npy(folder: Path, vectors: np.ndarray, ids: str = "3\n9\n1\n") -> dict[str, str]:
    np.save(folder / "vectors.npy", vectors, allow_pickle=True)
    (folder / "ids.txt").write_text(ids)
    return {"file": "vectors.npy", "ids": "ids.txt"}


def write_parquet(folder: Path, ids: list, vectors: list, type_: pa.DataType | None = None) -> dict[str, str]:
    table = pa.table({"item_id": pa.array(ids), "vector": pa.array(vectors, type_ or pa.list_(pa.float64()))})
    pq.write_table(table, folder / "vectors.parquet", row_group_size=2)
    return {"file": "vectors.parquet"}


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", ">f4"])
def test_rows_of_an_npy_file_go_to_the_items_of_their_ids(tmp_path, caplog, dtype):
    with caplog.at_level(logging.WARNING):
        counts, items = run(tmp_path, write_npy(tmp_path, VECTORS.astype(dtype), "3\r\n9\r\n1"))
    assert items.schema.field("clip").type == pa.list_(pa.float32(), 2)
    assert items["clip"].to_pylist() == [[1, 10], None, [3, 30]]
    assert (counts["num_items_with_clip"], counts["num_unknown_ids_of_clip"]) == (2, 1)
    assert "features 'clip' of 'vectors.npy' | 1 of 3 ids are no item's, the first: 9" in caplog.text


@pytest.mark.parametrize("type_", [pa.list_(pa.float32()), pa.list_(pa.float64(), 2), pa.large_list(pa.float32()), pa.list_(pa.float16(), 2)])
def test_parquet_vectors_of_every_list_type_are_taken_and_null_ones_are_missing(tmp_path, type_):
    vectors = [np.array(vector, "float16") for vector in ([3, 30], [1, 10])] if type_.value_type == pa.float16() else [[3, 30], [1, 10]]
    counts, items = run(tmp_path, write_parquet(tmp_path, ["3", "2", "1"], [vectors[0], None, vectors[1]], type_))
    assert items["clip"].to_pylist() == [[1, 10], None, [3, 30]]
    assert counts["num_unknown_ids_of_clip"] == 0


@pytest.mark.parametrize(
    ("vectors", "ids", "message"),
    [
        (VECTORS, "3\n9\n1\n", r"shape \(3, 2\) of int64; expected \(vectors, width\) of float16"),
        (VECTORS[0].astype("float32"), "3\n9\n", r"shape \(2,\) of float32"),
        (np.asfortranarray(VECTORS.astype("float32")), "3\n9\n1\n", r"shape \(3, 2\) of float32, column-major"),
        (np.array([[1, "x"]], dtype=object), "3\n", r"shape \(1, 2\) of object"),
        (VECTORS.astype("float32"), "3\n9\n", "3 vectors, 2 ids in 'ids.txt'"),
        (VECTORS.astype("float32"), "3\n9\n3\n", "id '3' stands twice, again in line 3 of 'ids.txt'"),
        (VECTORS.astype("float32"), "3\n\n1\n", "line 2 of 'ids.txt' is empty"),
    ],
)
def test_vectors_of_another_shape_or_type_and_ids_that_do_not_fit_are_refused(tmp_path, vectors, ids, message):
    with pytest.raises(InputError, match=f"features 'clip' of 'vectors.npy': {message}"):
        run(tmp_path, write_npy(tmp_path, vectors, ids))


@pytest.mark.parametrize(
    ("ids", "vectors", "message"),
    [
        (["1", "1"], [[1.0], [2.0]], "id '1' of row 1 is empty or stands twice"),
        (["1", None], [[1.0], [2.0]], "id None of row 1 is empty"),
        (["1", "2"], [[1.0], [2.0, 3.0]], "vector of '2' has 2 numbers; expected 1, as the first"),
        (["1"], [None], "no vector in it"),
        (["1"], ["text"], "columns .*vector: string; expected 'item_id' and 'vector'"),
    ],
)
def test_bad_parquet_vectors_are_refused(tmp_path, ids, vectors, message):
    with pytest.raises(InputError, match=message):
        run(tmp_path, write_parquet(tmp_path, ids, vectors, pa.string() if vectors == ["text"] else None))


def test_absent_and_damaged_files_are_refused(tmp_path):
    source = write_npy(tmp_path, VECTORS.astype("float32"))
    whole = (tmp_path / "vectors.npy").read_bytes()
    (tmp_path / "vectors.npy").write_bytes(whole[:-4])
    with pytest.raises(InputError, match="148 bytes; expected 152 bytes by its header"):
        run(tmp_path, source)
    (tmp_path / "vectors.npy").write_bytes(b"not an array")
    with pytest.raises(InputError, match="no .npy file"):
        run(tmp_path, source)
    with pytest.raises(InputError, match="'clip' of 'absent.npy': the file does not exist"):
        run(tmp_path, source | {"file": "absent.npy"})
    with pytest.raises(InputError, match="file 'absent.txt' does not exist"):
        run(tmp_path, write_npy(tmp_path, VECTORS.astype("float32")) | {"ids": "absent.txt"})
    (tmp_path / "vectors.parquet").write_bytes(b"not a table, not a table")
    with pytest.raises(InputError, match="'clip' of 'vectors.parquet': cannot be read"):
        run(tmp_path, {"file": "vectors.parquet"})


def test_an_npy_file_needs_ids_and_parquet_has_its_own():
    for source in ({"file": "vectors.npy"}, {"file": "vectors.parquet", "ids": "ids.txt"}):
        with pytest.raises(ValidationError, match="a .npy file needs `ids`, a Parquet file must not have it"):
            FeatureFile.model_validate(source)


def test_published_data_sets_take_feature_files_too(tmp_path):
    files = {"ratings.dat": "1::3::5::1\n", "movies.dat": "3::A::B\n", "users.dat": "1::F::1::1::1\n"}
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    source = write_npy(tmp_path, VECTORS.astype("float32"))
    convert(MovieLensConfig.model_validate({"raw": str(tmp_path), "features": {"genome": source}}), str(tmp_path / "tables"))
    assert read_parquet(str(tmp_path / "tables" / "items"))["genome"].to_pylist() == [[3, 30]]
