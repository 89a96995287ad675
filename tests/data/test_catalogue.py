"""A folder and a mapping become tables; what is bad is reported row by row, what is wrong in the mapping is refused with a message that helps."""

import gzip
import io
import json
import wave
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from ruamel.yaml import YAML

from medley.data.convert import mapped_tables
from medley.data.convert.catalogue import CatalogueConfig, write_tables
from medley.manifest import read_parquet, staged_folder
from medley.media import MediaConfig, decode_audio, decode_image
from medley.schema import INTERACTIONS_SCHEMA, QUARANTINE_SCHEMA, InputError

ROOT = Path(__file__).resolve().parents[2]
MAPPINGS = ROOT / "jobs" / "mappings"
POKEMON = ROOT.parent / "shared" / "data" / "pokemon"

ITEMS = [{"id": 1, "name": "Mug", "about": "Blue."}, {"id": 2, "name": "Pot", "about": None}]
MAPPING = {
    "items": {"file": "items.jsonl", "id": "id", "title": "name", "text": ["name", "about"]},
    "interactions": {"file": "log.csv", "user": "user", "item": "item"},
}


def png() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (2, 2), "red").save(buffer, "PNG")
    return buffer.getvalue()


def wav() -> bytes:
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as sound:
        sound.setparams((1, 2, 16_000, 0, "NONE", ""))
        sound.writeframes(bytes(3_200))
    return buffer.getvalue()


