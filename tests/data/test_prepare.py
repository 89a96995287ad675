"""Preparing by hand: ids, cleaned media, quarantine with reasons, weights, minima, and the same bytes every time."""

import io
import logging
import math
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from medley.data.prepare import DataConfig, prepare
from medley.data.prepared import PreparedData
from medley.data.split import SplitConfig
from medley.manifest import list_folder, read_json, read_parquet
from medley.media import MediaConfig, decode_flac, decode_jpeg
from medley.schema import INTERACTIONS_SCHEMA, PREPARED_INTERACTIONS_SCHEMA, InputError

pytestmark = pytest.mark.usefixtures("ray_session")

MEDIA = MediaConfig(image_max_side_pixels=16, audio_sample_rate_hz=8000)
ITEMS_SCHEMA = pa.schema(
    [
        ("item_id", pa.string()),
        ("title", pa.string()),
        ("text", pa.string()),
        ("image", pa.binary()),
        ("audio", pa.binary()),
        ("tags", pa.list_(pa.string())),
        ("vector", pa.list_(pa.float32(), 2)),
        ("price", pa.float64()),
    ]
)


def png(width: int, height: int) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.new("RGB", (width, height), (200, 10, 10)).save(buffer, "PNG")
    return buffer.getvalue()


def wav(num_samples: int) -> bytes:
    import soundfile

    buffer = io.BytesIO()
    soundfile.write(buffer, 0.5 * np.sin(np.arange(num_samples) / 5), 8000, format="WAV", subtype="PCM_16")
    return buffer.getvalue()


def event(user: str | None, item: str | None, moment: int | None = None, **more: Any) -> dict[str, Any]:
    """One interaction; the moment is in microseconds from 1."""
    return {"user_id": user, "item_id": item, "timestamp": moment, **more}


def write(root: Path, items: list[dict[str, Any]], interactions: list[dict[str, Any]], users: list[dict[str, Any]] | None = None) -> str:
    """A tables folder; items in two files, interactions with the columns that any row has."""
    schema = pa.schema([field for field in ITEMS_SCHEMA if any(field.name in row for row in items)])
    used = [field.with_nullable(True) for field in INTERACTIONS_SCHEMA if any(row.get(field.name) is not None for row in interactions)]
    middle = (len(items) + 1) // 2
    tables = {
        "items/0.parquet": pa.Table.from_pylist(items[:middle], schema),
        "items/1.parquet": pa.Table.from_pylist(items[middle:], schema),
        "interactions/0.parquet": pa.Table.from_pylist(interactions, pa.schema(used)),
    }
    if users is not None:
        tables["users/0.parquet"] = pa.Table.from_pylist(users)
    for name, table in tables.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, root / name, write_page_checksum=True)
    return str(root)


def run(root: Path, items: list[dict[str, Any]], interactions: list[dict[str, Any]], users: list[dict[str, Any]] | None = None, **config: Any) -> PreparedData:
    """The prepared set of these tables."""
    config.setdefault("split", SplitConfig(kind="shipped" if any("split" in row for row in interactions) else "auto"))
    uri = write(root / "tables", items, interactions, users)
    return PreparedData.open(prepare(uri, str(root / "prepared"), DataConfig(media=MEDIA, **config), seed=0)["prepared"])


def quarantine(data: PreparedData) -> list[tuple[Any, ...]]:
    """(table, id, column, reason, rows) in a stable order."""
    rows = read_parquet(f"{data.uri}/quarantine.parquet").to_pylist()
    return sorted(((row["table"], row["id"], row["column"], row["reason"], row["num_rows"]) for row in rows), key=str)


def pairs(data: PreparedData, split: str = "train") -> list[tuple[str, str]]:
    """(user_id, item_id) of a split in its order."""
    part, users, items = data.interactions(split), data.users["user_id"].to_pylist(), data.item_facts["item_id"].to_pylist()
    return [(users[user], items[item]) for user, item in zip(part.users, part.items, strict=True)]


