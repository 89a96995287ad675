"""Frozen encoders over the items of a prepared set: each content once, by Ray Data tasks, into the encoder's feature cache.

Steps: 1. every item's content has a hash; 2. contents without a vector are cut into parts; 3. tasks encode the parts, each writes its file; an
interrupted run goes on with the parts that are missing; 4. the set's matrix is gathered from the parts; 5. the manifest is written.

Tasks and not actors: a pool of actors is rebuilt for every execution and takes 6 to 10 s to its first result; the processes of tasks are kept, and
each holds the encoder after its first part.
"""

import hashlib
import json
import logging
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from typing import Any, Literal, NamedTuple, cast

import numpy as np
import pyarrow as pa
import torch
from safetensors.torch import save
from torch import Tensor

from medley.data.clean import HASH_SUFFIX
from medley.data.feature_store import (
    WEIGHTS_NAME,
    Contents,
    matrix_name,
    read_parts,
    read_tensors,
    whole_files,
    write_features_manifest,
    write_file,
    write_matrix,
    write_part,
)
from medley.data.prepared import PreparedData
from medley.encoders import Encoder, EncoderConfig, stack_inputs
from medley.encoders.frozen import SHAPES, build_frozen
from medley.encoders.settings import TRAINING_FIELDS
from medley.manifest import find_manifest, fingerprint
from medley.schema import AUDIO, IMAGE

logger = logging.getLogger(__name__)

ITEMS_PER_PART = 512
"""What a task holds together, prepared, and what an interruption loses at most, per process."""

IDLE_FIELDS = TRAINING_FIELDS | {"column", "path", "weights", "from_scratch"}
"""Settings that leave an encoder's vectors alone, and where its weights came from: these count themselves."""


@dataclass(frozen=True)
class EncoderSource:
    """A frozen encoder as a value: what makes it again elsewhere, to the bit. weights: its state by name."""

    config: EncoderConfig
    assets: Mapping[str, bytes]
    weights: Mapping[str, Tensor]
    dimension: int
    precision: Literal["fp32", "bf16"]
    device: Literal["cpu", "cuda"]

    @property
    def settings(self) -> dict[str, Any]:
        """What a person reads in the manifest."""
        kept = {key: value for key, value in json.loads(self.config.model_dump_json()).items() if key not in IDLE_FIELDS}
        return {"encoder": kept, "precision": self.precision, "device": self.device, "shapes": SHAPES, "torch": torch.__version__}

    @cached_property
    def identity(self) -> str:
        """Of everything that decides a content's vector: settings, assets, weights, number format, kind of device, shapes of calls, version of torch."""
        digests = {name: hashlib.sha256(content).hexdigest() for name, content in sorted(self.assets.items())}
        return fingerprint("features", self.settings, digests, hashlib.sha256(save(dict(self.weights))).hexdigest())


@dataclass(frozen=True)
class EncodeSettings:
    """How the tasks run: how many at a time, with how many CPUs (and threads) each."""

    num_tasks: int
    cpus_per_task: float
    decode_threads: int


def encode_catalogue(source: EncoderSource, data: PreparedData, uri: str, settings: EncodeSettings) -> dict[str, Any]:
    """Fill `uri`, the folder of this encoder, with the vectors of the prepared set, or find them there; needs a Ray session."""
    started, column = time.monotonic(), source.config.column
    matrix, files, manifest = matrix_name(data.identity, column), whole_files(uri), find_manifest(uri)
    is_reused = manifest is not None and matrix in files and set(files) == set(manifest["files"])
    num_computed = 0
    if not is_reused:
        if WEIGHTS_NAME not in files:
            write_file(uri, WEIGHTS_NAME, source.weights)
        contents, known = content_hashes(data, column), read_parts(uri, files)[1]
        item_of_content = {content: item for item, content in reversed(list(enumerate(contents))) if content is not None}
        missing = sorted((item, content) for content, item in item_of_content.items() if content not in known)
        num_computed = len(missing)
        _encode_on_ray(source, data, uri, missing, settings)
        write_matrix(uri, matrix, contents, source.dimension)
        write_features_manifest(uri, source.identity, source.settings, source.dimension)
    seconds = round(time.monotonic() - started, 1)
    return {"features": uri, "fingerprint": source.identity, "reused": is_reused, "num_computed": num_computed, "seconds": seconds}


