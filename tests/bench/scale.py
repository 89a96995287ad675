"""python -m tests.bench.scale [--quick]: prepare and one epoch of the stream while the data grow, and prepare beside a single-process script.

1. The data at 1, 2, 4 and 8 times BASE_ROWS, users and items growing with the rows. Each size is prepared and streamed once from first to last
   batch (a vector of each item, micro-batches of 1,024) in a Ray session of its own with an object store of 512 MB, in parts of PARTITION_ROWS, so
   that there are several at 1x already. A window of the stream has 4,096 rows, far fewer than there are items at 1x, so that a row costs about one
   decoded item at every size. Sizes are taken in turn, NUM_SWEEPS times.
2. PEER_ROWS rows of PEER_ITEMS items are prepared in parts of the default size, beside scale_peer.py: polars, which does the same steps in one
   process. Rounds are interleaved, each in processes of its own that have prepared a small set before; no start-up is counted for either.

Figures: `time_per_row_8x`: seconds a row of prepare and epoch at 8x over those at 1x. `memory_8x`: the largest sum of the PSS of all processes of the
session (the object store and mapped files counted, once), at 8x over 1x. `prepare_vs_single_process`: rows/s of ours over the peer's. Medians; the
detail has quartiles, each phase alone and processor times, which other load on the machine hardly changes.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.bench.figures import machine, quartiles
from tests.bench.peers import peer_python
from tests.bench.scale_data import VECTOR_SIZE, write_tables

BASE_ROWS, PARTITION_ROWS, FACTORS, NUM_SWEEPS = 400_000, 2**17, (1, 2, 4, 8), 2
ITEMS_PER_ROW = 1 / 25
PEER_ROWS, PEER_ITEMS, NUM_ROUNDS = 4_000_000, 20_000, 5
QUICK_DIVISOR = 50
WARM_UP_ROWS, WARM_UP_PARTITION_ROWS = 4_000, 250
"""many tasks, so that as many worker processes have loaded the library at every size"""
OBJECT_STORE_BYTES = 512 * 2**20
MICRO_BATCH_SIZE, NUM_MICRO_BATCHES = 1024, 4
SAMPLE_SECONDS = 0.5
MARK = "MEDLEY_BENCH_RUN"
"""Environment variable by which a run's processes are told from all others."""

Found = dict[str, float]


# --- measuring ------------------------------------------------------------------------------------------------------------------------------
def of_this_run() -> list[Path]:
    """/proc folders of this run's processes."""
    own, folders = f"{MARK}={os.environ[MARK]}".encode(), []
    for folder in Path("/proc").iterdir():
        try:
            if folder.name.isdigit() and own in (folder / "environ").read_bytes():
                folders.append(folder)
        except OSError:  # it has ended meanwhile, or is another user's
            continue
    return folders


def total(read: Callable[[Path], int]) -> int:
    """The sum of a figure over this run's processes."""
    amount = 0
    for folder in of_this_run():
        try:
            amount += read(folder)
        except OSError:
            continue
    return amount


def pss_bytes(folder: Path) -> int:
    """Proportional set size of a process: memory shared by n processes counts to each by one n-th."""
    line = next(line for line in (folder / "smaps_rollup").read_text().splitlines() if line.startswith("Pss:"))
    return int(line.split()[1]) * 1024


def cpu_ticks(folder: Path) -> int:
    """User and system time of a process and its ended children."""
    return sum(map(int, (folder / "stat").read_text().rpartition(")")[2].split()[11:15]))


class Phase:
    """Seconds, processor time and peak memory of what runs inside the block."""

    def __init__(self, name: str, found: Found, has_samples: bool):
        self.name, self.found, self.has_samples = name, found, has_samples
        self.peak = 0
        self.sampling_seconds = 0.0
        self.ended = threading.Event()

    def _sample(self) -> None:
        # Adding up the pages of gigabytes takes long: at most a tenth of a core.
        pause = SAMPLE_SECONDS
        while self.has_samples and not self.ended.wait(pause):
            started = time.thread_time()
            self.peak = max(self.peak, total(pss_bytes))
            pause = max(SAMPLE_SECONDS, 10 * (time.thread_time() - started))
        self.sampling_seconds = time.thread_time()

    def __enter__(self) -> None:
        self.peak, self.ticks, self.started = total(pss_bytes), total(cpu_ticks), time.perf_counter()
        self.thread = threading.Thread(target=self._sample)
        self.thread.start()

    def __exit__(self, *_: object) -> None:
        self.found[f"{self.name}_seconds"] = time.perf_counter() - self.started
        self.ended.set()
        self.thread.join()
        self.found[f"{self.name}_cpu_seconds"] = (total(cpu_ticks) - self.ticks) / os.sysconf("SC_CLK_TCK") - self.sampling_seconds
        self.found[f"{self.name}_peak_bytes"] = max(self.peak, total(pss_bytes))


