"""python -m tests.bench.streaming [--quick]: rows/s from prepared shards to batches, beside other loaders and the machine's limit.

Every row is a distinct item: a JPEG of 256 × 256 pixels (quality 90), a FLAC clip of 1 s, a text. Every loader reads the same Arrow shards, calls
the same `prepare` of the same encoders, stacks micro-batches of 64 and hands them to the same trivial training step. Rounds are interleaved;
each loader starts its round in a process of its own, with the shards out of the page cache (cold epoch), and goes on with a second (warm) epoch.

- ours: BatchStream inside Ray Train, one worker
- limit: 2 threads that prepare rows already in memory and drop them; no reading, no batches
- dataloader: torch DataLoader, 2 persistent workers, a micro-batch a fetch, memory-mapped shards
- ray_data: naive Ray Data: shards → rows → `map_batches` that decodes → `iter_torch_batches`

Figures: warm_of_limit, warm_vs_best_loader, cold_vs_dataloader: medians of the paired ratios of rows/s, ours over theirs.
Nothing can pass the limit, which does a part of ours' work: a round in which ours did was taken on a busy machine, and `is_valid` in the
detail is then false: none of the run's figures may be quoted. `load_average` has the machine's load before each round.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from tests.bench.streaming_data import NUM_CONTENTS, SAMPLE_RATE_HZ, SIDE_PIXELS, make_contents, write_data

NUM_ROWS, NUM_ROUNDS = 32_000, 5
QUICK_ROWS, QUICK_ROUNDS = 1_024, 1
MICRO_BATCH_SIZE = 64
OBJECT_STORE_BYTES = 10**9
NUM_THREADS = 2
"""Decoding threads of ours and of the limit, workers of the others."""


# --- what every loader shares ---------------------------------------------------------------------------------------------------------------
class Clip:
    """An audio encoder as far as loaders see one: FLAC → float samples, cut or padded to 1 s."""

    output_dimension = 1

    def prepare(self, value: bytes) -> dict[str, Tensor]:
        from medley.media import decode_flac

        samples_S = decode_flac(value)[:SAMPLE_RATE_HZ]
        return {"samples": torch.nn.functional.pad(samples_S, (0, SAMPLE_RATE_HZ - len(samples_S)))}

    def dummy(self) -> dict[str, Tensor]:
        return {"samples": torch.zeros(SAMPLE_RATE_HZ)}

    def __call__(self, inputs: Mapping[str, Tensor]) -> Tensor:
        return inputs["samples"].mean(dim=1, keepdim=True)


def make_encoders(tokenizer: bytes) -> dict[str, Any]:
    """Text, picture and sound; named like the columns they read."""
    from medley.encoders.resnet import ResNetConfig
    from medley.encoders.subword import SubwordConfig

    image = ResNetConfig(side_pixels=SIDE_PIXELS, width=8).build({}, pretrained=False)
    return {"text": SubwordConfig().build({"tokenizer.json": tokenizer}, pretrained=False), "image": image, "audio": Clip()}


def open_bench(folder: str, num_rows: int) -> tuple[Any, Any, dict[str, Any]]:
    """The data set, the order of its rows in micro-batches, the encoders."""
    from medley.data.plan import Plan
    from medley.data.prepared import PreparedData

    torch.set_num_threads(1)
    return PreparedData.open(folder), Plan(num_rows, MICRO_BATCH_SIZE, 1, seed=0), make_encoders(Path(f"{folder}.tokenizer.json").read_bytes())


def train_step(inputs: Mapping[str, Mapping[str, Tensor]]) -> int:
    """Looks at a value of every page; returns the rows, which every modality must have."""
    tensors = [tensor for encoder in inputs.values() for tensor in encoder.values()]
    assert len(tensors) == 3
    assert len({len(tensor) for tensor in tensors}) == 1
    assert all(torch.isfinite(tensor.flatten()[::4096].float()).all() for tensor in tensors)
    return len(tensors[0])


def rates(epochs: Iterator[Iterator[Mapping[str, Mapping[str, Tensor]]]], num_rows: int, started: float) -> dict[str, float]:
    """Rows/s of the cold epoch, which began at `started`, and of the warm one."""
    found = []
    for batches in epochs:
        assert sum(train_step(inputs) for inputs in batches) == num_rows
        found.append(num_rows / (time.perf_counter() - started))
        started = time.perf_counter()
    return {"cold": found[0], "warm": found[1]}


# --- the loaders ----------------------------------------------------------------------------------------------------------------------------
def run_ours(folder: str, num_rows: int) -> dict[str, float]:
    """BatchStream in a Ray Train worker."""
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    from medley.cluster.session import ray_session

    with ray_session("local", object_store_bytes=OBJECT_STORE_BYTES), tempfile.TemporaryDirectory() as storage:
        config = {"folder": folder, "num_rows": num_rows}
        trainer = TorchTrainer(
            stream_in_worker, train_loop_config=config, scaling_config=ScalingConfig(num_workers=1), run_config=RunConfig(storage_path=storage)
        )
        return dict(trainer.fit().return_value)


def stream_in_worker(config: dict[str, Any]) -> dict[str, float]:
    """The training function."""
    from medley.data.batches import BatchMaker
    from medley.data.stream import BatchStream, StreamConfig

    data, plan, encoders = open_bench(config["folder"], config["num_rows"])
    maker = BatchMaker.create(data, plan, history_length=0, attribute_columns=[], whole_catalogue=False)
    started = time.perf_counter()
    stream = BatchStream(maker, encoders, {name: name for name in encoders}, StreamConfig(decode_threads=NUM_THREADS))
    found = rates(((batch.inputs for (batch,) in stream.global_batches(epoch, 0, [0])) for epoch in range(2)), config["num_rows"], started)
    stream.close()
    return found


def run_limit(folder: str, num_rows: int) -> dict[str, float]:
    """Threads that prepare every item and drop it."""
    data, _, encoders = open_bench(folder, num_rows)
    count = min(num_rows, 4096)
    rows = data.item_store().take(np.arange(count), list(encoders))
    values = {name: rows[name].to_pylist() for name in encoders}

    def prepare_share(share: int) -> None:
        for place in range(share, count, NUM_THREADS):
            for name, encoder in encoders.items():
                encoder.prepare(values[name][place])

    found = []
    with ThreadPoolExecutor(NUM_THREADS) as threads:
        for _ in range(2):
            started = time.perf_counter()
            list(threads.map(prepare_share, range(NUM_THREADS)))
            found.append(count / (time.perf_counter() - started))
    return {"cold": found[0], "warm": found[1]}


class MicroBatches(torch.utils.data.Dataset):
    """The plan's micro-batches, read and prepared when asked for; a DataLoader worker has shards of its own mapped."""

    def __init__(self, folder: str, num_rows: int):
        self.data, self.plan, self.encoders = open_bench(folder, num_rows)
        self.store: Any = None

    def __len__(self) -> int:
        return self.plan.num_global_batches

    def __getitem__(self, number: int) -> dict[str, dict[str, Tensor]]:
        from medley.data.batches import PreparedItems

        torch.set_num_threads(1)
        self.store = self.store or self.data.item_store()
        items = self.plan.rows(0, number, 0)
        rows = self.store.take(items, list(self.encoders))
        values = {name: rows[name].to_pylist() for name in self.encoders}
        prepared = {item: {name: encoder.prepare(values[name][place]) for name, encoder in self.encoders.items()} for place, item in enumerate(items.tolist())}
        return PreparedItems(prepared).stack(items, self.encoders)[0]


