"""python -m tests.bench.training [--quick]: steps of training beside the same loop without Ray, DDP, and a loop without checkpoints.

A text encoder (BERT of 6 layers × 384), 16 texts of 64 tokens a rank, 2 ranks over gloo with one thread each, no accumulation.

- zero2: our engine at ZeRO-2 in bf16, started by torchrun
- ray: the same function in the workers of Ray Train
- ddp: torch's DistributedDataParallel under bf16 autocast with fused AdamW and clipping, started by torchrun
- checkpoints: zero2 with a checkpoint every CHECKPOINT_EVERY steps, in turn with blocks of steps without

Rounds are interleaved, each in processes of its own; the first steps do not count. Figures, medians of the rounds: `ray_vs_torchrun` (steps/s of ray over
zero2; goal 0.98), `zero2_bf16_vs_ddp_bf16` (zero2 over ddp; goal 0.95), `optimizer_bytes_ratio` (moments held by a rank, zero2 over ddp; goal 0.52),
`checkpoint_overhead` (share of time that checkpoints add; goal 0.05).
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from tests.bench.figures import machine, quartiles

NUM_RANKS, BATCH_SIZE, NUM_TOKENS = 2, 16, 64
NUM_WARM_UP, NUM_STEPS, NUM_ROUNDS = 5, 40, 3
CHECKPOINT_EVERY, NUM_BLOCKS = 20, 4
QUICK_STEPS = 4
LOOPS = ("zero2", "ddp", "ray", "checkpoints")

Found = dict[str, float]


class Tower(nn.Module):
    """Texts → the softmax loss of each against the others of its micro-batch."""

    def __init__(self) -> None:
        super().__init__()
        from transformers import BertConfig, BertModel

        torch.manual_seed(0)
        self.encoder = BertModel(
            BertConfig(hidden_size=384, num_hidden_layers=6, num_attention_heads=6, intermediate_size=1536, vocab_size=30_522), add_pooling_layer=False
        )

    def forward(self, tokens_BT: Tensor) -> tuple[Tensor]:
        vectors_BD = self.encoder(tokens_BT).last_hidden_state.mean(dim=1)
        scores_BB = nn.functional.normalize(vectors_BD.float(), dim=1) @ vectors_BD.float().T
        return (nn.functional.cross_entropy(scores_BB, torch.arange(len(scores_BB))),)


def tokens_of(step: int, rank: int) -> Tensor:
    """(BATCH_SIZE, NUM_TOKENS) of a rank's micro-batch."""
    return torch.randint(30_522, (BATCH_SIZE, NUM_TOKENS), generator=torch.Generator().manual_seed(NUM_RANKS * step + rank))


def timed(step: Callable[[int], None], num_steps: int) -> float:
    """Seconds of so many steps, of the slowest rank."""
    dist.barrier()
    started = time.perf_counter()
    for number in range(num_steps):
        step(number)
    dist.barrier()
    return time.perf_counter() - started


def zero2_engine() -> Any:
    """Our engine over the tower."""
    from medley.training.config import EngineConfig, OptimizerConfig
    from medley.training.engine import DeepSpeedEngine

    model: Any = Tower()
    config = EngineConfig(zero_stage=2, precision="bf16")
    device = torch.device("cpu")
    return DeepSpeedEngine(model, OptimizerConfig(), {}, config, micro_batch_size=BATCH_SIZE, micro_batches_per_rank=1, device=device)


def zero2(num_steps: int) -> Found:
    """Steps/s of our engine, and the bytes of the moments that this rank holds."""
    engine, rank = zero2_engine(), dist.get_rank()

    def step(number: int) -> None:
        engine.backward(engine.forward(tokens_of(number, rank))[0])
        engine.step(1.0)

    timed(step, NUM_WARM_UP)
    seconds = timed(step, num_steps)
    moments = sum(each.values.nbytes for each in engine.snapshot().slices if "/exp_avg" in each.name)
    return {"steps_per_second": num_steps / seconds, "optimizer_bytes": moments}


def ddp(num_steps: int) -> Found:
    """The same of torch's DistributedDataParallel."""
    model, rank = nn.parallel.DistributedDataParallel(Tower()), dist.get_rank()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)

    def step(number: int) -> None:
        with torch.autocast("cpu", torch.bfloat16):
            (loss,) = model(tokens_of(number, rank))
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    timed(step, NUM_WARM_UP)
    seconds = timed(step, num_steps)
    moments = sum(state[name].nbytes for state in optimizer.state.values() for name in ("exp_avg", "exp_avg_sq"))
    return {"steps_per_second": num_steps / seconds, "optimizer_bytes": moments}


