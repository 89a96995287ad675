"""Our loader in the streaming bench."""

import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tests.bench.streaming_data import SAMPLE_RATE_HZ, SIDE_PIXELS
from tests.bench.streaming_measure import Inputs, Rates, rates
from tests.bench.streaming_peers import MICRO_BATCH_SIZE

OBJECT_STORE_BYTES = 10**9
NUM_THREADS = 2
"""Decoding threads of ours and of the limit."""


class PcmClip:
    """An audio encoder as far as loaders see one: PCM16 of 1 s → float samples."""

    output_dimension = 1

    def prepare(self, value: bytes) -> dict[str, Tensor]:
        out = {"samples": torch.empty(1, SAMPLE_RATE_HZ)}
        self.prepare_into([value], out)
        return {"samples": out["samples"][0]}

    def prepare_into(self, values: Sequence[Any], out: Mapping[str, Tensor]) -> None:
        for value, samples_S in zip(values, out["samples"].numpy(), strict=True):
            np.multiply(np.frombuffer(value, "<i2"), np.float32(1 / 32768), out=samples_S)

    def dummy(self) -> dict[str, Tensor]:
        return {"samples": torch.zeros(SAMPLE_RATE_HZ)}

    def __call__(self, inputs: Mapping[str, Tensor]) -> Tensor:
        return inputs["samples"].mean(dim=1, keepdim=True)


def run_ours(folder: str, num_rows: int, tokenizer: bytes, **stream: Any) -> Rates:
    """BatchStream in a Ray Train worker."""
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    from medley.cluster.session import ray_session

    config = {"folder": folder, "num_rows": num_rows, "tokenizer": tokenizer, "stream": stream}
    with ray_session("local", object_store_bytes=OBJECT_STORE_BYTES), tempfile.TemporaryDirectory() as storage:
        run = RunConfig(storage_path=storage)
        trainer = TorchTrainer(stream_in_worker, train_loop_config=config, scaling_config=ScalingConfig(num_workers=1), run_config=run)
        return dict(trainer.fit().return_value)


def stream_in_worker(config: dict[str, Any]) -> Rates:
    """The training function."""
    from medley.data.batches import BatchMaker
    from medley.data.plan import Plan
    from medley.data.prepared import PreparedData
    from medley.data.stream import BatchStream, StreamConfig
    from medley.encoders.resnet import ResNetConfig
    from medley.encoders.subword import SubwordConfig

    torch.set_num_threads(1)
    image = ResNetConfig(side_pixels=SIDE_PIXELS, width=8).build({}, pretrained=False)
    text = SubwordConfig().build({"tokenizer.json": config["tokenizer"]}, pretrained=False)
    encoders: dict[str, Any] = {"text": text, "image": image, "audio": PcmClip()}
    plan = Plan(config["num_rows"], MICRO_BATCH_SIZE, 1, seed=0)
    maker = BatchMaker.create(PreparedData.open(config["folder"]), plan, history_length=0, attribute_columns=[], whole_catalogue=False)
    started = time.perf_counter()
    stream = BatchStream(maker, encoders, {name: name for name in encoders}, StreamConfig(decode_threads=NUM_THREADS, **config["stream"]))

    def epoch(number: int) -> Iterator[Inputs]:
        for (batch,) in stream.global_batches(number, 0, [0]):
            yield {name: next(iter(tensors.values())) for name, tensors in batch.inputs.items()}

    found = rates((epoch(number) for number in range(2)), config["num_rows"], started)
    stream.close()
    return found
