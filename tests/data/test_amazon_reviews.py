"""Reviews and product metadata of Amazon Reviews 2023 become tables; what a product does not have is null, a damaged copy is refused."""

import gzip
import json
from datetime import UTC, datetime
from pathlib import Path

import pytest

from medley.data.convert import convert
from medley.data.convert.amazon_reviews import AmazonReviewsConfig
from medley.manifest import read_parquet
from medley.schema import InputError

MUG = {
    "main_category": "Amazon Home",
    "title": "Mug",
    "features": ["Holds tea", "Blue"],
    "price": 9.5,
    "images": [{"thumb": "https://m/I/t1.jpg", "large": "https://m/I/other.jpg", "hi_res": None, "variant": "PT01"}],
    "store": "Clay",
    "categories": ["Home", "Kitchen"],
    "description": ["For the morning."],
    "parent_asin": "B01",
    "bought_together": None,
}
POT = MUG | {
    "title": "Pot",
    "features": [],
    "description": [],
    "categories": [],
    "store": None,
    "price": "from 12.00",
    "parent_asin": "B02",
    "images": [
        {"thumb": "https://m/I/side.jpg", "large": None, "hi_res": None, "variant": "PT01"},
        {"thumb": "https://m/I/x.jpg", "large": "https://m/I/main._AC_.jpg", "hi_res": None, "variant": "MAIN"},
    ],
}
PAN = MUG | {"title": "Pan", "price": None, "parent_asin": "B03", "images": []}
REVIEWS = [
    {"rating": 4.0, "title": "Good", "asin": "B01-blue", "parent_asin": "B01", "user_id": "U1", "timestamp": 1588687728923, "verified_purchase": True},
    {"rating": 1.0, "title": "Broke", "asin": "B99", "parent_asin": "B99", "user_id": "U1", "timestamp": 1588687728924, "verified_purchase": False},
]
PICTURES = {"images/B01.png": "mug", "images/main._AC_.jpg": "pot", "images/side.jpg": "pot from the side", "images/t1.jpg": "mug, small"}


def jsonl(rows: list[dict]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


FILES = {"meta_Home.jsonl": jsonl([MUG, POT, PAN]), "Home.jsonl": jsonl(REVIEWS)}


def tables(tmp_path: Path, files: dict[str, str | bytes], **settings) -> tuple[dict, dict[str, list[dict]]]:
    for name, content in files.items():
        (tmp_path / "raw" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "raw" / name).write_bytes(content.encode() if isinstance(content, str) else content)
    result = convert(AmazonReviewsConfig(raw=str(tmp_path / "raw"), **settings), str(tmp_path / "tables"))
    names = ("items", "interactions", "quarantine.parquet")
    return result, {name.removesuffix(".parquet"): read_parquet(str(tmp_path / "tables" / name)).to_pylist() for name in names}


def test_products_and_reviews_become_items_and_rated_interactions(tmp_path):
    counts, found = tables(tmp_path, FILES)
    assert found["items"][:2] == [
        {
            "item_id": "B01",
            "title": "Mug",
            "text": "Mug\nHolds tea Blue\nFor the morning.",
            "categories": ["Home", "Kitchen"],
            "price": 9.5,
            "store": "Clay",
        },
        {"item_id": "B02", "title": "Pot", "text": "Pot", "categories": None, "price": None, "store": None},
    ]
    time = datetime(2020, 5, 5, 14, 8, 48, 923_000, tzinfo=UTC)
    assert found["interactions"] == [{"user_id": "U1", "item_id": "B01", "timestamp": time, "value": 4.0}]
    assert [tuple(row.values())[:5] for row in found["quarantine"]] == [("interactions", "B99", "item_id", "no item of meta_Home.jsonl has this id", 1)]
    assert (counts["num_items"], counts["num_interactions"]) == (3, 1)


def test_compressed_files_are_read_and_named_ones_are_taken(tmp_path):
    packed = {f"{name}.gz": gzip.compress(content.encode()) for name, content in FILES.items()}
    _, found = tables(tmp_path / "found", packed)
    assert [item["item_id"] for item in found["items"]] == ["B01", "B02", "B03"]
    moved = {"meta/meta_Home.jsonl": FILES["meta_Home.jsonl"], "reviews/Home.jsonl.gz": packed["Home.jsonl.gz"]}
    _, named = tables(tmp_path / "named", moved, meta="meta/meta_Home.jsonl", reviews="reviews/Home.jsonl.gz")
    assert named["interactions"] == found["interactions"]


def test_pictures_are_found_by_product_or_by_address_the_main_one_first(tmp_path):
    counts, found = tables(tmp_path, FILES | PICTURES, images="images")
    assert [item["image"] for item in found["items"]] == [b"mug", b"pot", None]
    assert counts["num_items_with_image"] == 2
    assert [row["column"] for row in found["quarantine"]] == ["item_id"]


@pytest.mark.parametrize(
    ("files", "settings", "parts"),
    [
        ({"Home.jsonl": ""}, {}, ["has no file meta_….jsonl (found: Home.jsonl)"]),
        ({"meta_Home.jsonl": ""}, {}, ["file 'Home.jsonl' does not exist in", "the reviews of 'meta_Home.jsonl'"]),
        (FILES | {"meta_Toys.jsonl": ""}, {}, ["has 2 files meta_….jsonl (meta_Home.jsonl, meta_Toys.jsonl)"]),
        (FILES, {"reviews": "Hme.jsonl"}, ["file 'Hme.jsonl' does not exist in", "did you mean 'Home.jsonl'?"]),
        (FILES, {"images": "pictures"}, ["folder 'pictures' in", "has no file"]),
        (FILES | {"Home.jsonl": FILES["Home.jsonl"] + '{"rating"'}, {}, ["line 3 of 'Home.jsonl' in", "line is not JSON"]),
        (FILES | {"meta_Home.jsonl": jsonl([MUG, MUG])}, {}, ["line 2 of 'meta_Home.jsonl' in", "'B01' is the id of an earlier row"]),
        (FILES | {"Home.jsonl": jsonl([REVIEWS[0] | {"timestamp": "May"}])}, {}, ["line 1 of 'Home.jsonl'", "'timestamp': 'May' is not a time"]),
        (FILES | {"Home.jsonl": jsonl([REVIEWS[0] | {"user_id": ""}])}, {}, ["line 1 of 'Home.jsonl'", "'user_id': field 'user_id' is empty"]),
    ],
)
def test_missing_files_and_broken_lines_are_refused_with_file_and_line(tmp_path, files, settings, parts):
    with pytest.raises(InputError) as caught:
        tables(tmp_path, files, **settings)
    for part in [*parts, "; expected "]:
        assert part in str(caught.value)
