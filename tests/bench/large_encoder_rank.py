"""What one rank of the large-encoder bench does, in a process of a gloo group of two (`tests/training/two_ranks.py`)."""

from pathlib import Path
from typing import Any, Literal

import torch

from medley.training.config import EngineConfig, OptimizerConfig

OPTIMIZER = OptimizerConfig(learning_rate=1e-4)
Precision = Literal["fp32", "bf16"]


def load(rank: int, tiny: str, folder: str, stage: Literal[0, 3]) -> dict[str, float]:
    """Load the encoder's model in float32. Resident bytes above the process with all libraries loaded and the group up: the peak, and what stayed."""
    from medley.training.sharded_building import announce_sharding
    from tests.training.tiny_text import build_recommender

    with announce_sharding(EngineConfig(zero_stage=stage), 2, torch.device("cpu")):
        build_recommender(tiny)  # imports whatever there is to import
        torch.distributed.barrier()
        before = reset_peak()
        model = build_recommender(folder)
        held = [getattr(parameter, "ds_tensor", parameter).detach() for parameter in model.parameters()]
        assert all(torch.isfinite(weights.sum()) for weights in held)  # looks at every weight: those of a mapped file count when they are read
        torch.distributed.barrier()
        peak, after = memory("VmHWM"), memory("VmRSS")
    return {"peak_bytes": peak - before, "stayed_bytes": after - before, "held_elements": sum(weights.numel() for weights in held)}


def train(rank: int, folder: str, checkpoint: str, precision: Precision) -> dict[str, Any]:
    """ZeRO-3: load, one step, a checkpoint, one more step. Peak bytes of the steps above the process before loading, and the losses."""
    from medley.training.checkpoint_parts import write_part
    from medley.training.sharded_building import announce_sharding
    from tests.training.tiny_text import build_recommender

    before = reset_peak()
    with announce_sharding(_config(precision), 2, torch.device("cpu")):
        engine = _engine(build_recommender(folder), precision)
        losses = [_step(engine, rank)]
        peak = memory("VmHWM") - before
        write_part(checkpoint, rank, engine.snapshot().slices)
        losses.append(_step(engine, rank))
    return {"losses": losses, "step_peak_bytes": peak}


def resume(rank: int, folder: str, checkpoint: str, precision: Precision) -> list[float]:
    """In a new process: the step after the checkpoint."""
    import json

    from medley.training.checkpoint import load_weights
    from medley.training.checkpoint_parts import StoredState, index_file
    from medley.training.sharded_building import announce_sharding
    from tests.training.tiny_text import build_recommender, make_batch

    with announce_sharding(_config(precision), 2, torch.device("cpu")):
        state = StoredState(checkpoint, [json.loads(Path(checkpoint, index_file(part)).read_text()) for part in range(2)], 1)
        model = build_recommender(folder, pretrained=False)
        load_weights(model, state, rank)
        engine = _engine(model, precision)
        batch = make_batch(engine.model, *_rows(rank))
        engine.restore(state, prime=lambda: engine.forward(batch)[0].sum())
        return [_step(engine, rank)]


def _config(precision: Precision) -> EngineConfig:
    return EngineConfig(zero_stage=3, precision=precision)


def _engine(model: Any, precision: Precision) -> Any:
    from medley.training.engine import DeepSpeedEngine

    rates = {"text": None, "vector": None}
    return DeepSpeedEngine(model, OPTIMIZER, rates, _config(precision), micro_batch_size=2, micro_batches_per_rank=1, device=torch.device("cpu"))


def _rows(rank: int) -> tuple[list[int], list[int]]:
    """Users and items of a rank's micro-batch."""
    return ([0, 1], [0, 2]) if rank == 0 else ([2, 3], [1, 3])


def _step(engine: Any, rank: int) -> float:
    """One optimiser step; this rank's share of the loss."""
    from medley.losses import InBatchSoftmaxConfig, batch_loss
    from tests.training.tiny_text import NUM_ITEMS, make_batch

    torch.manual_seed(rank)
    batch = make_batch(engine.model, *_rows(rank))
    loss = batch_loss(InBatchSoftmaxConfig(temperature=1.0), engine.forward(batch), batch, torch.arange(1, NUM_ITEMS + 1), 21, 2) / 4
    engine.backward(loss * 2)
    engine.step(1.0)
    return float(loss.detach())


def reset_peak() -> int:
    """Begin a new peak; returns the resident bytes now."""
    Path("/proc/self/clear_refs").write_text("5")
    return memory("VmRSS")


def memory(field: Literal["VmRSS", "VmHWM"]) -> int:
    """Resident bytes of this process now, or their peak."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024