def run_dataloader(folder: str, num_rows: int) -> dict[str, float]:
    """torch DataLoader; stacking as ours, so that only the loaders differ."""
    dataset = MicroBatches(folder, num_rows)
    started = time.perf_counter()
    loader = torch.utils.data.DataLoader(dataset, batch_size=None, num_workers=NUM_THREADS, persistent_workers=True)
    return rates((iter(loader) for _ in range(2)), num_rows, started)


def run_ray_data(folder: str, num_rows: int) -> dict[str, float]:
    """Ray Data as its guides show it: decoding in `map_batches`, tokens padded to their limit."""
    import ray.data

    from medley.cluster.session import ray_session

    _, _, encoders = open_bench(folder, num_rows)
    tokenizer = Path(f"{folder}.tokenizer.json").read_bytes()

    def read(batch: dict[str, Any]) -> pa.Table:
        return pa.concat_tables(pa.ipc.open_file(pa.memory_map(path)).read_all() for path in batch["path"])

    def decode(batch: pa.Table) -> dict[str, np.ndarray]:
        own = make_encoders(tokenizer)
        prepared = {name: [own[name].prepare(value) for value in batch[name].to_pylist()] for name in own}
        tokens = [np.pad(item["token_ids"].numpy(), (0, own["text"].max_tokens - len(item["token_ids"]))) for item in prepared["text"]]
        images, clips = ([item[key].numpy() for item in prepared[name]] for name, key in (("image", "pixels"), ("audio", "samples")))
        return {"text": np.stack(tokens), "image": np.stack(images), "audio": np.stack(clips)}

    def epoch() -> Iterator[dict[str, dict[str, Tensor]]]:
        rows = ray.data.from_items(paths, override_num_blocks=len(paths)).map_batches(read, batch_size=1)
        decoded = rows.map_batches(decode, batch_size=MICRO_BATCH_SIZE, batch_format="pyarrow")
        for batch in decoded.iter_torch_batches(batch_size=MICRO_BATCH_SIZE):
            yield {name: {"values": batch[name]} for name in encoders}

    paths = [{"path": str(path)} for path in sorted(Path(folder, "items").iterdir())]
    with ray_session("local", num_cpus=NUM_THREADS, object_store_bytes=OBJECT_STORE_BYTES):
        ray.data.DataContext.get_current().enable_progress_bars = False
        return rates((epoch() for _ in range(2)), num_rows, time.perf_counter())


