"""python -m tests.bench.streaming [--quick]: rows/s from shards to batches, beside other loaders and the machine's limit.

Every row is a distinct item: a JPEG of 256 × 256 pixels (quality 90), a clip of 1 s as PCM16, a text; micro-batches of 64 go to one trivial training
step. Rounds are interleaved; each loader starts its round in a process of its own, with its files out of the page cache (cold epoch), and goes on
with a second (warm) epoch.

- ours: BatchStream inside Ray Train, one worker, shards mapped by the worker (the default for a catalogue that fits a node)
- ours_tasks: the same where Ray Data tasks read the shards and bytes cross the object store (what a larger catalogue gets)
- limit: 2 threads that decode from mapped memory into memory they keep, and drop the result; no plan, no batches, no framework
- dataloader, huggingface_datasets, mosaicml_streaming, webdataset: 2 workers each, streaming_peers.py
- ray_data: naive Ray Data, streaming_peers.py

Peers other than dataloader run fewer rows a round (PEER_ROWS): their rates are per row and steady; their start-up is not counted.
Figures: warm_of_limit, warm_vs_best_loader (naive Ray Data is no torch loader and does not count), cold_vs_dataloader: medians of the paired ratios of
rows/s, ours over theirs. `cpu_us_per_row` in the detail is the processor time, user and system, of all of a loader's processes in the warm epoch: it is
hardly changed by other load, so it holds on a busy machine, where rows/s do not. Nothing can pass the limit, which does a part of ours' work: a round
in which ours did was taken on a busy machine, and `is_valid` is then false.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from tests.bench import streaming_data as data_files
from tests.bench import streaming_peers as peers
from tests.bench.figures import machine, quartiles
from tests.bench.peers import peer_python
from tests.bench.streaming_data import SAMPLE_RATE_HZ, SIDE_PIXELS
from tests.bench.streaming_measure import MARK, Rates, cpu_seconds, rates
from tests.bench.streaming_ours import NUM_THREADS, OBJECT_STORE_BYTES, run_ours
from tests.bench.streaming_peers import MICRO_BATCH_SIZE

NUM_ROWS, NUM_ROUNDS = 32_000, 5
PEER_ROWS = {"huggingface_datasets": 16_000, "mosaicml_streaming": 16_000, "webdataset": 16_000, "ray_data": 8_000}
QUICK_ROWS = 2_048
FORMATS = {"ours": "prepared", "ours_tasks": "prepared", "limit": "prepared", "dataloader": "prepared"}
FORMATS |= {"huggingface_datasets": "parquet", "mosaicml_streaming": "mosaic", "webdataset": "tars", "ray_data": "few_parquet"}
TORCH_LOADERS = ("dataloader", "huggingface_datasets", "mosaicml_streaming", "webdataset")


# --- the loaders ----------------------------------------------------------------------------------------------------------------------------
def run_limit(folder: str, num_rows: int, tokenizer: bytes) -> Rates:
    """Threads that decode every row and drop it."""
    dataset = peers.MappedMicroBatches(folder, num_rows, tokenizer)
    decoder, memory = dataset.decoder, [peers.batch_memory((MICRO_BATCH_SIZE, SIDE_PIXELS, SIDE_PIXELS, 3), torch.uint8).numpy() for _ in range(NUM_THREADS)]
    clips = [peers.batch_memory((MICRO_BATCH_SIZE, SAMPLE_RATE_HZ), torch.float32).numpy() for _ in range(NUM_THREADS)]

    def decode_share(share: int) -> None:
        for number in range(share, len(dataset), NUM_THREADS):
            values = dataset.encoded(number)
            count = len(values["text"])
            decoder.images_into(values["image"], memory[share][:count])
            decoder.clips_into(values["audio"], clips[share][:count])
            decoder.tokens(values["text"])

    found: Rates = {}
    with ThreadPoolExecutor(NUM_THREADS) as threads:
        for name in ("cold", "warm"):
            started, cpu_before = time.perf_counter(), cpu_seconds()
            list(threads.map(decode_share, range(NUM_THREADS)))
            found[name] = num_rows / (time.perf_counter() - started)
            found[f"{name}_cpu_us"] = (cpu_seconds() - cpu_before) / num_rows * 1e6
    return found


def run_peer(name: str, folder: str, num_rows: int, tokenizer: bytes) -> Rates:
    """A loader of streaming_peers.py."""
    if name != "ray_data":
        return rates(getattr(peers, name)(folder, num_rows, tokenizer), num_rows, time.perf_counter())
    from medley.cluster.session import ray_session

    with ray_session("local", num_cpus=NUM_THREADS, object_store_bytes=OBJECT_STORE_BYTES):
        return rates(peers.ray_data(folder, num_rows, tokenizer), num_rows, time.perf_counter())


def run_loader(name: str, folder: str, num_rows: int) -> Rates:
    """One loader's round, in this process."""
    torch.set_num_threads(1)
    tokenizer = Path(folder).with_name("tokenizer.json").read_bytes()
    if name == "ours":
        return run_ours(folder, num_rows, tokenizer)
    if name == "ours_tasks":
        return run_ours(folder, num_rows, tokenizer, max_mapped_bytes=0)
    return run_limit(folder, num_rows, tokenizer) if name == "limit" else run_peer(name, folder, num_rows, tokenizer)