# --- what is measured -----------------------------------------------------------------------------------------------------------------------
class Vector:
    """An encoder as far as the stream sees one."""

    output_dimension = VECTOR_SIZE

    def prepare(self, value: list[float]) -> dict[str, Tensor]:
        return {"vector": torch.tensor(value)}

    def dummy(self) -> dict[str, Tensor]:
        return {"vector": torch.zeros(VECTOR_SIZE)}


def run_ours(tables: str, folder: str, warm_up: str, rows_per_partition: int, has_epoch: bool) -> Found:
    """Prepare and, if asked for, stream one epoch, in a local Ray."""
    from medley.cluster.session import ray_session
    from medley.data.prepare import DataConfig, prepare

    found: Found = {}
    # As many logical CPUs as there are cores: how many of more worker processes have loaded the library by then is chance.
    with ray_session("local", num_cpus=os.cpu_count(), object_store_bytes=OBJECT_STORE_BYTES):
        prepare(warm_up, f"{folder}/warm-up", DataConfig(), seed=0, rows_per_partition=WARM_UP_PARTITION_ROWS)
        with Phase("prepare", found, has_epoch):
            done = prepare(tables, f"{folder}/prepared", DataConfig(), seed=0, rows_per_partition=rows_per_partition)
        found["rows"] = sum(done[f"num_{split}"] for split in ("train", "valid", "test"))
        if has_epoch:
            with Phase("epoch", found, has_samples=True):
                assert stream_epoch(done["prepared"]) == done["num_train"]
    return found


def stream_epoch(uri: str) -> int:
    """Every batch of an epoch; returns the rows that weigh anything."""
    from medley.data.batches import BatchMaker
    from medley.data.plan import Plan
    from medley.data.prepared import PreparedData
    from medley.data.stream import BatchStream, StreamConfig

    torch.set_num_threads(1)
    data = PreparedData.open(uri)
    plan = Plan(len(data.train), MICRO_BATCH_SIZE, NUM_MICRO_BATCHES, seed=0)
    maker = BatchMaker.create(data, plan, history_length=0, attribute_columns=[], whole_catalogue=False)
    stream = BatchStream(maker, {"vector": Vector()}, {"vector": "vector"}, StreamConfig(window_global_batches=1))
    num_rows = 0
    for batches in stream.global_batches(0, 0, range(NUM_MICRO_BATCHES)):
        for batch in batches:
            assert batch.inputs["vector"]["vector"].isfinite().all()
            num_rows += int((batch.row_weight_B > 0).sum())
    stream.close()
    return num_rows


