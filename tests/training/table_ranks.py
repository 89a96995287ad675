"""What the ranks of test_sharded_table.py and test_tables_in_engines.py compute; a world of one computes the same."""

from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import Tensor, nn

from medley.training.checkpoint_parts import write_part
from medley.training.config import EngineConfig, OptimizerConfig
from medley.training.engine import DeepSpeedEngine, Engine, TorchEngine
from medley.training.row_update import ROW_STATES, RowOptimizer
from medley.training.sharded_table import make_sharded
from medley.training.table_updates import TableUpdates

CPU = torch.device("cpu")
NUM_ROWS, WIDTH, NUM_STEPS, MICRO_BATCHES = 300, 3, 6, 4
CONFIG = OptimizerConfig(learning_rate=0.02, table_learning_rate=0.05, table_weight_decay=0.1, gradient_clipping=0.02)

Held = tuple[Literal["torch", 0, 1, 2, 3], Literal["fp32", "bf16"]]
"""How an engine holds a model: plain torch or a ZeRO stage, and the precision."""


class Tables(nn.Module):
    """A table of vectors and one of biases, as a model has them; layers that are no tables on request."""

    def __init__(self, optimizer: RowOptimizer, rank: int, num_ranks: int, *, has_layers: bool = False, dtype: torch.dtype = torch.float32):
        super().__init__()
        torch.manual_seed(0)
        make = make_sharded(optimizer, 3, rank, num_ranks, CPU, dtype)
        self.vectors = make(NUM_ROWS, WIDTH, deviation=0.5)
        self.biases = make(NUM_ROWS, 1, deviation=0.0)
        self.layers = nn.Sequential(nn.Linear(WIDTH, 5), nn.Tanh(), nn.Linear(5, WIDTH)) if has_layers else nn.Identity()

    def forward(self, index_BL: Tensor) -> tuple[Tensor]:
        """A loss, any function of the rows; a row that is read twice counts twice."""
        return (((self.layers(self.vectors(index_BL)).sum(dim=-1) + self.biases(index_BL).squeeze(-1)).float() - 1).square().mean(),)


def micro_batches(step: int, rank: int, num_ranks: int) -> Iterator[Tensor]:
    """(5, 2) numbers of rows of each micro-batch of a rank; micro-batches share some, and the second of the first step is the same row ten times."""
    for number in range(rank, MICRO_BATCHES, num_ranks):
        if (step, number) == (0, 1):
            yield torch.full((5, 2), 299)
        else:
            yield torch.randint(NUM_ROWS if number % 2 else 20, (5, 2), generator=torch.Generator().manual_seed(100 * step + number))


def train(optimizer: RowOptimizer, rank: int = 0, num_ranks: int = 1) -> tuple[Tables, list[float]]:
    """The tables alone, trained, and the norm of the gradient at each step."""
    tables, norms = Tables(optimizer, rank, num_ranks), []
    updates = TableUpdates(tables, CONFIG)
    for step in range(NUM_STEPS):
        for index_BL in micro_batches(step, rank, num_ranks):
            (tables(index_BL)[0] / (MICRO_BATCHES // num_ranks)).backward()
        updates.collect()
        updates.update(updates.norm, learning_rate_factor=1 / (1 + step))
        norms.append(updates.norm)
    return tables, norms


def train_on_rank(rank: int) -> dict[str, Any]:
    """Of two: for each optimiser the norms, the slices that this rank owns and the whole tables, as look-ups show them."""
    found: dict[str, Any] = {}
    for optimizer in ROW_STATES:
        tables, norms = train(optimizer, rank, 2)
        every_row = torch.arange(NUM_ROWS).view(2, -1)
        with torch.no_grad():
            read = {"vectors": tables.vectors(every_row), "biases": tables.biases(every_row)}
        owned = {
            (name, own.state, own.first_row): own.values.clone()
            for name, table in (("vectors", tables.vectors), ("biases", tables.biases))
            for own in table.slices()
        }
        found[optimizer] = {"norms": norms, "read": read, "owned": owned}
    return found


def make_engine(held: Held, rank: int, num_ranks: int, *, has_layers: bool = True) -> Engine:
    """An engine over a model of tables and layers."""
    kind, precision = held
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    model: Any = Tables("sparse_adam", rank, num_ranks, has_layers=has_layers, dtype=dtype)
    if kind == "torch":
        return TorchEngine(model, CONFIG, {}, MICRO_BATCHES // num_ranks)
    config = EngineConfig(zero_stage=kind, precision=precision)
    return DeepSpeedEngine(model, CONFIG, {}, config, micro_batch_size=5, micro_batches_per_rank=MICRO_BATCHES // num_ranks, device=CPU)


def run_steps(engine: Engine, first: int, num_steps: int, rank: int = 0, num_ranks: int = 1) -> list[float]:
    """The sum of a rank's losses in each step."""
    losses = []
    for step in range(first, first + num_steps):
        total = 0.0
        for index_BL in micro_batches(step, rank, num_ranks):
            (loss,) = engine.forward(index_BL)
            engine.backward(loss)
            engine.step(1 / (1 + step))
            total += loss.item()
        losses.append(total)
    return losses


def run_on_rank(rank: int, held: Held, folder: str, has_layers: bool) -> list[float]:
    """Of two: three steps, a checkpoint in the folder, three more."""
    engine = make_engine(held, rank, 2, has_layers=has_layers)
    losses = run_steps(engine, 0, 3, rank, 2)
    write_part(folder, rank, engine.snapshot().slices)
    return losses + run_steps(engine, 3, 3, rank, 2)
