"""python -m tests.bench.tables [--quick]: a step of a table of 10 million rows × 64 shared out over 2 ranks, beside the same table held dense.

- sharded: 2 processes over gloo, each with half of the rows, `sparse_adam`; a step reads BATCH_SIZE rows a rank, drawn by popularity
- dense: nn.Embedding with a whole gradient and fused AdamW, one process, a step reads 2 × BATCH_SIZE rows. A second rank would not fit beside it here; it
  would add the exchange of the whole gradient to each step, so the ratio is the kindest to dense

Rounds are interleaved, each in processes of its own. Figure: `table_step_vs_dense`, seconds of a step, sharded over dense (goal: at most 0.2), the median
of the rounds. The detail has memory by rank, and the largest difference of a loss between the 2 ranks and torch's SparseAdam over a dense table in
one process (a small table, as many steps).
"""

import argparse
import json
import os
import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing
from torch import Tensor, nn

from medley.training.config import OptimizerConfig
from medley.training.row_update import BETAS, EPSILON
from medley.training.sharded_table import make_sharded
from medley.training.table_updates import TableUpdates
from tests.bench.figures import machine, quartiles

NUM_ROWS, QUICK_ROWS, SMALL_ROWS, WIDTH, BATCH_SIZE = 10_000_000, 200_000, 5_000, 64, 8192
NUM_RANKS, NUM_ROUNDS = 2, 3
NUM_WARM_UP, NUM_STEPS, NUM_DENSE_STEPS = 3, 20, 4
CONFIG = OptimizerConfig(table_learning_rate=0.01, gradient_clipping=1e9)

Found = dict[str, Any]


def rows_read(num_rows: int, step: int, rank: int) -> Tensor:
    """(BATCH_SIZE,) numbers of rows, small ones more often."""
    uniform = torch.rand(BATCH_SIZE, generator=torch.Generator().manual_seed(NUM_RANKS * step + rank))
    return (num_rows * uniform.double() ** 3).long()


def loss_of(vectors_BD: Tensor) -> Tensor:
    """Any function of the rows."""
    return (vectors_BD.sum(dim=1) - 1).square().mean()


def sharded_steps(num_rows: int, num_steps: int, rank: int) -> Iterator[float]:
    """The loss of each step over all ranks."""
    table = make_sharded("sparse_adam", 0, rank, NUM_RANKS, torch.device("cpu"), torch.float32)(num_rows, WIDTH, deviation=0.01)
    updates = TableUpdates(nn.ModuleDict({"table": table}), CONFIG)
    for step in range(num_steps):
        loss = loss_of(table(rows_read(num_rows, step, rank)))
        loss.backward()
        updates.collect()
        updates.update(updates.norm, learning_rate_factor=1.0)
        mean = loss.detach() / NUM_RANKS
        dist.all_reduce(mean)
        yield mean.item()


def sharded_rank(rank: int, folder: str, num_rows: int) -> None:
    """One of the ranks; rank 0 writes what it found."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=NUM_RANKS)
    before, seconds, started = peak_bytes(), [], time.perf_counter()
    for _ in sharded_steps(num_rows, NUM_WARM_UP + NUM_STEPS, rank):
        seconds.append(time.perf_counter() - started)
        started = time.perf_counter()
    losses = list(sharded_steps(SMALL_ROWS, NUM_STEPS, rank))
    if rank == 0:
        difference = max(abs(own - other) for own, other in zip(losses, dense_losses(rank), strict=True))
        write(folder, {"seconds": float(np.median(seconds[NUM_WARM_UP:])), "bytes": peak_bytes() - before, "largest_loss_difference": difference})
    dist.barrier()
    dist.destroy_process_group()


def dense_losses(rank: int) -> list[float]:
    """The same losses from a dense table in one process with torch's SparseAdam."""
    own = make_sharded("sparse_adam", 0, 0, 1, torch.device("cpu"), torch.float32)(SMALL_ROWS, WIDTH, deviation=0.01)
    table = nn.Embedding.from_pretrained(own.weight_own.clone(), freeze=False, sparse=True)
    optimizer = torch.optim.SparseAdam(table.parameters(), lr=0.01, betas=BETAS, eps=EPSILON)
    losses = []
    for step in range(NUM_STEPS):
        loss = loss_of(table(torch.cat([rows_read(SMALL_ROWS, step, rank) for rank in range(NUM_RANKS)])))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def dense_process(_: int, folder: str, num_rows: int) -> None:
    """The dense table, all in one process."""
    torch.set_num_threads(NUM_RANKS)
    before, seconds = peak_bytes(), []
    table = nn.Embedding(num_rows, WIDTH)
    optimizer = torch.optim.AdamW(table.parameters(), lr=0.01, fused=True)
    for step in range(1 + NUM_DENSE_STEPS):
        started = time.perf_counter()
        loss_of(table(torch.cat([rows_read(num_rows, step, rank) for rank in range(NUM_RANKS)]))).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)
        seconds.append(time.perf_counter() - started)
    write(folder, {"seconds": float(np.median(seconds[1:])), "bytes": peak_bytes() - before})


def peak_bytes() -> int:
    """Most memory that this process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def write(folder: str, found: Found) -> None:
    """What a process found, for the parent."""
    with open(f"{folder}/found.json", "w") as file:
        json.dump(found, file)


def run(function: Any, num_processes: int, num_rows: int) -> Found:
    """Start processes and wait for them; what one of them found."""
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(function, (folder, num_rows), nprocs=num_processes)
        with open(f"{folder}/found.json") as file:
            return dict(json.load(file))


def main() -> None:
    """Measure, print one JSON line."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.tables", description="A step of a sharded table beside a dense one.")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_ROWS} rows, one round: only shows that it runs")
    quick = parser.parse_args().quick
    num_rows, rounds, loads = QUICK_ROWS if quick else NUM_ROWS, [], []
    for number in range(1 if quick else NUM_ROUNDS):
        loads.append(round(os.getloadavg()[0], 2))
        rounds.append({"sharded": run(sharded_rank, NUM_RANKS, num_rows), "dense": run(dense_process, 1, num_rows)})
        print(f"round {number + 1} | {rounds[-1]}", file=sys.stderr)
    ratios = [each["sharded"]["seconds"] / each["dense"]["seconds"] for each in rounds]
    detail = {
        "table_step_vs_dense": quartiles(ratios, 4),
        "rounds": rounds,
        "rows": num_rows,
        "width": WIDTH,
        "rows_read_per_step": NUM_RANKS * BATCH_SIZE,
        "load_average": loads,
        "machine": machine(),
    }
    print(json.dumps({"bench": "tables", "figures": {"table_step_vs_dense": round(float(np.median(ratios)), 4)}, "detail": detail}))


if __name__ == "__main__":
    main()