def content_hashes(data: PreparedData, column: str) -> Contents:
    """Each item's SHA-256: of the stored bytes of a picture or sound, which prepare hashed, of the JSON of any other value; None where it has none."""
    store, hashes = data.item_store(), list[bytes | None]()
    is_medium = column in (IMAGE, AUDIO)
    for table in store.iterate(np.arange(data.num_items), [column + HASH_SUFFIX if is_medium else column]):
        values = table.column(0).to_pylist()
        hashes += values if is_medium else [None if value is None else hashlib.sha256(json.dumps(value).encode()).digest() for value in values]
    return hashes


def _encode_on_ray(source: EncoderSource, data: PreparedData, uri: str, missing: list[tuple[int, bytes]], settings: EncodeSettings) -> None:
    import ray.data

    if not missing:
        return
    groups = [missing[first : first + ITEMS_PER_PART] for first in range(0, len(missing), ITEMS_PER_PART)]
    blocks = [pa.table({"item": pa.array([item for item, _ in group], pa.int64()), "content": [content for _, content in group]}) for group in groups]
    dataset = ray.data.from_blocks(blocks)
    dataset.context.enable_progress_bars = False
    dataset.context.target_max_block_size = None  # a task's input stays one group
    origin = Origin(source.config, tuple(sorted(source.assets.items())), uri, source.precision, source.device)
    task = partial(encode_part, origin=origin, prepared_uri=data.uri, settings=settings)
    encoded = dataset.map_batches(
        task,
        batch_size=None,
        batch_format="pyarrow",
        compute=ray.data.TaskPoolStrategy(size=min(settings.num_tasks, len(groups))),
        num_cpus=settings.cpus_per_task,
        num_gpus=1 if source.device == "cuda" else 0,
    )
    num_done = 0
    for done in encoded.iter_batches(batch_size=None, batch_format="pyarrow"):
        num_done += done["num_contents"][0].as_py()
        logger.info("encode | %d of %d contents", num_done, len(missing))


class Origin(NamedTuple):
    """What a task builds the encoder from: a key of the process's cache. uri: the folder with its weights."""

    config: EncoderConfig
    assets: tuple[tuple[str, bytes], ...]
    uri: str
    precision: Literal["fp32", "bf16"]
    device: Literal["cpu", "cuda"]


def encode_part(block: pa.Table, origin: Origin, prepared_uri: str, settings: EncodeSettings) -> pa.Table:
    """Encode some items' contents (a Ray Data task) and write them as a part. block: item, content."""
    # A sum's last digits may depend on the number of threads: as many as a training worker has.
    torch.set_num_threads(max(1, int(settings.cpus_per_task)))
    encoder, data = _encoder_of_process(origin), _data_of_process(prepared_uri)
    column, contents = origin.config.column, block["content"].to_pylist()
    values = data.item_store().take(block["item"].to_numpy(), [column])[column].to_pylist()
    with ThreadPoolExecutor(settings.decode_threads) as threads:
        inputs = stack_inputs(list(threads.map(encoder.prepare, values)))
    vectors_RD = encoder({name: tensor.to(origin.device) for name, tensor in inputs.items()}).float().cpu()
    write_part(origin.uri, f"part-{hashlib.sha256(b''.join(contents)).hexdigest()[:16]}.safetensors", contents, vectors_RD)
    return pa.table({"num_contents": [len(contents)]})


@lru_cache(maxsize=1)
def _encoder_of_process(origin: Origin) -> Encoder:
    """Built by a process's first part, kept for its others."""
    encoder = build_frozen(origin.config, dict(origin.assets), pretrained=False)
    encoder.load_state_dict(read_tensors(origin.uri, WEIGHTS_NAME))
    return cast(Encoder, encoder.to(origin.device, torch.bfloat16 if origin.precision == "bf16" else None))


@lru_cache(maxsize=1)
def _data_of_process(uri: str) -> PreparedData:
    return PreparedData.open(uri)