PLAIN = [{"item_id": name, "text": f"text of {name}"} for name in "abcdef"]
ENDS = [event("zoe", "a", split="valid"), event("zoe", "b", split="test")]
"""One row each for valid and test, so that a test may say what stands in train."""


@pytest.fixture(scope="module")
def messy(tmp_path_factory: pytest.TempPathFactory) -> PreparedData:
    """Tables with every fault an item can have, and some an interaction can."""
    items = [
        {"item_id": "whole", "title": "W", "text": "words", "image": png(40, 20), "audio": wav(4000), "tags": ["x", "y"], "vector": [1, 2], "price": 9.5},
        {"item_id": "bad image", "title": None, "text": "words", "image": b"\xff\xd8\xff not a picture", "audio": wav(800)},
        {"item_id": "bad clip", "text": "words", "image": png(8, 8), "audio": b"ID3 not a sound", "tags": []},
        {"item_id": "blank", "text": " \n ", "image": png(8, 8), "vector": [1, math.nan]},
        {"item_id": "", "text": "no id"},
        {"item_id": "whole", "title": "again", "text": "a second one"},
        {"item_id": None, "text": "no id either"},
        {"item_id": "last", "title": "L", "text": "words", "price": 1.0, "vector": [1, math.inf]},
    ]
    good = [event("bob", "whole", 1), event("ann", "last", 2), event("bob", "blank", 3), event("ann", "whole", 4)]
    late = [
        event("ann", "bad clip", 9),
        event("bob", "last", 10),
        event("cid", "blank", 8),
        event("cid", "whole", 7),
        event("cid", "last", 5),
        event("dan", "last", 6),
    ]
    bad = [event("ann", "nowhere", 2), event("bob", "nowhere", 2), event("ann", "gone", 3), event("", "whole", 1), event(None, "whole", 1), event("ann", "", 1)]
    users = [{"user_id": "cid", "country": "SE", "age": 30}, {"user_id": "bob", "country": None, "age": 20}, {"user_id": "nobody", "country": "DE", "age": 1}]
    return run(tmp_path_factory.mktemp("messy"), items, [*late, *good, *bad], users)


def test_items_are_numbered_in_their_order_without_the_ones_left_out(messy: PreparedData):
    assert messy.item_facts["item_id"].to_pylist() == ["whole", "bad image", "bad clip", "blank", "last"]
    assert messy.item_facts["item_index"].to_pylist() == [0, 1, 2, 3, 4]
    assert messy.item_facts["title"].to_pylist() == ["W", None, None, None, "L"]
    assert messy.item_facts["price"].to_pylist() == [9.5, None, None, None, 1.0]
    assert "text" not in messy.item_facts.column_names


def test_users_are_numbered_with_the_attributes_of_their_table(messy: PreparedData):
    assert messy.users.column_names == ["user_index", "user_id", "country", "age"]
    assert messy.users["user_index"].to_pylist() == [0, 1, 2, 3]
    ids, facts = messy.users["user_id"].to_pylist(), messy.users.select(["country", "age"]).to_pylist()
    assert dict(zip(ids, map(tuple, map(dict.values, facts)), strict=True)) == {"ann": (None, None), "bob": (None, 20), "cid": ("SE", 30), "dan": (None, None)}
    assert dict(zip(ids, messy.user_categories("country").tolist(), strict=True)) == {"ann": 0, "bob": 0, "cid": 1, "dan": 0}
    assert dict(zip(ids, messy.user_categories("age").tolist(), strict=True)) == {"ann": 0, "bob": 1, "cid": 2, "dan": 0}


