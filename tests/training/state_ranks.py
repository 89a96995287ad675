"""What the ranks of test_elastic_state.py compute; a world of one computes the same."""

import json
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from medley.training.checkpoint import load_weights
from medley.training.checkpoint_parts import StoredState, index_file, write_part
from medley.training.config import EngineConfig, OptimizerConfig
from medley.training.engine import DeepSpeedEngine

STAGES = (0, 1, 2, 3)
MICRO_BATCHES, FIRST, LAST = 2, 3, 6
CONFIG = OptimizerConfig(learning_rate=0.03, table_learning_rate=0.1, weight_decay=0.1)


class Chain(nn.Module):
    """A table, matrices, a frozen one, a norm and a buffer; 7 × 3 and 3 × 5 weights divide by no number of ranks."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.item_id = nn.Embedding(7, 3)
        self.frozen = nn.Linear(3, 3).requires_grad_(False)
        self.mix = nn.Linear(3, 5)
        self.norm = nn.LayerNorm(5)
        self.out = nn.Linear(5, 1)
        self.register_buffer("count_N", torch.arange(4))

    def forward(self, items_B: Tensor) -> tuple[Tensor, ...]:
        return (self.out(self.norm(self.mix(self.frozen(self.item_id(items_B))))).squeeze(-1),)


def build(model: nn.Module, stage: int, num_ranks: int) -> DeepSpeedEngine:
    held = EngineConfig(zero_stage=stage, bucket_elements=1000)
    return DeepSpeedEngine(model, CONFIG, {}, held, micro_batch_size=4, micro_batches_per_rank=MICRO_BATCHES // num_ranks, device=torch.device("cpu"))


def train(engine: DeepSpeedEngine, first: int, last: int, rank: int, num_ranks: int) -> list[float]:
    """This rank's share of each step's loss; the rows follow from step and micro-batch alone."""
    losses = []
    for step in range(first, last):
        shares = []
        for micro_batch in range(rank, MICRO_BATCHES, num_ranks):
            loss = (engine.forward((torch.arange(4) + step + 2 * micro_batch) % 7)[0] - 1).square().mean()
            engine.backward(loss)
            engine.step(1.0 / (1 + step))
            shares.append(loss.item() / MICRO_BATCHES)
        losses.append(sum(shares))
    return losses


def save_at_every_stage(rank: int, num_ranks: int, folder: str) -> dict[int, list[float]]:
    """Stage → this rank's losses after step FIRST, of which the state is in `folder`/STAGE."""
    losses = {}
    for stage in STAGES:
        engine = build(Chain(), stage, num_ranks)
        train(engine, 0, FIRST, rank, num_ranks)
        write_part(f"{folder}/{stage}", rank, engine.snapshot().slices)
        losses[stage] = train(engine, FIRST, LAST, rank, num_ranks)
    return losses


def stored(folder: str) -> StoredState:
    """Of as many ranks as wrote there."""
    num_parts = len(list(Path(folder).glob("part-*.json")))
    return StoredState(folder, [json.loads(Path(folder, index_file(number)).read_text()) for number in range(num_parts)], FIRST)


def resume_at_every_stage(rank: int, num_ranks: int, source: str, target: str) -> dict[int, list[float]]:
    """Stage → this rank's losses when it goes on from `source`; what it then holds, before any step, is written to `target`/STAGE."""
    losses = {}
    for stage in STAGES:
        model = Chain()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.fill_(9.0)
        load_weights(model, stored(source), rank)
        engine = build(model, stage, num_ranks)
        engine.restore(stored(source), prime=prime_of(engine))
        snapshot = engine.snapshot()
        assert snapshot.num_steps == FIRST
        write_part(f"{target}/{stage}", rank, snapshot.slices)
        losses[stage] = train(engine, FIRST, LAST, rank, num_ranks)
    return losses


def prime_of(engine: DeepSpeedEngine) -> Callable[[], Tensor]:
    """A forward pass whose outcome depends on every weight."""
    return lambda: engine.forward(torch.arange(4))[0].sum()
