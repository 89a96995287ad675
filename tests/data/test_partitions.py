"""Parts of data: the hash, files of several tables, exact ranks, and prepared sets that do not depend on how they were cut."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from medley.data.numbering import ITEMS_PER_TABLE, number_items
from medley.data.partitions import crowded_rows, hash_order, partition_of, read_part, split_rows, stable_hash, write_parts
from medley.data.prepare import DataConfig, prepare
from medley.data.prepared import PreparedData
from medley.data.selection import select_ranks
from medley.data.split import SplitConfig
from medley.data.steps import Steps
from medley.data.tables import open_tables
from medley.data.validate import Quarantine
from medley.manifest import list_folder, read_json, read_parquet, write_manifest
from medley.schema import InputError

SECOND = 1_000_000


def test_equal_ids_have_equal_hashes_wherever_they_stand():
    ids = ["", "a", "b", "abcdefgh", "abcdefghi", "é", "日本語", "x" * 1024, "x" * 1023]
    hashes = stable_hash(pa.array(ids))
    assert len(set(hashes.tolist())) == len(ids)
    assert stable_hash(pa.array(["before", *ids, "after"]).slice(1, len(ids))).tolist() == hashes.tolist()
    assert [stable_hash(pa.array([id_])).item() for id_ in ids] == hashes.tolist()
    assert stable_hash(pa.array([], pa.string())).tolist() == []


def test_hashes_are_the_same_on_every_machine():
    assert stable_hash(pa.array(["", "a", "abcdefghi", "é"])).tolist() == [0, 5901722226206854298, 5559655013767942594, 14390603306158094535]


def test_ids_are_spread_evenly_over_the_parts_in_order_of_their_hashes():
    hashes = stable_hash(pa.array([f"user {number}" for number in range(10_000)]))
    parts = partition_of(hashes, 5)
    assert np.bincount(parts).min() > 1800  # 2000 expected, a standard deviation is 40
    assert (np.diff(parts[np.argsort(hashes)]) >= 0).all()


def test_ids_of_one_hash_stand_in_order_of_the_ids():
    assert hash_order(np.array([7, 5, 7, 5], dtype=np.uint64), pa.array(["b", "d", "a", "c"])).tolist() == [3, 1, 2, 0]


def test_rows_are_crowded_where_another_has_their_key():
    assert crowded_rows(np.array([4, 9, 4, 1, 9], dtype=np.uint64)).tolist() == [True, True, True, False, True]
    assert crowded_rows(np.array([], dtype=np.uint64)).tolist() == []


def test_tables_of_a_file_are_read_one_by_one(tmp_path: Path):
    table = pa.table({"id": pa.array(list("abcde")).dictionary_encode(), "row": range(5)})
    parts = split_rows(table, np.array([2, 0, 2, 0, 0], dtype=np.int32), 4)
    report = write_parts(str(tmp_path / "file"), parts)
    found = [read_part(str(tmp_path / "file"), report["offsets"], number)["id"].to_pylist() for number in range(4)]
    assert found == [["b", "d", "e"], [], ["a", "c"], []]


@pytest.mark.parametrize("max_gathered", [1, 20, 10**6])
def test_values_at_ranks_are_those_of_sorting(tmp_path: Path, max_gathered: int):
    random = np.random.default_rng(0)
    dense, wide = random.integers(1000, 1100, 500), random.integers(-(2**63), 2**63 - 1, 500)
    keys = np.concatenate([dense, wide, [-(2**63), 2**63 - 1]]).astype(np.int64)
    steps = Steps(str(tmp_path), Quarantine(), is_inline=True)
    reports = steps.run("keys", write_keys, [(part,) for part in np.array_split(keys, 3)])
    ranks = [0, 10, 400, 640, len(keys) - 1]
    bounds = (int(keys.min()), int(keys.max()))
    found = select_ranks(steps, "cuts", steps.files("keys", reports), 0, len(keys), bounds, ranks, max_gathered)
    assert found == np.sort(keys)[ranks].tolist()


def write_keys(uri: str, keys: np.ndarray) -> dict[str, Any]:
    return write_parts(uri, [pa.table({"key": keys})])


NUM_USERS, NUM_ITEMS, NUM_ROWS = 60, 40, 1500


@pytest.fixture(scope="module")
def messy_tables(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Tables with everything a step looks at: repeats, conflicts, bots, equal times, unknown and repeated items, events, values, several files and groups."""
    root, random = tmp_path_factory.mktemp("tables"), np.random.default_rng(0)
    ids = [f"item {number}" for number in range(NUM_ITEMS)]
    items = {"item_id": [*ids[:25], "item 3", "", *ids[25:], "item 39"], "text": ["words"] * (NUM_ITEMS + 3), "genre": ["g"] * (NUM_ITEMS + 3)}
    users = [f"user {number}" if number else "日本語 user" for number in range(NUM_USERS)]
    rows = {
        "user_id": [users[number] for number in (random.pareto(0.7, NUM_ROWS) * 3).astype(int) % NUM_USERS],
        "item_id": [f"item {number}" for number in (random.pareto(1.0, NUM_ROWS) * 4).astype(int) % (NUM_ITEMS + 2)],
        "timestamp": pa.array(SECOND * random.integers(1, 400, NUM_ROWS), pa.timestamp("us", tz="UTC")),
        "event": random.choice(["view", "buy", "odd"], NUM_ROWS, p=[0.7, 0.29, 0.01]),
        "value": pa.array(random.normal(3, 1, NUM_ROWS), pa.float32()),
    }
    table = pa.table(rows)
    table = pa.concat_tables([table, table.slice(100, 50)])
    attributes = {"user_id": [*users[5:50], "nobody"], "age": list(range(46))}
    parts = {"items/0": pa.table(items).slice(0, 20), "items/1": pa.table(items).slice(20), "users/0": pa.table(attributes)}
    parts |= {"interactions/0": table.slice(0, 900), "interactions/1": table.slice(900)}
    for name, part in parts.items():
        (root / name).parent.mkdir(exist_ok=True)
        pq.write_table(part, f"{root / name}.parquet", row_group_size=150)
    return str(root)