def test_interactions_are_split_by_time_and_stand_in_time_order(messy: PreparedData):
    expected = [("bob", "whole"), ("ann", "last"), ("bob", "blank"), ("ann", "whole"), ("cid", "last"), ("dan", "last"), ("cid", "whole"), ("cid", "blank")]
    assert pairs(messy) == expected
    assert (pairs(messy, "valid"), pairs(messy, "test")) == ([("ann", "bad clip")], [("bob", "last")])
    assert messy.train.timestamps.tolist() == [1, 2, 3, 4, 5, 6, 7, 8]
    table = read_parquet(f"{messy.uri}/train/part-00000.parquet")
    assert table.schema.equals(PREPARED_INTERACTIONS_SCHEMA)
    assert messy.train.weights.tolist() == [1.0] * 8
    assert np.isnan(messy.train.values).all()
    assert messy.train.is_target.all()


def test_train_counts_are_those_of_train_alone(messy: PreparedData):
    assert messy.train_count_N.tolist() == [3, 0, 0, 2, 3]
    counts = messy.manifest["counts"]
    assert {name: counts[name] for name in ("num_items", "num_users", "num_cold_items", "num_train", "num_valid", "num_test")} == {
        "num_items": 5,
        "num_users": 4,
        "num_cold_items": 2,
        "num_train": 8,
        "num_valid": 1,
        "num_test": 1,
    }


def test_what_is_left_out_is_in_quarantine_with_its_id_and_reason(messy: PreparedData):
    rows = quarantine(messy)
    image, clip = (next(row for row in rows if row[1] == name) for name in ("bad image", "bad clip"))
    assert (image[0], image[2], image[4]) == ("items", "image", 1)
    assert image[3].startswith("image header cannot be read")
    assert (clip[0], clip[2]) == ("items", "audio")
    assert clip[3].startswith("audio header cannot be read")
    expected = [
        ("items", "blank", "text", "text is empty", 1),
        ("items", "", "item_id", "id is empty", 1),
        ("items", None, "item_id", "id is empty", 1),
        ("items", "whole", "item_id", "item id stands in an earlier row; the first is kept", 1),
        ("items", "blank", "vector", "vector holds a null, NaN or infinite number", 1),
        ("items", "last", "vector", "vector holds a null, NaN or infinite number", 1),
        ("interactions", "", "user_id", "id is empty", 1),
        ("interactions", None, "user_id", "id is empty", 1),
        ("interactions", "", "item_id", "id is empty", 1),
        ("interactions", "nowhere", "item_id", "unknown item", 1),
        ("interactions", "nowhere", "item_id", "unknown item", 1),
        ("interactions", "gone", "item_id", "unknown item", 1),
    ]
    assert rows == sorted([*expected, image, clip], key=str)
    assert messy.manifest["counts"]["num_quarantined"] == sum(row[4] for row in rows)


def test_what_is_left_out_is_in_quarantine_with_its_shard_and_row(messy: PreparedData):
    rows = read_parquet(f"{messy.uri}/quarantine.parquet").to_pylist()
    places = {(row["shard"], row["row"]): row["reason"] for row in rows if row["shard"]}
    assert places == {
        ("items/1.parquet", 0): "id is empty",
        ("items/1.parquet", 1): "item id stands in an earlier row; the first is kept",
        ("items/1.parquet", 2): "id is empty",
        ("interactions/0.parquet", 10): "unknown item",
        ("interactions/0.parquet", 11): "unknown item",
        ("interactions/0.parquet", 12): "unknown item",
        ("interactions/0.parquet", 13): "id is empty",
        ("interactions/0.parquet", 14): "id is empty",
        ("interactions/0.parquet", 15): "id is empty",
    }


def test_the_other_items_and_modalities_are_kept(messy: PreparedData):
    rows = messy.item_store().take(np.arange(5), ["text", "image", "audio", "tags", "vector"]).to_pylist()
    has = [{name for name, value in row.items() if value is not None} - {"item_index"} for row in rows]
    assert has == [{"text", "image", "audio", "tags", "vector"}, {"text", "audio"}, {"text", "image", "tags"}, {"image"}, {"text"}]
    assert (rows[0]["text"], rows[0]["tags"], rows[0]["vector"], rows[2]["tags"]) == ("words", ["x", "y"], [1.0, 2.0], [])
    coverage = read_json(f"{messy.uri}/statistics.json")["coverage"]
    assert {name: coverage[name] for name in ("text", "image", "audio", "vector")} == {"text": 4, "image": 3, "audio": 2, "vector": 1}


