"""The loaders that the streaming bench measures beside ours. Each function takes (folder, number of rows, tokenizer) and gives the epochs' batches.

All decode with the fastest decoder (simplejpeg, whose pixels are those of torchvision), tokenise a micro-batch at once, and write into the
micro-batch's memory, which in DataLoader's workers is shared memory as in torch's own collate function. None shuffles; ours does.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor
from torch.utils.data import DataLoader, get_worker_info

from medley.data.shards import ColumnValues
from tests.bench.streaming_data import SAMPLE_RATE_HZ, SIDE_PIXELS
from tests.bench.streaming_measure import Inputs

MICRO_BATCH_SIZE = 64
NUM_WORKERS = 2
MAX_TOKENS = 64


class Decoder:
    """Encoded values of a micro-batch → tensors."""

    def __init__(self, tokenizer_json: bytes):
        from tokenizers import Tokenizer

        self.tokenizer = Tokenizer.from_buffer(tokenizer_json)

    def images_into(self, jpegs: Iterable[Any], pixels_BHWC: np.ndarray) -> None:
        """JPEG → uint8 RGB."""
        import simplejpeg

        for jpeg, pixels_HWC in zip(jpegs, pixels_BHWC, strict=True):
            simplejpeg.decode_jpeg(jpeg, "RGB", buffer=pixels_HWC)

    def clips_into(self, clips: Iterable[Any], samples_BS: np.ndarray) -> None:
        """PCM16 → float32 in [-1, 1)."""
        for clip, samples_S in zip(clips, samples_BS, strict=True):
            np.multiply(np.frombuffer(clip, "<i2"), np.float32(1 / 32768), out=samples_S)

    def tokens(self, texts: Sequence[str]) -> Tensor:
        """Texts → token numbers, padded to the longest."""
        ids = [encoding.ids[:MAX_TOKENS] for encoding in self.tokenizer.encode_batch_fast(texts, add_special_tokens=False)]
        flat = torch.tensor(list(chain.from_iterable(ids)), dtype=torch.int64)
        return torch.nn.utils.rnn.pad_sequence(flat.split([len(own) for own in ids]), batch_first=True)

    def batch(self, jpegs: Sequence[Any], clips: Sequence[Any], texts: Sequence[str]) -> Inputs:
        """A micro-batch."""
        image, audio = batch_memory((len(texts), SIDE_PIXELS, SIDE_PIXELS, 3), torch.uint8), batch_memory((len(texts), SAMPLE_RATE_HZ), torch.float32)
        self.images_into(jpegs, image.numpy())
        self.clips_into(clips, audio.numpy())
        return {"text": self.tokens(texts), "image": image.permute(0, 3, 1, 2), "audio": audio}

    def collate(self, rows: Sequence[dict[str, Any]]) -> Inputs:
        """A micro-batch of rows."""
        return self.batch([row["image"] for row in rows], [row["audio"] for row in rows], [row["text"] for row in rows])


def batch_memory(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """New memory; shared in a DataLoader's worker, so that the batch is not copied on its way out (torch.utils.data.default_collate)."""
    empty = torch.empty(0, dtype=dtype)
    if get_worker_info() is None:
        return empty.new_empty(shape)
    return empty.new(empty._typed_storage()._new_shared(int(np.prod(shape)))).resize_(shape)


def epochs_of(loader: Iterable[Inputs]) -> Iterator[Iterator[Inputs]]:
    """A cold and a warm epoch."""
    return (iter(loader) for _ in range(2))