ALL_RULES = {
    "events": {"view": 1, "buy": 3},
    "target_events": ["buy"],
    "behaviour": {"max_events_per_day": 150, "drop_one_off_items": True},
    "k_core": {"users": 3, "items": 3},
    "values": {"kind": "user_mean", "clip": [1, 5], "log": True},
}


@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize(
    ("case", "config"),
    [
        ("time", ALL_RULES),
        ("random", {"split": {"kind": "random", "cold_item_share": 0.2}, "values": {"kind": "global_mean"}}),
        ("last_out", {"split": {"kind": "last_out"}, "conflicts": "max_value"}),
    ],
)
def test_a_set_prepared_in_parts_is_that_prepared_at_once_byte_for_byte(messy_tables: str, tmp_path: Path, case: str, config: dict[str, Any]):
    sizes = {"whole": (10**6, 300), "parts": (200, 300)}
    sets = {
        name: prepare(messy_tables, str(tmp_path / name), DataConfig(**config), seed=1, rows_per_partition=rows, rows_per_file=per_file)["prepared"]
        for name, (rows, per_file) in sizes.items()
    }
    whole, parts = (PreparedData.open(sets[name]).manifest for name in sizes)
    assert "train/part-00001.parquet" in whole["files"]
    assert whole["counts"] == parts["counts"]
    statistics = [read_json(f"{uri}/statistics.json") for uri in sets.values()]
    assert statistics[0] == statistics[1]
    different = {name for name, entry in whole["files"].items() if parts["files"].get(name) != entry}
    # Quarantined rows are listed task by task, which is another order.
    assert different <= {"quarantine.parquet"}
    listed = [sorted(map(str, read_parquet(f"{uri}/quarantine.parquet").to_pylist())) for uri in sets.values()]
    assert listed[0] == listed[1]