def test_media_are_encoded_anew_within_the_limits(messy: PreparedData):
    row = messy.item_store().take(np.array([0]), ["image", "audio"]).to_pylist()[0]
    assert decode_jpeg(row["image"]).shape == (3, 8, 16)
    assert decode_flac(row["audio"]).shape == (4000,)


def test_statistics_count_equal_reasons_together(messy: PreparedData):
    statistics = read_json(f"{messy.uri}/statistics.json")
    assert statistics["quarantine"]["interactions.item_id: unknown item"] == 3
    assert statistics["has_timestamps"] is True


def test_preparing_twice_writes_the_same_bytes(tiny_tables: str, tiny_prepared: str, tmp_path: Path):
    first = PreparedData.open(tiny_prepared)
    again = prepare(tiny_tables, str(tmp_path), DataConfig(media=MEDIA), seed=0)
    assert (again["fingerprint"], again["reused"]) == (first.identity, False)
    assert PreparedData.open(again["prepared"]).manifest["files"] == first.manifest["files"]


def test_a_finished_set_is_reused_and_other_settings_or_seeds_make_another(tmp_path: Path):
    uri = write(tmp_path / "tables", PLAIN, [event("ann", name, place) for place, name in enumerate("abcdefabcdef", 1)])
    first, second = (prepare(uri, str(tmp_path / "out"), DataConfig(), seed=0) for _ in range(2))
    assert (first["reused"], second["reused"], second["prepared"]) == (False, True, first["prepared"])
    others = {prepare(uri, str(tmp_path / "out"), config, seed)["fingerprint"] for config, seed in ((DataConfig(), 1), (DataConfig(conflicts="first"), 0))}
    assert len({first["fingerprint"], *others}) == 3
    assert len(list_folder(str(tmp_path / "out"))) == 3


def test_a_damaged_finished_set_is_refused(tmp_path: Path):
    uri = write(tmp_path / "tables", PLAIN, [event("ann", name, place) for place, name in enumerate("abcdefabcdef", 1)])
    done = prepare(uri, str(tmp_path / "out"), DataConfig(), seed=0)["prepared"]
    (Path(done) / "users.parquet").write_bytes(b"")
    with pytest.raises(InputError, match=r"file 'users\.parquet' in"):
        prepare(uri, str(tmp_path / "out"), DataConfig(), seed=0)


def test_an_interrupted_prepare_leaves_no_folder(tmp_path: Path):
    uri = write(tmp_path / "tables", PLAIN, [event("ann", "a", split="train"), event("ann", "b", split="test")])
    with pytest.raises(InputError, match=r"the 'valid' split is empty \(2 interactions in all\)"):
        prepare(uri, str(tmp_path / "out"), DataConfig(), seed=0)
    assert list_folder(str(tmp_path / "out")) == []


def test_relative_paths_are_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write(tmp_path / "tables", PLAIN, [event("ann", name, place) for place, name in enumerate("abcdefabcdef", 1)])
    monkeypatch.chdir(tmp_path)
    assert prepare("tables", "out", DataConfig(), seed=0)["prepared"].startswith(f"{tmp_path}/out/")


def test_a_damaged_page_that_only_a_task_reads_is_refused_by_its_shard(tmp_path: Path):
    uri = write(tmp_path / "tables", PLAIN, [event("ann", name, place) for place, name in enumerate("abcdefabcdef", 1)])
    path = tmp_path / "tables" / "items" / "1.parquet"
    content = bytearray(path.read_bytes())
    content[pq.read_metadata(path).row_group(0).column(1).data_page_offset - 3] ^= 1
    path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        prepare(uri, str(tmp_path / "out"), DataConfig(), seed=0)
    assert str(caught.value).startswith(f"shard '{path}' cannot be read")
    assert "Traceback" not in str(caught.value)
    assert all(name.endswith(".work") for name in list_folder(str(tmp_path / "out")))


