"""Items are read by number from their shards, in the order asked for, or refused by the shard's name."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest

from medley.data import shards
from medley.data.clean import clean_items
from medley.data.node_cache import NodeCache
from medley.data.shards import ItemShards, ItemStore, items_per_shard, shard_name
from medley.data.tables import Tables, open_tables
from medley.manifest import write_bytes, write_manifest
from medley.media import MediaConfig
from medley.schema import InputError

ITEMS_PER_SHARD = 256
NUM_ITEMS = 2 * ITEMS_PER_SHARD + 10


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Tables:
    """Two files of items with a text, a tag list and a vector each."""
    root = tmp_path_factory.mktemp("tables")
    numbers = range(NUM_ITEMS)
    vector = pa.FixedSizeListArray.from_arrays(pa.array(np.arange(2 * NUM_ITEMS, dtype=np.float32)), 2)
    columns: dict[str, Any] = {"item_id": [f"i{n}" for n in numbers], "text": [f"text {n}" for n in numbers], "tags": [[f"t{n}"] for n in numbers]}
    items = pa.table({**columns, "vector": vector, "price": [float(n) for n in numbers]})
    for name in ("items", "interactions"):
        (root / name).mkdir()
    pq.write_table(items.slice(0, 300), root / "items" / "a.parquet", row_group_size=70)
    pq.write_table(items.slice(300), root / "items" / "b.parquet", row_group_size=70)
    pq.write_table(pa.table({"user_id": ["u"], "item_id": ["i0"]}), root / "interactions" / "a.parquet")
    return open_tables(str(root))


def write_shards(tables: Tables, root: Path, left_out: frozenset[int] = frozenset()) -> ItemStore:
    """All items but some, in shards under `root`."""
    kept = np.array([number for number in range(NUM_ITEMS) if number not in left_out])
    for number, first in enumerate(range(0, len(kept), ITEMS_PER_SHARD)):
        own = kept[first : first + ITEMS_PER_SHARD]
        table = clean_items(tables, MediaConfig(), (own >= 300).astype(np.int32), np.where(own < 300, own, own - 300)).table
        sink = pa.BufferOutputStream()
        with pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table.combine_chunks())
        write_bytes(str(root / shard_name(number)), sink.getvalue())
    manifest = write_manifest(str(root), "prepared", "f", parents={}, counts={"items_per_shard": ITEMS_PER_SHARD}, config={})
    return ItemStore(ItemShards.of(str(root), manifest))


@pytest.fixture(scope="module")
def store(tables: Tables, tmp_path_factory: pytest.TempPathFactory) -> ItemStore:
    return write_shards(tables, tmp_path_factory.mktemp("prepared"))


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
def test_rows_come_in_the_asked_order_across_shards_and_repeats_stay(store: ItemStore, dtype: type):
    asked = np.array([NUM_ITEMS - 1, 0, 300, 255, 256, 0, 511, 512], dtype=dtype)
    rows = store.take(asked, ["text", "vector"])
    assert rows.column_names == ["text", "vector", "item_index"]
    assert rows["item_index"].to_pylist() == asked.tolist()
    assert rows["text"].to_pylist() == [f"text {number}" for number in asked]
    assert rows["vector"].to_pylist() == [[2.0 * number, 2.0 * number + 1] for number in asked]


def test_any_sample_of_items_comes_back_as_asked(store: ItemStore):
    asked = np.random.default_rng(0).integers(0, NUM_ITEMS, 1000)
    assert store.take(asked, ["tags"])["tags"].to_pylist() == [[f"t{number}"] for number in asked]


def test_shards_hold_what_encoders_read_and_no_attributes(store: ItemStore):
    with pytest.raises(KeyError):
        store.take(np.array([0]), ["price"])


def test_items_that_were_left_out_leave_no_gap(tables: Tables, tmp_path: Path):
    left_out = frozenset({0, 5, 299, 300, 301})
    store = write_shards(tables, tmp_path, left_out)
    kept = [number for number in range(NUM_ITEMS) if number not in left_out]
    assert store.take(np.arange(len(kept)), ["text"])["text"].to_pylist() == [f"text {number}" for number in kept]


@pytest.mark.parametrize(("item_bytes", "expected"), [(0, 16_384), (600, 8_192), (25_000, 256), (1e7, 256)])
def test_shards_of_light_items_hold_more_of_them(item_bytes: float, expected: int):
    assert items_per_shard(item_bytes) == expected


def test_a_flipped_bit_is_refused_by_the_name_of_its_shard_and_other_shards_still_read(tables: Tables, tmp_path: Path):
    store = write_shards(tables, tmp_path)
    path = tmp_path / "items" / "part-00001.arrow"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert store.take(np.array([3]), ["text"])["text"].to_pylist() == ["text 3"]
    with pytest.raises(InputError, match=r"shard 'items/part-00001\.arrow' in .* has SHA-256 .*from its manifest"):
        store.take(np.array([3, 300]), ["text"])


def test_a_missing_shard_is_refused_by_name(tables: Tables, tmp_path: Path):
    store = write_shards(tables, tmp_path)
    (tmp_path / "items" / "part-00002.arrow").unlink()
    with pytest.raises(InputError, match=r"part-00002\.arrow"):
        store.take(np.array([NUM_ITEMS - 1]), ["text"])


@pytest.fixture
def remote_storage(monkeypatch: pytest.MonkeyPatch) -> None:
    """Storage of this machine behind a file system that is not pyarrow's local one, as an object store's is not."""
    remote = pafs.PyFileSystem(pafs.FSSpecHandler(fsspec.filesystem("file")))
    monkeypatch.setattr(shards, "open_storage", lambda uri: (remote, uri))


@pytest.mark.usefixtures("remote_storage")
def test_a_remote_shard_is_copied_once_a_node_and_then_read_from_the_copy(tables: Tables, tmp_path: Path):
    first = write_shards(tables, tmp_path / "remote")
    cache = tmp_path / "cache"
    store = ItemStore(first.shards, NodeCache(str(cache)))
    assert not cache.exists()
    assert store.take(np.array([300]), ["text"])["text"].to_pylist() == ["text 300"]
    assert [path.name for path in cache.iterdir()] == [f"medley-{first.shards.sha256[1]}.arrow"]
    (tmp_path / "remote" / "items" / "part-00001.arrow").unlink()
    of_other_process = ItemStore(first.shards, NodeCache(str(cache)))
    assert of_other_process.take(np.array([301]), ["text"])["text"].to_pylist() == ["text 301"]


@pytest.mark.usefixtures("remote_storage")
def test_copies_take_no_more_than_their_limit_and_what_is_mapped_stays_readable(tables: Tables, tmp_path: Path):
    first = write_shards(tables, tmp_path / "remote")
    cache = tmp_path / "cache"
    size_bytes = (tmp_path / "remote" / "items" / "part-00000.arrow").stat().st_size
    store = ItemStore(first.shards, NodeCache(str(cache), max_bytes=size_bytes * 3 // 2))
    for item in (0, 300, 3, 301):
        assert store.take(np.array([item]), ["text"])["text"].to_pylist() == [f"text {item}"]
    assert [path.name for path in cache.iterdir()] == [f"medley-{first.shards.sha256[1]}.arrow"]


def test_of_many_shards_the_least_recently_used_are_let_go(store: ItemStore, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(shards, "MAX_OPEN_SHARDS", 2)
    fresh = ItemStore(store.shards)
    values = [fresh.values(np.array([item]), "text") for item in (0, 256, 1, 512, 2)]
    assert values == [["text 0"], ["text 256"], ["text 1"], ["text 512"], ["text 2"]]
    assert list(fresh._open) == [2, 0]


@pytest.mark.usefixtures("remote_storage")
def test_a_damaged_copy_is_made_again_and_a_damaged_original_is_refused(tables: Tables, tmp_path: Path):
    first = write_shards(tables, tmp_path / "remote")
    cache = tmp_path / "cache"
    ItemStore(first.shards, NodeCache(str(cache))).take(np.array([0]), ["text"])
    (copy,) = cache.iterdir()
    copy.write_bytes(copy.read_bytes()[:-100])
    assert ItemStore(first.shards, NodeCache(str(cache))).take(np.array([7]), ["text"])["text"].to_pylist() == ["text 7"]
    original = tmp_path / "remote" / "items" / "part-00002.arrow"
    original.write_bytes(original.read_bytes()[:-100])
    with pytest.raises(InputError, match=r"part-00002\.arrow"):
        ItemStore(first.shards, NodeCache(str(cache))).take(np.array([NUM_ITEMS - 1]), ["text"])


@pytest.mark.usefixtures("remote_storage")
def test_threads_that_copy_the_same_shards_at_once_all_read_whole_ones(tables: Tables, tmp_path: Path):
    first = write_shards(tables, tmp_path / "remote")
    stores = [ItemStore(first.shards, NodeCache(str(tmp_path / "cache"))) for _ in range(4)]
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda store: store.take(np.arange(NUM_ITEMS), ["text"])["text"].to_pylist(), stores))
    assert found == [[f"text {number}" for number in range(NUM_ITEMS)]] * 4
    assert len(list((tmp_path / "cache").iterdir())) == 3
