"""The data set of the streaming bench: items with a picture, a clip and a text, one train interaction each."""

import numpy as np
import pyarrow as pa
import torch

SIDE_PIXELS, JPEG_QUALITY, SAMPLE_RATE_HZ = 256, 90, 16_000
NUM_CONTENTS = 500
"""Different pictures, clips and texts; the items repeat them, each with bytes of its own in the shards."""


def write_data(folder: str, num_rows: int, contents: pa.Table) -> None:
    """A prepared data set of num_rows items, which repeat the contents, with one train interaction each."""
    from medley.data.prepare import PREPARED_KIND
    from medley.data.shards import ITEMS_PER_SHARD
    from medley.manifest import staged_folder, write_bytes, write_parquet
    from medley.schema import PREPARED_INTERACTIONS_SCHEMA

    numbers = np.arange(num_rows)
    users = numbers % 100
    rows = {"user_index": users, "item_index": numbers, "timestamp": numbers, "value": np.ones(num_rows), "weight": np.ones(num_rows)}
    columns = {**rows, "is_target": np.ones(num_rows, dtype=bool)}
    train = pa.table({field.name: pa.array(columns[field.name]).cast(field.type) for field in PREPARED_INTERACTIONS_SCHEMA}, PREPARED_INTERACTIONS_SCHEMA)
    with staged_folder(folder) as stage:
        for number, first in enumerate(range(0, num_rows, ITEMS_PER_SHARD)):
            shard = contents.take(pa.array(numbers[first : first + ITEMS_PER_SHARD] % len(contents)))
            sink = pa.BufferOutputStream()
            with pa.ipc.new_file(sink, shard.schema) as writer:
                writer.write_table(shard.combine_chunks())
            write_bytes(stage.path("items", f"part-{number:05d}.arrow"), sink.getvalue().to_pybytes())
        for name in ("train", "valid", "test"):
            write_parquet(stage.path(f"{name}.parquet"), train if name == "train" else train.slice(0, 1))
        ids = pa.array([str(number) for number in numbers])
        facts = {"item_index": pa.array(numbers, pa.int32()), "item_id": ids, "title": ids, "train_count": pa.array(np.ones(num_rows, dtype=np.int64))}
        write_parquet(stage.path("item_facts.parquet"), pa.table(facts))
        write_parquet(stage.path("users.parquet"), pa.table({"user_index": pa.array(range(100), pa.int32()), "user_id": [str(n) for n in range(100)]}))
        counts = {"num_items": num_rows, "num_users": 100, "columns": ["text", "image", "audio"]}
        stage.commit(PREPARED_KIND, "streaming-bench", parents={}, counts=counts, config={})


def make_contents(count: int) -> pa.Table:
    """Pictures with the detail of photographs (about 25 KB each), clips of tones and noise, texts of 5 to 40 words."""
    from medley.media import encode_flac, encode_jpeg

    random = np.random.default_rng(0)
    words = ["".join(random.choice(list("abcdefghiklmnoprstu"), random.integers(2, 10))) for _ in range(2000)]
    seconds_S = torch.arange(SAMPLE_RATE_HZ) / SAMPLE_RATE_HZ
    images, clips, texts = [], [], []
    for _ in range(count):
        image_CHW = torch.zeros(3, SIDE_PIXELS, SIDE_PIXELS)
        for side, strength in ((4, 60.0), (16, 30.0), (64, 20.0), (SIDE_PIXELS, 6.0)):
            detail = torch.from_numpy(random.normal(0, strength, (1, 3, side, side)).astype(np.float32))
            image_CHW += torch.nn.functional.interpolate(detail, size=(SIDE_PIXELS, SIDE_PIXELS), mode="bilinear")[0]
        images.append(encode_jpeg((image_CHW + 128).clamp(0, 255).to(torch.uint8), JPEG_QUALITY))
        noise_S = torch.from_numpy(random.normal(0, 0.02, SAMPLE_RATE_HZ).astype(np.float32))
        clips.append(encode_flac(0.5 * torch.sin(2 * np.pi * float(random.uniform(100, 2000)) * seconds_S) + noise_S, SAMPLE_RATE_HZ))
        texts.append(" ".join(random.choice(words, random.integers(5, 40))))
    return pa.table({"text": pa.array(texts), "image": pa.array(images, pa.large_binary()), "audio": pa.array(clips, pa.large_binary())})