KILLED = """
import os, signal, sys
from medley.data import steps
from medley.data.prepare import DataConfig, prepare
write = steps.write_bytes
def write_and_die(uri, data):
    write(uri, data)
    if uri.endswith("assigned/00000.json"):
        os.kill(os.getpid(), signal.SIGKILL)
steps.write_bytes = write_and_die
prepare(sys.argv[1], sys.argv[2], DataConfig(), seed=0)
"""


def test_a_run_that_was_killed_is_continued_and_writes_the_same_bytes(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    uri = write(tmp_path / "tables", PLAIN, [event("ann", name, place) for place, name in enumerate("abcdefabcdef", 1)])
    whole = prepare(uri, str(tmp_path / "whole"), DataConfig(), seed=0)
    assert subprocess.run([sys.executable, "-c", KILLED, uri, str(tmp_path / "out")], check=False).returncode == -signal.SIGKILL
    assert not (tmp_path / "out" / whole["fingerprint"]).exists()
    [settled] = (tmp_path / "out" / f"{whole['fingerprint']}.work").glob("*/settled/00000")
    settled.write_bytes(settled.read_bytes()[:-1])  # a damaged file is made again
    with caplog.at_level(logging.INFO):
        done = prepare(uri, str(tmp_path / "out"), DataConfig(), seed=0)
    done_before = {line.split(" | ")[1]: " 0 of them done before" not in line for line in caplog.messages if line.startswith("prepare | ")}
    assert {step for step, is_found in done_before.items() if is_found} == {"item_ids", "item_firsts", "item_places", "clean", "cuts", "assigned"}
    assert {"settled", "kept", "numbered", "items", "files"} <= done_before.keys()
    assert PreparedData.open(done["prepared"]).manifest["files"] == PreparedData.open(whole["prepared"]).manifest["files"]


def test_a_shipped_part_of_another_name_is_refused_with_its_values(tmp_path: Path):
    rows = [event("ann", name, split=split) for name, split in zip("abcd", ["train", "dev", None, "dev"], strict=True)]
    with pytest.raises(InputError, match=r"holds \['dev', None\]; expected one of train, valid, test in every row"):
        run(tmp_path, PLAIN, rows)


def test_events_have_weights_and_targets_and_a_zero_drops_them(tmp_path: Path):
    rows = [event("ann", "a", event="view"), event("ann", "b", event="buy"), event("bob", "a", event="skip"), event("bob", "c", event="odd"), event("bob", "d")]
    rows = [{**row, "split": "train"} for row in rows] + [{**row, "event": "buy"} for row in ENDS]
    data = run(tmp_path, PLAIN, rows, events={"view": 0.5, "buy": 5, "skip": 0}, target_events=("buy",))
    assert pairs(data) == [("ann", "a"), ("ann", "b")]
    assert (data.train.weights.tolist(), data.train.is_target.tolist()) == ([0.5, 5.0], [False, True])
    reason = "event kind has no weight in data.events"
    assert quarantine(data) == [("interactions", "bob", "event", reason, 1)] * 2


def test_event_weights_without_events_are_refused(tmp_path: Path):
    with pytest.raises(InputError, match=r"data\.events is set, but the interactions have no column 'event'"):
        run(tmp_path, PLAIN, [event("ann", "a", split="train"), *ENDS], events={"view": 1})


def test_target_events_without_events_are_refused(tmp_path: Path):
    with pytest.raises(InputError, match=r"data\.target_events is set, but the interactions have no column 'event'"):
        run(tmp_path, PLAIN, [event("ann", "a", split="train"), *ENDS], target_events=("buy",))


def test_values_are_kept_and_nan_and_infinite_ones_are_left_out(tmp_path: Path):
    values = {"a": 4.5, "b": math.nan, "c": math.inf, "d": None, "e": -1.0}
    data = run(tmp_path, PLAIN, [event("ann", name, split="train", value=value) for name, value in values.items()] + ENDS)
    assert pairs(data) == [("ann", "a"), ("ann", "d"), ("ann", "e")]
    np.testing.assert_array_equal(data.train.values, np.array([4.5, np.nan, -1.0], dtype=np.float32))
    assert quarantine(data) == [("interactions", "ann", "value", "value is NaN or infinite", 1)] * 2


def test_rows_equal_to_an_earlier_one_in_every_column_are_left_out(tmp_path: Path):
    rows = [event("ann", "a", 5, split="train"), event("ann", "a", 5, split="train"), event("ann", "a", 6, split="train"), event("bob", "a", 5, split="train")]
    ends = [{**row, "timestamp": 9} for row in ENDS]
    data = run(tmp_path, PLAIN, [*rows, rows[0], *ends])
    assert pairs(data) == [("ann", "a"), ("bob", "a"), ("ann", "a")]
    assert quarantine(data) == [("interactions", "ann", "*", "equal to an earlier row", 1)] * 2


def test_the_core_is_found_again_and_again_and_items_outside_it_are_cold(tmp_path: Path):
    train = ["ann a", "ann b", "bob a", "bob b", "cid a", "cid c", "dan c", "dan d", "eve d"]
    rows = [event(*text.split(), split="train") for text in train]
    rows += [event("ann", "c", split="valid"), event("dan", "a", split="valid"), event("new", "d", split="valid"), event("bob", "d", split="test")]
    data = run(tmp_path, PLAIN, rows, k_core={"users": 2, "items": 2})
    # One pass leaves out eve; then d has one user, then dan one item, then c one user, then cid one item.
    assert pairs(data) == [("ann", "a"), ("ann", "b"), ("bob", "a"), ("bob", "b")]
    # A user outside the core is in no split, one who came later stays, and so do rows of items that are cold now.
    assert (pairs(data, "valid"), pairs(data, "test")) == ([("ann", "c"), ("new", "d")], [("bob", "d")])
    assert sorted(data.users["user_id"].to_pylist()) == ["ann", "bob", "new"]
    assert (data.num_items, data.train_count_N.tolist()) == (6, [2, 2, 0, 0, 0, 0])
    statistics = read_json(f"{data.uri}/statistics.json")
    assert statistics["quarantine"] == {"interactions.user_id: user is not in the core of 2 items": 6}


def test_a_core_that_leaves_nothing_is_refused(tmp_path: Path):
    with pytest.raises(InputError, match="no interaction is left after cleaning"):
        run(tmp_path, PLAIN, [event("ann", "a", split="train"), event("ann", "b", split="valid")], k_core={"users": 9})


def test_a_shipped_split_may_lack_its_test_part_and_its_evaluation_says_so(tmp_path: Path):
    data = run(tmp_path, PLAIN, [event("ann", "a", split="train"), event("ann", "b", split="valid")])
    assert [len(data.interactions(split)) for split in ("train", "valid", "test")] == [1, 1, 0]
    assert data.targets("valid").items.tolist() == [1]
    with pytest.raises(InputError, match=r"has no 'test' interactions; .*; set evaluate\.splits without 'test'"):
        data.targets("test")


def test_an_interaction_in_two_shipped_splits_is_refused(tmp_path: Path):
    rows = [event("ann", "a", 5, split="train"), event("ann", "b", 6, split="valid"), event("ann", "a", 5, split="valid")]
    with pytest.raises(InputError, match="1 interactions stand in two splits, .* in train and valid"):
        run(tmp_path, PLAIN, rows)


def test_of_contradicting_rows_the_rule_keeps_one(tmp_path: Path):
    rows = [event("ann", "a", 5, split="train", value=value) for value in (3.0, 5.0, 4.0)] + [{**row, "timestamp": 9} for row in ENDS]
    for rule, value in (("last", 4.0), ("first", 3.0), ("max_value", 5.0)):
        data = run(tmp_path / rule, PLAIN, rows, conflicts=rule)
        assert data.train.values.tolist() == [value]
        assert read_json(f"{data.uri}/statistics.json")["quarantine"] == {
            f"interactions.*: contradicts another row of its user, item and time (data.conflicts: {rule})": 2
        }
    with pytest.raises(InputError, match="1 groups of interactions contradict each other"):
        run(tmp_path / "error", PLAIN, rows, conflicts="error")


def test_held_out_items_have_no_train_row_and_all_their_rows_elsewhere(tmp_path: Path):
    items = [{"item_id": f"item {number}"} for number in range(40)]
    rows = [event(f"user {user}", f"item {number}", 1 + 40 * user + number) for user in range(10) for number in range(40)]
    data = run(tmp_path, items, rows, split={"cold_item_share": 0.25})
    held_out = np.flatnonzero(data.train_count_N == 0)
    assert 4 <= len(held_out) <= 16
    counts = np.array([np.bincount(data.interactions(split).items, minlength=40)[held_out] for split in ("valid", "test")])
    assert (np.sort(counts, axis=0) == np.array([[0], [10]])).all()


def test_values_are_normalised_by_the_means_of_train(tmp_path: Path):
    rows = [event("ann", "a", split="train", value=4), event("ann", "b", split="train", value=9), event("bob", "a", split="train", value=2)]
    rows += [event("ann", "c", split="valid", value=1), event("new", "c", split="test", value=3)]
    data = run(tmp_path, PLAIN, rows, values={"kind": "user_mean", "clip": [1, 6]})
    # Clipped: 4, 6 and 2, so ann's mean is 5, bob's 2, and 4 stands for people without any.
    assert data.train.values.tolist() == [-1.0, 1.0, 0.0]
    assert (data.interactions("valid").values.tolist(), data.interactions("test").values.tolist()) == ([-4.0], [-1.0])
    assert read_json(f"{data.uri}/statistics.json")["values"] == {"num_clipped": 1, "train_mean": 4.0, "train_deviation": pytest.approx(math.sqrt(8 / 3))}


def test_bounces_and_bots_are_left_out_and_counted(tmp_path: Path):
    second = 1_000_000
    rows = [event("bot", name, (100 + place) * second, dwell_seconds=9.0, split="train") for place, name in enumerate("abcd")]
    rows += [event("ann", "a", 100 * second, dwell_seconds=1.0, split="train"), event("ann", "b", 200 * second, dwell_seconds=5.0, split="train")]
    rows += [event("bot", "e", 900 * second, split="valid"), event("ann", "e", 900 * second, split="valid")]
    data = run(tmp_path, PLAIN, rows, behaviour={"min_dwell_seconds": 2, "max_events_per_minute": 3, "target_min_dwell_seconds": 6})
    assert (pairs(data), pairs(data, "valid"), data.train.is_target.tolist()) == ([("ann", "b")], [("ann", "e")], [False])
    assert read_json(f"{data.uri}/statistics.json")["quarantine"] == {
        "interactions.dwell_seconds: dwell time is below data.behaviour.min_dwell_seconds": 1,
        "interactions.user_id: user has more than 3 events in a minute": 5,
    }


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        (
            {"max_share": 0.3},
            r"2 of 5 rows of interactions are faulty \(unknown item: 1, value is NaN or infinite: 1\); for example interactions/0\.parquet row 1",
        ),
        ({"max_rows": 1}, "2 rows of interactions are faulty .*; expected 1 at most"),
        ({"max_share_by_reason": {"unknown item": 0.1}}, "1 of 5 rows of interactions have: unknown item; .*raise data.quarantine.max_share_by_reason"),
    ],
)
def test_more_faulty_rows_than_the_budget_fail_the_run(tmp_path: Path, budget: dict[str, Any], message: str):
    rows = [event("ann", "a", split="train"), event("ann", "gone", split="train"), event("ann", "b", split="train", value=math.nan), *ENDS]
    with pytest.raises(InputError, match=message):
        run(tmp_path, PLAIN, rows, quarantine=budget)
    assert list_folder(str(tmp_path / "prepared")) == []