class MappedMicroBatches(torch.utils.data.Dataset):
    """Micro-batches of Arrow shards that each worker maps; bytes are not copied."""

    def __init__(self, folder: str, num_rows: int, tokenizer: bytes):
        self.folder, self.num_rows, self.decoder = folder, num_rows, Decoder(tokenizer)
        self.shards: list[dict[str, ColumnValues]] = []

    def __len__(self) -> int:
        return -(-self.num_rows // MICRO_BATCH_SIZE)

    def __getitem__(self, number: int) -> Inputs:
        torch.set_num_threads(1)
        values = self.encoded(number)
        return self.decoder.batch(values["image"], values["audio"], values["text"])

    def encoded(self, number: int) -> dict[str, list[Any]]:
        """A micro-batch's values: views of the mapped files, and texts."""
        if not self.shards:
            tables = [pa.ipc.open_file(pa.memory_map(str(path))).read_all() for path in sorted(Path(self.folder, "items").iterdir())]
            self.shards = [{name: ColumnValues(table[name]) for name in ("image", "audio", "text")} for table in tables]
            self.rows_each = len(tables[0])
        places = [divmod(row, self.rows_each) for row in range(number * MICRO_BATCH_SIZE, min((number + 1) * MICRO_BATCH_SIZE, self.num_rows))]
        return {name: [self.shards[shard][name][row] for shard, row in places] for name in ("image", "audio", "text")}


def dataloader(folder: str, num_rows: int, tokenizer: bytes) -> Iterator[Iterator[Inputs]]:
    """torch DataLoader: 2 persistent workers, a micro-batch a fetch."""
    dataset = MappedMicroBatches(folder, num_rows, tokenizer)
    return epochs_of(DataLoader(dataset, batch_size=None, num_workers=NUM_WORKERS, persistent_workers=True))


def huggingface_datasets(folder: str, num_rows: int, tokenizer: bytes) -> Iterator[Iterator[Inputs]]:
    """Hugging Face datasets: Parquet files, streaming, in a DataLoader."""
    import datasets

    files = [str(path) for path in sorted(Path(folder).iterdir())]
    rows = datasets.load_dataset("parquet", data_files=files, split="train", streaming=True)
    return epochs_of(DataLoader(rows, batch_size=MICRO_BATCH_SIZE, num_workers=NUM_WORKERS, persistent_workers=True, collate_fn=Decoder(tokenizer).collate))


def mosaicml_streaming(folder: str, num_rows: int, tokenizer: bytes) -> Iterator[Iterator[Inputs]]:
    """MosaicML streaming: local MDS shards, in a DataLoader."""
    import streaming

    streaming.base.util.clean_stale_shared_memory()
    rows = streaming.StreamingDataset(local=folder, batch_size=MICRO_BATCH_SIZE, shuffle=False, num_canonical_nodes=1)
    return epochs_of(DataLoader(rows, batch_size=MICRO_BATCH_SIZE, num_workers=NUM_WORKERS, persistent_workers=True, collate_fn=Decoder(tokenizer).collate))


def webdataset(folder: str, num_rows: int, tokenizer: bytes) -> Iterator[Iterator[Inputs]]:
    """WebDataset: tar files, batched in the workers."""
    import webdataset as wds

    decoder = Decoder(tokenizer)

    def collate(rows: Sequence[dict[str, Any]]) -> Inputs:
        return decoder.batch([row["jpg"] for row in rows], [row["pcm"] for row in rows], [row["txt"].decode() for row in rows])

    files = [str(path) for path in sorted(Path(folder).iterdir())]
    rows = wds.WebDataset(files, shardshuffle=False, workersplitter=wds.split_by_worker).batched(MICRO_BATCH_SIZE, collation_fn=collate, partial=True)
    return epochs_of(DataLoader(rows, batch_size=None, num_workers=NUM_WORKERS, persistent_workers=True))


def ray_data(folder: str, num_rows: int, tokenizer: bytes) -> Iterator[Iterator[Inputs]]:
    """Ray Data as its guides show it: Parquet → `map_batches` that decodes → `iter_torch_batches`; tokens padded to their limit."""
    import ray.data

    def decode(rows: pa.Table) -> dict[str, np.ndarray]:
        batch = Decoder(tokenizer).collate(rows.to_pylist())
        tokens = np.pad(batch["text"].numpy(), ((0, 0), (0, MAX_TOKENS - batch["text"].shape[1])))
        return {"text": tokens, "image": batch["image"].permute(0, 2, 3, 1).numpy(), "audio": batch["audio"].numpy()}

    ray.data.DataContext.get_current().enable_progress_bars = False
    decoded = ray.data.read_parquet(folder).map_batches(decode, batch_size=MICRO_BATCH_SIZE, batch_format="pyarrow")
    return epochs_of(decoded.iter_torch_batches(batch_size=MICRO_BATCH_SIZE))
