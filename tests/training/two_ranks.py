"""Two processes in one gloo group that run functions of tests on demand: what Ray Train's workers are, without Ray."""

import multiprocessing
import os
import socket
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any

RankFunction = Callable[..., Any]
TwoRanks = Callable[..., list[Any]]


@contextmanager
def two_ranks() -> Iterator[TwoRanks]:
    """`call(function, *arguments)` runs function(rank, *arguments) on both ranks and returns both results; a failure on either is raised."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    pipes = [context.Pipe() for _ in range(2)]
    processes = [context.Process(target=_serve, args=(rank, port, pipes[rank][1]), daemon=True) for rank in range(2)]
    for process in processes:
        process.start()

    def call(function: RankFunction, *arguments: Any) -> list[Any]:
        for near, _ in pipes:
            near.send((function, arguments))
        results = [near.recv() if near.poll(timeout=280) else TimeoutError("no answer in 280 s") for near, _ in pipes]
        for result in results:
            if isinstance(result, Exception):
                raise result
        return results

    try:
        yield call
    finally:
        for near, _ in pipes:
            near.send(None)
        for process in processes:
            process.join(timeout=5)
            process.kill()


def _serve(rank: int, port: int, pipe: Connection) -> None:
    os.environ |= {"LOCAL_RANK": str(rank), "RANK": str(rank), "WORLD_SIZE": "2", "DS_ACCELERATOR": "cpu"}
    import torch

    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    while (asked := pipe.recv()) is not None:
        function, arguments = asked
        try:
            pipe.send(function(rank, *arguments))
        except Exception:  # of any kind: the test is to see it
            pipe.send(RuntimeError(f"rank {rank}: {traceback.format_exc()}"))