def test_values_that_cannot_be_read_count_in_the_budget_of_their_reason(tmp_path: Path):
    items = [{"item_id": name, "image": b"no picture"} for name in "abc"]
    rows = [event("ann", "c", split="train"), *ENDS]
    (reason,) = {row[3] for row in quarantine(run(tmp_path / "whole", items, rows))}
    with pytest.raises(InputError, match="3 of 3 rows of items have: .*raise data.quarantine.max_share_by_reason"):
        run(tmp_path, items, rows, quarantine={"max_share_by_reason": {reason: 0.5}})


def test_a_row_without_a_time_elsewhere_makes_no_leak_of_rows_at_two_times(tmp_path: Path):
    rows = [event("ann", "a", 1, split="train"), event("ann", "a", 9, split="valid"), event("bob", "b", split="train"), *ENDS]
    data = run(tmp_path, PLAIN, rows)
    assert (pairs(data, "valid"), data.train.timestamps) == ([("ann", "a"), ("zoe", "a")], None)


def test_tables_without_known_items_are_refused(tmp_path: Path):
    with pytest.raises(InputError, match="no interaction is left after cleaning"):
        run(tmp_path, PLAIN, [event("ann", "nowhere", 1), event("bob", "gone", 2)])


def test_without_timestamps_the_split_is_random_and_histories_have_no_times(tmp_path: Path):
    data = run(tmp_path, PLAIN, [event(user, item) for user in ("ann", "bob", "cid", "dan") for item in "abcde"])
    assert [len(data.interactions(split)) for split in ("train", "valid", "test")] == [16, 2, 2]
    assert data.train.timestamps is None
    assert data.manifest["counts"]["has_timestamps"] is False


