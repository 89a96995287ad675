"""The data of the streaming bench: items with a picture, a clip and a text, one train interaction each, in every format that a loader reads."""

import io
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

SIDE_PIXELS, JPEG_QUALITY, SAMPLE_RATE_HZ = 256, 90, 16_000
NUM_CONTENTS = 500
"""Different pictures, clips and texts; the items repeat them, each with bytes of its own in the files."""
ROWS_PER_FILE = 1000


def make_contents(count: int) -> pa.Table:
    """Pictures with the detail of photographs (about 22 KB each), clips of tones and noise as PCM16, texts of 5 to 40 words."""
    from medley.media import encode_jpeg

    random = np.random.default_rng(0)
    words = ["".join(random.choice(list("abcdefghiklmnoprstu"), random.integers(2, 10))) for _ in range(2000)]
    seconds_S = np.arange(SAMPLE_RATE_HZ) / SAMPLE_RATE_HZ
    images, clips, texts = [], [], []
    for _ in range(count):
        image_CHW = torch.zeros(3, SIDE_PIXELS, SIDE_PIXELS)
        for side, strength in ((4, 60.0), (16, 30.0), (64, 20.0), (SIDE_PIXELS, 6.0)):
            detail = torch.from_numpy(random.normal(0, strength, (1, 3, side, side)).astype(np.float32))
            image_CHW += torch.nn.functional.interpolate(detail, size=(SIDE_PIXELS, SIDE_PIXELS), mode="bilinear")[0]
        images.append(encode_jpeg((image_CHW + 128).clamp(0, 255).to(torch.uint8), JPEG_QUALITY))
        samples_S = 0.5 * np.sin(2 * np.pi * random.uniform(100, 2000) * seconds_S) + random.normal(0, 0.02, SAMPLE_RATE_HZ)
        clips.append((samples_S * 32_767).astype("<i2").tobytes())
        texts.append(" ".join(random.choice(words, random.integers(5, 40))))
    return pa.table({"text": pa.array(texts), "image": pa.array(images, pa.large_binary()), "audio": pa.array(clips, pa.large_binary())})


def tables_of(contents: pa.Table, num_rows: int, rows_each: int) -> Iterator[pa.Table]:
    """The items, rows_each at a time."""
    for first in range(0, num_rows, rows_each):
        yield contents.take(pa.array(np.arange(first, min(first + rows_each, num_rows)) % len(contents))).combine_chunks()


def write_prepared(folder: str, num_rows: int, contents: pa.Table) -> None:
    """A prepared data set, as ours reads it."""
    from medley.data.base import PREPARED_KIND
    from medley.data.shards import items_per_shard, shard_name
    from medley.manifest import staged_folder, write_bytes, write_parquet
    from medley.schema import PREPARED_INTERACTIONS_SCHEMA

    numbers = np.arange(num_rows)
    num_users, size = max(1, num_rows // 10), items_per_shard(contents.nbytes / len(contents))
    users = numbers % num_users
    rows = {"user_index": users, "item_index": numbers, "timestamp": numbers, "value": np.ones(num_rows), "weight": np.ones(num_rows)}
    columns = {**rows, "is_target": np.ones(num_rows, dtype=bool)}
    train = pa.table({field.name: pa.array(columns[field.name]).cast(field.type) for field in PREPARED_INTERACTIONS_SCHEMA}, PREPARED_INTERACTIONS_SCHEMA)
    with staged_folder(folder) as stage:
        for number, shard in enumerate(tables_of(contents, num_rows, size)):
            sink = pa.BufferOutputStream()
            with pa.ipc.new_file(sink, shard.schema) as writer:
                writer.write_table(shard)
            write_bytes(stage.path(shard_name(number)), sink.getvalue().to_pybytes())
        for name in ("train", "valid", "test"):
            write_parquet(stage.path(name, "part-00000.parquet"), train if name == "train" else train.slice(0, 1))
        ids = pa.array([str(number) for number in numbers])
        facts = {"item_index": pa.array(numbers, pa.int32()), "item_id": ids, "title": ids, "train_count": pa.array(np.ones(num_rows, dtype=np.int64))}
        write_parquet(stage.path("item_facts.parquet"), pa.table(facts))
        user_ids = [str(number) for number in range(num_users)]
        write_parquet(stage.path("users.parquet"), pa.table({"user_index": pa.array(range(num_users), pa.int32()), "user_id": user_ids}))
        counts = {"num_items": num_rows, "items_per_shard": size, "num_users": num_users, "columns": contents.column_names}
        stage.commit(PREPARED_KIND, "streaming-bench", parents={}, counts=counts, config={})


def write_parquet_files(folder: str, num_rows: int, contents: pa.Table) -> None:
    """Parquet with small row groups, uncompressed: media do not shrink."""
    Path(folder).mkdir()
    for number, rows in enumerate(tables_of(contents, num_rows, ROWS_PER_FILE)):
        pq.write_table(rows, Path(folder, f"{number:04d}.parquet"), row_group_size=128, compression="none")


def write_tars(folder: str, num_rows: int, contents: pa.Table) -> None:
    """WebDataset's tar files: KEY.jpg, KEY.pcm, KEY.txt side by side."""
    Path(folder).mkdir()
    suffixes = {"image": "jpg", "audio": "pcm", "text": "txt"}
    for number, rows in enumerate(tables_of(contents, num_rows, ROWS_PER_FILE)):
        with tarfile.open(Path(folder, f"{number:04d}.tar"), "w") as tar:
            for place, row in enumerate(rows.to_pylist()):
                for column, suffix in suffixes.items():
                    content = row[column].encode() if isinstance(row[column], str) else row[column]
                    entry = tarfile.TarInfo(f"{number:04d}{place:04d}.{suffix}")
                    entry.size = len(content)
                    tar.addfile(entry, io.BytesIO(content))


def write_mosaic(parquet_folder: str, folder: str) -> None:
    """Mosaic's shards (MDS), from the Parquet files; runs in its own environment: `python -m tests.bench.streaming_data PARQUET_FOLDER FOLDER`."""
    from streaming import MDSWriter

    with MDSWriter(out=folder, columns={"image": "bytes", "audio": "bytes", "text": "str"}) as writer:
        for path in sorted(Path(parquet_folder).iterdir()):
            for row in pq.read_table(path).to_pylist():
                writer.write(row)


if __name__ == "__main__":
    write_mosaic(*sys.argv[1:])