def checkpoints(num_steps: int) -> Found:
    """Seconds of blocks of steps that begin with a checkpoint over those of blocks that do not, less one."""
    from medley.training.checkpoint import Progress
    from medley.training.checkpoint_writing import CheckpointWriter
    from medley.training.seat import Seat

    engine, rank = zero2_engine(), dist.get_rank()
    folder = [tempfile.mkdtemp() if rank == 0 else ""]
    dist.broadcast_object_list(folder)
    seconds: dict[bool, list[float]] = {True: [], False: []}
    with CheckpointWriter(folder[0], "bench", {}, keep=1, seat=Seat(rank, dist.get_world_size())) as writer:

        def step(number: int) -> None:
            engine.backward(engine.forward(tokens_of(number, rank))[0])
            engine.step(1.0)
            writer.check()

        timed(step, NUM_WARM_UP)
        for block in range(2 * NUM_BLOCKS):
            saves = block % 2 == 1

            def first_saves(number: int, block: int = block, saves: bool = saves) -> None:
                if number == 0 and saves:
                    writer.save(engine.snapshot, Progress(step=block), None)
                step(number)

            seconds[saves].append(timed(first_saves, num_steps))
            writer.close()  # what is still being written does not count against a block without
    return {"checkpoint_overhead": float(np.median(seconds[True]) / np.median(seconds[False]) - 1)}


def in_torchrun(name: str, num_steps: int) -> None:
    """A rank that torchrun started; rank 0 prints what it found."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    found = {"zero2": zero2, "ddp": ddp, "checkpoints": checkpoints}[name](num_steps)
    if dist.get_rank() == 0:
        print(json.dumps(found))
    dist.destroy_process_group()


def in_ray_worker(settings: dict[str, Any]) -> Found:
    """The training function of Ray Train."""
    torch.set_num_threads(1)
    return zero2(settings["num_steps"])


def run(name: str, num_steps: int) -> Found:
    """One loop, in processes of its own."""
    if name == "ray":
        return run_on_ray(num_steps)
    root = Path(__file__).resolve().parents[2]
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={NUM_RANKS}", "--local-ranks-filter=0"]
    command = [sys.executable, *launcher, "-m", "tests.bench.training", "--loop", name, "--steps", str(num_steps)]
    environment = {**os.environ, "PYTHONPATH": f"{root}:{root / 'src'}", "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    done = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    return dict(json.loads(next(line for line in reversed(done.stdout.splitlines()) if line.startswith("{"))))


def run_on_ray(num_steps: int) -> Found:
    """zero2 in the workers of Ray Train."""
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    from medley.cluster.session import ray_session

    with ray_session("local"), tempfile.TemporaryDirectory() as storage:
        scaling, settings = ScalingConfig(num_workers=NUM_RANKS), {"num_steps": num_steps}
        return dict(
            TorchTrainer(in_ray_worker, train_loop_config=settings, scaling_config=scaling, run_config=RunConfig(storage_path=storage)).fit().return_value
        )


def main() -> None:
    """Measure, print one JSON line."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.training", description="Steps of training beside torchrun, DDP and no checkpoints.")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_STEPS} steps, one round: only shows that it runs")
    parser.add_argument("--loop", help=argparse.SUPPRESS)  # a rank's own process
    parser.add_argument("--steps", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.loop:
        in_torchrun(arguments.loop, arguments.steps)
        return
    rounds, loads = [], []
    for number in range(1 if arguments.quick else NUM_ROUNDS):
        loads.append(round(os.getloadavg()[0], 2))
        order = LOOPS[number % len(LOOPS) :] + LOOPS[: number % len(LOOPS)]
        steps = {name: QUICK_STEPS if arguments.quick else CHECKPOINT_EVERY if name == "checkpoints" else NUM_STEPS for name in LOOPS}
        rounds.append({name: run(name, steps[name]) for name in order})
        print(f"round {number + 1} | {rounds[-1]}", file=sys.stderr)
    ratios = {
        "ray_vs_torchrun": [each["ray"]["steps_per_second"] / each["zero2"]["steps_per_second"] for each in rounds],
        "zero2_bf16_vs_ddp_bf16": [each["zero2"]["steps_per_second"] / each["ddp"]["steps_per_second"] for each in rounds],
        "optimizer_bytes_ratio": [each["zero2"]["optimizer_bytes"] / each["ddp"]["optimizer_bytes"] for each in rounds],
        "checkpoint_overhead": [each["checkpoints"]["checkpoint_overhead"] for each in rounds],
    }
    detail = {"quartiles": {name: quartiles(values, 4) for name, values in ratios.items()}, "rounds": rounds, "load_average": loads, "machine": machine()}
    print(json.dumps({"bench": "training", "figures": {name: quartiles(values, 4)[1] for name, values in ratios.items()}, "detail": detail}))


if __name__ == "__main__":
    main()