# --- the runs -------------------------------------------------------------------------------------------------------------------------------
def run_apart(command: list[str]) -> Found:
    """The JSON that a program of its own prints last."""
    from medley.cluster.session import WORKER_ENVIRONMENT

    root = Path(__file__).resolve().parents[2]
    environment = {**os.environ, **WORKER_ENVIRONMENT, MARK: uuid.uuid4().hex, "PYTHONPATH": f"{root}:{root / 'src'}"}
    done = subprocess.run(command, env=environment, cwd=root, stdout=subprocess.PIPE, text=True, check=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def ours_apart(tables: Path, warm_up: Path, rows_per_partition: int, has_epoch: bool) -> Found:
    """run_ours in a process and a Ray session of its own."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = [str(tables), folder, str(warm_up), str(rows_per_partition), str(int(has_epoch))]
        return run_apart([sys.executable, "-m", "tests.bench.scale", "--ours", *arguments])


def peer_apart(python: str, tables: Path, warm_up: Path) -> Found:
    """The peer in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        return run_apart([python, "-m", "tests.bench.scale_peer", str(tables), f"{folder}/out", str(warm_up)])


def growth(sweeps: list[dict[int, Found]]) -> tuple[dict[str, float], dict[str, Any]]:
    """Figures and detail of the growing data."""
    first, last = FACTORS[0], FACTORS[-1]

    def seconds_per_row(found: Found, phases: tuple[str, ...] = ("prepare", "epoch"), unit: str = "seconds") -> float:
        return sum(found[f"{phase}_{unit}"] for phase in phases) / found["rows"]

    def peak(found: Found) -> float:
        return max(found["prepare_peak_bytes"], found["epoch_peak_bytes"])

    ratios = {
        "time_per_row_8x": [seconds_per_row(sweep[last]) / seconds_per_row(sweep[first]) for sweep in sweeps],
        "memory_8x": [peak(sweep[last]) / peak(sweep[first]) for sweep in sweeps],
    }
    detail: dict[str, Any] = {name: quartiles(values) for name, values in ratios.items()}
    for phase in ("prepare", "epoch"):
        for factor in FACTORS:
            founds = [sweep[factor] for sweep in sweeps]
            detail[f"{phase}_{factor}x"] = {
                "us_per_row": quartiles([1e6 * seconds_per_row(found, (phase,)) for found in founds])[1],
                "cpu_us_per_row": quartiles([1e6 * seconds_per_row(found, (phase,), "cpu_seconds") for found in founds])[1],
                "peak_mb": quartiles([found[f"{phase}_peak_bytes"] / 1e6 for found in founds])[1],
            }
    return {name: quartiles(values)[1] for name, values in ratios.items()}, detail


def versus(rounds: list[Mapping[str, Found]]) -> tuple[dict[str, float], dict[str, Any]]:
    """Figure and detail of ours beside the peer."""
    if not rounds:
        return {}, {}
    assert all(each["ours"]["rows"] == each["peer"]["rows"] for each in rounds), "the peer keeps other rows"
    ratios = [each["peer"]["seconds"] / each["ours"]["prepare_seconds"] for each in rounds]
    cpu = [each["peer"]["cpu_seconds"] / each["ours"]["prepare_cpu_seconds"] for each in rounds]
    detail = {
        "prepare_vs_single_process": quartiles(ratios),
        "cpu_vs_single_process": quartiles(cpu),
        "ours_rows_per_second": quartiles([each["ours"]["rows"] / each["ours"]["prepare_seconds"] for each in rounds]),
        "peer_rows_per_second": quartiles([each["peer"]["rows"] / each["peer"]["seconds"] for each in rounds]),
        "peer_peak_mb": quartiles([each["peer"]["peak_bytes"] / 1e6 for each in rounds])[1],
    }
    return {"prepare_vs_single_process": quartiles(ratios)[1]}, detail


def main() -> None:
    """Write the data, run all, print one JSON line."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.scale", description="Time and memory while the data grow; prepare beside polars.")
    parser.add_argument("--quick", action="store_true", help=f"1/{QUICK_DIVISOR} of the rows, 1 sweep, 1 round: only shows that it runs")
    parser.add_argument("--ours", nargs=5, help=argparse.SUPPRESS)  # a run's own process
    arguments = parser.parse_args()
    if arguments.ours:
        tables, folder, warm_up, rows_per_partition, has_epoch = arguments.ours
        print(json.dumps(run_ours(tables, folder, warm_up, int(rows_per_partition), has_epoch == "1")))
        return
    from medley.data.partitions import ROWS_PER_PARTITION

    divisor = QUICK_DIVISOR if arguments.quick else 1
    base_rows, partition_rows, peer_rows = BASE_ROWS // divisor, PARTITION_ROWS // divisor, PEER_ROWS // divisor
    num_sweeps, num_rounds = (1, 1) if arguments.quick else (NUM_SWEEPS, NUM_ROUNDS)
    peer = peer_python("polars")
    sweeps, rounds, loads = [], [], []
    with tempfile.TemporaryDirectory() as root:
        tables = {factor: Path(root, f"{factor}x") for factor in FACTORS}
        warm_up = Path(root, "warm-up")
        write_tables(warm_up, WARM_UP_ROWS, round(WARM_UP_ROWS * ITEMS_PER_ROW))
        for factor, folder in tables.items():
            write_tables(folder, factor * base_rows, round(factor * base_rows * ITEMS_PER_ROW))
        peer_tables = Path(root, "peer")
        write_tables(peer_tables, peer_rows, PEER_ITEMS // divisor)
        for number in range(num_sweeps):
            loads.append(round(os.getloadavg()[0], 2))
            order = FACTORS[number % len(FACTORS) :] + FACTORS[: number % len(FACTORS)]
            sweeps.append({factor: ours_apart(tables[factor], warm_up, partition_rows, has_epoch=True) for factor in order})
            print(f"sweep {number + 1} of {num_sweeps} | {sweeps[-1]}", file=sys.stderr)
        for number in range(num_rounds if peer else 0):
            loads.append(round(os.getloadavg()[0], 2))
            found = {}
            for name in ("ours", "peer") if number % 2 == 0 else ("peer", "ours"):
                is_ours = name == "ours"
                found[name] = ours_apart(peer_tables, warm_up, ROWS_PER_PARTITION, has_epoch=False) if is_ours else peer_apart(str(peer), peer_tables, warm_up)
            rounds.append(found)
            print(f"round {number + 1} of {num_rounds} | {rounds[-1]}", file=sys.stderr)
    figures, detail = growth(sweeps)
    more_figures, more_detail = versus(rounds)
    workload = {"base_rows": base_rows, "partition_rows": partition_rows, "peer_rows": peer_rows, "peer": "polars 2.1.0, its default threads"}
    detail |= {**more_detail, "load_average": loads, "workload": workload, "machine": machine()}
    print(json.dumps({"bench": "scale", "figures": {**figures, **more_figures}, "detail": detail}))


if __name__ == "__main__":
    main()
