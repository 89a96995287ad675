"""A shard with bad rows: the good rows of the same block are stored, with the hash of every medium."""

import hashlib
import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from medley.data.clean import HASH_SUFFIX, SILENT_AUDIO, clean_items
from medley.data.tables import Tables, open_tables
from medley.media import MediaConfig, decode_flac, decode_jpeg, encode_flac

SCHEMA = pa.schema([("item_id", pa.string()), ("title", pa.string()), ("text", pa.string()), ("image", pa.binary()), ("audio", pa.binary())])


def png(side_pixels: int, mode: str = "RGB") -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, (side_pixels, side_pixels), 7).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def clip(values: np.ndarray) -> bytes:
    return encode_flac(values.astype(np.float32), 16_000)


@pytest.fixture
def tables(tmp_path: Path) -> Tables:
    """40 items with text, a picture and a clip; 7 has a slow picture, 11 a broken clip, 12 no media, 13 silence and 14 a constant."""
    slope = clip(np.linspace(-0.5, 0.5, 1_000))
    rows = [{"item_id": f"item {place}", "title": "t", "text": f"words {place}", "image": png(8 + place), "audio": slope} for place in range(40)]
    rows[7]["image"] = png(5_000, "RGBA")
    rows[11]["audio"] = b"fLaC garbage"
    rows[12] |= {"image": None, "audio": None}
    rows[13]["audio"], rows[14]["audio"] = clip(np.zeros(1_000)), clip(np.full(1_000, 0.25))
    event = {"user_id": ["ann"], "item_id": ["item 0"]}
    for name, table in (("items", pa.Table.from_pylist(rows, SCHEMA)), ("interactions", pa.table(event))):
        (tmp_path / name).mkdir()
        pq.write_table(table, tmp_path / name / "0.parquet", write_page_checksum=True)
    return open_tables(str(tmp_path))


def test_a_row_that_ends_its_decoder_is_reported_and_the_others_of_its_block_are_kept(tables: Tables):
    cleaned = clean_items(tables, MediaConfig(max_decode_seconds=0.1), np.zeros(40, dtype=np.int32), np.arange(40))
    slow, broken = cleaned.quarantine
    assert slow == {"table": "items", "id": "item 7", "column": "image", "reason": "decoder took more than 0.1 s", "num_rows": 1}
    assert (broken["id"], broken["column"], broken["reason"][:30]) == ("item 11", "audio", "audio header cannot be read (E")
    assert cleaned.coverage == {"item_id": 40, "title": 40, "text": 40, "image": 38, "audio": 38, SILENT_AUDIO: 2}

    table = cleaned.table
    assert table.column_names == ["item_id", "text", "image", "audio", "image_sha256", "audio_sha256"]
    assert table.schema.field("image_sha256").type == pa.binary(32)
    rows = table.to_pylist()
    assert [row["text"] for row in rows] == [f"words {place}" for place in range(40)]
    assert [place for place, row in enumerate(rows) if row["image"] is None] == [7, 12]
    assert [place for place, row in enumerate(rows) if row["audio"] is None] == [11, 12]
    for place, row in enumerate(rows):
        for name in ("image", "audio"):
            assert row[name + HASH_SUFFIX] == (None if row[name] is None else hashlib.sha256(row[name]).digest())
        if row["image"]:
            assert decode_jpeg(row["image"]).shape == (3, 8 + place, 8 + place)
        if row["audio"]:
            assert decode_flac(row["audio"]).shape == (1_000,)


def test_rows_that_are_left_out_are_skipped_and_equal_media_have_equal_hashes(tables: Tables):
    rows = clean_items(tables, MediaConfig(), np.zeros(3, dtype=np.int32), np.array([3, 5, 38])).table.to_pylist()
    assert [row["item_id"] for row in rows] == ["item 3", "item 5", "item 38"]
    assert len({row["audio_sha256"] for row in rows}) == 1
    assert len({row["image_sha256"] for row in rows}) == 3