@pytest.mark.usefixtures("ray_session")
def test_files_follow_each_other_in_time_and_are_read_as_one(messy_tables: str, tmp_path: Path):
    one, several = (
        PreparedData.open(prepare(messy_tables, str(tmp_path / str(rows)), DataConfig(), 0, rows_per_partition=400, rows_per_file=rows)["prepared"])
        for rows in (10**6, 200)
    )
    sizes = [pq.read_metadata(f"{several.uri}/train/{name}").num_rows for name in list_folder(f"{several.uri}/train")]
    assert (sum(sizes), len(sizes)) == (len(one.train), -(-len(one.train) // 200))
    assert max(sizes) < 300
    for name in ("users", "items", "values", "timestamps", "is_target"):
        np.testing.assert_array_equal(getattr(one.train, name), getattr(several.train, name))
    order = np.lexsort((one.train.items, one.train.users, one.train.timestamps))
    assert (order == np.arange(len(order))).all()


def test_items_are_found_by_id_and_by_number_over_files_and_tables(tmp_path: Path):
    ids = [f"item {number}" for number in range(2 * ITEMS_PER_TABLE + 5)]
    for name, columns in {"items": {"item_id": ids}, "interactions": {"user_id": ["u"], "item_id": ids[:1]}}.items():
        (tmp_path / name).mkdir()
        pq.write_table(pa.table(columns), tmp_path / name / "0.parquet", row_group_size=1000)
    tables = open_tables(str(tmp_path))
    for rows_per_partition in (10**6, 9000):
        steps = Steps(str(tmp_path / f"work {rows_per_partition}"), Quarantine(), is_inline=True)
        items = number_items(steps, tables, None, SplitConfig(), 0, rows_per_partition)
        assert items.num_items == len(ids)
        assert items.find(pa.array(["item 9000", "nowhere", "item 0", ids[-1]])).tolist() == [9000, -1, 0, len(ids) - 1]
        for first, stop in ((0, 3), (8190, 8200), (8999, 9001), (16380, len(ids)), (0, len(ids))):
            places = items.rows(first, stop)
            assert places["item_id"].to_pylist() == ids[first:stop]
            assert places["row"].to_pylist() == list(range(first, stop))


def brute_force_core(pairs: set[tuple[str, str]], min_items: int, min_users: int) -> set[tuple[str, str]]:
    while True:
        kept = {
            (user, item) for user, item in pairs if sum(pair[0] == user for pair in pairs) >= min_items and sum(pair[1] == item for pair in pairs) >= min_users
        }
        if kept == pairs:
            return pairs
        pairs = kept


@pytest.mark.usefixtures("ray_session")
def test_the_core_over_parts_is_that_of_brute_force(messy_tables: str, tmp_path: Path):
    plain, core = (
        PreparedData.open(prepare(messy_tables, str(tmp_path / name), DataConfig(k_core=config), 0, rows_per_partition=300)["prepared"])
        for name, config in (("plain", {}), ("core", {"users": 4, "items": 5}))
    )
    pairs = [
        set(zip(np.array(data.users["user_id"])[data.train.users], np.array(data.item_facts["item_id"])[data.train.items], strict=True))
        for data in (plain, core)
    ]
    assert pairs[1] == brute_force_core(pairs[0], 4, 5)
    assert pairs[1] < pairs[0]


@pytest.fixture(scope="module")
def growing(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Tables of two days: on the second some items and users are gone, some are new, and the items stand in another order."""
    root = tmp_path_factory.mktemp("growing")
    days = {
        "first": (["a", "b", "c", "d"], ["ann", "bob", "cid"]),
        "second": (["e", "d", "a", "f", "c"], ["dan", "ann", "eve", "cid"]),
    }
    for day, (items, users) in days.items():
        facts = {"item_id": items, "text": [f"text of {name} on the {day} day" for name in items], "title": [name.upper() for name in items]}
        pairs = [(user, item) for user in users for item in items]
        rows = {"user_id": [user for user, _ in pairs], "item_id": [item for _, item in pairs]}
        times = pa.array(SECOND * np.arange(1, len(pairs) + 1), pa.timestamp("us", tz="UTC"))
        tables = {"items": facts, "interactions": {**rows, "timestamp": times}, "users": {"user_id": [*users, "bob"], "age": range(len(users) + 1)}}
        for name, columns in tables.items():
            (root / day / name).mkdir(parents=True)
            pq.write_table(pa.table(columns), root / day / name / "0.parquet")
    return [str(root / day) for day in days]


@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize("rows_per_partition", [10**6, 2])
def test_with_a_base_known_ids_keep_their_numbers_and_new_ones_follow(growing: list[str], tmp_path: Path, rows_per_partition: int):
    first = prepare(growing[0], str(tmp_path / "first"), DataConfig(), 0)
    config = DataConfig(base=first["prepared"])
    second = prepare(growing[1], str(tmp_path / "second"), config, 0, rows_per_partition=rows_per_partition)
    old, new = PreparedData.open(first["prepared"]), PreparedData.open(second["prepared"])
    items, users = new.item_facts["item_id"].to_pylist(), new.users["user_id"].to_pylist()
    assert items == ["a", "b", "c", "d", "e", "f"]
    assert users[:3] == old.users["user_id"].to_pylist()
    assert sorted(users[3:]) == ["dan", "eve"]
    assert new.item_facts["item_index"].to_pylist() == list(range(6))
    assert new.users["user_index"].to_pylist() == list(range(5))
    # b is gone: it has a number, but no content, and nobody has it.
    assert new.item_facts["title"].to_pylist() == ["A", None, "C", "D", "E", "F"]
    texts = new.item_store().take(np.arange(6), ["text", "item_id"]).to_pylist()
    assert [row["text"] for row in texts] == [None if name == "b" else f"text of {name} on the second day" for name in items]
    assert [row["item_id"] for row in texts] == items
    assert new.train_count_N[1] == 0
    # bob has no rows, and keeps his place and what the users table says of him.
    ages = dict(zip(users, new.users["age"].to_pylist(), strict=True))
    assert ages == {"dan": 0, "ann": 1, "eve": 2, "cid": 3, "bob": 4}
    assert users.index("bob") not in new.train.users
    pairs = {(users[user], items[item]) for user, item in zip(new.train.users, new.train.items, strict=True)}
    assert pairs <= {(user, item) for user in ("dan", "ann", "eve", "cid") for item in "edafc"}
    assert len(pairs) == len(new.train) == 16
    assert new.manifest["parents"]["base"] == old.identity


@pytest.mark.usefixtures("ray_session")
def test_the_base_is_part_of_the_fingerprint_wherever_it_stands(growing: list[str], tmp_path: Path):
    sets = [prepare(growing[0], str(tmp_path / name), DataConfig(), 0)["prepared"] for name in ("here", "there")]
    found = [prepare(growing[1], str(tmp_path / "out"), DataConfig(base=base), 0) for base in (None, *sets)]
    assert [report["reused"] for report in found] == [False, False, True]
    assert found[1]["fingerprint"] == found[2]["fingerprint"] != found[0]["fingerprint"]


@pytest.mark.usefixtures("ray_session")
def test_tables_without_anything_new_make_the_base_again(growing: list[str], tmp_path: Path):
    first = PreparedData.open(prepare(growing[0], str(tmp_path), DataConfig(), 0)["prepared"])
    again = PreparedData.open(prepare(growing[0], str(tmp_path), DataConfig(base=first.uri), 0)["prepared"])
    assert again.identity != first.identity
    assert again.manifest["files"] == first.manifest["files"]


def test_a_base_that_is_none_is_refused(growing: list[str], tmp_path: Path):
    with pytest.raises(InputError, match=r"data\.base='/nowhere' is no finished folder; expected the URI of a prepared set"):
        prepare(growing[1], str(tmp_path), DataConfig(base="/nowhere"), 0)
    write_manifest(str(tmp_path), "tables", "f", parents={}, counts={}, config={})
    with pytest.raises(InputError, match=r"is a folder of kind 'tables'"):
        prepare(growing[1], str(tmp_path), DataConfig(base=str(tmp_path)), 0)