def jsonl(rows: list[dict]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def write_folder(folder: Path, files: dict[str, str | bytes]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
    return folder


def convert(folder: Path, mapping: dict | Path, out: Path | None = None) -> tuple[dict[str, int], dict[str, pa.Table]]:
    """Counts and tables of a conversion; a dictionary is written as a mapping file first."""
    if isinstance(mapping, dict):
        path = folder / "mapping.yaml"
        with path.open("w") as stream:
            YAML(typ="safe").dump(mapping, stream)
        mapping = path
    out = out or folder.parent / f"{folder.name}-tables"
    with staged_folder(str(out)) as stage:
        counts = write_tables(CatalogueConfig(raw=str(folder), mapping=str(mapping)), stage)
        stage.commit("tables", "x", parents={}, counts=counts, config={})
    names = ("items", "interactions", "users", "quarantine.parquet")
    return counts, {name.removesuffix(".parquet"): read_parquet(str(out / name)) for name in names if (out / name).exists()}


def small(tmp_path: Path, log: str = "user,item\na,1\nb,2\n", items: list[dict] | None = None, **files: str | bytes) -> Path:
    return write_folder(tmp_path / "raw", {"items.jsonl": jsonl(items or ITEMS), "log.csv": log, **files})


def with_table(table: str, **keys) -> dict:
    return MAPPING | {table: MAPPING[table] | keys}


def reasons(tables: dict[str, pa.Table]) -> list[tuple]:
    """table, id, column, reason and number of rows; a raw file has no shard."""
    return [tuple(row.values())[:5] for row in tables["quarantine"].to_pylist()]


def test_a_small_folder_becomes_tables_with_string_ids_and_joined_text(tmp_path):
    counts, tables = convert(small(tmp_path), MAPPING)
    assert counts == {"num_items": 2, "num_interactions": 2, "num_quarantined": 0}
    assert tables["items"].to_pylist() == [{"item_id": "1", "title": "Mug", "text": "Mug\nBlue."}, {"item_id": "2", "title": "Pot", "text": "Pot"}]
    assert tables["interactions"].to_pylist() == [{"user_id": "a", "item_id": "1"}, {"user_id": "b", "item_id": "2"}]
    assert "users" not in tables
    assert tables["quarantine"].schema.equals(QUARANTINE_SCHEMA)


def test_tags_come_from_lists_separated_strings_and_csv_cells(tmp_path):
    items = [{"id": 1, "a": ["x", "y"], "b": "p | q|", "c": '["k"]'}, {"id": 2, "a": [], "b": "", "c": "one tag"}, {"id": 3, "a": 7, "b": None, "c": "[broken"}]
    tags = {"a": "a", "b": {"field": "b", "separator": "|"}, "c": "c"}
    mapping = MAPPING | {"items": {"file": "items.jsonl", "id": "id", "tags": tags}}
    _, tables = convert(small(tmp_path, items=items), mapping)
    assert tables["items"].schema.field("a").type == pa.list_(pa.string())
    assert tables["items"].to_pylist() == [
        {"item_id": "1", "a": ["x", "y"], "b": ["p", "q"], "c": ["k"]},
        {"item_id": "2", "a": None, "b": None, "c": ["one tag"]},
    ]
    assert reasons(tables) == [("items", "3", "c", "field 'c' begins like a JSON list and is none", 1)]


def test_attributes_are_double_only_when_every_value_is_a_plain_number(tmp_path):
    items = [{"id": 1, "price": "1.5", "code": "007", "size": 3, "new": True}, {"id": 2, "price": 2, "code": "8", "size": "L"}]
    mapping = with_table("items", title=None, text=[], attributes={"price": "price", "code": "code", "size": "size", "new": "new"})
    _, tables = convert(small(tmp_path, items=items), mapping)
    assert tables["items"].to_pylist() == [
        {"item_id": "1", "price": 1.5, "code": "007", "size": "3", "new": "true"},
        {"item_id": "2", "price": 2.0, "code": "8", "size": "L", "new": None},
    ]


def test_media_come_from_patterns_and_from_fields_and_absent_files_are_reported(tmp_path):
    items = [{"id": 1, "sound": "s/a.wav"}, {"id": 2, "sound": None}, {"id": 3, "sound": "../secret"}, {"id": 4, "sound": "s"}]
    files = {"images/1.png": png(), "images/3.png": b"", "s/a.wav": wav()}
    write_folder(tmp_path, {"secret": b"x"})
    mapping = MAPPING | {"items": {"file": "items.jsonl", "id": "id", "image": "images/{id}.png", "audio": "sound"}}
    counts, tables = convert(small(tmp_path, items=items, **files), mapping)
    assert (counts["num_items_with_image"], counts["num_items_with_audio"], counts["num_items"]) == (1, 1, 4)
    assert tables["items"]["image"].to_pylist() == [png(), None, None, None]
    assert tables["items"]["audio"].to_pylist() == [wav(), None, None, None]
    assert reasons(tables) == [
        ("items", "2", "image", "file images/2.png does not exist", 1),
        ("items", "3", "image", "file images/3.png has 0 bytes, limit 50000000", 1),
        ("items", "4", "image", "file images/4.png does not exist", 1),
        ("items", "3", "audio", "file ../secret cannot be read (path '../secret' leaves the raw folder)", 1),
        ("items", "4", "audio", "file s does not exist", 1),
    ]


def test_bad_items_are_quarantined_and_the_first_of_two_ids_is_kept(tmp_path):
    lines = jsonl([ITEMS[0], {"id": "1", "name": "second"}, {"id": " "}, {"name": "no id"}, {"id": 1.5}, {"id": 9, "name": "\ud800"}])
    folder = small(tmp_path, log="user,item\na,1\n")
    (folder / "items.jsonl").write_bytes(lines.encode() + b'[1]\n{"id": \n\n{"id": 5, "name": "\xff"}\n{"id": 6, "about": Infinity}\n')
    counts, tables = convert(folder, with_table("items", text="about"))
    assert tables["items"]["title"].to_pylist() == ["Mug"]
    assert counts["num_quarantined"] == 9
    found = reasons(tables)
    assert found[:7] == [
        ("items", "line 2", "item_id", "'1' is the id of an earlier row", 1),
        ("items", "line 3", "item_id", "field 'id' is empty", 1),
        ("items", "line 4", "item_id", "field 'id' is empty", 1),
        ("items", "line 5", "item_id", "field 'id' is no string or whole number", 1),
        ("items", "9", "title", "field 'name' is not valid UTF-8", 1),
        ("items", "line 7", None, "line is not a JSON object", 1),
        ("items", "line 8", None, "line is not JSON (Expecting value: line 2 column 1 (char 8))", 1),
    ]
    assert [row[1] for row in found[7:]] == ["line 10", "line 11"]
    assert "Infinity" in found[8][3]


@pytest.mark.parametrize(
    ("text", "timestamp_format", "expected"),
    [
        ("2020-01-01T01:04:26+01:00", "iso", datetime(2020, 1, 1, 0, 4, 26, tzinfo=UTC)),
        ("2020-01-01 00:04:26.5", "iso", datetime(2020, 1, 1, 0, 4, 26, 500_000, tzinfo=UTC)),
        ("1577837066", "seconds", datetime(2020, 1, 1, 0, 4, 26, tzinfo=UTC)),
        ("1577837066001", "milliseconds", datetime(2020, 1, 1, 0, 4, 26, 1_000, tzinfo=UTC)),
        ("2020-01-01-00:04:26", "%Y-%m-%d-%H:%M:%S", datetime(2020, 1, 1, 0, 4, 26, tzinfo=UTC)),
    ],
)
def test_times_of_every_format_are_utc(tmp_path, text, timestamp_format, expected):
    mapping = with_table("interactions", timestamp="time", timestamp_format=timestamp_format)
    _, tables = convert(small(tmp_path, log=f"user,item,time\na,1,{text}\n"), mapping)
    assert tables["interactions"]["timestamp"].to_pylist() == [expected]
    assert tables["interactions"].schema.field("timestamp").type == INTERACTIONS_SCHEMA.field("timestamp").type


def test_bad_interactions_are_quarantined_by_line_and_unknown_items_once_with_their_number(tmp_path):
    log = (
        "user,item,t,v,d,s\na,1,5,4,1,train\na,1,x,4,1,train\na,1,,4,1,train\na,1,5,inf,1,\na,1,5,four,,\na,1,5,,-1,\n"
        "a,1,5,,,dev\n,1,5,,,\nb,7,5,,,\nc,7,5,,,\nc,1\na,1,1577837066000,,,\na,2,5,,,\n"
    )
    mapping = with_table("interactions", timestamp="t", timestamp_format="seconds", value="v", dwell_seconds="d", split="s", event={"constant": "buy"})
    counts, tables = convert(small(tmp_path, log=log), mapping)
    first, last = tables["interactions"].to_pylist()
    time = datetime(1970, 1, 1, 0, 0, 5, tzinfo=UTC)
    assert first == {"user_id": "a", "item_id": "1", "timestamp": time, "event": "buy", "value": 4.0, "dwell_seconds": 1.0, "split": "train"}
    assert last == {"user_id": "a", "item_id": "2", "timestamp": time, "event": "buy", "value": None, "dwell_seconds": None, "split": None}
    assert tables["interactions"].schema.names == INTERACTIONS_SCHEMA.names
    assert tables["interactions"].schema.types == INTERACTIONS_SCHEMA.types
    assert [row[1:] for row in reasons(tables)] == [
        ("line 3", "timestamp", "'x' is not a time of the format seconds", 1),
        ("line 4", "timestamp", "field 't' is empty", 1),
        ("line 5", "value", "inf is not a finite number of 32 bits", 1),
        ("line 6", "value", "'four' is not a number", 1),
        ("line 7", "dwell_seconds", "-1 seconds are negative", 1),
        ("line 8", "split", "'dev' is none of train, valid, test", 1),
        ("line 9", "user_id", "field 'user' is empty", 1),
        ("line 12", None, "line has 2 cells, the header 6", 1),
        ("line 13", "timestamp", "'1577837066000' is not a time of the format seconds", 1),
        ("7", "item_id", "no item of items.jsonl has this id", 2),
    ]
    assert counts["num_quarantined"] == 10


def test_compressed_and_tab_separated_files_with_a_byte_order_mark_are_read(tmp_path):
    folder = small(tmp_path, **{"log.tsv.gz": gzip.compress("\ufeffuser\titem\n\u00e9\t1\n".encode())})
    _, tables = convert(folder, with_table("interactions", file="log.tsv.gz"))
    assert tables["interactions"].to_pylist() == [{"user_id": "é", "item_id": "1"}]
    whole = (folder / "log.tsv.gz").read_bytes()
    (folder / "log.tsv.gz").write_bytes(whole[:-12])
    with pytest.raises(InputError, match=r"file 'log.tsv.gz' in .* cannot be read"):
        convert(folder, with_table("interactions", file="log.tsv.gz"))


def test_long_catalogues_are_written_in_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr(mapped_tables, "ITEMS_PER_GROUP", 4)
    monkeypatch.setattr(mapped_tables, "ITEMS_PER_FILE", 8)
    items = [{"id": number, "name": f"item {number}"} for number in range(18)]
    _, tables = convert(small(tmp_path, items=items), with_table("items", text="name"))
    files = [pq.ParquetFile(path).metadata for path in sorted((tmp_path / "raw-tables" / "items").iterdir())]
    assert [(file.num_rows, file.num_row_groups) for file in files] == [(8, 2), (8, 2), (2, 1)]
    assert tables["items"]["item_id"].to_pylist() == [str(number) for number in range(18)]


@pytest.mark.parametrize(
    ("mapping", "parts"),
    [
        (with_table("items", file="itms.jsonl"), ["file 'itms.jsonl' does not exist", "log.csv", "did you mean 'items.jsonl'?"]),
        (with_table("items", file="items.xml"), ["items.file is 'items.xml'", ".jsonl, .csv or .tsv"]),
        (
            with_table("items", text=["name", "abuot"]),
            ["field 'abuot' (items.text.1) is in no row of 'items.jsonl'", "about, id, name", "'about'?"],
        ),
        (with_table("items", image="images/{nam}.png"), ["field 'nam' (items.image.0)", "did you mean 'name'?"]),
        (with_table("interactions", user="usr"), ["field 'usr' (interactions.user) is in no row of 'log.csv'", "item, user", "'user'?"]),
        (with_table("interactions", item="user"), ["file 'log.csv' has no usable row, first reason: a: no item of items.jsonl has this id"]),
        (with_table("items", titel="name"), ["at items.titel: Extra inputs are not permitted", "keys file, id, title", "did you mean 'title'?"]),
        (with_table("items", image="../{id}.png"), ["at items.image: path '../{id}.png' leaves the raw folder"]),
        (with_table("items", file="/etc/passwd"), ["at items.file: path '/etc/passwd' leaves the raw folder"]),
        (with_table("items", attributes={"text": "about"}), ["at items: column 'text' is named twice or is one of item_id"]),
        ({"items": MAPPING["items"]}, ["at interactions: Field required", "keys file, user, item"]),
    ],
)
def test_mistakes_in_the_mapping_are_refused_with_what_was_found_and_what_was_meant(tmp_path, mapping, parts):
    with pytest.raises(InputError) as caught:
        convert(small(tmp_path), mapping)
    for part in parts:
        assert part in str(caught.value)
    assert not (tmp_path / "raw-tables").exists()


def test_a_mapping_that_is_no_yaml_and_a_missing_one_are_refused(tmp_path):
    folder = small(tmp_path, **{"broken.yaml": "items: [", "twice.yaml": "items: 1\nitems: 2"})
    for name in ("broken.yaml", "twice.yaml"):
        with pytest.raises(InputError, match="is not YAML"):
            convert(folder, folder / name)
    with pytest.raises(InputError, match="does not exist"):
        convert(folder, folder / "absent.yaml")


def test_every_mapping_names_its_command_in_its_first_line():
    for path in MAPPINGS.glob("*.yaml"):
        assert path.read_text().splitlines()[0].endswith(f"python -m jobs.convert catalogue RAW_DIR OUT_DIR mapping=jobs/mappings/{path.name}")


def test_a_listening_log_converts_with_the_music_mapping(tmp_path):
    files = {
        "tracks.csv": "track_id,title,artist,album,lyrics,genres,preview_path,release_year\n"
        't1,Rain,Ann,,"Drip,\ndrop",indie|folk rock,previews/t1.wav,1999\nt2,Sun,Bo,Sky,,,,2001\n',
        "previews/t1.wav": wav(),
        "listeners.csv": "listener_id,country,age_group\nu1,SE,25-39\nu2,,\n",
        "listens.tsv": "listener_id\ttrack_id\tlistened_at\tplay_seconds\nu1\tt1\t1700000000\t31.5\nu2\tt2\t1700000060\t\n",
    }
    counts, tables = convert(write_folder(tmp_path / "raw", files), MAPPINGS / "music.yaml")
    assert counts == {"num_items": 2, "num_items_with_audio": 1, "num_interactions": 2, "num_users": 2, "num_quarantined": 0}
    track = tables["items"].to_pylist()[0]
    assert (track["text"], track["genres"], track["release_year"], track["artist"]) == ("Rain\nAnn\nDrip,\ndrop", ["indie", "folk rock"], 1999.0, "Ann")
    assert len(decode_audio(track["audio"], MediaConfig())) == 1_600
    assert tables["users"].to_pylist()[1] == {"user_id": "u2", "country": None, "age_group": None}
    assert tables["interactions"]["dwell_seconds"].to_pylist() == [31.5, None]
    assert set(tables["interactions"]["event"].to_pylist()) == {"play"}


def test_posts_and_reactions_convert_with_the_social_mapping(tmp_path):
    post = {
        "post_id": 10,
        "body": "Look #sea",
        "hashtags": ["sea"],
        "picture": "pictures/10.png",
        "author_id": 3,
        "language": "en",
        "posted_at": "2024-05-01T10:00:00Z",
    }
    reactions = [{"account_id": 7, "post_id": 10, "action": action, "created_at": "2024-05-01T12:30:00+02:00"} for action in ("like", "share")]
    files = {"posts.jsonl": jsonl([post, post | {"post_id": 11, "picture": None}]), "pictures/10.png": png(), "reactions.jsonl": jsonl(reactions)}
    counts, tables = convert(write_folder(tmp_path / "raw", files), MAPPINGS / "social.yaml")
    assert counts == {"num_items": 2, "num_items_with_image": 1, "num_interactions": 2, "num_quarantined": 0}
    assert decode_image(tables["items"]["image"][0].as_py(), MediaConfig())[:, 0, 0].tolist() == [255, 0, 0]
    assert tables["interactions"]["event"].to_pylist() == ["like", "share"]
    assert tables["interactions"]["timestamp"][0].as_py() == datetime(2024, 5, 1, 10, 30, tzinfo=UTC)


def test_shop_events_convert_with_the_shop_mapping(tmp_path):
    files = {
        "products.csv": "sku,name,brand,description,category_path,price,gtin\nm-1,Mug,Clay,Blue mug,Home > Kitchen > Mugs,9.50,0401\nm-2,Pot,,,Home,20,0402\n",
        "images/m-1.jpg": png(),
        "customers.csv": "customer_id,segment\nc1,new\n",
        "events.csv": "customer_id,sku,event_time,event_type,quantity\nc1,m-1,1700000000000,view,\nc1,m-1,1700000005000,cart,2\nc1,m-1,1700000009000,buy,2\n",
    }
    counts, tables = convert(write_folder(tmp_path / "raw", files), MAPPINGS / "shop.yaml")
    assert counts == {"num_items": 2, "num_items_with_image": 1, "num_interactions": 3, "num_users": 1, "num_quarantined": 1}
    mug, pot = tables["items"].drop_columns("image").to_pylist()
    assert (mug["category"], mug["price"], mug["gtin"]) == (["Home", "Kitchen", "Mugs"], 9.5, "0401")
    assert (pot["text"], pot["brand"]) == ("Pot", None)
    assert tables["interactions"]["value"].to_pylist() == [None, 2.0, 2.0]
    assert reasons(tables) == [("items", "m-2", "image", "file images/m-2.jpg does not exist", 1)]


@pytest.mark.skipif(not POKEMON.exists(), reason="the Pokémon data set is not beside the repository")
def test_the_pokemon_data_set_converts_without_code_of_its_own(tmp_path):
    counts, tables = convert(POKEMON, MAPPINGS / "pokemon.yaml", tmp_path / "tables")
    assert counts == {"num_items": 898, "num_items_with_image": 898, "num_items_with_audio": 898, "num_interactions": 22_621, "num_quarantined": 0}
    first = tables["items"].slice(0, 1).to_pylist()[0]
    assert (first["item_id"], first["title"], first["types"]) == ("1", "Bulbasaur", ["Grass", "Poison"])
    assert first["text"].startswith("Seed Pokémon\nBulbasaur can be seen napping")
    assert decode_image(first["image"], MediaConfig()).shape[0] == 3
    assert len(decode_audio(first["audio"], MediaConfig())) > 1_000
    assert tables["interactions"]["timestamp"][0].as_py() == datetime(2020, 1, 1, 0, 4, 26, tzinfo=UTC)
    assert set(tables["interactions"]["event"].to_pylist()) == {"own"}