# --- the rounds -----------------------------------------------------------------------------------------------------------------------------
def run_apart(name: str, folder: Path, num_rows: int, python: str) -> Rates:
    """One loader's rates, from a process of its own that finds its files out of the page cache."""
    from medley.cluster.session import WORKER_ENVIRONMENT

    for path in folder.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)
    command = [python, "-m", "tests.bench.streaming", "--loader", name, "--folder", str(folder), "--rows", str(num_rows)]
    done = subprocess.run(command, env=environment(WORKER_ENVIRONMENT), cwd=root(), stdout=subprocess.PIPE, text=True, check=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def root() -> Path:
    """The repository."""
    return Path(__file__).resolve().parents[2]


def environment(more: Mapping[str, str]) -> dict[str, str]:
    """What a run's processes see."""
    return {**os.environ, **more, MARK: uuid.uuid4().hex, "PYTHONPATH": f"{root()}:{root() / 'src'}", "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}


def summarise(rounds: list[dict[str, Rates]]) -> tuple[dict[str, float], dict[str, Any]]:
    """Figures and detail of the rounds: loader → epoch → rows/s."""
    loaders = [name for name in TORCH_LOADERS if name in rounds[0]]
    ratios: dict[str, list[float]] = {}
    for ours, suffix in (("ours", ""), ("ours_tasks", "_tasks")):
        ratios[f"warm_of_limit{suffix}"] = [each[ours]["warm"] / each["limit"]["warm"] for each in rounds]
        ratios[f"warm_vs_best_loader{suffix}"] = [each[ours]["warm"] / max(each[loader]["warm"] for loader in loaders) for each in rounds]
        ratios[f"cold_vs_dataloader{suffix}"] = [each[ours]["cold"] / each["dataloader"]["cold"] for each in rounds]
    detail = {
        "is_valid": max(ratios["warm_of_limit"]) <= 1,
        "quartiles": {name: quartiles(values) for name, values in ratios.items()},
        "rows_per_second_quartiles": {f"{name} {epoch}": quartiles([each[name][epoch] for each in rounds]) for name in rounds[0] for epoch in ("cold", "warm")},
        "cpu_us_per_row": {name: {epoch: quartiles([each[name][f"{epoch}_cpu_us"] for each in rounds])[1] for epoch in ("cold", "warm")} for name in rounds[0]},
    }
    return {name: quartiles(values)[1] for name, values in ratios.items()}, detail


def write_files(folder: Path, rows_of: Mapping[str, int], pythons: Mapping[str, str]) -> dict[str, float]:
    """Every format that a loader of this run reads; returns facts about the contents."""
    from medley.encoders.subword import SubwordConfig

    contents = data_files.make_contents(data_files.NUM_CONTENTS)
    (folder / "tokenizer.json").write_bytes(SubwordConfig().learn(contents["text"].to_pylist())["tokenizer.json"])
    data_files.write_prepared(str(folder / "prepared"), rows_of["ours"], contents)
    data_files.write_parquet_files(str(folder / "few_parquet"), rows_of["ray_data"], contents)
    data_files.write_parquet_files(str(folder / "parquet"), rows_of["huggingface_datasets"], contents)
    data_files.write_tars(str(folder / "tars"), rows_of["webdataset"], contents)
    if "mosaicml_streaming" in pythons:
        command = [pythons["mosaicml_streaming"], "-m", "tests.bench.streaming_data", str(folder / "parquet"), str(folder / "mosaic")]
        subprocess.run(command, env=environment({}), cwd=root(), stdout=sys.stderr, check=True)
    return {f"mean_{name}_bytes": round(sum(map(len, contents[name].to_pylist())) / len(contents)) for name in ("image", "audio")}


def main() -> None:
    """Write the data, run the rounds, print one JSON line."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.streaming", description="Rows/s from shards to batches, beside other loaders.")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_ROWS} rows, 1 round: only shows that it runs")
    parser.add_argument(
        "--loaders", default=",".join(FORMATS), help="only these, with commas between; ours, ours_tasks, limit and dataloader belong to every figure"
    )
    for name in ("--loader", "--folder", "--rows"):
        parser.add_argument(name, help=argparse.SUPPRESS)  # a round's own process
    arguments = parser.parse_args()
    if arguments.loader:
        print(json.dumps(run_loader(arguments.loader, arguments.folder, int(arguments.rows))))
        return
    found_pythons = {name: peer_python(name) if name in TORCH_LOADERS[1:] else sys.executable for name in arguments.loaders.split(",")}
    pythons = {name: python for name, python in found_pythons.items() if python}
    rows_of = {name: QUICK_ROWS if arguments.quick else PEER_ROWS.get(name, NUM_ROWS) for name in FORMATS}
    num_rounds = 1 if arguments.quick else NUM_ROUNDS
    with tempfile.TemporaryDirectory() as folder:
        facts = write_files(Path(folder), rows_of, pythons)
        rounds, loads = [], []
        for number in range(num_rounds):
            loads.append(round(os.getloadavg()[0], 2))
            turn = list(pythons)[number % len(pythons) :] + list(pythons)[: number % len(pythons)]
            found = {name: run_apart(name, Path(folder, FORMATS[name]), rows_of[name], pythons[name]) for name in turn}
            rounds.append({name: found[name] for name in pythons})
            print(f"round {number + 1} of {num_rounds} | {rounds[-1]}", file=sys.stderr)
    figures, detail = summarise(rounds)
    if not detail["is_valid"]:
        print("ours passed the limit in a round: the machine was busy, only the processor times hold", file=sys.stderr)
    workload = {"rows": {name: rows_of[name] for name in pythons}, "micro_batch_size": MICRO_BATCH_SIZE, **facts}
    print(json.dumps({"bench": "streaming", "figures": figures, "detail": {**detail, "load_average": loads, "workload": workload, "machine": machine()}}))


if __name__ == "__main__":
    main()