def test_synthetic_tables_are_prepared_whole(tiny_prepared: str):
    data = PreparedData.open(tiny_prepared)
    assert (data.num_items, data.num_users) == (120, 60)
    assert data.item_facts["item_index"].to_pylist() == list(range(120))
    assert data.users["user_index"].to_pylist() == list(range(60))
    assert data.train_count_N.tolist() == np.bincount(data.train.items, minlength=120).tolist()
    assert data.train.timestamps.max() < data.interactions("valid").timestamps.min()
    assert quarantine(data) == []


def test_bad_and_repeated_rows_of_the_users_table_are_in_quarantine(tmp_path: Path):
    users = [{"user_id": name, "age": age} for age, name in enumerate(["ann", None, "ann", "zoe"])]
    data = run(tmp_path, PLAIN, [event("ann", "c", split="train"), *ENDS], users)
    assert dict(zip(data.users["user_id"].to_pylist(), data.users["age"].to_pylist(), strict=True)) == {"ann": 0, "zoe": 3}
    repeat = "user id stands in an earlier row; the first is kept"
    assert quarantine(data) == sorted([("users", None, "user_id", "id is empty", 1), ("users", "ann", "user_id", repeat, 1)], key=str)


def test_a_budget_for_a_reason_that_there_is_not_is_refused():
    with pytest.raises(ValueError, match="max_share_by_reason names 'unknown itm'; expected the beginning of one of"):
        DataConfig.model_validate({"quarantine": {"max_share_by_reason": {"unknown itm": 0.1}}})


def test_a_half_written_folder_of_a_killed_run_is_removed(tmp_path: Path):
    uri = write(tmp_path / "tables", PLAIN, [event("ann", name, place) for place, name in enumerate("abcdefabcdef", 1)])
    whole = prepare(uri, str(tmp_path / "whole"), DataConfig(), seed=0)
    (tmp_path / "out" / f"{whole['fingerprint']}.tmp-0badcafe").mkdir(parents=True)
    prepare(uri, str(tmp_path / "out"), DataConfig(), seed=0)
    assert list_folder(str(tmp_path / "out")) == [whole["fingerprint"]]
