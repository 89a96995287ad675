"""Ranks that are threads of one process, and checkpoints of their making: what a test of checkpoints needs of a training."""

import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from medley.index.scorer import Scorer
from medley.training.checkpoint import Progress
from medley.training.checkpoint_parts import Snapshot, TensorSlice
from medley.training.checkpoint_writing import CheckpointWriter

IDENTITY = "feedc0ffee123456"


class ThreadSeat:
    """What `Seat` is to processes: a rank that meets the others in `gather`."""

    def __init__(self, rank: int, barrier: threading.Barrier, board: list[Any]):
        self.rank, self.num_ranks = rank, len(board)
        self.barrier, self.board = barrier, board

    def gather(self, value: Any) -> list[Any]:
        self.board[self.rank] = value
        self.barrier.wait()
        values = list(self.board)
        self.barrier.wait()
        return values


def on_ranks(num_ranks: int, work: Callable[[Any], Any]) -> list[Any]:
    """What `work(seat)` returns or raises on each rank, all at the same time."""
    barrier, board, results = threading.Barrier(num_ranks, timeout=30), [None] * num_ranks, [None] * num_ranks

    def one(rank: int) -> None:
        try:
            results[rank] = work(ThreadSeat(rank, barrier, board))
        except Exception as error:
            results[rank] = error
            time.sleep(0.2)  # others may be on their way out of the same meeting, to raise the same
            barrier.abort()

    threads = [threading.Thread(target=one, args=(rank,)) for rank in range(num_ranks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def snapshot_of(step: int, rank: int = 0, num_ranks: int = 1) -> Snapshot:
    """This rank's share of a state whose every number follows from the step: 7 × 3 weights and one moment in ranges, a buffer of rank 0."""
    size = -(-21 // num_ranks)
    start, stop = min(21, rank * size), min(21, (rank + 1) * size)
    # In numpy: torch's thread pool does not live through a fork, and tests of crashes fork.
    elements = np.arange(start, stop, dtype=np.float32)
    values = {"mix.weight": elements + np.float32(step), "mix.weight/exp_avg": elements / np.float32(10) - np.float32(step)}
    slices = [TensorSlice(name, (7, 3), start, torch.from_numpy(value)) for name, value in values.items()]
    if rank == 0:
        slices.append(TensorSlice("count_N", (2,), 0, torch.from_numpy(np.array([step, 2]))))
    return Snapshot(slices, num_steps=step)


def write(folder: Path | str, *steps: int, num_ranks: int = 1, keep: int = 99, scorer: Scorer | None = None, most_failures: int = 1, **progress: Any) -> None:
    """Checkpoints of these steps, one after the other, by ranks that are threads; raises what a rank raises first."""

    def work(seat: Any) -> None:
        held = {"num_ranks": num_ranks, "zero_stage": 3}
        with CheckpointWriter(str(folder), IDENTITY, held, keep=keep, seat=seat, most_failures=most_failures) as writer:
            for step in steps:
                writer.save(partial(snapshot_of, step, seat.rank, num_ranks), Progress(step=step, **progress), scorer)

    errors = [result for result in on_ranks(num_ranks, work) if result is not None]
    if errors:
        raise min(errors, key=lambda error: isinstance(error, threading.BrokenBarrierError))