LOADERS = {"ours": run_ours, "limit": run_limit, "dataloader": run_dataloader, "ray_data": run_ray_data}


# --- the rounds -----------------------------------------------------------------------------------------------------------------------------
def run_apart(loader: str, folder: str, num_rows: int) -> dict[str, float]:
    """One loader's rates, from a process of its own that finds the shards out of the page cache."""
    from medley.cluster.session import WORKER_ENVIRONMENT

    for path in Path(folder, "items").iterdir():
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)
    root = Path(__file__).resolve().parents[2]
    environment = {**os.environ, **WORKER_ENVIRONMENT, "PYTHONPATH": f"{root}:{root / 'src'}"}
    command = [sys.executable, "-m", "tests.bench.streaming", "--loader", loader, "--folder", folder, "--rows", str(num_rows)]
    done = subprocess.run(command, env=environment, cwd=root, stdout=subprocess.PIPE, text=True, check=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def quartiles(values: list[float]) -> list[float]:
    """Lower quartile, median, upper quartile."""
    return [round(float(value), 3) for value in np.quantile(values, [0.25, 0.5, 0.75])]


def summarise(rounds: list[dict[str, dict[str, float]]]) -> tuple[dict[str, float], dict[str, Any]]:
    """Figures and detail of the rounds: loader → epoch → rows/s."""
    peers = [name for name in rounds[0] if name not in ("ours", "limit")]
    ratios = {
        "warm_of_limit": [each["ours"]["warm"] / each["limit"]["warm"] for each in rounds],
        "warm_vs_best_loader": [each["ours"]["warm"] / max(each[peer]["warm"] for peer in peers) for each in rounds],
        "cold_vs_dataloader": [each["ours"]["cold"] / each["dataloader"]["cold"] for each in rounds],
    }
    speeds = {f"{name} {epoch}": quartiles([each[name][epoch] for each in rounds]) for name in rounds[0] for epoch in ("cold", "warm")}
    detail = {
        "is_valid": max(ratios["warm_of_limit"]) <= 1,
        "quartiles": {name: quartiles(values) for name, values in ratios.items()},
        "rows_per_second_quartiles": speeds,
    }
    return {name: quartiles(values)[1] for name, values in ratios.items()}, detail


def main() -> None:
    """Write the data, run the rounds, print one JSON line."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.streaming", description="Rows/s from shards to batches, beside other loaders.")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_ROWS} rows, {QUICK_ROUNDS} round: only shows that it runs")
    for name in ("--loader", "--folder", "--rows"):
        parser.add_argument(name, help=argparse.SUPPRESS)  # a round's own process
    arguments = parser.parse_args()
    if arguments.loader:
        print(json.dumps(LOADERS[arguments.loader](arguments.folder, int(arguments.rows))))
        return
    from medley.encoders.subword import SubwordConfig

    num_rows, num_rounds = (QUICK_ROWS, QUICK_ROUNDS) if arguments.quick else (NUM_ROWS, NUM_ROUNDS)
    with tempfile.TemporaryDirectory() as root:
        folder = f"{root}/prepared"
        contents = make_contents(min(NUM_CONTENTS, num_rows))
        write_data(folder, num_rows, contents)
        Path(f"{folder}.tokenizer.json").write_bytes(SubwordConfig().learn(contents["text"].to_pylist())["tokenizer.json"])
        rounds, loads = [], []
        for number in range(num_rounds):
            loads.append(round(os.getloadavg()[0], 2))
            turn = list(LOADERS)[number % len(LOADERS) :] + list(LOADERS)[: number % len(LOADERS)]
            found = {name: run_apart(name, folder, num_rows) for name in turn}
            rounds.append({name: found[name] for name in LOADERS})
            print(f"round {number + 1} of {num_rounds} | {rounds[-1]}", file=sys.stderr)
    figures, detail = summarise(rounds)
    if not detail["is_valid"]:
        print("ours passed the limit in a round: the machine was busy, the figures say nothing", file=sys.stderr)
    machine = {"num_cpus": os.cpu_count(), "machine": platform.processor() or platform.machine(), "torch": torch.__version__}
    image_bytes, audio_bytes = (round(sum(map(len, contents[name].to_pylist())) / len(contents)) for name in ("image", "audio"))
    workload = {"rows": num_rows, "micro_batch_size": MICRO_BATCH_SIZE, "mean_jpeg_bytes": image_bytes, "mean_flac_bytes": audio_bytes}
    print(json.dumps({"bench": "streaming", "figures": figures, "detail": {**detail, "load_average": loads, "workload": workload, "machine": machine}}))


if __name__ == "__main__":
    main()
